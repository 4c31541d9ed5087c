"""Log-probabilities of given tokens from hidden states, without a [positions, vocabulary] tensor.

The vocabulary is visited in blocks. The forward keeps a running log-sum-exp per position. The backward computes each
block of logits again, so that memory is bounded and a block stays in a CPU's cache. Every matrix product sums over all
positions, or all of a block, at once and in float32. Nothing is added up in bfloat16.

    log p(t) = l_t - log sum_v e^(l_v),   d log p(t) / d l_v = [v = t] - p(v)
    H = -sum_v p(v) log p(v),             d H / d l_v = -p(v) (log p(v) + H)
    l = W h + b,   or cap tanh((W h + b) / cap) where the model has a cap
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.kernels import HAS_TRITON

# Elements of a block of logits, sized for a CPU's cache and for a GPU's kernels.
BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 26, "mps": 1 << 26}
MIN_BLOCK = 256  # tokens
_ALIGNED = (
    128  # tokens that a block is a multiple of. Rows that begin at odd places are multiplied at a third of the speed
)
CHUNK_ELEMENTS = 1 << 24  # positions * vocabulary of the logits that a divergence looks at together
_NEVER = -1e30  # logit of an id that is no token, finite because 0 times infinity is no number


Sums = tuple[Tensor, Tensor, Tensor, Tensor]
AddToSums = Callable[[Sums, Tensor, Tensor, int], Sums]
Slopes = Callable[[Tensor, Tensor, Tensor, Tensor, int, torch.dtype], Tensor]


class Head(NamedTuple):
    """What turns hidden states into logits. Only the first `num_tokens` ids can be generated."""

    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    cap: float | None  # logits are cap * tanh(logits / cap), as in Gemma 2
    num_tokens: int  # ids from here on have no text
    never: Tensor  # [n] ids below `num_tokens` that have no text either


def next_logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits [N, num_tokens] at hidden states [N, D], at least float32, with -inf for an id without text.

    Args:
        hidden: [N, D] in the dtype of the weight.
        head: of the language model.
    """
    if hidden.device.type == "cuda" or hidden.dtype == _wide(hidden):
        return _logits(hidden, head, 0, head.num_tokens, -torch.inf)
    # A CPU has no product of bfloat16 numbers with a float32 result, so one block after another is converted.
    logits = torch.empty(len(hidden), head.num_tokens, dtype=_wide(hidden), device=hidden.device)
    for first, last in _blocks(hidden, head):
        logits[:, first:last] = _logits(hidden, head, first, last, -torch.inf)
    return logits


def token_logp(hidden: Tensor, head: Head, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """log p of one token at each position, and the entropy of its distribution, [N] each, nats. Both have a gradient.

    Args:
        hidden: [N, D] in the dtype of the weight.
        head: of the language model.
        tokens: [N] int64, each a token that can be generated.
    """
    found: tuple[Tensor, Tensor] = _TokenLogp.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, tokens, head
    )
    return found


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, head: Head
    ) -> tuple[Tensor, Tensor]:
        most = hidden.new_full((len(hidden), 1), _NEVER, dtype=_wide(hidden))
        sums = most, torch.zeros_like(most), torch.zeros_like(most), torch.zeros_like(most)
        add = _functions(hidden, head)[0]
        for first, last in _blocks(hidden, head):
            sums = add(sums, _logits(hidden, head, first, last, _NEVER), tokens, first)
        most, total, weighted, picked = sums
        log_total = total.log()
        norm, entropy = most + log_total, (log_total - weighted / total)[:, 0]
        ctx.head = head
        ctx.save_for_backward(hidden, weight, bias, tokens, norm, entropy)
        ctx.set_materialize_grads(False)  # most losses do not look at the entropy, and then it costs nothing
        return (picked - norm)[:, 0], entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, norm, entropy = ctx.saved_tensors
        head: Head = ctx.head._replace(weight=weight, bias=bias)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad = torch.zeros_like(norm) if grads[0] is None else grads[0][:, None]
        of_entropy = None if grads[1] is None else grads[1][:, None]
        of_hidden = torch.zeros(hidden.shape, dtype=_wide(hidden), device=hidden.device) if wants_hidden else None
        of_weight = torch.zeros_like(weight) if wants_weight else None
        of_bias = torch.zeros_like(bias) if wants_bias else None
        slopes_of, dtype = _functions(hidden, head)[1], _factor_dtype(hidden)
        for first, last in _blocks(hidden, head):
            logits = _logits(hidden, head, first, last, _NEVER)
            slope = None if head.cap is None else 1 - (logits / head.cap).clamp(min=-1.0).square()
            more = None if of_entropy is None else entropy_slopes(logits, norm, of_entropy, entropy[:, None])
            of_logits = slopes_of(logits, norm, grad, tokens, first, dtype if more is None else _wide(hidden))
            if more is not None:
                of_logits += more
            if slope is not None:
                of_logits *= slope
            if of_bias is not None:
                of_bias[first:last] = of_logits.sum(0)
            of_logits = of_logits.to(dtype)
            if of_weight is not None:
                of_weight[first:last] = _product(of_logits.T, hidden.T)
            if of_hidden is not None:
                of_hidden += _product(of_logits, weight[first:last].T)
        return None if of_hidden is None else of_hidden.to(hidden.dtype), of_weight, of_bias, None, None


def add_to_sums(sums: Sums, logits: Tensor, tokens: Tensor, first: int) -> Sums:
    """What is known of each position once a block of its logits was seen.

    Args:
        sums: largest logit m, sum of e^(l - m), sum of (l - m) e^(l - m), and the logit of the token, [N, 1] each.
        logits: [N, B], used up.
        tokens: [N].
        first: id of the first logit.
    """
    most, total, weighted, picked = sums
    higher = torch.maximum(most, logits.amax(-1, keepdim=True))
    picked = picked + _gathered(logits, tokens, first)
    logits -= higher
    mass = logits.exp()
    shift = most - higher
    scale = shift.exp()
    weighted = scale * (weighted + shift * total) + logits.mul_(mass).sum(-1, keepdim=True)
    return higher, scale * total + mass.sum(-1, keepdim=True), weighted, picked


def slopes(logits: Tensor, norm: Tensor, grad: Tensor, tokens: Tensor, first: int, dtype: torch.dtype) -> Tensor:
    """grad * d log p(t) / d l of a block, [N, B], which may be in the place of the logits.

    Args:
        logits: [N, B], used up.
        norm: [N, 1] log-sum-exp of all logits.
        grad: [N, 1].
        tokens: [N].
        first: id of the first logit.
        dtype: that is enough for the result.
    """
    found = logits.sub_(norm).exp_().mul_(-grad)
    _add_at(found, tokens, first, grad)
    return found


def entropy_slopes(logits: Tensor, norm: Tensor, grad: Tensor, entropy: Tensor) -> Tensor:
    """grad * d H / d l of a block, [N, B].

    Args:
        logits: [N, B].
        norm: [N, 1] log-sum-exp of all logits.
        grad: [N, 1].
        entropy: [N, 1] H.
    """
    logp = logits - norm
    return logp.exp().mul_(logp.add_(entropy)).mul_(-grad)


def _functions(hidden: Tensor, head: Head) -> tuple[AddToSums, Slopes]:
    """`add_to_sums` and `slopes`, or their kernels for plain logits in float32 on a GPU, if Triton is installed."""
    is_plain = head.bias is None and head.cap is None
    if hidden.device.type == "cuda" and _wide(hidden) == torch.float32 and is_plain and HAS_TRITON:
        from tinyzero_astar.model import token_logp_kernels

        return token_logp_kernels.add_to_sums, token_logp_kernels.slopes
    return add_to_sums, slopes


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _factor_dtype(hidden: Tensor) -> torch.dtype:
    """Of factors of `_product` besides hidden states and weights."""
    return hidden.dtype if hidden.device.type == "cuda" else _wide(hidden)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of [M, D] and [N, D], added up and given in at least float32."""
    wide = _wide(a)
    if a.dtype == b.dtype == wide:
        return a @ b.T
    if a.device.type == "cuda":
        return torch.mm(a, b.T, out_dtype=wide)
    return a.to(wide) @ b.to(wide).T


def _blocks(hidden: Tensor, head: Head) -> Iterator[tuple[int, int]]:
    """Ranges of ids that are scored together. Neither their logits nor their part of the head is large."""
    size = max(MIN_BLOCK, BLOCK_ELEMENTS[hidden.device.type] // max(hidden.shape) // _ALIGNED * _ALIGNED)
    for first in range(0, head.num_tokens, size):
        yield first, min(first + size, head.num_tokens)


def _logits(hidden: Tensor, head: Head, first: int, last: int, never: float) -> Tensor:
    """Of the ids from `first` to `last`, with `never` for those that have no text."""
    logits = _product(hidden, head.weight[first:last])
    if head.bias is not None:
        logits += head.bias[first:last]
    if head.cap is not None:
        logits = logits.div_(head.cap).tanh_().mul_(head.cap)
    if len(head.never):
        inside = head.never
        if last - first < head.num_tokens:  # otherwise all are, and a recorded step must not count them
            inside = inside[(inside >= first) & (inside < last)] - first
        logits.index_fill_(-1, inside, never)
    return logits


def _gathered(logits: Tensor, tokens: Tensor, first: int) -> Tensor:
    """The logit of each position's token [N, 1], 0 where another block has it."""
    place = tokens[:, None] - first
    is_here = (place >= 0) & (place < logits.shape[1])
    return torch.where(is_here, logits.gather(1, place.clamp(0, logits.shape[1] - 1)), 0.0)


def _add_at(x: Tensor, tokens: Tensor, first: int, values: Tensor) -> None:
    place = tokens[:, None] - first
    is_here = (place >= 0) & (place < x.shape[1])
    x.scatter_add_(1, place.clamp(0, x.shape[1] - 1), torch.where(is_here, values, 0.0))
