"""A*PO by search: PPO's clipped loss on searched rollouts with exact inclusion weights.

The behaviour policy enters through the weights alone. The ratio is between the trained policy and the policy before the
update. The baseline is the value model's and not a group mean, because leaves drawn without replacement are not
independent. Equations 10 to 12 of docs/algorithm.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from tinyzero_astar.config import Config
from tinyzero_astar.interfaces import Batch
from tinyzero_astar.modes import MODES, SearchMode
from tinyzero_astar.training.advantages import MEASURES, describe, generalized_advantage, scale_by_rms
from tinyzero_astar.training.losses import clipped_surrogate


@dataclass(frozen=True)
class AStarPO:
    """Implements `interfaces.Algorithm`."""

    measures: ClassVar[tuple[str, ...]] = MEASURES
    has_critic: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    modes: ClassVar[tuple[SearchMode, ...]] = MODES
    reason: ClassVar[str] = ""
    min_rollouts: ClassVar[int] = 1

    clip_low: float
    clip_high: float
    gae_lambda: float
    advantage_floor: float

    @classmethod
    def from_config(cls, config: Config) -> AStarPO:
        """See `interfaces.Algorithm.from_config`."""
        train = config.train
        return cls(train.clip_low, train.clip_high, train.gae_lambda, train.advantage_floor)

    def prepare(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """GAE on the baseline, scaled by one root mean square for the whole batch.

        Measures are those before scaling.
        """
        raw = generalized_advantage(batch.reward, batch.baseline, batch.is_token, lam=self.gae_lambda)
        advantage = scale_by_rms(raw, batch.weight, batch.is_token, floor=self.advantage_floor)
        return replace(batch, advantage=advantage), describe(raw, batch.weight, batch.is_token)

    def loss(self, batch: Batch, logp: Tensor) -> Tensor:
        """Negative clipped objective, summed."""
        return clipped_surrogate(
            logp,
            batch.logp_old,
            batch.advantage,
            batch.weight,
            batch.is_token,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )

    def count(self, batch: Batch, num_problems: int) -> float:
        """Problems that were searched, those without a row included. Weights sum to 1 per problem on average."""
        return float(num_problems)
