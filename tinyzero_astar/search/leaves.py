"""From the rows of groups to the leaves of problems."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Leaves(NamedTuple):
    """Which row is which leaf, best priority first. Each tensor is [P, K'], with K' the most leaves of a problem."""

    place: Tensor  # of the row, 0 where there is no such leaf
    is_leaf: Tensor

    @staticmethod
    def of(problem: Tensor, priority: Tensor, num_problems: int, num_leaves: int | None = None) -> Leaves:
        """The leaves of every problem.

        Args:
            problem: [G, K] of each row.
            priority: [G, K], -inf where there is no leaf.
            num_problems: P.
            num_leaves: K', or None for as many as there are.
        """
        flat = priority.flatten()
        order = flat.argsort(descending=True, stable=True)
        order = order[torch.isfinite(flat[order])]
        order = order[problem.flatten()[order].argsort(stable=True)]  # by problem, then by priority
        owner = problem.flatten()[order]
        count = torch.zeros(num_problems, dtype=torch.int64, device=owner.device).index_add_(
            0, owner, torch.ones_like(owner)
        )
        width = max(1, int(count.max())) if num_leaves is None else num_leaves
        rank = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
        place = torch.zeros((num_problems, width), dtype=torch.int64, device=owner.device)
        place[owner, rank] = order
        return Leaves(place, torch.arange(width, device=owner.device) < count[:, None])

    def take(self, x: Tensor, elsewhere: float) -> Tensor:
        """[P, K'] what rows [G, K] hold, and one number where there is no leaf."""
        return torch.where(self.is_leaf, torch.take(x, self.place), elsewhere)
