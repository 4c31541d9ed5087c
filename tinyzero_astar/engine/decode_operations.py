"""The operations of a decode step that PyTorch has no single kernel for, as plain functions on tensors.

They are what `engine.decode_kernels` must agree with, and what runs where there is no Triton.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from tinyzero_astar.engine.slot_cache import Visible


class Rotation(NamedTuple):
    """Cosines and sines [C, W / 2] of every position's angles, in the dtype of heads of width W."""

    cos: Tensor
    sin: Tensor


class HeadNorm(NamedTuple):
    """RMS norm of each head of the queries and keys, before the rotation."""

    query: Tensor  # [W] gains
    key: Tensor
    eps: float


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean x^2 + eps) * gain over the last dimension of `x` [N, ..., D].

    Below float32, the mean is taken in float32 and the quotient is rounded before the product, as Hugging Face's models
    do it.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return unit.to(x.dtype) * gain


def products(x: Tensor, weight: Tensor) -> Tensor:
    """Parts [P, N, E] whose sum is x weight^T, of `x` [N, D] and `weight` [E, D]. P is the function's choice."""
    return linear(x, weight)[None]


def add_rms_norm(x: Tensor, parts: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Add parts [P, N, D] to `x` [N, D] in place, and return its `rms_norm`.

    The sum is rounded once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x.copy_(x.to(wide) + parts.to(wide).sum(0))
    return rms_norm(x, gain, eps)


def attend(
    heads: Tensor, cells: Tensor, rotation: Rotation, norm: HeadNorm | None, seen: Visible, scale: float
) -> Tensor:
    """Write one new token of every row to the cache, and attend from it to all that its row sees.

        softmax_c(scale <rotated query, keys_c>) values_c

    A row's position is column - padding. The rotation turns element i of a head with element i + W / 2.

    Args:
        heads: [N, (query heads + 2 key heads) x W] of the new tokens, queries before keys before values. Queries that
            share a key are neighbours.
        cells: [2, N, key heads, L, W] keys, rotated, and values. The new ones are written at `seen.column`.
        rotation: for all positions.
        norm: of each head, None means that there is none.
        seen: its columns are a tensor.
        scale: of the scores.

    Returns:
        [N, query heads x W].
    """
    num_rows, num_keys, num_columns, width = cells.shape[1:]
    every = heads.view(num_rows, -1, width)
    query, key, value = every.split([every.shape[1] - 2 * num_keys, num_keys, num_keys], 1)
    if norm is not None:
        query, key = rms_norm(query, norm.query, norm.eps), rms_norm(key, norm.key, norm.eps)
    position = seen.column - seen.padding
    cos, sin = (x[position][:, None] for x in rotation)
    row = torch.arange(num_rows, device=cells.device)
    cells[0, row, :, seen.column] = _rotated(key, cos, sin)
    cells[1, row, :, seen.column] = value
    attended = scaled_dot_product_attention(
        _rotated(query, cos, sin).unflatten(1, (num_keys, -1)),
        cells[0],
        cells[1],
        seen.mask(num_columns),
        scale=scale,
    )  # the queries of a group stand where one head's queries would
    return attended.reshape(num_rows, -1)


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) * up, [N, D], of both [N, 2 D], gates first."""
    gate, up = x.chunk(2, -1)
    return silu(gate) * up


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [N, H, W] turned by angles [N, 1, W / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
