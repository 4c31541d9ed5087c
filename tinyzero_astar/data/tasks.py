"""The tasks by name. A new one is a file with a class, and a line here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tinyzero_astar.config import Config, DataConfig
from tinyzero_astar.data import own
from tinyzero_astar.data.countdown import Countdown
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.data.questions import QuestionTask
from tinyzero_astar.data.task_names import absolute, is_table
from tinyzero_astar.files import read_bytes
from tinyzero_astar.interfaces import Problem, Task

TASKS: dict[str, type[QuestionTask]] = {"multiplication": Multiplication, "countdown": Countdown}


def make_task(data: DataConfig, seed: int) -> Task:
    """The task that section `data` describes.

    Raises:
        ValueError: it is unknown, or refuses its settings.
    """
    if data.reward_function and not is_table(data.task):
        raise ValueError(
            f"reward_function {data.reward_function} judges tables, and data.task {data.task!r} is none: give"
            f" --data.task FILE.jsonl, or leave it out"
        )
    task = TASKS[data.task](data, seed) if data.task in TASKS else own.make_own_task(data, seed)
    if task is None:
        raise ValueError(
            f"data.task {data.task!r} is unknown; choose one of: {', '.join(sorted(TASKS))}, or bring your own as"
            f" {own.FORMS}"
        )
    return task


@dataclass(frozen=True)
class Problems:
    """A task and all the problems of a run."""

    task: Task
    train: list[Problem]
    held_out: list[Problem]

    @property
    def prompts(self) -> list[str]:
        """All that the model may be given to continue."""
        return [problem.prompt for problem in [*self.train, *self.held_out]]

    @cached_property
    def examples(self) -> list[str]:
        """A right completion of every training problem."""
        return [self.task.example(problem) for problem in self.train]


def make_problems(config: Config) -> Problems:
    """The problems of a run.

    Raises:
        ValueError: the task is unknown, refuses its settings, or has too few problems.
    """
    task = make_task(config.data, config.run.seed)
    return Problems(
        task,
        _exactly(config.data.num_problems, task.train_problems(0, config.data.num_problems), "training problems"),
        _exactly(config.eval.num_problems, task.held_out_problems(config.eval.num_problems), "held-out problems"),
    )


def _exactly(wanted: int, found: list[Problem], name: str) -> list[Problem]:
    """The problems. A class that does not derive from QuestionTask may give more or fewer than it should."""
    if len(found) != wanted:
        raise ValueError(f"data.task gave {len(found)} {name} where {wanted} were asked for")
    return found


def pinned(data: DataConfig) -> DataConfig:
    """The same settings with the digest of the task's files, by which they are known again.

    The names of what is taken from the files count too, since one file may hold two tasks.

    Raises:
        ValueError: a file cannot be read, or is not the one that the settings were recorded with, or another name in it
            is.
    """
    origins = own.origins_of(data)
    digest = _digest_of(origins, _moved(data)) if origins else ""
    if data.task_sha256 and not origins:
        raise ValueError(
            f"data.task {data.task!r} comes from no file, but the task that the run was trained on does; leave it out,"
            f" or say where that file lies now with {_moved(data)}"
        )
    if data.task_sha256 not in ("", digest):
        files = ", ".join(str(origin.file) for origin in origins)
        more = ", or the name after the colon has" if any(origin.name for origin in origins) else ""
        raise ValueError(
            f"data.task {data.task!r} is not what the run was trained on: {files} has changed{more}; restore it, or"
            f" say where it lies now with {_moved(data)}"
        )
    return replace(data, task=absolute(data.task), reward_function=absolute(data.reward_function), task_sha256=digest)


def _moved(data: DataConfig) -> str:
    """The options that say where the files of the task lie."""
    return "--data.task or --data.reward-function" if data.reward_function else "--data.task"


def _digest_of(origins: Sequence[own.Origin], options: str) -> str:
    digest = hashlib.sha256()
    for file, name in origins:
        for part in (_content(file, options), name.encode()):
            digest.update(hashlib.sha256(part).digest())  # of one length, so what ends where cannot be mistaken
    return digest.hexdigest()


def _content(path: Path, options: str) -> bytes:
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:  # a name with a null byte is no name
        raise ValueError(
            f"data.task: {path} cannot be read ({getattr(error, 'strerror', None) or error}); say where it lies with"
            f" {options}"
        ) from None
