"""From rewarded rollouts to the rows that are trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Batch
from tinyzero_astar.rollout.records import RewardedRollouts


def make_batch(rewarded: RewardedRollouts) -> Batch:
    """The leaves that count as rows for the update. Advantages are still zero."""
    rollouts = rewarded.rollouts
    is_row = rewarded.update_weight.flatten() > 0
    num_problems, num_leaves = rollouts.length.shape
    problem = torch.arange(num_problems, device=is_row.device).repeat_interleave(num_leaves)

    def of_rows(x: Tensor) -> Tensor:
        return x.flatten(0, 1)[is_row]

    logp = of_rows(rollouts.logp).float()
    return Batch(
        prompts=rewarded.prompts,
        problem=problem[is_row],
        tokens=of_rows(rollouts.tokens),
        is_token=of_rows(rollouts.is_token),
        weight=of_rows(rewarded.update_weight).float(),
        accuracy=of_rows(rewarded.grade).float(),
        reward=of_rows(rewarded.reward).float(),
        logp_old=logp,
        baseline=of_rows(rollouts.baseline).float(),
        advantage=torch.zeros_like(logp),
    )
