"""Records of a run as JSON lines. They are the source of truth from which `--resume` continues."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyzero_astar.files import METRICS, SAMPLES, TRACE, append_jsonl, writing
from tinyzero_astar.interfaces import Logger


class JsonlLogger(Logger):
    """Appends what happens to metrics.jsonl, samples.jsonl and trace.jsonl."""

    def begin(self, config: Mapping[str, Any], folder: Path, done: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Remember the folder. What it holds of iterations after `done` has been dropped."""
        self._folder = folder

    def samples(self, number: int, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """A line per completion."""
        self._append(SAMPLES, *({"iteration": number} | dict(r) for r in itertools.chain.from_iterable(records)))

    def trace(self, number: int, record: Mapping[str, Any]) -> None:
        """A line per recorded iteration."""
        self._append(TRACE, {"iteration": number} | dict(record))

    def record(self, number: int, metrics: Mapping[str, Any]) -> None:
        """A line per iteration."""
        self._append(METRICS, {"iteration": number} | dict(metrics))

    def _append(self, name: str, *records: Mapping[str, Any]) -> None:
        path = self._folder / name
        with writing(path):
            append_jsonl(path, *records)
