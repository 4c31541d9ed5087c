"""Copies between rows of a slot cache as a Triton kernel. Only imported where Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 16  # that a program copies at once


def move_rows(buffer: Tensor, source: Tensor, first: int, last: Tensor) -> None:
    """See `SlotCache.move`. A row that stays as it is costs a look at its source."""
    layers, pairs, rows, heads, columns, width = buffer.shape
    sizes = {"WIDTH": width, "BLOCK_WIDTH": triton.next_power_of_2(width), "BLOCK_COLUMNS": _COLUMNS}
    _move[(rows, layers * pairs * heads)](buffer, source, last, first, rows, heads, columns, **sizes)


@triton.jit(do_not_specialize=["first", "rows", "heads", "columns"])
def _move(
    buffer,
    source,
    last,
    first,
    rows,
    heads,
    columns,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One head of one layer's keys or values of one row per program."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    other = tl.load(source + row)
    if other != row:
        start = part // heads * rows * heads + part % heads  # of the head in row 0
        target = buffer + (start + row * heads) * columns * WIDTH
        origin = buffer + (start + other * heads) * columns * WIDTH
        end = tl.load(last + row)
        i = tl.arange(0, BLOCK_WIDTH)[None, :]
        for at in range(0, end.to(tl.int32), BLOCK_COLUMNS):
            column = at + tl.arange(0, BLOCK_COLUMNS)[:, None]
            is_moved = (column >= first) & (column < end) & (i < WIDTH)
            place = column * WIDTH + i
            tl.store(target + place, tl.load(origin + place, mask=is_moved), mask=is_moved)
