"""What TensorBoard, W&B and trackio get of a run. It is the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PROJECT = "tinyzero-astar"  # which the runs belong to
SAMPLES = "samples"  # the name of the table of completions
COLUMNS = ("problem", "answer", "completion", "accuracy", "format", "reason", "weight")  # docs/metrics.md


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl, by the same names. What could not be measured is left out."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}


def rows(records: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Any]]:
    """All completions, problem by problem, a row of `COLUMNS` for each. An answer is text, since a table has types."""
    return [
        [str(sample["answer"]) if name == "answer" else sample[name] for name in COLUMNS]
        for samples in records
        for sample in samples
    ]
