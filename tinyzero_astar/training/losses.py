"""Losses as sums over a micro-batch. The caller divides once, by one global count. Pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_objective(log_ratio: Tensor, advantage: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """min(r A, clamp(r, 1 - low, 1 + high) A) element by element, with r = e^log_ratio.

    Source: Schulman et al. 2017, eq. 7.

    Args:
        log_ratio: of tokens or of whole completions. Carries the gradient.
        advantage: constant, of the same shape.
        clip_low: in (0, 1).
        clip_high: > 0.

    Raises:
        ValueError: a clip is out of range.
    """
    if not 0.0 < clip_low < 1.0 or not clip_high > 0.0:
        raise ValueError(f"clip_low must lie in (0, 1) and clip_high be positive, got {clip_low}, {clip_high}")
    ratio = torch.exp(log_ratio)
    advantage = advantage.detach()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def completion_sums(x: Tensor, is_token: Tensor) -> Tensor:
    """[B] sums of per-token numbers [B, T] over the tokens of each completion."""
    return torch.where(is_token, x, 0.0).sum(1)


def completion_means(x: Tensor, is_token: Tensor) -> Tensor:
    """[B] means of per-token numbers [B, T] over the tokens of each completion."""
    return completion_sums(x, is_token) / is_token.sum(1).clamp(min=1)


def clipped_surrogate(
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    weight: Tensor,
    is_token: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Negative PPO objective, weighted per completion, summed over tokens (docs/algorithm.md eq. 10).

        -sum_i w_i sum_t min(r_t A_t, clamp(r_t, 1 - low, 1 + high) A_t),   r_t = exp(logp_t - logp_old_t)

    The behaviour policy enters through w alone, never through r, as in decoupled PPO (Hilton et al. 2022). Source:
    Schulman et al. 2017, eq. 7.

    Args:
        logp: [B, T] log-probabilities under the policy being trained.
        logp_old: [B, T] under the policy before the update, temperature 1, as the search recorded it. At unchanged
            weights the ratio is 1 up to what `audit/ratio_error` measures. Carries no gradient.
        advantage: [B, T] constant.
        weight: [B] inclusion weights, constant.
        is_token: [B, T] True where a token contributes.
        clip_low: in (0, 1).
        clip_high: > 0.

    Raises:
        ValueError: a clip is out of range.
    """
    log_ratio = torch.where(is_token, logp - logp_old.detach(), 0.0)
    objective = clipped_objective(log_ratio, advantage, clip_low=clip_low, clip_high=clip_high)
    return -(weight.detach()[:, None] * torch.where(is_token, objective, 0.0)).sum()


def noise_weight(logp: Tensor) -> Tensor:
    """(1 - pi(a|s))^2, how far a sampled token moves the logits of its prefix, up to a factor between 1 and 2.

    The gradient of log pi(a|s) with respect to the logits is e_a - pi. Its squared norm is (1 - pi(a))^2 plus the sum
    of pi(b)^2 over the other tokens, which is at most (1 - pi(a))^2.

    Args:
        logp: log pi(a|s) of the tokens, any shape.
    """
    return torch.expm1(logp).square()


def weighted_square(x: Tensor, outcome: Tensor, weight: Tensor) -> Tensor:
    """sum_it w_it (x_it - R_i)^2, the last term of docs/algorithm.md eq. 13.

    Args:
        x: [B, T] predictions at visited prefixes.
        outcome: [B] in units of x.
        weight: [B, T] constant, 0 where a prefix does not count.
    """
    return torch.where(weight > 0, weight.detach() * (x - outcome[:, None]).square(), 0.0).sum()


def weighted_brier(logit: Tensor, outcome: Tensor, weight: Tensor, is_token: Tensor) -> Tensor:
    """Squared error of a predicted probability, weighted per completion, summed over tokens (docs/algorithm.md eq. 13).

        sum_i w_i sum_t (sigmoid(x_it) - R_i)^2

    With inclusion weights its minimiser is success under the policy. Without them it would be success under the
    proposal.

    Args:
        logit: [B, T] predictions at visited prefixes.
        outcome: [B] in [0, 1].
        weight: [B] constant.
        is_token: [B, T] True where a prefix counts.
    """
    error = (torch.sigmoid(logit) - outcome[:, None]).square()
    return (weight.detach()[:, None] * torch.where(is_token, error, 0.0)).sum()
