"""What training to an accuracy took, from curves of [tokens, wall seconds, CPU seconds, accuracy], and the ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinyzero_astar.report.intervals import bootstrap_mean
from tinyzero_astar.study.outcomes import cost_of

TARGETS = (0.8, 0.9)  # accuracies whose cost is told
COSTS = ("tokens", "wall_s", "cpu_s")  # the columns of a curve before the accuracy


def costs_to(curve: Sequence[Sequence[float]], target: float) -> dict[str, float | None]:
    """Tokens and seconds until an accuracy was first reached, interpolated linearly. None where it was not."""
    return {name: cost_of([(row[i], row[-1]) for row in curve], target) for i, name in enumerate(COSTS)}


def quickest(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The run with the least CPU time to the lowest target. Of runs that did not reach it, the most accurate one."""

    def order(record: Mapping[str, Any]) -> tuple[float, float]:
        cost = costs_to(record["curve"], min(TARGETS))["cpu_s"]
        return math.inf if cost is None else cost, -record["curve"][-1][-1]

    return min(records, key=order)


def ratios(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Ours over TRL's for each target and cost, seed by seed, and the geometric mean with its 95 % interval.

    The interval is that of the bootstrap on the logarithms of the ratios, which are paired by seed. Nothing is said of
    a mean where a run did not reach the target.
    """
    found: dict[str, Any] = {}
    for target in TARGETS:
        both = [[costs_to(record["curve"], target) for record in side] for side in (ours, theirs)]
        for cost in COSTS:
            each = [_ratio(own[cost], other[cost]) for own, other in zip(*both, strict=True)]
            found[f"{cost} to {target}"] = {"each": each, **geometric_mean(each)}
    return found


def _ratio(own: float | None, other: float | None) -> float | None:
    return None if own is None or other is None else own / other


def geometric_mean(each: Sequence[float | None]) -> dict[str, float | None]:
    """With its 95 % interval. All None where a ratio is not known."""
    known = [math.log(ratio) for ratio in each if ratio is not None]
    mean = bootstrap_mean(known) if len(known) == len(each) else (None, None, None)
    names = ("mean", "low", "high")
    return {name: None if x is None else math.exp(x) for name, x in zip(names, mean, strict=True)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each run."""
    heads = ["arm", "rate", "seed", *(f"{cost} to {target}" for target in TARGETS for cost in COSTS), "last"]
    lines = [heads]
    for row in rows:
        costs = [row["to"][str(target)][cost] for target in TARGETS for cost in COSTS]
        shown = ["–" if x is None else f"{x:,.0f}" if x > 1000 else f"{x:.1f}" for x in costs]
        lines.append([row["arm"], f"{row['rate']:.1e}", str(row["seed"]), *shown, f"{row['curve'][-1][-1]:.3f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(x.rjust(width) for x, width in zip(line, widths, strict=True)) for line in lines)
