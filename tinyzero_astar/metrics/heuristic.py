"""How good the heuristic is on rollouts that it has not been trained on. Pure functions on tensors.

Measured on an iteration's own rollouts, before the value model is updated with them. Equations of docs/algorithm.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Rollouts
from tinyzero_astar.metrics.rollouts import common_prefixes
from tinyzero_astar.search.heuristic import soft_value, tilt_of

NUM_BINS = 10
MEASURES = (
    *("value/explained_variance", "value/brier", "value/calibration_error", "value/calibration_bins"),
    *("value/auc_root", "value/root_calibration_error"),
    *(f"value/sibling_{name}{which}" for which in ("", "_first", "_later") for name in ("accuracy", "pairs")),
    *("heuristic/inadmissible_fraction", "heuristic/overestimate_nats"),
    *(f"value/auc_depth_{quarter}" for quarter in (1, 2, 3, 4)),
)
"""Names of what `heuristic_quality` returns."""
_EPS = 1e-6  # of the logit of a recorded probability


def weighted_auc(score: Tensor, outcome: Tensor, weight: Tensor) -> float:
    """P(score of a success > score of a failure), where ties count half. nan without both kinds.

    Equal as float32 is a tie, since leaves of one problem share their root's value but for the last digit of a double.

    Args:
        score: [N] any real numbers.
        outcome: [N] 0 or 1.
        weight: [N] >= 0.
    """
    levels, level = torch.unique(score.float(), return_inverse=True)
    success = weight.new_zeros(len(levels)).index_add(0, level, weight * outcome)
    failure = weight.new_zeros(len(levels)).index_add(0, level, weight * (1 - outcome))
    below = failure.cumsum(0) - failure
    pairs = float(success.sum() * failure.sum())
    return float((success * (below + 0.5 * failure)).sum()) / pairs if pairs > 0 else float("nan")


def explained_variance(value: Tensor, outcome: Tensor, weight: Tensor) -> float:
    """1 - Var(R - V) / Var(R), weighted. It is 0 for a constant V, 1 when V equals the outcome, nan if all R agree."""
    mass = weight / weight.sum()

    def variance(x: Tensor) -> float:
        return float((mass * (x - (mass * x).sum()).square()).sum())

    total = variance(outcome)
    return 1.0 - variance(outcome - value) / total if total > 1e-12 else float("nan")


def calibration(value: Tensor, outcome: Tensor, weight: Tensor) -> tuple[float, list[list[float]]]:
    """Expected calibration error over ten equal bins of V, and [mean V, mean R, share] of each filled bin.

    Source: Naeini et al. 2015, with weights.
    """
    place = (value * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    total = weight.sum()
    error, bins = 0.0, []
    for index in place.unique().tolist():
        mass = weight * (place == index)
        share = float(mass.sum() / total)
        if share > 0:
            predicted, observed = float((mass * value).sum() / mass.sum()), float((mass * outcome).sum() / mass.sum())
            error += share * abs(predicted - observed)
            bins.append([round(predicted, 4), round(observed, 4), round(share, 4)])
    return error, bins


def sibling_ranking(rollouts: Rollouts, accuracy: Tensor) -> dict[str, float]:
    """How often the values that guide the search prefer the successful side of a fork, and over how many pairs.

    A pair is a successful and a failed leaf of one problem. Their fork is where they part. The values of the two
    children there, as their prefix predicts them, are compared, also where a child ends its leaf. Ties count half.
    Chance level is 0.5, and without a pair it is nan. Forks at the first token, which are easy, and later ones are also
    measured apart.

    Args:
        rollouts: P problems, K leaves each.
        accuracy: [P, K] 1 where the leaf is correct.
    """
    fork = common_prefixes(rollouts)  # [P, K, K] where the two first differ
    length = rollouts.length
    success, failure = accuracy[:, :, None] > 0.5, accuracy[:, None, :] < 0.5
    is_pair = success & failure & (fork < length[:, :, None]) & (fork < length[:, None, :])
    index = fork.clamp(max=rollouts.tokens.shape[-1] - 1)
    value = rollouts.child_value[:, :, None].expand(-1, -1, index.shape[2], -1)
    mine = value.gather(-1, index[..., None])[..., 0]
    other = value.transpose(1, 2).gather(-1, index[..., None])[..., 0]
    points = torch.where(mine > other, 1.0, torch.where(mine == other, 0.5, 0.0))
    found = {}
    for which, is_meant in (("", is_pair), ("_first", is_pair & (fork == 0)), ("_later", is_pair & (fork > 0))):
        found[f"value/sibling_accuracy{which}"] = float(points[is_meant].mean())
        found[f"value/sibling_pairs{which}"] = int(is_meant.sum())
    return found


def admissibility(rollouts: Rollouts, accuracy: Tensor, weight: Tensor, inverse_beta: Tensor) -> tuple[float, float]:
    """Share of visited prefixes with h below a completion that was found, and the mean overestimate in nats.

    h(s) must not be less than log pi(y|s) + R(y)/beta of any completion y (P2 of docs/algorithm.md). The found leaf
    bounds the unknown maximum from below. So the share misses some violations, and the overestimate is at most as large
    as stated.

    Args:
        rollouts: P problems, K leaves each.
        accuracy: [P, K].
        weight: [P, K].
        inverse_beta: [P].
    """
    to_go = rollouts.logp.flip(-1).cumsum(-1).flip(-1)  # log pi of the rest, from before each token
    found = to_go + (accuracy * inverse_beta[:, None])[..., None]
    probability = rollouts.value.clamp(_EPS, 1 - _EPS)
    h = soft_value(torch.logit(probability), tilt_of(inverse_beta[:, None, None]))
    mass = weight[..., None] * rollouts.is_token
    total = mass.sum().clamp(min=1e-12)
    gap = h - found
    return float((mass * (gap < -1e-3)).sum() / total), float((mass * gap.clamp(min=0)).sum() / total)


def heuristic_quality(
    rollouts: Rollouts, accuracy: Tensor, weight: Tensor, inverse_beta: Tensor
) -> dict[str, float | list[list[float]]]:
    """All of the above under the names of docs/metrics.md.

    Args:
        rollouts: P problems, K leaves each, with the values that the search recorded.
        accuracy: [P, K] what the value predicts, in [0, 1] where a task grades.
        weight: [P, K] inclusion weights. They make every average one over the policy's own completions.
        inverse_beta: [P] 1/beta of each problem.
    """
    is_token = rollouts.is_token
    position = torch.arange(is_token.shape[-1], device=is_token.device) / rollouts.length.clamp(min=1)[..., None]
    value = rollouts.value[is_token]
    outcome = accuracy[..., None].expand_as(rollouts.value)[is_token]
    mass = weight[..., None].expand_as(rollouts.value)[is_token]
    has_leaf = rollouts.length > 0
    at_root = rollouts.value[..., 0][has_leaf], accuracy[has_leaf], weight[has_leaf]
    error, bins = calibration(value, outcome, mass)
    inadmissible, overestimate = admissibility(rollouts, accuracy, weight, inverse_beta)
    result: dict[str, float | list[list[float]]] = {
        "value/explained_variance": explained_variance(value, outcome, mass),
        "value/brier": float((mass * (value - outcome).square()).sum() / mass.sum()),
        "value/calibration_error": error,
        "value/calibration_bins": bins,
        "value/auc_root": weighted_auc(*at_root),
        "value/root_calibration_error": calibration(*at_root)[0],
        **sibling_ranking(rollouts, accuracy),
        "heuristic/inadmissible_fraction": inadmissible,
        "heuristic/overestimate_nats": overestimate,
    }
    for quarter in range(4):
        inside = ((position >= quarter / 4) & (position < (quarter + 1) / 4))[is_token]
        result[f"value/auc_depth_{quarter + 1}"] = weighted_auc(value[inside], outcome[inside], mass[inside])
    return result
