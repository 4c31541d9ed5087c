"""Where tests with the mark `gpu` run.

That is a CUDA device. With TINYZERO_TEST_DEVICE=cpu they run on the CPU, where only their own logic is tested. Those
that ask for something of CUDA are then left out.

On an H200 beside four slow CPU cores they took about 220 s in one process, with no kernel compiled before. Kernels take
0.1 to 2 s each to compile, attention in float32 longest, and a whole run some seconds. So shapes, dtypes and runs that
showed nothing of their own were taken out. How long the tests take since then is not measured.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.decoding import Tape
from tinyzero_astar.engine.cuda_graphs import CudaGraphs

DEVICE = torch.device(os.environ.get("TINYZERO_TEST_DEVICE", "cuda"))
IS_CUDA = DEVICE.type == "cuda"
on_device = [
    pytest.mark.gpu,
    pytest.mark.skipif(IS_CUDA and not torch.cuda.is_available(), reason="there is no CUDA device"),
]
cuda_only = pytest.mark.skipif(not IS_CUDA, reason="needs CUDA itself")


def on_cuda(test):
    """A test among others that needs CUDA itself."""
    for mark in (*on_device, cuda_only):
        test = mark(test)
    return test


def make_recorder():
    """Of decode steps."""
    return CudaGraphs() if IS_CUDA else Tape()
