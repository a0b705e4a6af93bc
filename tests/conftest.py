"""One thread a test process: two workers with two threads each fight over two cores.

Without a GPU Triton's interpreter runs the kernels; it is asked for before triton is imported.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
