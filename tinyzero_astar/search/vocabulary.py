"""The draw of each prefix's best child, from logits to the token and the mass of the others.

Pure functions on tensors. Every row is decided by itself, and nothing waits for the device. So all of it can be part
of a CUDA graph. Equation numbers are those of docs/algorithm.md.

    logp(a)  = logit(a) - log_total
    child(a) = offset + features . up(a) + slope max(logp(a), -30)
    f(a)     = logp(a) + tau rise(child(a))
    q(a)     = exp(f(a) - log_norm)

Without a guide f = logp and log_norm = 0.

This file is the reference, in plain torch. For logits in float32 on a GPU `best_child` calls the Triton kernels of
`search.vocabulary_kernels`, if Triton is installed. They read 4 bytes per logit, and one block of each row again. With
a guide, features . up is written as 4 bytes per logit first, and 12 are read, 4 for the sum of the policy and 8 for
logits and products together. Rows at which the budget holds the guidance back read 8 more. At 256 rows of 151,936
tokens this is 0.16 GB without a guide, and 0.62 to 0.93 GB with one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinyzero_astar.kernels import HAS_TRITON
from tinyzero_astar.search.best_child import BestChild, Guide
from tinyzero_astar.search.gumbel import inverse_cdf
from tinyzero_astar.search.heuristic import LEAST_LOGP, Tilt, f_score, rise

_TINY = 1e-30  # in place of 0 in a quotient


def _have_kernels(logits: Tensor) -> bool:
    return logits.is_cuda and logits.dtype == torch.float32 and HAS_TRITON


def best_child(logits: Tensor, uniform: Tensor, guide: Guide | None = None) -> BestChild:
    """Draw a child of every prefix from q, by inverse CDF.

    Where exp(log_weight) times the norm at full strength exceeds the cap c, tau is lowered (eqs. 5 and 9).

        tau = strength clamp((log c - log_weight) / log_norm(strength), 0, 1)

    Elsewhere tau is the strength. There the quotient is at least 1 in exact arithmetic, and a rounding must not bring
    it below. Where the budget is used up and the norm is 0 up to rounding, either may happen, and q is pi with both.

    `log_rest` is a sum over the other children and never 1 - q. So nothing cancels where the policy is nearly certain.
    A token without mass is never drawn. In a row that is not finite the token is a valid one, and the rest is
    undefined.

    Args:
        logits: [N, V]. -inf forbids a token.
        uniform: [N] float64 in (0, 1].
        guide: None means that q is the policy.
    """
    if _have_kernels(logits):
        from tinyzero_astar.search.vocabulary_kernels import best_child_by_kernels

        return best_child_by_kernels(logits, uniform, guide)
    return best_child_reference(logits, uniform, guide)


def best_child_reference(logits: Tensor, uniform: Tensor, guide: Guide | None = None) -> BestChild:
    """See `best_child`. In plain torch, on any device."""
    logp = torch.log_softmax(logits, -1)
    log_total = logits.amax(-1).double() - logp.amax(-1).double()  # the largest logp is -log of a sum that begins at 1
    zero = torch.zeros_like(log_total)
    if guide is None:
        f, mass, log_norm = logp, logp.exp(), zero
        tau, is_held_back = logp.new_zeros(len(logp)), torch.zeros_like(zero, dtype=torch.bool)
    else:
        f, mass, log_norm, tau = _twisted(logp, guide)
        is_held_back = tau < guide.strength
    is_finite = log_total.isfinite() & log_norm.isfinite()
    mass = mass.masked_fill_(~is_finite[:, None], 1.0)
    token = inverse_cdf(mass, uniform[:, None])
    others = mass.scatter_(1, token, 0.0)
    return BestChild(
        token=token[:, 0],
        logp=logits.gather(1, token)[:, 0].double() - log_total,
        logq=f.gather(1, token)[:, 0].double() - log_norm,
        log_rest=others.sum(-1, dtype=torch.float64).log_() - log_norm,
        log_total=log_total,
        log_norm=log_norm,
        tau=tau,
        is_held_back=is_held_back,
        is_finite=is_finite,
    )


def _twisted(logp: Tensor, guide: Guide) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f and exp f, [N, V], then log_norm and tau, [N]."""
    child_rise = _rise_of(guide, slice(None), logp)
    log_norm = f_score(logp, child_rise, guide.strength[:, None]).exp_().sum(-1, dtype=torch.float64).log_()
    tau = guide.strength
    if guide.cap is not None:
        limit, log_weight = math.log(guide.cap), guide.log_weight.double()
        share = ((limit - log_weight) / log_norm.clamp(min=_TINY)).clamp(0.0, 1.0)
        tau = torch.where(log_weight + log_norm > limit, guide.strength * share.to(tau.dtype), tau)
    f = f_score(logp, child_rise, tau[:, None])
    mass = f.exp()
    return f, mass, mass.sum(-1, dtype=torch.float64).log_(), tau


def _rise_of(guide: Guide, rows: Tensor | slice, logp: Tensor) -> Tensor:
    """h of all children of some rows above its floor, [M, V], given log pi of each."""
    offset, features, up, slope = guide.child
    from_policy = torch.addcmul(offset[rows, None], slope[rows, None], logp.clamp(min=LEAST_LOGP))
    return rise(from_policy.addmm_(features[rows], up.T), Tilt(*(x[rows, None] for x in guide.tilt)))


def logp_logq_of(
    logits: Tensor, best: BestChild, guide: Guide | None, row: Tensor, token: Tensor
) -> tuple[Tensor, Tensor]:
    """log pi and log q, [S] float64, of any tokens [S] at rows [S] of the N, given what `best_child` was given."""
    logp = logits[row, token].double() - best.log_total[row]
    if guide is None:
        return logp, logp
    offset, features, up, slope = guide.child
    from_policy = offset[row] + slope[row] * logp.to(slope.dtype).clamp(min=LEAST_LOGP)
    child = from_policy + (features[row] * up[token]).sum(-1)
    child_rise = rise(child, Tilt(*(x[row] for x in guide.tilt)))
    return logp, f_score(logp, child_rise.double(), best.tau[row].double()) - best.log_norm[row]


def masses(logits: Tensor, best: BestChild, guide: Guide | None, rows: Tensor) -> Tensor:
    """[M, V] exp f = q exp(log_norm) of all children of a few rows [M], with 0 at the best child.

    The rate at which they arrive is that of the prefix less `log_norm`, as with `heuristic.Proposal.mass`.
    """
    if _have_kernels(logits):
        from tinyzero_astar.search.vocabulary_kernels import masses_by_kernel

        return masses_by_kernel(logits, best, guide, rows)
    return masses_reference(logits, best, guide, rows)


def masses_reference(logits: Tensor, best: BestChild, guide: Guide | None, rows: Tensor) -> Tensor:
    """See `masses`. In plain torch, on any device."""
    f = logits[rows] - best.log_total[rows, None].to(logits.dtype)
    if guide is not None:
        f = f_score(f, _rise_of(guide, rows, f), best.tau[rows, None])
    return f.exp_().scatter_(1, best.token[rows, None], 0.0)
