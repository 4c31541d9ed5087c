"""The loggers by name. A run reports to those that are always there, and to those that `run.loggers` names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from tinyzero_astar.interfaces import Logger
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.loggers.jsonl import JsonlLogger


def _tensorboard(console: ConsoleLogger) -> Logger:
    from tinyzero_astar.loggers.tensorboard import TensorBoardLogger

    return TensorBoardLogger()


def _wandb(console: ConsoleLogger) -> Logger:
    from tinyzero_astar.loggers.wandb import WandbLogger

    return WandbLogger()


def _trackio(console: ConsoleLogger) -> Logger:
    from tinyzero_astar.loggers.trackio import TrackioLogger

    return TrackioLogger()


# How each is made. The console is there before the run, and others may print through it. Those with a package of their
# own import it when they are made.
LOGGERS: dict[str, Callable[[ConsoleLogger], Logger]] = {
    "jsonl": lambda console: JsonlLogger(),
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "console": lambda console: console,
}
ALWAYS = ("jsonl", "console")


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers whose package is not installed.

    Raises:
        ValueError: names the first of them, and how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"run.loggers {name} needs the package {name}, which is not installed: run pip install -e '.[{name}]',"
                f" or leave it out"
            )


def make_loggers(names: Sequence[str], console: ConsoleLogger) -> list[Logger]:
    """Those of a run, in the order of `LOGGERS`. Services come before the console, as they may ask for a password."""
    return [make(console) for name, make in LOGGERS.items() if name in (*ALWAYS, *names)]
