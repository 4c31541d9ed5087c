"""A run for Weights & Biases.

WANDB_MODE=offline keeps it in the folder of the run. WANDB_PROJECT names another project.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from tinyzero_astar.files import WriteFailedError, replace_text, writing
from tinyzero_astar.interfaces import Logger
from tinyzero_astar.loggers.services import COLUMNS, PROJECT, SAMPLES, numbers, rows

ID = "wandb-id"  # the file in the folder of the run by which a resumed run goes on


class WandbLogger(Logger):
    """Numbers by iteration, completions as tables, alarms as alerts."""

    _run: Any = None

    def begin(self, config: Mapping[str, Any], folder: Path, done: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Begin a run there, or go on with the one that this folder belongs to.

        Raises:
            WriteFailedError: W&B does not take it.
        """
        self._name = folder.name
        path = folder / ID
        with writing(path):
            if not path.exists():
                replace_text(path, secrets.token_hex(4))
            identity = path.read_text(encoding="utf-8").strip()
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=self._name,
                id=identity,
                resume="allow",
                config=dict(config),
                dir=str(folder),
                settings=wandb.Settings(console="off"),  # it would take the place of the terminal's own view
            )
        except wandb.Error as error:
            raise WriteFailedError(
                f"W&B does not take the run ({error}); call `wandb login`, or set WANDB_MODE=offline, or leave"
                " wandb out of run.loggers"
            ) from None

    def alarm(self, number: int, text: str) -> None:
        """An alert."""
        title = f"{self._name}, iteration {number}"
        self._run.alert(title=title, text=text, level=wandb.AlertLevel.WARN, wait_duration=0)

    def samples(self, number: int, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """A table."""
        self._run.log({SAMPLES: wandb.Table(columns=[*COLUMNS], data=rows(records))}, step=number)

    def record(self, number: int, metrics: Mapping[str, Any]) -> None:
        """All numbers. Those of an iteration that an earlier process told already are dropped there."""
        self._run.log(numbers(metrics), step=number)

    def end(self) -> None:
        """Wait until all is sent."""
        if self._run is not None:
            self._run.finish()
