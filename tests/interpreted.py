"""Runs a function that starts Triton kernels on the CPU, by Triton's interpreter.

Triton reads TRITON_INTERPRET once, when it is imported. So this is a process of its own. `python -m tests.interpreted
MODULE FUNCTION CASES RESULTS` reads lists of arguments and writes what the function returns, as files of torch.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def results_of(module, function, cases, folder):
    """What the function of a module of `search` returns for each list of arguments."""
    torch.save(cases, folder / "cases.pt")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    files = [str(folder / "cases.pt"), str(folder / "results.pt")]
    subprocess.run(
        [sys.executable, "-m", "tests.interpreted", module, function, *files], cwd=ROOT, env=environment, check=True
    )
    return torch.load(folder / "results.pt", weights_only=False)


def main(module, function, cases, results):
    run = getattr(importlib.import_module(f"tinyzero_astar.search.{module}"), function)
    torch.save([run(*case) for case in torch.load(cases, weights_only=False)], results)


if __name__ == "__main__":
    main(*sys.argv[1:])
