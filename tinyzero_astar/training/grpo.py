"""GRPO: PPO's clipped loss with the rewards of a problem's own rollouts as the baseline, and no critic.

There are three losses, which differ in the divisor. `grpo` (Shao et al. 2024, arXiv 2402.03300) takes the mean over the
tokens of each completion, so tokens of long ones count less. `dapo` (Yu et al. 2025, arXiv 2503.14476) takes the mean
over all tokens of the step. `dr_grpo` (Liu et al. 2025, arXiv 2503.20783) divides by a constant, and does not divide
advantages by the standard deviation. Its first step is unbiased up to a factor. No divergence from a reference is
added.

Equations 15 and 16 of docs/algorithm.md. Equal to TRL's GRPOTrainer with `beta=0`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tinyzero_astar.config import Config
from tinyzero_astar.interfaces import Batch
from tinyzero_astar.modes import SearchMode
from tinyzero_astar.training.advantages import MEASURES, describe, group_centred, group_normalised
from tinyzero_astar.training.losses import clipped_objective, completion_means, completion_sums

GroupLoss = Literal["grpo", "dapo", "dr_grpo"]


@dataclass(frozen=True)
class GRPO:
    """Implements `interfaces.Algorithm`."""

    measures: ClassVar[tuple[str, ...]] = MEASURES
    has_critic: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    modes: ClassVar[tuple[SearchMode, ...]] = ("sample",)
    reason: ClassVar[str] = (
        "compares a problem's rollouts with their mean, which leaves that are no independent draws would bias"
    )
    min_rollouts: ClassVar[int] = 2

    group_loss: GroupLoss
    clip_low: float
    clip_high: float
    max_length: int  # tokens that a completion may have

    @classmethod
    def from_config(cls, config: Config) -> GRPO:
        """See `interfaces.Algorithm.from_config`."""
        train = config.train
        return cls(train.group_loss, train.clip_low, train.clip_high, config.search.max_search_depth)

    def prepare(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Advantages within each problem, the same at every token of a completion."""
        compare = group_centred if self.group_loss == "dr_grpo" else group_normalised
        advantage = torch.where(batch.is_token, compare(batch.reward, batch.problem)[:, None], 0.0)
        return replace(batch, advantage=advantage), describe(advantage, batch.weight, batch.is_token)

    def loss(self, batch: Batch, logp: Tensor) -> Tensor:
        """Negative clipped objective, summed over completions or over tokens."""
        log_ratio = torch.where(batch.is_token, logp - batch.logp_old, 0.0)
        objective = clipped_objective(log_ratio, batch.advantage, clip_low=self.clip_low, clip_high=self.clip_high)
        reduce = completion_means if self.group_loss == "grpo" else completion_sums
        return -reduce(objective, batch.is_token).sum()

    def count(self, batch: Batch, num_problems: int) -> float:
        """Completions, tokens, or tokens that the completions might have had."""
        if self.group_loss == "dapo":
            return float(batch.is_token.sum())
        return float(len(batch.tokens) * (self.max_length if self.group_loss == "dr_grpo" else 1))
