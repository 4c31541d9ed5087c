"""Copies between rows of a slot cache as a Triton kernel. Only imported where Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # elements that a program copies at once


def move_rows(buffer: Tensor, source: Tensor, first: int, last: Tensor) -> None:
    """See `SlotCache.move`. A row that stays as it is costs a look at its source."""
    layers, pairs, rows, heads, columns, width = buffer.shape
    parts = layers * pairs * heads
    _move[(rows, parts)](buffer, source, last, first, rows, heads, columns, width, BLOCK=_BLOCK, num_warps=8)


@triton.jit(do_not_specialize=["first", "rows", "heads", "columns"])
def _move(buffer, source, last, first, rows, heads, columns, width, BLOCK: tl.constexpr):
    """One head of one layer's keys or values of one row per program. Its columns lie one after another."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    other = tl.load(source + row)
    if other != row:
        layer, head = part // heads, part % heads  # of layers' keys and values
        start = layer * rows * heads + head
        target = buffer + (start + row * heads) * columns * width
        origin = buffer + (start + other * heads) * columns * width
        end = (tl.load(last) * width).to(tl.int32)
        for at in range(first * width, end, BLOCK):
            i = at + tl.arange(0, BLOCK)
            is_in = i < end
            tl.store(target + i, tl.load(origin + i, mask=is_in), mask=is_in)
