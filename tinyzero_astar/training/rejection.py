"""Rejection sampling: keep the best of a problem's rollouts if it is right, and make it more likely.

The best has the highest reward, and right means an accuracy reward above 0. A problem without a right rollout teaches
nothing. Several equally good rollouts share the weight, which is the average of picking one at random. The loss is that
of supervised fine-tuning, the mean negative log-likelihood of the kept tokens. There is no baseline, no ratio and no
clip, so failures teach nothing either.

Equation 20 of docs/algorithm.md. Sources are RAFT, Dong et al. 2023, arXiv 2304.06767, and STaR, Zelikman et al. 2022,
arXiv 2203.14465.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tinyzero_astar.config import Config
from tinyzero_astar.interfaces import Batch
from tinyzero_astar.modes import MODES, SearchMode
from tinyzero_astar.training.advantages import best_shares
from tinyzero_astar.training.losses import completion_sums


@dataclass(frozen=True)
class Rejection:
    """Implements `interfaces.Algorithm`."""

    measures: ClassVar[tuple[str, ...]] = ("rejection/kept",)
    has_critic: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    modes: ClassVar[tuple[SearchMode, ...]] = MODES
    reason: ClassVar[str] = ""
    min_rollouts: ClassVar[int] = 1

    @classmethod
    def from_config(cls, config: Config) -> Rejection:
        """See `interfaces.Algorithm.from_config`."""
        return cls()

    def prepare(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Shares of the kept completions as advantages. The share of problems with one is measured."""
        share = best_shares(batch.reward, batch.weight, batch.accuracy > 0, batch.problem)
        advantage = torch.where(batch.is_token, share[:, None], 0.0)
        kept = float(share.sum()) / len(batch.prompts)
        return replace(batch, advantage=advantage), {"rejection/kept": kept}

    def loss(self, batch: Batch, logp: Tensor) -> Tensor:
        """Negative log-likelihood of the kept completions, summed over tokens."""
        return -completion_sums(batch.advantage * logp, batch.is_token).sum()

    def count(self, batch: Batch, num_problems: int) -> float:
        """Kept tokens."""
        return float(batch.advantage.sum())
