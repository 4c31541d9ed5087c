"""Advantages, which say how much better a token was than its prefix promised. Pure functions on tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MEASURES = ("advantage/mean", "advantage/rms", "advantage/max", "advantage/min")
"""Names of what `describe` returns."""


def generalized_advantage(reward: Tensor, value: Tensor, is_token: Tensor, *, lam: float) -> Tensor:
    """GAE with discount 1 for a reward at the last token (docs/algorithm.md eq. 11).

        A_t = sum_{l >= 0} lam^l delta_{t+l},   delta_t = r_t + V_{t+1} - V_t,   V = 0 after the end

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


def rms_of(advantage: Tensor, weight: Tensor, is_token: Tensor) -> Tensor:
    """Root mean square over tokens, rms^2 = sum w A^2 / sum w. A scalar, 0 where nothing weighs.

    Args:
        advantage: [B, T].
        weight: [B] weight of each completion, >= 0.
        is_token: [B, T] True at generated tokens.
    """
    mass = weight[:, None] * is_token
    return ((mass * advantage.square()).sum() / mass.sum().clamp(min=torch.finfo(mass.dtype).tiny)).sqrt()


def scale_by_rms(advantage: Tensor, weight: Tensor, is_token: Tensor, *, floor: float) -> Tensor:
    """Advantages divided by max(`rms_of` them, floor) (docs/algorithm.md eq. 12).

    There is one divisor for the whole batch, so directions are kept. The floor keeps a batch without a success from
    amplifying the noise of small rewards.

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
    return advantage / rms_of(advantage, weight, is_token).clamp(min=floor)


def group_centred(reward: Tensor, group: Tensor) -> Tensor:
    """R minus the mean reward of its group, [B].

    Args:
        reward: [B].
        group: [B] int64, equal for completions of one problem, in any order.

    Raises:
        ValueError: a group has a single member.
    """
    return _of_groups(reward, group)[0].to(reward.dtype)


def group_normalised(reward: Tensor, group: Tensor, *, floor: float = 1e-4) -> Tensor:
    """(R - mean) / (std + floor) within each group, [B] (docs/algorithm.md eq. 15).

    std^2 = sum (R - mean)^2 / (n - 1). Source: Shao et al. 2024 (GRPO), sec. 4.1.2, with divisor and floor as in TRL.

    Args:
        reward: [B].
        group: [B] int64, equal for completions of one problem, in any order.
        floor: > 0, in units of reward. In a group of equal rewards the advantage is 0 / floor = 0.

    Raises:
        ValueError: a group has a single member.
    """
    centred, index, count = _of_groups(reward, group)
    variance = centred.new_zeros(len(count)).index_add(0, index, centred.square()) / (count - 1)
    return (centred / (variance.sqrt()[index] + floor)).to(reward.dtype)


def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """R minus the mean reward of the others of its group, [B] (docs/algorithm.md eq. 17).

    It equals n / (n - 1) times R minus the mean of all n. Source: Kool et al. 2019, eq. 8, and Ahmadian et al. 2024.

    Args:
        reward: [B].
        group: [B] int64, equal for completions of one problem, in any order.

    Raises:
        ValueError: a group has a single member.
    """
    centred, index, count = _of_groups(reward, group)
    return (centred * (count / (count - 1))[index]).to(reward.dtype)


def _of_groups(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R - mean in float64 [B], the number of each row's group [B], and the sizes of the groups.

    In float64 a sum of float32 rewards is exact as a rule, so their order does not matter, on a GPU either.
    """
    _, index, count = group.unique(return_inverse=True, return_counts=True)
    if (count < 2).any():
        raise ValueError("a problem with a single completion has no others to compare it with: draw at least two")
    exact = reward.double()
    mean = exact.new_zeros(len(count)).index_add(0, index, exact) / count
    return exact - mean[index], index, count


def optimal_value(reward: Tensor, beta: float) -> Tensor:
    """V* = beta log mean_n e^(R_n / beta) over N reference rollouts per problem, [P] (docs/algorithm.md eq. 18).

    It lies between the mean reward (beta to infinity) and the best (beta to 0). Source: Brantley et al. 2025, sec. 3.

    Args:
        reward: [P, N].
        beta: > 0, in units of reward.

    Raises:
        ValueError: `beta` is not positive.
    """
    if not beta > 0.0:
        raise ValueError(f"beta must be positive, got {beta}")
    return beta * (torch.logsumexp(reward / beta, 1) - math.log(reward.shape[1]))


def best_shares(reward: Tensor, weight: Tensor, may_be_kept: Tensor, group: Tensor) -> Tensor:
    """The share of each completion in the one that its problem keeps, [B]. Shares sum to 1 per problem, or are all 0.

    Those with the best reward among the ones that may be kept share in proportion to their weights (docs/algorithm.md
    eq. 20).

    Args:
        reward: [B].
        weight: [B] > 0, inclusion weights.
        may_be_kept: [B] bool.
        group: [B] int64, equal for completions of one problem, in any order.
    """
    _, index, count = group.unique(return_inverse=True, return_counts=True)
    worth = torch.where(may_be_kept, reward, -torch.inf)
    best = worth.new_full((len(count),), -torch.inf).scatter_reduce(0, index, worth, "amax")
    mass = torch.where(may_be_kept & (worth == best[index]), weight, 0.0).double()
    total = mass.new_zeros(len(count)).index_add(0, index, mass)
    return (mass / total[index].clamp(min=torch.finfo(torch.float64).tiny)).to(weight.dtype)


def describe(advantage: Tensor, weight: Tensor, is_token: Tensor) -> dict[str, float]:
    """Mean and root mean square, weighted over tokens, then the largest and the smallest, named as in `MEASURES`.

    Args:
        advantage: [B, T].
        weight: [B] weight of each completion, >= 0.
        is_token: [B, T] True at generated tokens, at least one.
    """
    mass = weight[:, None] * is_token
    mean = (mass * advantage).sum() / mass.sum().clamp(min=1e-12)
    tokens = advantage[is_token]
    values = (mean, rms_of(advantage, weight, is_token), tokens.max(), tokens.min())
    return dict(zip(MEASURES, map(float, values), strict=True))
