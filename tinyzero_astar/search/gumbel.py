"""Stateless noise and Gumbel arithmetic for sampling without replacement.

Pure functions on tensors. Noise is a hash (splitmix64) of a seed and a prefix. So a problem's rollouts depend on its
seed alone, and not on the batch, the rank, or any generator's state.

Sources are Steele et al. 2014 (splitmix64), Maddison et al. 2014, "A* sampling" (children from the top down), and Kool
et al. 2019, "Stochastic Beams and Where to Find Them" (inclusion probabilities from a threshold).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from tinyzero_astar.kernels import HAS_TRITON

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed int64, since tensor arithmetic wraps modulo 2**64
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLY_2 = 0x94D049BB133111EB - (1 << 64)
_FOLD = 0x632BE59BD9B4E019
WHICH, WHEN = 0x2545F4914F6CDD1D, 0x1B873593CC9E2D51
_BLOCK = 128  # tokens that are drawn from at once in a large vocabulary
_SUMMED_ROWS = 16  # that a GPU copies to float64 at once
MANY_TOKENS = 1 << 14  # from here on that is faster, on a CPU, and running sums are not made of all tokens


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # a logical shift, since int64's own shift copies the sign


def hash_number(x: Tensor) -> Tensor:
    """Splitmix64 of int64 numbers, a bijection whose output bits look independent."""
    return _finalise(x + _GOLDEN)


def _finalise(x: Tensor) -> Tensor:
    """Works in place, because x can be a whole vocabulary."""
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_MULTIPLY_1)
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_MULTIPLY_2)
    return x.bitwise_xor_(_shift_right(x, 31))


def hash_with(state: Tensor, number: Tensor) -> Tensor:
    """Hash of a state and one more number, such as a prefix and a token. int64, shapes broadcast."""
    return hash_number(state ^ token_bits(number))


def token_bits(token: Tensor) -> Tensor:
    """What a token brings into `hash_with`. A search looks it up in a table."""
    return hash_number(token + _FOLD)


def to_uniform(bits: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), both ends excluded, of hashed int64 bits, as float64."""
    # As a signed number first. Then the sum with one half and half a step is exact and never rounds to an end.
    return (bits >> 12).double().mul_(2.0**-52).add_(0.5 + 2.0**-53)


def prefix_hashes(x: Tensor) -> Tensor:
    """Three independent hashes of each number, [3, ...]. They are a prefix's state and the bits of its two draws."""
    return hash_number(torch.stack((x, x ^ WHICH, x ^ WHEN)))


def inverse_cdf(mass: Tensor, uniform: Tensor) -> Tensor:
    """A token for each prefix, [N, 1], drawn in proportion to its mass. A token without mass is never drawn.

    Args:
        mass: [N, V], >= 0 and somewhere above.
        uniform: [N, 1] in (0, 1].
    """
    token = _drawn_by_block(mass, uniform) if mass.shape[1] >= MANY_TOKENS else _drawn(mass, uniform)
    return token if mass.device.type == "cpu" else likeliest_if_impossible(mass, token)


def _drawn(mass: Tensor, uniform: Tensor) -> Tensor:
    cdf = mass.to(torch.float64, copy=True).cumsum_(-1)  # in float32 rare tokens would be rounded away
    return torch.searchsorted(cdf, cdf[:, -1:] * uniform)


def _drawn_by_block(mass: Tensor, uniform: Tensor) -> Tensor:
    """The same up to roundings of float64. It draws a block of tokens first, then a token in it.

    A vocabulary of 151,936 is read once and never copied to float64 as a whole.
    """
    cdf = _block_sums(mass).cumsum_(-1)
    target = cdf[:, -1:] * uniform
    block = torch.searchsorted(cdf, target)
    token = block[..., None] * _BLOCK + torch.arange(_BLOCK, device=mass.device)  # [N, 1, _BLOCK]
    inside = mass.gather(1, token.flatten(1).clamp(max=mass.shape[1] - 1)).view_as(token).double()
    inside = inside.masked_fill_(token >= mass.shape[1], 0.0).cumsum_(-1)
    rest = target - pad(cdf, (1, 0)).gather(1, block)
    rest = torch.minimum(rest, inside[..., -1])  # added up in another order, which may round to less
    return block * _BLOCK + torch.searchsorted(inside, rest[..., None])[..., 0]


def _block_sums(mass: Tensor) -> Tensor:
    """[N, B] float64 sums of the masses of _BLOCK tokens each. The last block may be shorter."""
    num_whole = mass.shape[1] // _BLOCK
    blocks = mass[:, : num_whole * _BLOCK].unflatten(1, (num_whole, _BLOCK))
    # `sum` makes a float64 copy of its argument. On a CPU that of one row stays in the cache.
    together = 1 if mass.device.type == "cpu" else _SUMMED_ROWS
    whole = torch.cat([rows.sum(-1, dtype=torch.float64) for rows in blocks.split(together)])
    last = mass[:, num_whole * _BLOCK :].sum(-1, keepdim=True, dtype=torch.float64)
    return torch.cat((whole, last), 1)


def likeliest_if_impossible(mass: Tensor, token: Tensor) -> Tensor:
    """`token` [N, 1], or the one with the largest mass [N, V] where it has none.

    Sums in parallel, as on a GPU, may grow by a rounding at a token without mass.
    """
    return torch.where(mass.gather(1, token) > 0, token, mass.argmax(-1, keepdim=True))


def root_gumbel(state: Tensor) -> Tensor:
    """One Gumbel(0) number for each hash state, float64, independent of everything else that is drawn at it."""
    return -torch.log(-torch.log(to_uniform(hash_number(state ^ _FOLD))))


def token_counters(num: int, device: torch.device) -> Tensor:
    """What `token_waiting_times` adds to a state for each token, [num] int64. These are the steps of splitmix64."""
    return torch.arange(1, num + 1, device=device) * _GOLDEN


def token_waiting_times(state: Tensor, counter: Tensor) -> Tensor:
    """One `waiting_time` for each token after each prefix, [N, V], given states [N] and `token_counters` [V]."""
    return waiting_time(_finalise(state[:, None] + counter))


def first_arrivals(state: Tensor, mass: Tensor, counter: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The first `num` tokens to arrive after each of M prefixes, [M, num], with their times as float64, in order.

    A token's time is that of `token_waiting_times`, over its mass. One without mass never arrives. Its time is inf, and
    which token it is then means nothing.

    Args:
        state: [M] hash states of the prefixes.
        mass: [M, V] rate of each token's arrival.
        counter: [V] `token_counters`.
        num: at most V.
    """
    if mass.is_cuda and mass.dtype == torch.float32 and HAS_TRITON:
        from tinyzero_astar.search.gumbel_kernels import first_arrivals_by_kernels

        return first_arrivals_by_kernels(state, mass, counter, num)
    first, token = token_waiting_times(state, counter).div_(mass).topk(num, largest=False)
    return first, token


def waiting_time(bits: Tensor) -> Tensor:
    """Arrival times of events of rate 1, from hashed int64 bits. Exponential numbers > 0, float64."""
    return to_uniform(bits).log_().neg_()


def gumbel_after(bound: Tensor, wait: Tensor, log_rate: Tensor) -> Tensor:
    """G of what arrives `wait` after a prefix does (docs/algorithm.md eq. 8).

        G = -log(e^-bound + wait e^-log_rate)

    Arrival times are e^-G, and a prefix's own unit of time is e^-log_rate.

    Args:
        bound: G of the prefix.
        wait: >= 0, in that unit. At inf it never arrives, and G is -inf.
        log_rate: phi, log-probability of the prefix under the proposal.
    """
    return torch.logaddexp(torch.log(wait).sub_(log_rate), -bound).neg_()


def log_inclusion(log_q: Tensor, kappa: Tensor) -> Tensor:
    """Natural log of the probability that a leaf is among the K best, given the threshold.

        log q_kappa(y) = log(1 - exp(-e^(phi(y) - kappa)))

    It is 0 where kappa = -inf, which means that every leaf was found. Source: docs/algorithm.md eq. 6 (Kool et al.
    2019, and Duffield et al. 2007 on priority sampling).

    Args:
        log_q: phi(y), log-probability of the leaf under the proposal.
        kappa: the (K+1)-th largest perturbed log-mass, broadcastable.
    """
    gap = log_q - kappa
    # Below -40 the first term of the series is exact. Below -745, hundreds of tokens of a diffuse policy, exp is 0.
    return torch.where(gap < -40.0, gap, torch.log(-torch.expm1(-torch.exp(gap))))
