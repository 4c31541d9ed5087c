"""Where tests with the mark `gpu` run.

That is a CUDA device. With TINYZERO_TEST_DEVICE=cpu they run on the CPU, where only their own logic is tested. Those
that ask for something of CUDA are then left out.
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
