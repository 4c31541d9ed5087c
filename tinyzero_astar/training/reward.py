"""What a verdict is worth."""

from __future__ import annotations

from dataclasses import dataclass

from tinyzero_astar.config import RewardConfig
from tinyzero_astar.interfaces import Verdict


@dataclass(frozen=True)
class WeightedReward:
    """A right answer and a right format are paid apart. Implements `interfaces.Reward`."""

    weights: RewardConfig

    def __call__(self, verdict: Verdict) -> float:
        """The accuracy's weight times the grade, plus the format's weight where the format is right."""
        return self.weights.accuracy * verdict.grade + self.weights.format * verdict.format
