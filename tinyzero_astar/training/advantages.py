"""Advantages: how much better a token turned out than its prefix promised. Pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantage(reward: Tensor, value: Tensor, is_token: Tensor, *, lam: float) -> Tensor:
    """GAE with discount 1 for a reward at the last token; docs/algorithm.md eq. 11.

    A_t = sum_{l >= 0} lam^l delta_{t+l}, delta_t = r_t + V_{t+1} - V_t, V = 0 after the end.
    lam = 1 gives R - V_t, lam = 0 gives delta_t. Source: Schulman et al. 2016, eq. 16.

    Args:
        reward: [B] reward of the whole completion.
        value: [B, T] V of the prefix before each token, in units of reward.
        is_token: [B, T] True at generated tokens, which come first in every row.
        lam: in [0, 1].

    Returns:
        [B, T], 0 at padding.

    Raises:
        ValueError: `lam` is outside [0, 1].
    """
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    value = torch.where(is_token, value, 0.0)
    after = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
    last = is_token & ~torch.cat([is_token[:, 1:], torch.zeros_like(is_token[:, :1])], 1)
    delta = torch.where(is_token, torch.where(last, reward[:, None], after) - value, 0.0)
    advantage = torch.zeros_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        running = delta[:, t] + lam * running
        advantage[:, t] = running
    return advantage


def scale_by_rms(advantage: Tensor, weight: Tensor, is_token: Tensor, *, floor: float) -> tuple[Tensor, Tensor]:
    """Advantages divided by max(rms, floor), and the rms; docs/algorithm.md eq. 12.

    rms^2 = sum w A^2 / sum w over tokens: one number for the whole batch, so directions are kept. The floor is
    what keeps a batch without a success from amplifying the noise of small rewards.

    Args:
        advantage: [B, T].
        weight: [B] weight of each completion, >= 0.
        is_token: [B, T] True at generated tokens.
        floor: > 0, in units of reward.

    Raises:
        ValueError: `floor` is not positive.
    """
    if not floor > 0.0:
        raise ValueError(f"floor must be positive, got {floor}")
    mass = weight[:, None] * is_token
    rms = ((mass * advantage.square()).sum() / mass.sum().clamp(min=torch.finfo(mass.dtype).tiny)).sqrt()
    return advantage / rms.clamp(min=floor), rms
