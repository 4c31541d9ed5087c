"""The loggers by name. A run reports to all of them, in this order."""

from __future__ import annotations

from collections.abc import Callable

from tinyzero_astar.interfaces import Logger
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.loggers.jsonl import JsonlLogger

# How each is made. The console is there before the run, and others may print through it.
LOGGERS: dict[str, Callable[[ConsoleLogger], Logger]] = {
    "jsonl": lambda console: JsonlLogger(),
    "console": lambda console: console,
}
