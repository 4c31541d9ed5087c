"""RLOO: REINFORCE with the mean reward of a problem's other rollouts as the baseline, and no critic.

A completion is one action. It has one ratio of its whole probability, clipped as in PPO, and no division by its length.
The first step of an iteration is unbiased.

Equation 17 of docs/algorithm.md. Equal to TRL's RLOOTrainer with `beta=0`. Sources are Kool et al. 2019, "Buy 4
REINFORCE samples, get a baseline for free!", and Ahmadian et al. 2024, arXiv 2402.14740.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tinyzero_astar.config import Config
from tinyzero_astar.interfaces import Batch
from tinyzero_astar.modes import SearchMode
from tinyzero_astar.training.advantages import MEASURES, describe, leave_one_out
from tinyzero_astar.training.losses import clipped_objective, completion_sums


@dataclass(frozen=True)
class RLOO:
    """Implements `interfaces.Algorithm`."""

    measures: ClassVar[tuple[str, ...]] = MEASURES
    has_critic: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    modes: ClassVar[tuple[SearchMode, ...]] = ("sample",)
    reason: ClassVar[str] = (
        "compares a rollout with the mean of the others, which leaves that are no independent draws would bias"
    )
    min_rollouts: ClassVar[int] = 2

    clip_low: float
    clip_high: float

    @classmethod
    def from_config(cls, config: Config) -> RLOO:
        """See `interfaces.Algorithm.from_config`."""
        return cls(config.train.clip_low, config.train.clip_high)

    def prepare(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Advantages within each problem, the same at every token of a completion."""
        advantage = torch.where(batch.is_token, leave_one_out(batch.reward, batch.problem)[:, None], 0.0)
        return replace(batch, advantage=advantage), describe(advantage, batch.weight, batch.is_token)

    def loss(self, batch: Batch, logp: Tensor) -> Tensor:
        """Negative clipped objective of whole completions, summed."""
        log_ratio = completion_sums(logp - batch.logp_old, batch.is_token)
        advantage = batch.advantage[:, 0]
        return -clipped_objective(log_ratio, advantage, clip_low=self.clip_low, clip_high=self.clip_high).sum()

    def count(self, batch: Batch, num_problems: int) -> float:
        """Completions."""
        return float(len(batch.tokens))
