"""What a study came to, arm by arm: means with intervals, and differences from the baseline, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tinyzero_astar.report.intervals import Mean, bootstrap, bootstrap_mean, effect_size, interquartile_mean
from tinyzero_astar.study.outcomes import BUDGETS, MEANS, Budget, Outcome, area, cost_of


class Reached(NamedTuple):
    """What an accuracy cost an arm."""

    runs: int  # that reached it
    median: float | None  # of what these had spent, None if none did
    ratio: Mean | None  # to the baseline, geometric mean over the seeds with which both did, None if there are none
    pairs: int  # those seeds


class Row(NamedTuple):
    """An arm on a task."""

    arm: str
    value: float | None  # of the swept field
    seeds: list[int]
    end: Mean  # accuracy at the end
    middle: Mean  # the same without the lowest and the highest quarter of runs
    lost: int  # runs below `lost_below` at their end
    area: dict[Budget, Mean]  # mean accuracy until what the baseline's cheapest run spent
    gain: dict[Budget, Mean]  # area minus the baseline's, same seeds
    effect: dict[Budget, float | None]  # of that gain
    wins: dict[Budget, int]  # seeds with a positive gain
    reached: dict[Budget, dict[float, Reached]]
    passes: dict[int, Mean]  # pass@k at the end, by k
    means: dict[str, float | None]  # of the rollouts, over all runs


def choose(outcomes: Sequence[Outcome], baseline: str) -> dict[tuple[str, str], float | None]:
    """For each task and arm the value of the sweep with the largest mean area over tokens."""
    found: dict[tuple[str, str], float | None] = {}
    for task, own in _by_task(outcomes).items():
        budget = least_budget(own, baseline, "tokens")
        areas: dict[tuple[str, float | None], list[float]] = {}
        for outcome in own:
            key = outcome.trial.arm, outcome.trial.value
            areas.setdefault(key, []).append(area(outcome.spent("tokens"), budget))
        for (arm, value), numbers in areas.items():
            best = found.get((task, arm))
            if (task, arm) not in found or statistics.fmean(numbers) > statistics.fmean(areas[arm, best]):
                found[task, arm] = value
    return found


def summarise(
    outcomes: Sequence[Outcome], baseline: str, lost_below: float, levels: Sequence[float]
) -> dict[str, list[Row]]:
    """The rows of every task.

    Args:
        outcomes: of the runs that are reported.
        baseline: the arm that others are compared with.
        lost_below: a run that ends with a lower accuracy counts as lost.
        levels: accuracies whose cost is told.
    """
    return {task: _rows(own, baseline, lost_below, levels) for task, own in _by_task(outcomes).items()}


def least_budget(outcomes: Sequence[Outcome], arm: str, budget: Budget) -> float:
    """What the run of an arm that spent least has spent."""
    return min(outcome.spent(budget)[-1][0] for outcome in outcomes if outcome.trial.arm == arm)


def _rows(outcomes: Sequence[Outcome], baseline: str, lost_below: float, levels: Sequence[float]) -> list[Row]:
    least = {budget: least_budget(outcomes, baseline, budget) for budget in BUDGETS}
    by_arm: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.trial.arm, []).append(outcome)
    return [_row(own, by_arm[baseline], least, lost_below, levels) for own in by_arm.values()]


def _row(
    own: Sequence[Outcome],
    base: Sequence[Outcome],
    least: Mapping[Budget, float],
    lost_below: float,
    levels: Sequence[float],
) -> Row:
    ends = [outcome.accuracy for outcome in own]
    areas = {budget: _areas(own, budget, least[budget]) for budget in BUDGETS}
    others = {budget: _areas(base, budget, least[budget]) for budget in BUDGETS}
    gains = {b: [areas[b][seed] - others[b][seed] for seed in areas[b] if seed in others[b]] for b in BUDGETS}
    return Row(
        arm=own[0].trial.arm,
        value=own[0].trial.value,
        seeds=[outcome.trial.seed for outcome in own],
        end=bootstrap_mean(ends),
        middle=bootstrap(ends, interquartile_mean),
        lost=sum(end < lost_below for end in ends),
        area={budget: bootstrap_mean([*found.values()]) for budget, found in areas.items()},
        gain={budget: bootstrap_mean(found) for budget, found in gains.items()},
        effect={budget: effect_size(found) for budget, found in gains.items()},
        wins={budget: sum(x > 0 for x in found) for budget, found in gains.items()},
        reached={b: {level: reached(own, base, b, level) for level in levels} for b in BUDGETS},
        passes={k: bootstrap_mean(found) for k, found in _passes(own).items()},
        means={name: _mean([outcome.means[name] for outcome in own]) for name in MEANS},
    )


def reached(own: Sequence[Outcome], base: Sequence[Outcome], budget: Budget, level: float) -> Reached:
    """What an accuracy cost the runs of an arm, and the ratio to those of the baseline.

    The ratio leaves out the seeds with which either did not reach it. It says nothing of lost runs.
    """
    costs, others = (
        {outcome.trial.seed: cost_of(outcome.spent(budget), level) for outcome in part} for part in (own, base)
    )
    known = [cost for cost in costs.values() if cost is not None]
    logs = [
        math.log(cost / other)
        for seed, cost in costs.items()
        if cost and (other := others.get(seed))  # a base that is there from the start has no ratio
    ]
    return Reached(
        len(known), statistics.median(known) if known else None, _exponential(logs) if logs else None, len(logs)
    )


def _exponential(logs: Sequence[float]) -> Mean:
    return Mean(*(None if x is None else math.exp(x) for x in bootstrap_mean(logs)))  # type: ignore[arg-type]


def _areas(outcomes: Sequence[Outcome], budget: Budget, least: float) -> dict[int, float]:
    return {outcome.trial.seed: area(outcome.spent(budget), least) for outcome in outcomes}


def _passes(outcomes: Sequence[Outcome]) -> dict[int, list[float]]:
    """pass@k of each run, by those k that all of them have."""
    found = [outcome.passes for outcome in outcomes]
    shared = set.intersection(*map(set, found))
    return {k: [passes[k] for passes in found] for k in sorted(shared)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return statistics.fmean(known) if known else None


def _by_task(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.trial.task, []).append(outcome)
    return found
