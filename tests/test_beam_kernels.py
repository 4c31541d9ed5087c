"""A beam is advanced by Triton's kernel, here interpreted on the CPU, as by the operations of PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.decode_kernel_cases import let_loops_end_at_tensors
from tinyzero_astar.search.beam import CARRIED, Beam, Choice, Grid, TokenTable

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [(1, 1), (3, 5), (40, 16)]  # groups and rows of each, the last more than a block


def make(groups, rows):
    """A beam with all rows, a choice with forks, ends and rows without a token, and the table of 11 tokens."""
    generator = torch.Generator().manual_seed(groups)
    grid, shape = Grid.of(groups, rows, torch.device("cpu")), (groups, rows)

    def numbers():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def integers(last, *size):
        return torch.randint(-last, last, (*size, *shape), generator=generator)

    names = ("priority", "log_q", "log_pi", "last", "least")
    beam = Beam(
        grid=grid,
        **{name: numbers() for name in names},
        hashes=integers(1 << 62, 3),
        row=grid.place,
        is_open=integers(2) > 0,
        origin=integers(100),
        places=grid.place.flatten(),
        group=grid.group_of(grid.place.flatten()),
        has_all=True,
    )
    parent = torch.where(integers(2) > 0, integers(1 << 20) % grid.place.numel(), grid.place)
    choice = Choice(parent, integers(6) % 11 - 1, numbers(), numbers(), numbers())
    table = TokenTable(torch.randint(-(1 << 62), 1 << 62, (11,), generator=generator), torch.arange(11) < 8)
    return beam, choice, table


def errors(device="cpu"):
    """Fields that the kernel leaves in another state than PyTorch."""
    from tinyzero_astar.search.beam_kernels import advance

    found = []
    for shape in SHAPES:
        beam, choice, table = make(*shape)
        wanted = beam.after(choice, table)
        own = [getattr(beam, name).to(device) for name in CARRIED]
        advance(own, [x.to(device) for x in choice], *(x.to(device) for x in table))
        pairs = zip(CARRIED, own, strict=True)
        found += [f"{shape} {name}" for name, x in pairs if not torch.equal(x.cpu(), getattr(wanted, name))]
    return found


def test_the_kernel_advances_a_beam_as_pytorch_does():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.test_beam_kernels"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "[]", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_so_does_the_compiled_kernel():
    assert errors("cuda") == []


if __name__ == "__main__":
    let_loops_end_at_tensors()
    sys.stdout.write(str(errors()))
