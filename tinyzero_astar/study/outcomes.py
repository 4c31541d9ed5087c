"""What came out of a run of a study: its learning curve over three budgets, and means over its iterations."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tinyzero_astar.files import METRICS, read_text
from tinyzero_astar.run.records import read_jsonl
from tinyzero_astar.study.trials import Trial
from tinyzero_astar.terminal import shortened

Budget = Literal["tokens", "flops", "seconds"]
BUDGETS: dict[Budget, tuple[str, ...]] = {
    "tokens": ("cost/tokens",),
    "flops": ("cost/search_flops", "cost/update_flops"),
    "seconds": ("time/cpu_s",),
}
"""What is spent, by the metrics that add up to it. Seconds are of a core, as each run has one thread."""
ACCURACY = "eval/greedy_accuracy"
_PASS = "eval/pass_at_"
_EVALUATION = re.compile(r"evaluation(?:-(\d+))?\.json")  # `tinyzero eval` numbers them
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
    final: dict[str, Any]  # the last evaluation, by the names of docs/metrics.md
    means: dict[str, float | None]  # of `MEANS`, None where no iteration measured one

    @property
    def accuracy(self) -> float:
        """At its end, held out, greedy."""
        return self.curve[-1].accuracy

    @property
    def passes(self) -> dict[int, float]:
        """pass@k at its end, by k, as far as it was measured."""
        names = {name: name.removeprefix(_PASS) for name in self.final}
        return {int(k): x for name, k in names.items() if k.isdecimal() and _is_number(x := self.final[name])}

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

    An iteration in which a run was stopped may lack what it spent. The mean of its other iterations stands for that.

    Raises:
        ValueError: its records are damaged.
    """
    path = root / trial.folder / METRICS
    rows = _records(path)
    costs = {name: _filled(path, rows, name) for names in BUDGETS.values() for name in names}
    totals = dict.fromkeys(BUDGETS, 0.0)
    curve = []
    for number, row in enumerate(rows):
        for budget, names in BUDGETS.items():
            totals[budget] += sum(costs[name][number] for name in names)
        if ACCURACY in row:
            curve.append(Point(**totals, accuracy=row[ACCURACY]))
    final = {name: x for name, x in rows[-1].items() if name.startswith("eval/")}
    sampled = sampled_evaluation(trial, root) or {}
    final |= {name: x for name, x in sampled.items() if name.startswith((_PASS, "eval/sampled"))}
    return Outcome(trial, curve, final, {name: _mean(rows, name) for name in MEANS})


def _records(path: Path) -> list[dict[str, Any]]:
    """The records of a run, one for each iteration from 0 on. None if there is no file.

    Raises:
        ValueError: one is damaged or missing, or an accuracy is no number.
    """
    rows = read_jsonl(path)
    for expected, row in enumerate(rows):
        if row["iteration"] != expected:
            raise ValueError(
                f"{path}, line {expected + 1}: iteration {row['iteration']} where iteration {expected} should be;"
                " restore the file, or remove that run"
            )
        if ACCURACY in row and not _is_number(row[ACCURACY]):
            raise ValueError(
                f"{path}: {ACCURACY} of iteration {expected} is {shortened(row[ACCURACY])}, which is no number; restore"
                " the file, or remove that run"
            )
    if rows and ACCURACY not in rows[0]:
        raise ValueError(f"{path}: {ACCURACY} of iteration 0 is missing; restore the file, or remove that run")
    return rows


def _filled(path: Path, rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """What each iteration spent. The base model's evaluation, iteration 0, spent nothing."""
    mean = _mean(rows, name)
    if mean is None:
        raise ValueError(f"{path}: no iteration has a number {name}; restore the file, or remove that run")
    return [0.0, *(row[name] if _is_number(row.get(name)) else mean for row in rows[1:])]


def sampled_evaluation(trial: Trial, root: Path) -> dict[str, Any] | None:
    """The newest evaluation of a run's last checkpoint with as many samples and problems as the study says.

    None where there is none, or where the study wants no samples.

    Raises:
        ValueError: a file of results is damaged.
    """
    if trial.samples == 1:
        return None
    largest = 1 << trial.samples.bit_length() - 1  # the k are powers of two
    paths = [*(root / trial.checkpoint).glob("evaluation*.json")]
    found = {int(m[1] or 1): path for path in paths if (m := _EVALUATION.fullmatch(path.name))}
    for _, path in sorted(found.items(), reverse=True):
        metrics = _evaluation(path)
        ks = [int(k) for name in metrics if (k := name.removeprefix(_PASS)).isdecimal()]
        if metrics.get("eval/num_problems") == trial.sampled_problems and max(ks, default=0) == largest:
            return metrics
    return None


def _evaluation(path: Path) -> dict[str, Any]:
    reason = "it is no object of numbers"
    try:
        found = json.loads(read_text(path))
        if isinstance(found, dict) and all(x is None or _is_number(x) for x in found.values()):
            return found
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deeply
        reason = str(error)
    raise ValueError(f"{path} is damaged ({reason}); remove it, and the study evaluates anew")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [row[name] for row in rows if _is_number(row.get(name))]
    return sum(known) / len(known) if known else None


def is_done(trial: Trial, root: Path) -> bool:
    """Whether a run has reached its end.

    Raises:
        ValueError: its records are damaged.
    """
    rows = _records(root / trial.folder / METRICS)
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
