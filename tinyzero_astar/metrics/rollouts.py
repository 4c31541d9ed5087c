"""What a batch of rollouts looks like from outside, in diversity, weights and cost. Pure functions on `Rollouts`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Rollouts
from tinyzero_astar.modes import SearchMode

_MOST_PAIRS = 1 << 22  # pairs of tokens that are compared at once


def unique_fraction(rollouts: Rollouts) -> float:
    """Distinct leaves over leaves, averaged over problems with a leaf. It is 1 for sampling without replacement."""
    tokens = torch.where(rollouts.is_token, rollouts.tokens, -1)
    shares = []
    for row, length in zip(tokens, rollouts.length, strict=True):
        found = row[length > 0]
        if len(found):
            shares.append(len(torch.unique(found, dim=0)) / len(found))
    return sum(shares) / len(shares) if shares else math.nan


def common_prefixes(rollouts: Rollouts) -> Tensor:
    """Tokens that two leaves of a problem begin with alike, [P, K, K]."""
    tokens = torch.where(rollouts.is_token, rollouts.tokens, -1)
    num_pairs = max(1, tokens.shape[1] * tokens.shape[1] * tokens.shape[2])
    found = []
    # In a shared search one problem may have nearly all leaves. Few problems at a time bound the memory.
    for own, is_token in zip(
        *(x.split(max(1, _MOST_PAIRS // num_pairs)) for x in (tokens, rollouts.is_token)), strict=True
    ):
        same = (own[:, :, None] == own[:, None, :]) & is_token[:, :, None]
        found.append(same.to(torch.int16).cumprod(-1, dtype=torch.int16).sum(-1))
    return torch.cat(found)


def shared_prefix_fraction(rollouts: Rollouts) -> float:
    """Length of the common prefix of two leaves of a problem over the shorter's length, averaged over pairs."""
    common = common_prefixes(rollouts)
    shorter = torch.minimum(rollouts.length[:, :, None], rollouts.length[:, None, :])
    is_pair = (shorter > 0) & ~torch.eye(shorter.shape[1], dtype=torch.bool, device=shorter.device)
    if not bool(is_pair.any()):
        return 0.0
    return float((common / shorter.clamp(min=1))[is_pair].mean())


def effective_sample_size(weight: Tensor, group_size: int = 1) -> Tensor:
    """(sum w)^2 / sum w^2 of every search, between 1 and the number of its leaves, [P / M]. Source: Kish 1965.

    Args:
        weight: [P, K], 0 where there is no leaf.
        group_size: M problems, one after another, that share a search.
    """
    by_search = weight.reshape(len(weight) // group_size, -1)
    return by_search.sum(1).square() / by_search.square().sum(1).clamp(min=torch.finfo(weight.dtype).tiny)


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation, nan when either is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float((x * y).sum()) / scale if scale > 1e-12 else float("nan")


def variance_ratio(rollouts: Rollouts, weight: Tensor, grade: Tensor, group_size: int = 1) -> float:
    """Variance of sum w (R - p) over searches / the variance over as many independent samples.

    p is the value of the prompt. This is docs/algorithm.md eq. 23, each of the two summed over all searches. For one
    search the first is the sum over its leaves of w^2 (1 - q_kappa) (R - p)^2 = w (w - pi) (R - p)^2. The second is the
    sum over its problems of (sum w) (sum w R^2) - (sum w R)^2, divided by its leaves per problem. Both are unbiased
    from two leaves of a search on, and their own variances are finite from four on. With one leaf a search the variance
    is infinite, and the result is nan. It is also nan where no problem has leaves of different grades.

    Args:
        rollouts: of P problems, sampled without replacement.
        weight: [P, K] of eq. 6 or 21.
        grade: [P, K] R.
        group_size: M problems, one after another, that share a search.
    """
    pi = rollouts.logp.sum(-1).exp()
    searched = (weight * (weight - pi) * (grade - rollouts.value[..., 0]).square()).sum()
    spread = weight.sum(1) * (weight * grade.square()).sum(1) - (weight * grade).sum(1).square()
    num_leaves = (rollouts.length > 0).sum(1).view(-1, group_size).sum(1).clamp(min=1)
    sampled = float((spread.view(-1, group_size).sum(1) * group_size / num_leaves).sum())
    return float(searched) / sampled if sampled > 1e-12 else math.nan


def _mean_and_error(estimate: Tensor) -> tuple[float, float]:
    """The mean and its standard error, 0 for a single estimate."""
    return float(estimate.mean()), float(estimate.std() / len(estimate) ** 0.5) if len(estimate) > 1 else 0.0


def rollout_metrics(
    rollouts: Rollouts,
    weight: Tensor,
    accuracy: Tensor,
    grade: Tensor,
    reward: Tensor,
    *,
    mode: SearchMode = "gumbel",
    group_size: int = 1,
) -> dict[str, float]:
    """Everything that is logged of a search, named as in docs/metrics.md.

    Args:
        rollouts: of P problems.
        weight: [P, K] the search's weights, uniform where it has none.
        accuracy: [P, K] 1 where the leaf is correct.
        grade: [P, K] what the value model predicts, which is accuracy, or the grade of a task that grades.
        reward: [P, K] in units of reward.
        mode: of the search. In "best_first" nothing is known of the policy's accuracy, so it is nan.
        group_size: M problems, one after another, that share a search.
    """
    is_weighted = mode != "best_first"
    has_leaf = rollouts.length > 0
    num_leaves = has_leaf.sum().clamp(min=1)
    stats = rollouts.stats
    num_tokens = int(stats.num_decoded_tokens.sum())
    mean, error = _mean_and_error((weight * accuracy).sum(1)) if is_weighted else (math.nan, math.nan)
    is_mixed = (accuracy * has_leaf).amax(1) > torch.where(has_leaf, accuracy, 1.0).amin(1)
    ratio = variance_ratio(rollouts, weight, grade, group_size) if mode == "gumbel" else math.nan
    return {
        "rollout/accuracy": float((accuracy * has_leaf).sum() / num_leaves),
        "rollout/policy_accuracy": mean,
        "rollout/policy_accuracy_stderr": error,
        "rollout/mixed_fraction": float(is_mixed[has_leaf.sum(1) > 1].double().mean()),
        "rollout/length": float(rollouts.length.sum() / num_leaves),
        "rollout/finished_fraction": float(rollouts.is_finished.sum() / num_leaves),
        "rollout/unique_fraction": unique_fraction(rollouts),
        "rollout/shared_prefix_fraction": shared_prefix_fraction(rollouts),
        "weight/sum": float(weight.sum(1).mean()),
        "weight/max": float(weight.max()),
        "weight/variance_ratio": 1.0 if mode == "sample" else ratio,
        "weight/capped_fraction": float((stats.num_capped > 0).double().mean()),
        "reward/length_correlation": correlation(reward[has_leaf], rollouts.length[has_leaf].double()),
        "reward/accuracy_correlation": correlation(reward[has_leaf], accuracy[has_leaf]),
        "weight/effective_sample_size": float(effective_sample_size(weight, group_size).mean()),
        "search/num_expanded": int(stats.num_expanded.sum()),
        "search/num_forks": int(stats.num_forks.sum()),
        "search/num_decoded_tokens": num_tokens,
        "search/max_open": int(stats.max_open.max()),
        "search/num_open_final": int(stats.num_open_final.sum()),
        "search/num_pruned": int(stats.num_pruned.sum()),
        "search/tokens_per_leaf": num_tokens / int(num_leaves),
    }
