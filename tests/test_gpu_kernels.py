"""Triton's kernels of a decode step agree with the plain functions in float64 on a CUDA device.

Each shape and dtype is compiled anew, which takes longer than all else. The shapes that no model has are compiled in
bfloat16 alone. The interpreter does all of them in `test_fused_decode.py`.
"""

from __future__ import annotations

import pytest

from tests.decode_kernel_cases import CASES, SHAPES, errors
from tests.devices import DEVICE, cuda_only, on_device

pytestmark = [*on_device, cuda_only]

MODELS = ("7x64", "6x128", "2x128")  # queries for each key and widths of heads, of which the last have norms


def test_every_kernel_of_a_decode_step_is_as_exact_as_its_dtype():
    pytest.importorskip("triton")
    from tinyzero_astar.engine import decode_kernels

    cases = [name for name in CASES if name.startswith("bfloat16") or name.endswith(MODELS)]
    found = errors(decode_kernels, str(DEVICE), cases, SHAPES[::2])
    assert {what: error for what, error in found.items() if not error <= 1} == {}
