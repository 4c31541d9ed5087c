"""A*-PO by regression (Brantley, Gao et al. 2025, arXiv 2505.20686), with no search, no critic and no clip.

V* of a problem is estimated once, from rollouts of the frozen first policy (`advantages.optimal_value`). Then the
log-ratio of the policy to the frozen one is regressed on the optimal advantage r - V*. The minimum is the same on any
rollouts that leave nothing out, so searched rollouts are allowed.

Equations 18 and 19 of docs/algorithm.md. On independent rollouts equal to TRL's experimental A2POTrainer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tinyzero_astar.config import Config
from tinyzero_astar.interfaces import Batch, Reference
from tinyzero_astar.modes import MODES, SearchMode
from tinyzero_astar.training.advantages import MEASURES, describe
from tinyzero_astar.training.losses import completion_sums


@dataclass(frozen=True)
class OptimalAdvantage:
    """Implements `interfaces.Algorithm`."""

    measures: ClassVar[tuple[str, ...]] = (*MEASURES, "reference/value", "reference/divergence")
    has_critic: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    modes: ClassVar[tuple[SearchMode, ...]] = MODES
    reason: ClassVar[str] = ""
    min_rollouts: ClassVar[int] = 1

    beta: float  # what a nat of log-ratio is worth, in units of reward

    @classmethod
    def from_config(cls, config: Config) -> OptimalAdvantage:
        """See `interfaces.Algorithm.from_config`."""
        return cls(config.train.regression_beta)

    def prepare(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Optimal advantages, the same at every token of a completion. V* and log pi_old / pi_ref are measured too."""
        reference = _reference(batch)
        advantage = torch.where(batch.is_token, (batch.reward - reference.value)[:, None], 0.0)
        measured = describe(advantage, batch.weight, batch.is_token)
        log_ratio = completion_sums(batch.logp_old - reference.logp, batch.is_token)
        share = batch.weight / batch.weight.sum()
        measured["reference/value"] = float((share * reference.value).sum())
        measured["reference/divergence"] = float((share * log_ratio).sum())
        return replace(batch, advantage=advantage), measured

    def loss(self, batch: Batch, logp: Tensor) -> Tensor:
        """Weighted squared errors of whole completions, summed."""
        log_ratio = completion_sums(logp - _reference(batch).logp, batch.is_token)
        return (batch.weight * (self.beta * log_ratio - batch.advantage[:, 0]).square()).sum()

    def count(self, batch: Batch, num_problems: int) -> float:
        """Problems that were searched, those without a row included. Weights sum to 1 per problem on average."""
        return float(num_problems)


def _reference(batch: Batch) -> Reference:
    if batch.reference is None:
        raise ValueError("optimal_advantage needs what its reference policy says about the batch: set batch.reference")
    return batch.reference
