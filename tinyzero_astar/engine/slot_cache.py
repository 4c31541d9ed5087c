"""A key/value cache of slots, which are fixed rows that hold prefixes, extended in place or forked by one copy.

One buffer [layers, keys and values, rows, heads, columns, head_dim] holds everything. A row of it is one prefix, and a
fork copies a range of columns, in all layers at once. At the lengths this project works with (hundreds of tokens) that
is well under 1 % of decoding, so there is no paging. Hugging Face decoders write through `update`, whose target is
planned before each forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from tinyzero_astar.kernels import HAS_TRITON

CLEARED_AT_ONCE = 16  # columns. Memory is touched only as far as a search gets, which is rarely the depth limit


class Visible(NamedTuple):
    """The columns that one query per row attends to: c < lead, and lead + padding <= c <= column."""

    lead: int  # columns that all prompts begin with
    padding: Tensor  # [N] columns that follow those and hold nothing
    column: Tensor | int  # [N] of the query, at least lead + padding. A number is the last planned column
    is_padded: bool  # whether any row has padding

    def mask(self, num_columns: int) -> Tensor | None:
        """As boolean [N, 1, 1, L] over the first columns. None means that every row sees all of them."""
        if not self.is_padded and isinstance(self.column, int):
            return None
        columns = torch.arange(num_columns, device=self.padding.device)
        last = self.column[:, None] if isinstance(self.column, Tensor) else self.column
        return (is_token(columns, self.padding[:, None], self.lead) & (columns <= last))[:, None, None]


def is_token(column: Tensor, padding: Tensor, lead: int) -> Tensor:
    """Whether columns [C] of rows [N, 1] are no padding, which follows what all prompts begin with, [N, C]."""
    after = column >= padding + lead
    return after | (column < lead) if lead > 0 else after


class SlotCache(Cache):
    """Rows of keys and values. The buffer is allocated at the first write, in its dtype.

    Args:
        num_layers: that write, all in the same shape.
        num_rows: prefixes held at once.
        num_columns: tokens per prefix, prompt included.
    """

    def __init__(self, num_layers: int, num_rows: int, num_columns: int) -> None:
        super().__init__(layers=[])
        self.num_layers, self.num_rows, self.num_columns = num_layers, num_rows, num_columns
        self._buffer = torch.empty(0)
        self._rows = self._columns = torch.empty(0)
        self._written: Sequence[Tensor] = ()  # of each layer, [2, N, H, D] where keys and values of tokens go
        self._seen: Sequence[Tensor] = ()  # keys of the first layer, its values, and so on, [N, H, L, D] each
        self._first = self._last = self._visible = self._num_planned = self._num_cleared = 0

    @property
    def num_bytes(self) -> int:
        """Memory of the buffer in bytes: rows x columns x layers x heads x head_dim x 2 x bytes of a number."""
        return self._buffer.numel() * self._buffer.element_size()

    def plan_prompts(self, rows: Tensor, first: int, last: int) -> None:
        """The next forward fills columns [first, last) of `rows` [P].

        It attends to those, and to the columns before them of row `rows[0]`, which all these prompts begin with.
        """
        self._rows, self._visible, self._first, self._last = rows, 0, first, last
        self._clear(last)

    def plan_tokens(self, num_rows: int, columns: Tensor | int, visible: int) -> None:
        """The next forward writes one token of each row below `num_rows`, at `columns` ([num_rows] or one for all).

        It attends to the first `visible` columns of those rows.
        """
        self._visible, self._num_planned = visible, num_rows
        self._clear(visible)
        rows = self._buffer[:, :, :num_rows]
        self._seen = rows[..., :visible, :].flatten(0, 1).unbind()
        if isinstance(columns, int):
            self._written = rows[..., columns, :].unbind()
        else:
            self._written, self._columns = (), columns
            self._rows = torch.arange(num_rows, device=columns.device)

    def _clear(self, num_columns: int) -> None:
        """Write zeros up to there. A masked column counts 0 times what it holds, and that must not be NaN."""
        if num_columns > self._num_cleared:
            first, self._num_cleared = self._num_cleared, min(num_columns + CLEARED_AT_ONCE, self.num_columns)
            if self._buffer.numel() > 0:
                self._buffer[..., first : self._num_cleared, :] = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values [N, H, Q, D] as planned, and return what its queries may see."""
        if self._visible > 0:
            return self.add_tokens(torch.stack((key_states[:, :, 0], value_states[:, :, 0])), layer_idx)
        if self._buffer.numel() == 0:
            _, heads, _, width = key_states.shape
            self._buffer = key_states.new_empty(self.num_layers, 2, self.num_rows, heads, self.num_columns, width)
            self._buffer[..., : self._num_cleared, :] = 0
        buffer = self._buffer[layer_idx]
        buffer[0][self._rows, :, self._first : self._last] = key_states
        buffer[1][self._rows, :, self._first : self._last] = value_states
        if self._first == 0:
            return key_states, value_states
        before = buffer[:, self._rows[:1], :, : self._first].expand(-1, len(key_states), -1, -1, -1)
        return torch.cat((before[0], key_states), 2), torch.cat((before[1], value_states), 2)

    def add_tokens(self, states: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """`update` with one token per row, whose keys and values are [2, N, H, D]."""
        if self._written:
            self._written[layer].copy_(states)
        else:
            self._buffer[layer][:, self._rows, :, self._columns] = states.transpose(0, 1)
        return self._seen[2 * layer], self._seen[2 * layer + 1]

    def cells(self, layer: int) -> Tensor:
        """Keys and values [2, N, H, L, D] of one layer, as far as planned. They may be written to."""
        return self._buffer[layer, :, : self._num_planned, :, : self._visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that are visible to the planned forward."""
        return self._visible

    def move(self, source: Tensor, first: int, last: Tensor) -> None:
        """Copy columns [first, last) of rows `source` [N] to every row, with `last` [N], without waiting for a result.

        A row that is a source must be its own source too. Without Triton more columns are copied.
        """
        if self._buffer.is_cuda and HAS_TRITON:
            from tinyzero_astar.engine.slot_kernels import move_rows

            move_rows(self._buffer, source, first, last)
        else:
            columns = self._buffer[..., first:, :]
            columns.copy_(columns.index_select(2, source))

    def fork(self, source: Tensor, target: Tensor, first: int, last: int) -> None:
        """Copy columns [first, last) of rows `source` to rows `target`. All reads precede all writes."""
        columns = self._buffer[..., first:last, :]
        columns.index_copy_(2, target, columns.index_select(2, source))
