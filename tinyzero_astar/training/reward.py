"""What a verdict is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tinyzero_astar.interfaces import Verdict


@dataclass(frozen=True)
class WeightedReward:
    """What a right answer and a right format are worth; finite and >= 0. Implements `interfaces.Reward`."""

    accuracy: float = 1.0
    format: float = 0.1  # small: a shaping term, never worth more than being right

    def __post_init__(self) -> None:
        """Refuse weights that would pay for failure or spread a nan."""
        for name, weight in (("accuracy", self.accuracy), ("format", self.format)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} weight must be finite and at least 0, got {weight}")

    def __call__(self, verdict: Verdict) -> float:
        """Sum of the weights whose condition holds: `accuracy` + `format` at most."""
        return self.accuracy * verdict.accuracy + self.format * verdict.format

    def expected(self, accuracy: Tensor, format: Tensor) -> Tensor:
        """See `interfaces.Reward.expected`."""
        return self.accuracy * accuracy + self.format * format
