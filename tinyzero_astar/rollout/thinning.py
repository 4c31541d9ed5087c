"""Leaving out rollouts that hardly count, without bias. Pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def thin_weights(weight: Tensor, uniform: Tensor, *, floor: float) -> Tensor:
    """Russian roulette on weights below `floor` (docs/algorithm.md eq. 14).

    A weight w < floor becomes floor with probability w / floor, else 0. Its mean is still w, and the variance this
    adds, w (floor - w), is less than floor * w. Weights of at least `floor` are kept as they are.

    Args:
        weight: >= 0, any shape.
        uniform: independent uniform numbers in (0, 1), of the same shape.
        floor: >= 0. With 0 everything is kept.

    Raises:
        ValueError: `floor` is negative.
    """
    if floor < 0.0:
        raise ValueError(f"floor must not be negative, got {floor}")
    return torch.where(weight >= floor, weight, torch.where(uniform * floor < weight, floor, 0.0))
