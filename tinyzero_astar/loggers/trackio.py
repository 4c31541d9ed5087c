"""A run for trackio, on this machine: `trackio show`. TRACKIO_SPACE_ID names a space of Hugging Face instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trackio

from tinyzero_astar.interfaces import Logger
from tinyzero_astar.loggers.services import COLUMNS, PROJECT, SAMPLES, numbers, rows


class TrackioLogger(Logger):
    """Numbers by iteration, completions as tables, alarms as alerts."""

    _run: Any = None

    def begin(self, config: Mapping[str, Any], folder: Path, done: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Begin a run there, or go on with the newest one of the same name."""
        self._name = folder.name
        resume = "allow" if done else "never"
        self._run = trackio.init(
            project=PROJECT,
            name=self._name,
            config=dict(config),
            resume=resume,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def alarm(self, number: int, text: str) -> None:
        """An alert."""
        title = f"{self._name}, iteration {number}"
        self._run.alert(title=title, text=text, level=trackio.AlertLevel.WARN, step=number)

    def samples(self, number: int, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """A table."""
        self._run.log({SAMPLES: trackio.Table(columns=[*COLUMNS], data=rows(records))}, step=number)

    def record(self, number: int, metrics: Mapping[str, Any]) -> None:
        """All numbers."""
        self._run.log(numbers(metrics), step=number)

    def end(self) -> None:
        """Wait until all is stored."""
        if self._run is not None:
            trackio.finish()
