"""What a batch of rollouts looks like from outside: diversity, weights, cost. Pure functions on `Rollouts`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Rollouts


def unique_fraction(rollouts: Rollouts) -> float:
    """Distinct leaves over leaves, averaged over problems; 1 for sampling without replacement."""
    tokens = torch.where(rollouts.is_token, rollouts.tokens, -1)
    shares = []
    for row, length in zip(tokens, rollouts.length, strict=True):
        found = row[length > 0]
        if len(found):
            shares.append(len(torch.unique(found, dim=0)) / len(found))
    return sum(shares) / len(shares)


def shared_prefix_fraction(rollouts: Rollouts) -> float:
    """Length of the common prefix of two leaves of a problem over the shorter's length, averaged over pairs."""
    tokens = torch.where(rollouts.is_token, rollouts.tokens, -1)
    same = (tokens[:, :, None] == tokens[:, None, :]) & rollouts.is_token[:, :, None]  # [P, K, K, T]
    common = same.long().cumprod(-1).sum(-1)
    shorter = torch.minimum(rollouts.length[:, :, None], rollouts.length[:, None, :])
    is_pair = (shorter > 0) & ~torch.eye(shorter.shape[1], dtype=torch.bool, device=shorter.device)
    if not bool(is_pair.any()):
        return 0.0
    return float((common / shorter.clamp(min=1))[is_pair].mean())


def effective_sample_size(weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of every problem, in [1, K]; [P]."""
    return weight.sum(1).square() / weight.square().sum(1).clamp(min=torch.finfo(weight.dtype).tiny)


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation; nan when either is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float((x * y).sum()) / scale if scale > 1e-12 else float("nan")


def variance_ratio(rollouts: Rollouts, weight: Tensor, grade: Tensor) -> float:
    """rho = sum w^2 (R - p)^2 / sum w (R - p)^2 with p the root value: below 1 beats on-policy sampling.

    For K independent samples weighted 1/K it is 1/K, so it is multiplied by K; nan when every R equals its p.
    """
    error = (grade - rollouts.value[..., 0]).square()
    on_policy = float((weight * error).sum())
    return weight.shape[1] * float((weight.square() * error).sum()) / on_policy if on_policy > 0 else float("nan")


def _mean_and_error(estimate: Tensor) -> tuple[float, float]:
    """The mean and its standard error, 0 for a single estimate."""
    return float(estimate.mean()), float(estimate.std() / len(estimate) ** 0.5) if len(estimate) > 1 else 0.0


def rollout_metrics(
    rollouts: Rollouts, weight: Tensor, accuracy: Tensor, grade: Tensor, reward: Tensor, *, is_weighted: bool = True
) -> dict[str, float]:
    """Everything that is logged of a search; names as in docs/metrics.md.

    Args:
        rollouts: of P problems.
        weight: [P, K] the search's weights, uniform where it has none.
        accuracy: [P, K] 1 where the leaf is correct.
        grade: [P, K] what the value model predicts: accuracy, or the grade of a task that grades.
        reward: [P, K] in units of reward.
        is_weighted: weights undo the search's bias; else nothing is known of the policy's accuracy, and that is nan.
    """
    has_leaf = rollouts.length > 0
    num_leaves = has_leaf.sum().clamp(min=1)
    stats = rollouts.stats
    num_tokens = int(stats.num_decoded_tokens.sum())
    mean, error = _mean_and_error((weight * accuracy).sum(1)) if is_weighted else (math.nan, math.nan)
    is_mixed = (accuracy * has_leaf).amax(1) > torch.where(has_leaf, accuracy, 1.0).amin(1)
    return {
        "rollout/accuracy": float((accuracy * has_leaf).sum() / num_leaves),
        "rollout/policy_accuracy": mean,
        "rollout/policy_accuracy_stderr": error,
        "rollout/mixed_fraction": float(is_mixed.double().mean()),
        "rollout/length": float(rollouts.length.sum() / num_leaves),
        "rollout/finished_fraction": float(rollouts.is_finished.sum() / num_leaves),
        "rollout/unique_fraction": unique_fraction(rollouts),
        "rollout/shared_prefix_fraction": shared_prefix_fraction(rollouts),
        "weight/sum": float(weight.sum(1).mean()),
        "weight/max": float(weight.max()),
        "weight/variance_ratio": variance_ratio(rollouts, weight, grade),
        "weight/capped_fraction": float((stats.num_capped > 0).double().mean()),
        "reward/length_correlation": correlation(reward[has_leaf], rollouts.length[has_leaf].double()),
        "reward/accuracy_correlation": correlation(reward[has_leaf], accuracy[has_leaf]),
        "weight/effective_sample_size": float(effective_sample_size(weight).mean()),
        "search/num_expanded": int(stats.num_expanded.sum()),
        "search/num_forks": int(stats.num_forks.sum()),
        "search/num_decoded_tokens": num_tokens,
        "search/max_open": int(stats.max_open.max()),
        "search/num_open_final": int(stats.num_open_final.sum()),
        "search/num_pruned": int(stats.num_pruned.sum()),
        "search/tokens_per_leaf": num_tokens / int(num_leaves),
    }
