"""A key/value cache of slots: fixed rows that hold prefixes, extended in place or forked by one copy.

Row r of every layer's [rows, heads, columns, head_dim] buffer is one prefix; a fork copies a contiguous range of
columns. At the lengths this project works with (hundreds of tokens) that is well under 1 % of decoding, so there
is no paging. Hugging Face decoders write through `update`, whose target is planned before each forward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache


class SlotCache(Cache):
    """Rows of keys and values; buffers are allocated at a layer's first write, in its dtype.

    Args:
        num_rows: prefixes held at once.
        num_columns: tokens per prefix, prompt included.
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        super().__init__(layers=[])
        self.num_rows, self.num_columns = num_rows, num_columns
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows: Tensor | slice = slice(0)
        self._columns: Tensor | slice = slice(0)
        self._visible = 0

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers: rows x columns x layers x heads x head_dim x 2 x bytes of a number."""
        return sum(x.numel() * x.element_size() for x in (*self._keys, *self._values))

    def plan_prompts(self, rows: Tensor, length: int) -> None:
        """The next forward fills columns [0, length) of `rows` [P] and attends to nothing else."""
        self._rows, self._columns, self._visible = rows, slice(0, length), 0

    def plan_tokens(self, num_rows: int, columns: Tensor | int, visible: int) -> None:
        """The next forward writes one token of each row below `num_rows`, at `columns` ([num_rows] or one for all).

        It attends to the first `visible` columns of those rows.
        """
        if isinstance(columns, int):
            self._rows, self._columns = slice(num_rows), slice(columns, columns + 1)
        else:
            self._rows, self._columns = torch.arange(num_rows, device=columns.device), columns
        self._visible = visible

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values [N, H, Q, D] as planned; returns what its queries may see."""
        if layer_idx == len(self._keys):
            heads = key_states.shape[1]
            for buffers, states in ((self._keys, key_states), (self._values, value_states)):
                buffers.append(states.new_zeros(self.num_rows, heads, self.num_columns, states.shape[-1]))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        for buffer, states in zip((keys, values), (key_states, value_states), strict=True):
            if isinstance(self._columns, slice):
                buffer[self._rows, :, self._columns] = states
            else:
                buffer[self._rows, :, self._columns] = states[:, :, 0]
        if self._visible == 0:
            return key_states, value_states
        return keys[self._rows, :, : self._visible], values[self._rows, :, : self._visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that are visible to the planned forward."""
        return self._visible

    def fork(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` columns of rows `source` to rows `target`; all reads precede all writes."""
        for buffer in (*self._keys, *self._values):
            buffer[target, :, :length] = buffer[source, :, :length]
