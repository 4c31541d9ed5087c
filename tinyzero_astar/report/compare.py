"""Runs side by side by held-out accuracy where they have spent as much, paired over seeds.

What is spent is decoded tokens, seconds or iterations. Runs that differ in their seed alone are one group. A run's
accuracy between two evaluations is read off the straight line between them. Seconds are those of search and update,
without evaluations and checkpoints.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tinyzero_astar.config import Config
from tinyzero_astar.config_json import differences, from_json
from tinyzero_astar.files import METRICS
from tinyzero_astar.loggers.console import TOKENS
from tinyzero_astar.report.intervals import Mean, bootstrap_mean
from tinyzero_astar.run.folder import CONFIG
from tinyzero_astar.run.records import read_jsonl

Measure = Literal["tokens", "seconds", "iterations"]
SHARES = (0.25, 0.5, 0.75, 1.0)  # of what the shortest run has spent
_ACCURACY, _TIME = "eval/greedy_accuracy", "time/iteration_s"
# In these the runs of a group may differ, besides the seed, since they change neither what is learned nor how fast.
_FREE = (
    "run.seed",
    "run.checkpoint_frequency",
    "run.keep_last",
    "run.keep_best",
    "run.sample_frequency",
    "run.loggers",
    "run.collective_timeout_s",
)
# Mode sample reads none of these, so they say nothing of its runs.
_OF_SEARCHES = tuple(
    f"search.{name}"
    for name in (
        "guidance_strength",
        "inverse_beta",
        "max_inverse_beta",
        "weight_cap",
        "unguided_fraction",
        "root_tilt",
    )
)
_FINISH = "finish the run with python train.py --resume, or leave it out"

Curve = list[tuple[float, float]]  # what was spent until an evaluation, and its accuracy


@dataclass(frozen=True)
class Run:
    """What a comparison needs of a run."""

    folder: Path
    config: Config
    curve: Curve

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.config.run.seed


class Row(NamedTuple):
    """A group at one budget."""

    budget: float
    group: int
    accuracy: Mean  # over its seeds
    gain: Mean | None  # accuracy minus that of the first group, over the seeds that both have, None if there are none


class Comparison(NamedTuple):
    """Groups of runs, and how they compare."""

    groups: list[list[Run]]
    names: list[str]
    by: Measure
    rows: list[Row]


def compare_runs(folders: Sequence[Path], by: Measure) -> Comparison:
    """Compare runs, the first one's group being what the others are compared with.

    Raises:
        ValueError: a folder holds no run or a damaged one, or two runs are the same.
    """
    groups = _grouped([read_run(folder, by) for folder in folders])
    return Comparison(groups, _names([group[0].config for group in groups]), by, _rows(groups))


def read_run(folder: Path, by: Measure) -> Run:
    """The configuration of a run and its learning curve.

    Raises:
        ValueError: they are not there or damaged, or the seconds are not known.
    """
    rows = read_jsonl(folder / METRICS)
    if not rows:
        raise ValueError(f"{folder}: no {METRICS} there; name the folder of a run")
    first, last = rows[0]["iteration"], rows[-1]["iteration"]
    if first != 0 or last == 0:
        raise ValueError(
            f"{folder}: its {METRICS} goes from iteration {first} to {last}; a curve needs 0 and one more: {_FINISH}"
        )
    if by == "seconds" and any(_number(folder, row, _TIME) is None for row in rows[1:]):
        raise ValueError(f"{folder}: it was stopped where its time was not recorded; compare --by tokens or iterations")
    return Run(folder, from_json(folder / CONFIG), _curve(folder, rows, by))


def _curve(folder: Path, rows: Sequence[dict[str, Any]], by: Measure) -> Curve:
    costs = {"tokens": TOKENS, "seconds": (_TIME,), "iterations": ()}[by]
    spent, curve = 0.0, []
    for row in rows:
        spent += sum(_number(folder, row, name) or 0.0 for name in costs)
        if (accuracy := _number(folder, row, _ACCURACY)) is not None:
            curve.append((float(row["iteration"]) if by == "iterations" else spent, accuracy))
    if len(curve) < 2:
        raise ValueError(f"{folder}: {len(curve)} evaluation(s) in its {METRICS}; a curve needs two: {_FINISH}")
    return curve


def _number(folder: Path, row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{folder / METRICS}: {name} of iteration {row['iteration']} is no number")


def accuracy_at(curve: Curve, budget: float) -> float:
    """Linear interpolation between the two evaluations around a budget.

    Raises:
        ValueError: the curve does not reach so far.
    """
    for (t0, a0), (t1, a1) in itertools.pairwise(curve):
        if t0 <= budget <= t1:
            return a1 if t1 == t0 else a0 + (a1 - a0) * (budget - t0) / (t1 - t0)
    raise ValueError(f"budget {budget} is outside the measured range")


def _grouped(runs: Sequence[Run]) -> list[list[Run]]:
    groups: list[list[Run]] = []
    for run in runs:
        group = next((g for g in groups if set(differences(g[0].config, run.config)) <= set(_FREE)), None)
        if group is None:
            groups.append([run])
        elif same := [other for other in group if other.seed == run.seed]:
            raise ValueError(
                f"{same[0].folder} and {run.folder} have the same configuration and seed {run.seed}; name one of them"
            )
        else:
            group.append(run)
    return groups


def _names(configs: Sequence[Config]) -> list[str]:
    """What sets each group apart, which are the fields in which not all of them agree."""
    fields = dict.fromkeys(f for c in configs for f in differences(configs[0], c) if f not in _FREE)
    names = []
    for config in configs:
        values = dataclasses.asdict(config)
        own = [f for f in fields if config.search.mode != "sample" or f not in _OF_SEARCHES]
        told = (f"{f} {values[f.split('.')[0]][f.split('.')[1]]}" for f in own)
        names.append(", ".join(told) or config.model.model_name)
    return names


def _rows(groups: Sequence[Sequence[Run]]) -> list[Row]:
    least = min(run.curve[-1][0] for group in groups for run in group)
    return [_row(groups, index, share * least) for share in SHARES for index in range(len(groups))]  # budget by budget


def _row(groups: Sequence[Sequence[Run]], index: int, budget: float) -> Row:
    first, own = ({r.seed: accuracy_at(r.curve, budget) for r in groups[i]} for i in (0, index))
    gains = [own[seed] - first[seed] for seed in own if seed in first]
    gain = bootstrap_mean(gains) if gains and index > 0 else None
    return Row(budget, index, bootstrap_mean(list(own.values())), gain)
