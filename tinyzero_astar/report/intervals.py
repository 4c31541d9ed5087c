"""Means of few numbers and their 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


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
