"""The score of a prefix, f = g + h, and the proposal that it induces.

Pure functions on tensors. Equation numbers are those of docs/algorithm.md. p(s) is the probability that a completion of
prefix s by the policy is correct. h puts it on the scale of log-probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.interfaces import StepOutput

_MAX_INVERSE_BETA = 50.0  # e^h is a float32
_LOG2_E = math.log2(math.e)
LEAST_LOGP = -30.0  # log pi in nats. Children that are less likely are scored as this, and so are forbidden ones
_TINY = 1e-30  # in place of 0 in a quotient, representable in float32


@dataclass(frozen=True)
class Guidance:
    """How the value model guides the search. With `strength` 0, q = pi."""

    inverse_beta: float | Literal["balanced"] = "balanced"  # 1/beta in nats per unit of success
    max_inverse_beta: float = 3.0  # bound on |1/beta| when balanced
    cap: float | None = 2.0  # bound on pi/q over every leaf, > 1, None means no bound
    strength: float | Tensor = 1.0  # upper end of tau, in [0, 1], one number or one per problem [P]

    def __post_init__(self) -> None:
        """Refuse values outside the stated ranges."""
        if self.cap is not None and not self.cap > 1.0:
            raise ValueError(f"guidance cap {self.cap} must be larger than 1, or None for no bound")
        if not 0.0 <= self.max_inverse_beta <= _MAX_INVERSE_BETA:
            raise ValueError(f"max_inverse_beta {self.max_inverse_beta} must lie in [0, {_MAX_INVERSE_BETA}]")
        if isinstance(self.inverse_beta, (int, float)) and not abs(self.inverse_beta) <= _MAX_INVERSE_BETA:
            raise ValueError(f"inverse_beta {self.inverse_beta} must lie in +-{_MAX_INVERSE_BETA}, or be 'balanced'")
        if isinstance(self.strength, (int, float)) and not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"guidance strength {self.strength} must lie in [0, 1]")

    def of(self, problems: Tensor) -> Guidance:
        """That of some problems, by their numbers."""
        if not isinstance(self.strength, Tensor):
            return self
        return replace(self, strength=self.strength[problems.to(self.strength.device)])


class Tilt(NamedTuple):
    """What eq. 3 needs of 1/beta. The tensors have its shape."""

    sign: Tensor
    gain: Tensor  # expm1(|1/beta|)
    floor: Tensor  # the smallest value of h, min(1/beta, 0)


def tilt_of(inverse_beta: Tensor) -> Tilt:
    """The tilt of every 1/beta."""
    return Tilt(inverse_beta.sign(), torch.expm1(inverse_beta.abs()), inverse_beta.clamp(max=0.0))


def soft_value(success_logit: Tensor, tilt: Tilt) -> Tensor:
    """h(s) = log E[e^(R/beta)] = log1p(p expm1(1/beta)) for R in {0, 1} (eq. 3)."""
    return rise(success_logit, tilt).add_(tilt.floor)


def rise(success_logit: Tensor, tilt: Tilt) -> Tensor:
    """h(s) above its floor, >= 0.

        log1p(p expm1(1/beta))              for 1/beta >= 0
        log1p((1 - p) expm1(-1/beta))       for 1/beta < 0

    It is computed from the logit of p, and 1 - p is the sigmoid of the negative logit. So nothing cancels.
    """
    return torch.mul(success_logit, tilt.sign).sigmoid_().mul_(tilt.gain).log1p_()


def f_score(g: Tensor, h: Tensor, strength: Tensor | float = 1.0) -> Tensor:
    """f = g + strength * h (eq. 4). Every prefix gets its score here, and larger is better."""
    return torch.addcmul(g, h, strength) if isinstance(strength, Tensor) else g + strength * h


def balanced_inverse_beta(root_logit: Tensor, bound: float) -> Tensor:
    """1/beta = clip(log((1 - p) / p), +-bound) = clip(-logit(p)), with which q succeeds half the time (eq. 7)."""
    return (-root_logit).clamp(-bound, bound)


def inverse_beta_of(guidance: Guidance, root_logit: Tensor) -> Tensor:
    """1/beta of every problem, [P]. It is the given number, or balanced by the root's value (eq. 7)."""
    if guidance.inverse_beta == "balanced":
        return balanced_inverse_beta(root_logit, guidance.max_inverse_beta)
    return torch.full_like(root_logit, guidance.inverse_beta)


def log_root_tilt(root_logit: Tensor, bound: float) -> Tensor:
    """log(M q(x)) of the M problems of every search, float64 (eq. 22).

        M q(x) = 1/c + (1 - 1/c) u(x) / mean u,     u(x) = p(x) (1 - p(x))

    This is a mixture with the uniform choice. So no problem is less than 1/c times as likely as it was, whatever the
    value model says.

    Args:
        root_logit: [G, M] logit of the success probability p of each prompt.
        bound: c >= 1, the most that 1 / (M q) may be. At 1 the choice is exactly uniform.
    """
    logit = root_logit.double()
    u = torch.sigmoid(logit) * torch.sigmoid(-logit)
    mean = u.mean(-1, keepdim=True)
    share = torch.where(mean > 0, u / mean.clamp(min=_TINY), 1.0)
    return torch.log(1 / bound + (1 - 1 / bound) * share)


class Proposal(NamedTuple):
    """q at N prefixes, up to a factor for each of them, because most of its logarithms are never needed."""

    score: Tensor  # [N, V] log q(a|s) + log_norm(s)
    mass: Tensor  # [N, V] its exponential, which the search may overwrite
    log_norm: Tensor  # [N, 1]
    is_held_back: Tensor | None = None  # [N, 1] True where the budget lowered the strength, None means nowhere

    @property
    def logq(self) -> Tensor:
        """log q(a|s), [N, V]."""
        return self.score - self.log_norm


def propose(logp: Tensor, child_rise: Tensor, log_weight: Tensor, strength: Tensor, cap: float | None) -> Proposal:
    """The policy twisted by the heuristic, q(a|s) ~ exp f(sa) (eqs. 5 and 9).

    With a cap c, tau is a share of the strength with which no token pushes the running weight pi/q above c. It depends
    on the prefix alone, so the weights of eq. 6 stay exact.

    Args:
        logp: [N, V] log pi(a|s).
        child_rise: [N, V] h(sa) above its floor. A constant per prefix cancels in q.
        log_weight: [N, 1] log of the running weight pi/q of the prefix.
        strength: [N, 1] upper end of tau.
        cap: c > 1 or None.

    Raises:
        FloatingPointError: a child's value is NaN.
    """
    proposal = _twisted(logp, child_rise, strength)
    limit = math.inf if cap is None else math.log(cap)
    most = float((log_weight + proposal.log_norm).amax())
    if most <= limit:
        return proposal
    if math.isnan(most):
        raise FloatingPointError("the decoder returned a child's value that is NaN")
    held_back = ((limit - log_weight) / proposal.log_norm.clamp(min=_TINY)).clamp(0.0, 1.0)
    del proposal  # two of [N, V] that the next one need not lie beside
    tau = strength * held_back
    return _twisted(logp, child_rise, tau)._replace(is_held_back=tau < strength)


def _twisted(logp: Tensor, child_rise: Tensor, tau: Tensor) -> Proposal:
    score = f_score(logp, child_rise, tau)
    mass = (score * _LOG2_E).exp2_()  # three times as fast as `exp` on a CPU
    return Proposal(score, mass, mass.sum(-1, keepdim=True).log_())


def baseline_of(output: StepOutput) -> Tensor:
    """b(s) [N] in units of reward. It is 0 where the decoder has none."""
    if output.baseline is None:
        return torch.zeros_like(output.value_logit)
    return output.baseline


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
