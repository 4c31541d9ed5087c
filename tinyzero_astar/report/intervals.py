"""Means of few numbers and their 95 % intervals."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

RESAMPLES = 10_000
RANGE_UP_TO = 4  # numbers, whose interval is their range
_SEED = 0


class Mean(NamedTuple):
    """The mean of independent numbers, without an interval where there is one number alone."""

    value: float
    low: float | None
    high: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and its 95 % interval by Student's t, m ± t s / √n, where the variance s² has the divisor n - 1."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Mean(mean, None, None)
    half = student_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(mean, mean - half, mean + half)


def bootstrap_mean(values: Sequence[float]) -> Mean:
    """Mean and its 95 % interval by `bootstrap`. For a paired interval, `values` are the differences of the pairs."""
    return bootstrap(values, statistics.fmean)


def bootstrap(values: Sequence[float], statistic: Callable[[Sequence[float]], float]) -> Mean:
    """A statistic of independent numbers and its 95 % interval. The draws are the same in every call.

    As many numbers as there are, n, are drawn with replacement, `RESAMPLES` times. The ends are quantiles of the
    statistic of each.
    Percentiles of few numbers are too narrow, so the share beyond either end is not 2.5 % but

        Φ(-√(n / (n - 1)) t)    with P(|T| ≤ t) = 95 % for Student's T with n - 1 degrees of freedom

    The interval of two to four numbers is their range, since that share is less than n⁻ⁿ.

    Source: Hesterberg 2015, expanded percentiles.
    """
    count, value = len(values), statistic(values)
    if count == 1:
        return Mean(value, None, None)
    found = sorted(statistic([values[i] for i in draw]) for draw in _draws(count))
    outside = int(share_outside(count) * RESAMPLES)
    return Mean(value, found[outside], found[-1 - outside])


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean without the lowest and the highest quarter, ⌊n / 4⌋ numbers each.

    One lost run among five does not move it. Source: Agarwal et al. 2021.
    """
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def effect_size(differences: Sequence[float]) -> float | None:
    """The mean of paired differences in their own standard deviations. Source: Cohen 1988, d_z.

    None with fewer than two, or where they are all equal.
    """
    if len(differences) < 2 or (deviation := statistics.stdev(differences)) == 0:
        return None
    return statistics.fmean(differences) / deviation


def share_outside(count: int) -> float:
    """Of the resampled means of so many numbers, beyond either end of the interval."""
    reach = math.sqrt(count / (count - 1)) * student_quantile(count - 1)
    return math.erfc(reach / math.sqrt(2)) / 2


@cache
def _draws(count: int) -> list[list[int]]:
    generator = random.Random(_SEED)
    return [generator.choices(range(count), k=count) for _ in range(RESAMPLES)]


def student_quantile(freedom: int, inside: float = 0.95) -> float:
    """The t with P(|T| ≤ t) = `inside` for Student's distribution of so many degrees of freedom."""
    low, high = 0.0, 1.0
    while student_inside(high, freedom) < inside:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_inside(middle, freedom) < inside else (low, middle)
    return high


def student_inside(t: float, freedom: int) -> float:
    """P(|T| ≤ t) for whole degrees of freedom n, as a finite sum.

    With θ = atan(t / √n):

        odd n    2/π (θ + sin θ (cos θ + 2/3 cos³ θ + 2·4/(3·5) cos⁵ θ + … up to the power n - 2))
        even n   sin θ (1 + 1/2 cos² θ + 1·3/(2·4) cos⁴ θ + … up to the power n - 2)

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    is_odd = freedom % 2
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0
    for power in range(is_odd, freedom - 1, 2):  # of the cosine
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total
