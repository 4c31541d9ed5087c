"""Triton's kernels of a decode step agree with the plain functions in float64 on a CUDA device."""

from __future__ import annotations

import pytest

from tests.decode_kernel_cases import errors
from tests.devices import DEVICE, cuda_only, on_device

pytestmark = [*on_device, cuda_only]


def test_every_kernel_of_a_decode_step_is_as_exact_as_its_dtype():
    pytest.importorskip("triton")
    from tinyzero_astar.engine import decode_kernels

    found = errors(decode_kernels, str(DEVICE))
    assert {what: error for what, error in found.items() if not error <= 1} == {}
