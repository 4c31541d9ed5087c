"""All loggers as one, for all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tinyzero_astar.distributed import is_main
from tinyzero_astar.interfaces import Logger, Table
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.loggers.loggers import make_loggers
from tinyzero_astar.run.writing import fail_together


class AllLoggers(Logger):
    """All loggers of a run as one, called on every rank. What one of them cannot write ends the run on every rank.

    Args:
        console: the one that is there already.
        names: of those to be told besides those that always are.
    """

    def __init__(self, console: ConsoleLogger, names: Sequence[str] = ()) -> None:
        self._console, self._names = console, names
        self._loggers: list[Logger] = []

    def _tell(self, tell: Callable[[Logger], None]) -> None:
        def tell_all() -> None:
            for logger in self._loggers:
                tell(logger)

        fail_together(tell_all)

    def begin(self, config: Mapping[str, Any], folder: Path, done: int, records: Sequence[Mapping[str, Any]]) -> None:
        """See `Logger`. They are made now, as an evaluation needs none of them."""
        self._loggers = make_loggers(self._names, self._console) if is_main() else []
        self._tell(lambda logger: logger.begin(config, folder, done, records))

    def iteration(self, number: int, metrics: Mapping[str, Any], ranking: float | None) -> None:
        """See `Logger`."""
        self._tell(lambda logger: logger.iteration(number, metrics, ranking))

    def alarm(self, number: int, text: str) -> None:
        """See `Logger`."""
        self._tell(lambda logger: logger.alarm(number, text))

    def samples(self, number: int, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """See `Logger`."""
        self._tell(lambda logger: logger.samples(number, records))

    def trace(self, number: int, record: Mapping[str, Any]) -> None:
        """See `Logger`."""
        self._tell(lambda logger: logger.trace(number, record))

    def evaluation(self, number: int, metrics: Mapping[str, Any], tables: Sequence[Table]) -> None:
        """See `Logger`."""
        self._tell(lambda logger: logger.evaluation(number, metrics, tables))

    def record(self, number: int, metrics: Mapping[str, Any]) -> None:
        """See `Logger`."""
        self._tell(lambda logger: logger.record(number, metrics))

    def end(self) -> None:
        """See `Logger`. The other ranks do not wait, as one alone may be interrupted."""
        with ExitStack() as stack:
            for logger in self._loggers:
                stack.callback(logger.end)
