"""The command line that starts train.py with as many processes as this one is one of."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from tinyzero_astar.distributed import is_distributed, world_size


def train_command(options: Sequence[str]) -> str:
    """train.py with some options, under torchrun where this process is one of several.

    HOST stands for one of the machines where there are several, since no process knows how the others reach it.
    """
    words = shlex.join(options)
    if not is_distributed():
        return f"python train.py {words}".rstrip()
    per_machine = world_size() // num_machines()
    several = f"--nnodes={num_machines()} " if num_machines() > 1 else ""
    meeting = "--rdzv_backend=c10d --rdzv_endpoint=HOST:29500 " if several else ""
    return f"torchrun {several}--nproc_per_node={per_machine} {meeting}train.py {words} --distributed"


def resume_command(folder: Path) -> str:
    """The command that goes on with a run, and where to give it."""
    everywhere = " on each machine, where HOST is one of them" if num_machines() > 1 else ""
    return train_command(["--resume", str(folder)]) + everywhere


def num_machines() -> int:
    """Machines that the processes of this run are spread over evenly, by torchrun's environment."""
    return world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if is_distributed() else 1
