"""Runs the Triton kernels of `search.vocabulary_kernels` on the CPU, by Triton's interpreter.

Triton reads TRITON_INTERPRET once, when it is imported. So this is a process of its own. `python -m tests.interpreted
CASES RESULTS` reads arguments of `best_child_by_kernels` and writes what it returns, as files of torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def best_children(cases, folder):
    """What the kernels say of a list of cases."""
    torch.save(cases, folder / "cases.pt")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.interpreted", str(folder / "cases.pt"), str(folder / "results.pt")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return torch.load(folder / "results.pt", weights_only=False)


def main(cases, results):
    from tinyzero_astar.search.vocabulary_kernels import best_child_by_kernels

    torch.save([best_child_by_kernels(*case) for case in torch.load(cases, weights_only=False)], results)


if __name__ == "__main__":
    main(*sys.argv[1:])
