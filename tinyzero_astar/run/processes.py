"""What a process of a run was started with, and on what, as the lines of processes.jsonl."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tinyzero_astar import __version__
from tinyzero_astar.distributed import is_main, world_size
from tinyzero_astar.files import PROCESSES, append_jsonl
from tinyzero_astar.resources.machine import num_cores
from tinyzero_astar.run.build import Session
from tinyzero_astar.run.writing import write_for_all

_PROGRAMS = {"train.py": "python train.py", "__main__.py": "python -m tinyzero_astar"}


def versions() -> dict[str, str]:
    """Of this package and of what it computes with."""
    return {
        "tinyzero-astar": __version__,
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def device_name(device: torch.device) -> str:
    """A device in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{num_cores()} cores"
    return f"{device}, {name}"


def note_process(session: Session) -> None:
    """Append what this process is to the run's processes.jsonl, on every rank.

    Raises:
        WriteFailedError: rank 0 could not. Every rank raises it.
    """
    path, policy = session.folder / PROCESSES, session.policy
    program, *words = sys.argv or [""]
    record: dict[str, Any] = {
        "iteration": session.first_iteration,
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"{_PROGRAMS.get(Path(program).name, Path(program).name)} {shlex.join(words)}".strip(),
        "versions": versions(),
        "device": device_name(policy.device),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "parameters": policy.language_model.num_parameters(),
    }
    write_for_all(path, lambda: append_jsonl(path, record) if is_main() else None)
