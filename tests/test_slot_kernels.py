"""Rows of a slot cache are moved by Triton's kernel, here interpreted on the CPU, as by an index."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.decode_kernel_cases import let_loops_end_at_tensors

ROOT = Path(__file__).resolve().parents[1]
SOURCE = [0, 0, 2, 2, 4, 0]  # rows 1, 3 and 5 become others
SHAPES = {"columns 3 to 7": (3, 7), "nothing": (4, 4), "more than a block": (0, 300)}


def wanted(buffer, first, last):
    found = buffer.clone()
    found[..., first:last, :] = buffer[:, :, SOURCE][..., first:last, :]
    return found


def make_buffer(last):
    torch.manual_seed(0)
    return torch.randn(2, 2, len(SOURCE), 3, max(last, 9) + 2, 12)


def main():
    from tinyzero_astar.engine.slot_kernels import move_rows

    let_loops_end_at_tensors()
    for first, last in SHAPES.values():
        buffer = make_buffer(last)
        expected = wanted(buffer, first, last)
        move_rows(buffer, torch.tensor(SOURCE), first, torch.full((len(SOURCE),), last))
        assert torch.equal(buffer, expected)
    sys.stdout.write("moved")


def test_the_kernel_moves_what_an_index_moves():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.test_slot_kernels"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "moved", done.stderr


if __name__ == "__main__":
    main()
