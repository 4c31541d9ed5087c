"""What a verdict is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinyzero_astar.interfaces import Verdict


@dataclass(frozen=True)
class RewardWeights:
    """What a right answer and a right format are worth, in units of reward; finite and >= 0."""

    accuracy: float = 1.0
    format: float = 0.1  # small: a shaping term, never worth more than being right

    def __post_init__(self) -> None:
        """Refuse weights that would pay for failure or spread a nan."""
        for name, weight in (("accuracy", self.accuracy), ("format", self.format)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} weight must be finite and at least 0, got {weight}")


def reward(verdict: Verdict, weights: RewardWeights) -> float:
    """Sum of the weights whose condition holds: `weights.accuracy` + `weights.format` at most."""
    return weights.accuracy * verdict.accuracy + weights.format * verdict.format
