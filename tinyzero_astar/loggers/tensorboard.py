"""A run for TensorBoard, in the folder `tensorboard` of the run: `tensorboard --logdir runs`."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from tinyzero_astar.files import writing
from tinyzero_astar.interfaces import Logger
from tinyzero_astar.loggers.services import COLUMNS, SAMPLES, numbers, rows

FOLDER = "tensorboard"


class TensorBoardLogger(Logger):
    """Numbers as scalars, completions, alarms and settings as text."""

    _writer: SummaryWriter | None = None

    def begin(self, config: Mapping[str, Any], folder: Path, done: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Go on behind iteration `done`. TensorBoard drops what an earlier process wrote of later ones."""
        self._folder = folder / FOLDER
        with writing(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=done + 1 if done else 0)
        if done == 0:
            self._text("config", "\n".join(f"    {line}" for line in json.dumps(config, indent=2).splitlines()), 0)

    def alarm(self, number: int, text: str) -> None:
        """A text."""
        self._text("alarms", _cell(text), number)

    def samples(self, number: int, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """A table, as Markdown."""
        lines = [COLUMNS, ["---"] * len(COLUMNS), *rows(records)]
        self._text(SAMPLES, "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines), number)

    def record(self, number: int, metrics: Mapping[str, Any]) -> None:
        """A scalar for each number."""
        assert self._writer is not None, "the run has not begun"
        with writing(self._folder):
            for name, value in numbers(metrics).items():
                self._writer.add_scalar(name, value, number)
            self._writer.flush()

    def _text(self, name: str, text: str, number: int) -> None:
        assert self._writer is not None, "the run has not begun"
        with writing(self._folder):
            self._writer.add_text(name, text, number)
            self._writer.flush()

    def end(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with writing(self._folder):
                self._writer.close()


def _cell(value: object) -> str:
    """Text of a model as text, which TensorBoard would read as Markdown."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(f"&#{ord(c)};" if c in "|\\`*_[]#~:!" else c for c in html.escape(text).replace("\n", " ⏎ "))
