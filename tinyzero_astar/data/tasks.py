"""The tasks by name. A new one is a file with a class, and a line here."""

from __future__ import annotations

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.data.questions import QuestionTask
from tinyzero_astar.interfaces import Task

TASKS: dict[str, type[QuestionTask]] = {"multiplication": Multiplication}


def make_task(data: DataConfig, seed: int) -> Task:
    """The task that section `data` describes.

    Raises:
        ValueError: it is unknown, or refuses its settings.
    """
    if data.task not in TASKS:
        raise ValueError(f"data.task {data.task!r} is unknown; choose one of: {', '.join(sorted(TASKS))}")
    return TASKS[data.task](data, seed=seed)
