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
