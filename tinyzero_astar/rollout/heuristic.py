"""The score of a prefix, f = g + h, and the proposal that it induces.

Pure functions on tensors; equation numbers are those of docs/algorithm.md. p(s) is the probability that a
completion of prefix s by the policy is correct, and h puts it on the scale of log-probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.interfaces import StepOutput

_LEVELS = 4  # the budget chooses among strengths 0, 1/4, 1/2, 3/4, 1


@dataclass(frozen=True)
class Guidance:
    """How the value model bends the search; q = pi when `strength` is 0."""

    inverse_beta: float | Literal["balanced"] = "balanced"  # 1/beta in nats per unit of success
    max_inverse_beta: float = 3.0  # bound on |1/beta| when balanced
    cap: float | None = 2.0  # bound on pi/q over every leaf, > 1; None: no bound
    strength: float | Tensor = 1.0  # upper end of tau, in [0, 1]; one number or one per problem [P]

    def __post_init__(self) -> None:
        """Refuse values outside the stated ranges."""
        if self.cap is not None and not self.cap > 1.0:
            raise ValueError(f"guidance cap {self.cap} must be larger than 1, or None for no bound")
        if not self.max_inverse_beta >= 0.0:
            raise ValueError(f"max_inverse_beta {self.max_inverse_beta} must not be negative")
        if isinstance(self.strength, (int, float)) and not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"guidance strength {self.strength} must lie in [0, 1]")


def soft_value(success_logit: Tensor, inverse_beta: Tensor) -> Tensor:
    """h(s) = log E[e^(R/beta)] = log1p(p expm1(1/beta)) for R in {0, 1}; eq. 3.

    Computed from the logit x of p as log(sigmoid(-x) + e^(1/beta) sigmoid(x)): neither term cancels the other.
    """
    success, failure = torch.sigmoid(success_logit), torch.sigmoid(-success_logit)
    return torch.addcmul(failure, success, torch.exp(inverse_beta)).log_()


def f_score(g: Tensor, h: Tensor, strength: Tensor | float = 1.0) -> Tensor:
    """f = g + strength * h; eq. 4. The one place where a prefix gets its score: larger is better."""
    return g + strength * h


def balanced_inverse_beta(root_logit: Tensor, bound: float) -> Tensor:
    """1/beta = clip(log((1 - p) / p), +-bound) = clip(-logit(p)): q then succeeds half the time; eq. 7."""
    return (-root_logit).clamp(-bound, bound)


def inverse_beta_of(guidance: Guidance, root_logit: Tensor) -> Tensor:
    """1/beta of every problem, [P]: the given number, or balanced by the root's value (eq. 7)."""
    if guidance.inverse_beta == "balanced":
        return balanced_inverse_beta(root_logit, guidance.max_inverse_beta)
    return torch.full_like(root_logit, guidance.inverse_beta)


class Proposal(NamedTuple):
    """q at N prefixes."""

    logq: Tensor  # [N, V]
    tau: Tensor  # [N] the strength that the budget allowed


def propose(
    logp: Tensor,
    child_h: Tensor,
    log_weight: Tensor,
    strength: Tensor,
    cap: float | None,
) -> Proposal:
    """The policy twisted by the heuristic, q(a|s) ~ exp f(sa); eqs. 5 and 9.

    With a cap c, tau is the largest of strength * {0, 1/4, 1/2, 3/4, 1} for which no token can push the running
    weight pi/q above c. It depends on the prefix alone, so the weights of eq. 6 stay exact.

    Args:
        logp: [N, V] log pi(a|s).
        child_h: [N, V] h(sa).
        log_weight: [N] log of the running weight pi/q of the prefix.
        strength: [N] upper end of tau.
        cap: c > 1 or None.
    """
    if math.isinf(float(logp.min())):  # impossible tokens must not set the scale
        is_possible = torch.isfinite(logp)
        shift = torch.where(is_possible, child_h, -torch.inf).amax(-1, keepdim=True)
        gain = torch.where(is_possible, child_h - shift, 0.0)
    else:
        gain = child_h - child_h.amax(-1, keepdim=True)  # <= 0; a constant per row cancels in q
    if cap is None:
        return Proposal(torch.log_softmax(f_score(logp, gain, strength[:, None]), -1), strength)
    levels = torch.arange(_LEVELS + 1, dtype=logp.dtype, device=logp.device)[:, None] / _LEVELS
    factor = (gain * (strength[:, None] / _LEVELS)).exp_()
    mass = torch.exp(logp)  # pi * factor**level, its sum is the norm of q at that level
    norms = [torch.ones_like(strength)] + [mass.mul_(factor).sum(-1) for _ in range(_LEVELS)]
    log_norm, taus = torch.log(torch.stack(norms)), strength * levels  # [levels, N]
    worst = log_norm - taus * gain.amin(-1)  # max over a of log pi - log q
    is_too_much = log_weight + worst > math.log(cap)
    is_too_much[0] = False
    level = is_too_much.cumsum(0).eq(0).sum(0, keepdim=True) - 1  # the last before the first that is too much
    tau, log_norm = taus.gather(0, level)[0], log_norm.gather(0, level)
    return Proposal(f_score(logp, gain, tau[:, None]).sub_(log_norm.T), tau)


def log_policy(output: StepOutput) -> Tensor:
    """log pi(a|s) at temperature 1, [N, V].

    Raises:
        FloatingPointError: a row of logits holds NaN, +inf, or nothing finite, or a value is not finite.
    """
    logp = torch.log_softmax(output.logits, -1)
    likeliest = logp.amax(-1)
    if not math.isfinite(float(likeliest.sum() + output.value_logit.sum())):  # one look at the device in good times
        if not bool(torch.isfinite(likeliest).all()):
            raise FloatingPointError("the decoder returned NaN logits, or a prefix without any possible next token")
        if not bool(torch.isfinite(output.value_logit).all()):
            raise FloatingPointError("the decoder returned a value that is NaN or infinite")
    return logp


def child_heuristic(child_logit: Tensor, inverse_beta: Tensor) -> Tensor:
    """h(sa) of every child, [N, V]; see `soft_value`.

    Raises:
        FloatingPointError: a child's value is NaN or infinite.
    """
    h = soft_value(child_logit, inverse_beta)
    if not math.isfinite(float(h.sum())):
        raise FloatingPointError("the decoder returned a child's value that is NaN or infinite")
    return h
