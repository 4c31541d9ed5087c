"""Sums and slopes of a block of logits for `model.token_logp`, as Triton kernels for float32 on a GPU.

Each reads a block once, where operators of PyTorch would read and write it ten times.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SIZE = 2048  # logits that a program looks at together
_NUM_WARPS = 8


def add_to_sums(
    sums: tuple[Tensor, Tensor, Tensor, Tensor], logits: Tensor, tokens: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `token_logp.add_to_sums`. The sums are changed in place, and must be float32 that lie side by side."""
    num_rows, width = logits.shape
    _add_to_sums[(num_rows,)](*sums, logits, logits.stride(0), width, tokens, first, SIZE=_SIZE, num_warps=_NUM_WARPS)
    return sums


def slopes(logits: Tensor, norm: Tensor, grad: Tensor, tokens: Tensor, first: int, dtype: torch.dtype) -> Tensor:
    """See `token_logp.slopes`. The logits stay as they are."""
    num_rows, width = logits.shape
    found = torch.empty(num_rows, width, dtype=dtype, device=logits.device)
    grid = (num_rows, triton.cdiv(width, _SIZE))
    columns = (norm.contiguous(), grad.contiguous(), tokens)
    _slopes[grid](logits, logits.stride(0), width, *columns, first, found, SIZE=_SIZE, num_warps=_NUM_WARPS)
    return found


@triton.jit
def _add_to_sums(most, total, weighted, picked, logits, stride, width, tokens, first, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    largest, mass, product = tl.load(most + row), tl.load(total + row), tl.load(weighted + row)
    start = 0
    while start < width:  # the interpreter knows no range up to an argument
        at = start + tl.arange(0, SIZE)
        x = tl.load(logits + at, mask=at < width, other=-float("inf"))
        higher = tl.maximum(largest, tl.max(x, 0))
        less, shift = x - higher, largest - higher
        own, scale = tl.exp(less), tl.exp(shift)
        product = scale * (product + shift * mass) + tl.sum(tl.where(at < width, less * own, 0.0), 0)
        mass = scale * mass + tl.sum(own, 0)
        largest = higher
        start += SIZE
    tl.store(most + row, largest)
    tl.store(total + row, mass)
    tl.store(weighted + row, product)
    place = tl.load(tokens + row) - first
    is_here = (place >= 0) & (place < width)
    tl.store(picked + row, tl.load(logits + place, mask=is_here, other=0.0), mask=is_here)


@triton.jit
def _slopes(logits, stride, width, norm, grad, tokens, first, found, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    x = tl.load(logits + row * stride + at, mask=at < width, other=-float("inf"))
    upstream = tl.load(grad + row)
    slope = -upstream * tl.exp(x - tl.load(norm + row))
    slope += tl.where(at == tl.load(tokens + row) - first, upstream, 0.0)
    tl.store(found + row * width + at, slope.to(found.dtype.element_ty), mask=at < width)
