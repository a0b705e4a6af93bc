"""Numbers of papers that stand beside ours: those alone that were read off their figures.

Shapes are to be compared, not absolutes: other machines, models of other sizes.
"""

READ_OFF = "read off a figure, ±5 %"

GPU_SPEED_UP_BATCHES = (1, 4, 16, 64, 256, 1024)
GPU_SPEED_UP = {
    "rmc1": (0.37, 0.5, 0.83, 1.02, 1.12, 1.10),
    "rmc2": (0.44, 0.72, 1.02, 1.18, 1.18, 1.17),
    "rmc3": (0.7, 1.4, 1.8, 2.4, 3.0, 3.1),
    "ncf": (0.25, 0.33, 0.38, 0.95, 1.7, 2.9),
    "wnd": (0.47, 0.62, 0.83, 1.6, 3.3, 4.6),
}
"""Of a GTX 1080 Ti over one Skylake, by preset and batch size.

Source: Gupta et al. 2020, DeepRecSys, arXiv:2001.02772.
"""

COPIES_LATENCY = {
    "Broadwell": ((1, 10, 20, 25, 45), (0.55, 1.55, 2.05, 2.8, 2.8)),
    "Skylake": ((1, 10, 20, 25, 45), (0.70, 1.35, 2.2, 2.8, 2.8)),
}
"""Mean latency, ms, against copies on one machine; 25 to 45 are its plateau, 2.7 to 2.9.

Source: Gupta et al. 2020, arXiv:1906.03109, section 6.
"""

TUNED_TO_STATIC = {
    "rmc1": {"low": 2.5, "medium": 5.9, "high": 6.2},
    "rmc2": {"low": 1.0, "medium": 2.5, "high": 2.6},
    "rmc3": {"low": 3.5, "medium": 3.7, "high": 6.5},
    "ncf": {"low": 1.2, "medium": 1.4, "high": 1.2},
    "wnd": {"low": 2.2, "medium": 1.2, "high": 1.8},
}
"""Queries a second of DeepRecSched over those of the static B, CPUs alone, by preset and SLA.

Source: Gupta et al. 2020, DeepRecSys, arXiv:2001.02772.
"""
