"""The tasks by name. A new one is a file with a class, and a line here."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.countdown import Countdown
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.data.questions import QuestionTask
from tinyzero_astar.interfaces import Task

TASKS: dict[str, type[QuestionTask]] = {"multiplication": Multiplication, "countdown": Countdown}
_FILE = re.compile(r"(?P<python>.+\.py):\w+|(?P<table>.+\.jsonl)")


def make_task(data: DataConfig, seed: int) -> Task:
    """The task that section `data` describes.

    Raises:
        ValueError: it is unknown, or refuses its settings.
    """
    if data.task not in TASKS:
        raise ValueError(f"data.task {data.task!r} is unknown; choose one of: {', '.join(sorted(TASKS))}")
    return TASKS[data.task](data, seed=seed)


def files_of(data: DataConfig) -> list[Path]:
    """The files that a task comes from: none for those of `TASKS`."""
    match = _FILE.fullmatch(data.task)
    return [Path(match["python"] or match["table"])] if match else []


def pinned(data: DataConfig) -> DataConfig:
    """The same settings with the digest of the task's files, by which they are known again.

    Raises:
        ValueError: a file cannot be read, or is not the one that the settings were recorded with.
    """
    files = files_of(data)
    digest = hashlib.sha256(b"".join(map(_content, files))).hexdigest() if files else ""
    if data.task_sha256 not in ("", digest):
        names = ", ".join(map(str, files)) or "its file"
        raise ValueError(
            f"data.task {data.task!r} is not what the run was trained on: {names} has changed; restore it, or say where"
            " it lies now with --data.task"
        )
    return replace(data, task_sha256=digest)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"data.task: {path} cannot be read ({error.strerror or error}); say where it lies with --data.task"
        ) from None
