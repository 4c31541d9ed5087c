"""Stateless noise and Gumbel arithmetic for sampling without replacement.

Pure functions on tensors. Noise is a counter-based hash (splitmix64) of a prefix and a token, so a problem's
rollouts depend on its seed alone: not on the batch, the rank, or any generator's state.

Sources: Steele et al. 2014 (splitmix64); Kool et al. 2019, "Stochastic Beams and Where to Find Them"
(children conditioned on the parent's maximum; inclusion probabilities from a threshold).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed int64; tensor arithmetic wraps modulo 2**64
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLY_2 = 0x94D049BB133111EB - (1 << 64)
_FOLD = 0x632BE59BD9B4E019


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # logical: int64's own shift drags the sign along


def mix64(x: Tensor) -> Tensor:
    """Splitmix64's finaliser: a bijection of int64 whose output bits look independent."""
    x = x + _GOLDEN  # a new tensor; the rest is in place, as the noise of a whole vocabulary is a tenth of a step
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_MULTIPLY_1)
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_MULTIPLY_2)
    return x.bitwise_xor_(_shift_right(x, 31))


def fold(state: Tensor, token: Tensor) -> Tensor:
    """Hash state of a prefix extended by a token; int64, shapes broadcast."""
    return mix64(state ^ hash_token(token))


def hash_token(token: Tensor) -> Tensor:
    """What a token brings into `fold`; a search looks it up in a table."""
    return mix64(token + _FOLD)


def to_uniform(bits: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), both ends excluded, of hashed int64 bits; float64."""
    return _shift_right(bits, 11).double().add_(0.5).mul_(2.0**-53)


def root_gumbel(state: Tensor) -> Tensor:
    """One Gumbel(0) number for each hash state, float64; independent of `gumbel_noise` of that state."""
    return -torch.log(-torch.log(to_uniform(mix64(state ^ _FOLD))))


def gumbel_noise(state: Tensor, num_tokens: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Independent Gumbel(0) noise of every next token, [N, V].

    Args:
        state: int64 [N], hash state of each prefix.
        num_tokens: V.
        dtype: of the result: that of the log-probabilities it is added to. The exponential numbers inside are always
            float64: in float32 uniform numbers near 1 are too coarse for the large values, which are those that win.
    """
    counter = torch.arange(1, num_tokens + 1, device=state.device) * _GOLDEN
    exponential = to_uniform(mix64(state[:, None] + counter)).log_().neg_()
    return exponential.to(dtype).log_().neg_()


def truncated_gumbel(gumbel: Tensor, maximum: Tensor, bound: Tensor) -> Tensor:
    """Gumbels conditioned on their maximum being `bound`, by a monotone map; docs/algorithm.md eq. 8.

    G~ = T - log(1 + e^v),  v = T - Z + log(e^(Z - G) - 1), with T the bound and Z the maximum.
    Source: Kool et al. 2019, appendix. Where G == Z the result is the bound; -inf stays -inf.

    Args:
        gumbel: [..., C] perturbed log-masses G of siblings.
        maximum: [..., 1] the largest G among *all* siblings, Z.
        bound: [..., 1] the parent's value T.
    """
    gap = torch.sub(maximum, gumbel).expm1_().log_().add_(bound - maximum)
    return bound - softplus(gap, threshold=50.0)  # the default, 20, is off by 2e-9


def log_inclusion(log_q: Tensor, kappa: Tensor) -> Tensor:
    """Natural log of the probability that a leaf is among the K best, given the threshold.

    log q_kappa(y) = log(1 - exp(-e^(phi(y) - kappa))); 0 where kappa = -inf (every leaf was found).
    Source: Kool et al. 2019; Duffield et al. 2007 (priority sampling); docs/algorithm.md eq. 6.

    Args:
        log_q: phi(y), log-probability of the leaf under the proposal.
        kappa: the (K+1)-th largest perturbed log-mass, broadcastable.
    """
    gap = log_q - kappa
    # below -40 the first term of the series is exact; below -745, hundreds of tokens of a diffuse policy, exp is 0
    return torch.where(gap < -40.0, gap, torch.log(-torch.expm1(-torch.exp(gap))))
