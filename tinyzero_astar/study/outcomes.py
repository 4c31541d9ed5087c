"""What came out of a run of a study: its learning curve over three budgets, and means over its iterations."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tinyzero_astar.files import METRICS
from tinyzero_astar.run.records import read_jsonl
from tinyzero_astar.study.plan import Trial

Budget = Literal["tokens", "flops", "seconds"]
BUDGETS: dict[Budget, tuple[str, ...]] = {
    "tokens": ("cost/tokens",),
    "flops": ("cost/search_flops", "cost/update_flops"),
    "seconds": ("time/cpu_s",),
}
"""What is spent, by the metrics that add up to it. Seconds are of a core, as each run has one thread."""
EVALUATION = "evaluation.json"
ACCURACY = "eval/greedy_accuracy"
# What rollouts were like, as means over iterations: their quality, and their diversity beside it.
MEANS = (
    "rollout/accuracy",
    "rollout/mixed_fraction",
    "weight/variance_ratio",
    "weight/effective_sample_size",
    "rollout/unique_fraction",
    "rollout/shared_prefix_fraction",
    "search/unsearched_fraction",
    "policy/entropy",
    "guidance/is_open",
    "guidance/is_root_open",
)


class Point(NamedTuple):
    """An evaluation of a run, with what had been spent until then."""

    tokens: float
    flops: float
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Outcome:
    """Of one run."""

    trial: Trial
    curve: list[Point]
    final: dict[str, float]  # the last evaluation, by the names of docs/metrics.md
    means: dict[str, float | None]  # of `MEANS`, None where no iteration measured one

    @property
    def accuracy(self) -> float:
        """At its end, held out, greedy."""
        return self.curve[-1].accuracy

    def spent(self, budget: Budget) -> list[tuple[float, float]]:
        """The curve over one budget, as pairs of what was spent and the accuracy."""
        return [(getattr(point, budget), point.accuracy) for point in self.curve]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        trial = self.trial
        return {
            "task": trial.task,
            "arm": trial.arm,
            "value": trial.value,
            "seed": trial.seed,
            "folder": str(trial.folder),
            "curve": [point._asdict() for point in self.curve],
            "final": self.final,
            "means": self.means,
        }


def outcome_of(trial: Trial, root: Path) -> Outcome:
    """What came out of a run that is done.

    Raises:
        ValueError: its records are damaged.
    """
    rows = read_jsonl(root / trial.folder / METRICS)
    totals = dict.fromkeys(BUDGETS, 0.0)
    curve = []
    for row in rows:
        for budget, names in BUDGETS.items():
            totals[budget] += sum(row.get(name) or 0.0 for name in names)
        if ACCURACY in row:
            curve.append(Point(**totals, accuracy=row[ACCURACY]))
    final = {name: x for name, x in rows[-1].items() if name.startswith("eval/")}
    sampled = root / trial.checkpoint / EVALUATION
    if sampled.is_file():
        final |= {name: x for name, x in _read(sampled).items() if name.startswith(("eval/pass_at", "eval/sampled"))}
    return Outcome(trial, curve, final, {name: _mean(rows, name) for name in MEANS})


def _read(path: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [row[name] for row in rows if row.get(name) is not None]
    return sum(known) / len(known) if known else None


def is_done(trial: Trial, root: Path) -> bool:
    """Whether a run has reached its end.

    Raises:
        ValueError: its records are damaged.
    """
    rows = read_jsonl(root / trial.folder / METRICS)
    return bool(rows) and rows[-1]["iteration"] == trial.config.train.num_iterations and ACCURACY in rows[-1]


def area(curve: Sequence[tuple[float, float]], budget: float) -> float:
    """The mean accuracy until a budget is spent, of the straight lines between the points of a curve.

    The integral of accuracy over what was spent, from 0 to the budget, divided by the budget. A run that spent less
    counts with its last accuracy from its end on.
    """
    total = curve[-1][1] * max(0.0, budget - curve[-1][0])
    for (t0, a0), (t1, a1) in itertools.pairwise(curve):
        if t0 >= budget or t1 == t0:
            continue
        end = min(t1, budget)
        at_end = a0 + (a1 - a0) * (end - t0) / (t1 - t0)
        total += (end - t0) * (a0 + at_end) / 2
    return total / budget


def cost_of(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """What was spent until an accuracy was first reached, on the straight lines. None if it never was."""
    if curve[0][1] >= level:
        return curve[0][0]
    for (t0, a0), (t1, a1) in itertools.pairwise(curve):
        if a1 >= level:
            return t0 + (t1 - t0) * (level - a0) / (a1 - a0)
    return None
