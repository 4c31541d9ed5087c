"""What a value of `data.task` or `data.reward_function` says of itself. Light, since studies read it before PyTorch."""

from __future__ import annotations

from pathlib import Path


def is_table(task: str) -> bool:
    """Whether a value of `data.task` names a table."""
    return task.endswith(".jsonl")


def absolute(text: str) -> str:
    """A value of `data.task` or `data.reward_function` with its file's path made absolute."""
    if is_table(text):
        return str(Path(text).resolve())
    place, _, name = text.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else text
