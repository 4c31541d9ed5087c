"""What the records of a run say of the questions that its page answers, as numbers."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from tinyzero_astar.metrics.alarms import GATE_WINDOW
from tinyzero_astar.report.intervals import Mean, mean_of

RARE = 0.05  # probability under the policy below which one sample would hardly show a completion
GATE_AUC, GATE_SIBLINGS = "gate/auc", "gate/sibling_ranking"
_FOUND, _POLICY = "rollout/accuracy", "rollout/policy_accuracy"
_QUARTERS = tuple(f"value/auc_depth_{k}" for k in (1, 2, 3, 4))
_SIBLINGS = "value/sibling_accuracy_later"

Row = Mapping[str, Any]
Rows = Sequence[Row]


def known(rows: Rows, name: str) -> list[float]:
    """The values of a metric where it was measured."""
    return [float(row[name]) for row in rows if row.get(name) is not None]


def half_way(trained: Rows) -> int | None:
    """The first iteration half way from the first to the last mean over three estimates. None without a gain."""
    told = [(int(row["iteration"]), float(row[_POLICY])) for row in trained if row.get(_POLICY) is not None]
    means = [(told[i][0], sum(x for _, x in told[i - 1 : i + 2]) / 3) for i in range(1, len(told) - 1)]
    if len(means) < 2 or means[-1][1] <= means[0][1]:
        return None
    return next(iteration for iteration, mean in means if mean >= (means[0][1] + means[-1][1]) / 2)


# ------------------------------------------------------------------------------------------------------ worked out


class WorkedOut(NamedTuple):
    """When answers began to be worked out, by the recorded completions."""

    guess: float  # characters of a guess of the base, the median of the first recorded completions
    first: int  # the iteration of these
    shares: list[tuple[int, float]]  # of the policy's completions that are right and longer, by iteration
    begins: int | None  # index in `shares` of the first that exceeds one half


def worked_out(samples: Rows, num_problems: int | None) -> WorkedOut | None:
    """The first recorded iteration in which more than half of the policy's completions are right and long.

        share = Σ ŵ [right and longer than a guess] / P

    This is unbiased, as Σ ŵ R is. None where fewer than two iterations were recorded.

    Args:
        samples: all completions of some iterations, in their order.
        num_problems: P, problems of an iteration. Σ ŵ stands for it where it is not known.
    """
    by_iteration = [(i, list(own)) for i, own in groupby(samples, lambda sample: int(sample["iteration"]))]
    if len(by_iteration) < 2:
        return None
    guess = statistics.median(_length(sample) for sample in by_iteration[0][1])
    shares = [(iteration, _share(own, guess, num_problems)) for iteration, own in by_iteration]
    begins = next((i for i, (_, share) in enumerate(shares) if share > 0.5), None)
    return WorkedOut(guess, by_iteration[0][0], shares, begins)


def _length(sample: Row) -> int:
    return len(str(sample.get("completion", "")))


def _share(own: Rows, guess: float, num_problems: int | None) -> float:
    weights = [_weight(sample) for sample in own]
    long = [bool(sample.get("accuracy")) and _length(sample) > guess for sample in own]
    return sum(w for w, is_long in zip(weights, long, strict=True) if is_long) / (num_problems or sum(weights) or 1.0)


def _weight(sample: Row) -> float:
    weight = sample.get("weight")
    return float(weight) if isinstance(weight, int | float) and math.isfinite(weight) else 0.0


def examples(samples: Rows) -> tuple[Row, Row] | None:
    """A wrong completion of the first recorded iteration and a right one of the last, each of median length.

    Well-formed wrong ones are preferred. None where either is not there.
    """
    if not samples or samples[0]["iteration"] == samples[-1]["iteration"]:
        return None
    wrong = [s for s in samples if s["iteration"] == samples[0]["iteration"] and not s.get("accuracy")]
    right = [s for s in samples if s["iteration"] == samples[-1]["iteration"] and s.get("accuracy")]
    if not wrong or not right:
        return None
    return _typical([s for s in wrong if s.get("format")] or wrong), _typical(right)


def _typical(samples: Rows) -> Row:
    middle = statistics.median_low([_length(sample) for sample in samples])
    return next(sample for sample in samples if _length(sample) == middle)


# --------------------------------------------------------------------------------------------- search and sampling


@dataclass(frozen=True)
class Found:
    """What recorded searches found, beside what the policy would be expected to write, sampled as often."""

    count: int  # completions
    right: int
    rare: int  # right ones with a probability below `RARE`
    expected: float  # of these right ones, those that samples would contain
    repeats: float  # the least number of samples that would repeat an earlier one


def found_by_search(traces: Rows) -> Found:
    """Compare the recorded completions y with n samples of the same problem, n being how many the search found of it.

        expected = Σ R(y) (1 - (1 - π(y))^n)
        repeats  = Σ (n π(y) - 1 + (1 - π(y))^n)

    A completion that was not found has a term of the second sum that is at least 0, so the sum is a lower bound.
    """
    total = Found(0, 0, 0, 0.0, 0.0)
    for trace in traces:
        own = _leaves(trace)
        counts = {problem: sum(p == problem for p, *_ in own) for problem, *_ in own}
        for problem, pi, is_right in own:
            count = counts[problem]
            seen = -math.expm1(count * math.log1p(-pi)) if pi < 1 else 1.0
            total = Found(
                total.count + 1,
                total.right + is_right,
                total.rare + (is_right and pi < RARE),
                total.expected + is_right * seen,
                total.repeats + count * pi - seen,
            )
    return total


def _leaves(trace: Row) -> list[tuple[int, float, bool]]:
    """Problem, probability under the policy, and whether it is right, of each completion."""
    nodes = trace["nodes"]
    return [
        (nodes["problem"][leaf["node"]], math.exp(min(0.0, nodes["g"][leaf["node"]])), bool(leaf["accuracy"]))
        for leaf in trace["leaves"]
    ]


class Shares(NamedTuple):
    """Of some iterations, how many completions were right."""

    found: float  # among those that the search found
    sampled: float  # among as many samples, estimated by weights
    difference: Mean  # found minus sampled, over the iterations


def right_shares(trained: Rows) -> Shares | None:
    """Means over the iterations that measured both. None where there are fewer than two."""
    both = [row for row in trained if row.get(_FOUND) is not None and row.get(_POLICY) is not None]
    if len(both) < 2:
        return None
    found, sampled = known(both, _FOUND), known(both, _POLICY)
    difference = mean_of([a - b for a, b in zip(found, sampled, strict=True)])
    return Shares(statistics.fmean(found), statistics.fmean(sampled), difference)


# ---------------------------------------------------------------------------------------------------- the heuristic


def ranking(trained: Rows) -> Mean | None:
    """How often the right one of two continuations was valued higher, over the iterations that measured it.

    None where fewer than three did.
    """
    values = known(trained, _SIBLINGS)
    return mean_of(values) if len(values) >= GATE_WINDOW else None


def with_gate(rows: Rows) -> list[dict[str, Any]]:
    """The rows with what the gate of the guidance saw before each iteration.

    That is the mean over the last 3 iterations that measured it, of the ranking of siblings, and of the AUC, which is
    itself the mean of its four quarters. Null before there are three.
    """
    seen = {name: deque[float](maxlen=GATE_WINDOW) for name in (*_QUARTERS, _SIBLINGS)}
    found = []
    for row in rows:
        means = {name: statistics.fmean(values) for name, values in seen.items() if len(values) == GATE_WINDOW}
        quarters = [means[name] for name in _QUARTERS if name in means]
        auc = statistics.fmean(quarters) if len(quarters) == len(_QUARTERS) else None
        found.append({**row, GATE_AUC: auc, GATE_SIBLINGS: means.get(_SIBLINGS)} if row["iteration"] else dict(row))
        for name, values in seen.items():
            values.extend(known([row], name))
    return found
