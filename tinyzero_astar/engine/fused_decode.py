"""Decode steps of Llama-shaped models in eight kernels a layer, on the model's own weights.

A model's own forward starts about five times as many. It also repeats keys and values for every query that shares them,
and reads columns that a row has not filled. Here a row costs what it holds. Prompts go through the model, and keys lie
in the cache as the model would put them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from tinyzero_astar.engine.decode_operations import HeadNorm, Rotation
from tinyzero_astar.engine.fast_decode import is_llama_shaped
from tinyzero_astar.engine.slot_cache import SlotCache, Visible
from tinyzero_astar.kernels import HAS_TRITON

Forward = Callable[[Tensor, Tensor, Tensor, SlotCache], Tensor]


class FusedDecode:
    """One model's decode steps. Implements `engine.decoder.HiddenFn`.

    It reads the weights where they lie, so it stays valid when they are changed in place. Once per model, it moves
    those that the same input is multiplied by next to each other (`adjacent`). Then they are one product.

    Args:
        model: `is_llama_shaped`.
        num_positions: of the longest sequence.
        read_prompts: the model's own forward with a mask.
        operations: `engine.decode_kernels` or `engine.decode_operations`.
    """

    reads_lengths = True

    def __init__(
        self, model: PreTrainedModel, num_positions: int, read_prompts: Forward, operations: ModuleType
    ) -> None:
        backbone: Any = model.base_model
        self._read_prompts, self._operations = read_prompts, operations
        self._tokens = backbone.embed_tokens.weight.detach()
        self._layers = [_layer(layer) for layer in backbone.layers]
        self._norms = [_norm(layer.input_layernorm) for layer in backbone.layers] + [_norm(backbone.norm)]
        position = torch.arange(num_positions, device=self._tokens.device)[None]
        # In the model's dtype, in which it rounds them too. Both halves are alike.
        cos, sin = (x[0].chunk(2, -1)[0].contiguous() for x in backbone.rotary_emb(self._tokens, position))
        self._rotation = Rotation(cos, sin)

    def __call__(self, ids: Tensor, position_ids: Tensor, seen: Tensor | Visible, cache: SlotCache) -> Tensor:
        """Last hidden states [N, Q, D], see `engine.decoder.HiddenFn`."""
        if isinstance(seen, Tensor):
            return self._read_prompts(ids, position_ids, seen, cache)
        if isinstance(seen.column, int):
            seen = seen._replace(column=torch.full_like(seen.padding, seen.column))
        x = embedding(ids[:, 0], self._tokens)
        h: Tensor = self._operations.rms_norm(x, *self._norms[0])
        for index, (layer, next_norm) in enumerate(zip(self._layers, self._norms[1:], strict=True)):
            heads = linear(h, *layer.heads)
            cells = cache.cells(index)
            attended = self._operations.attend(heads, cells, self._rotation, layer.head_norm, seen, layer.scale)
            h = self._add(x, layer.output, attended, layer.mlp_norm)
            h = self._add(x, layer.down, self._operations.silu_mul(linear(h, *layer.gate_and_up)), next_norm)
        return h[:, None]

    def _add(self, x: Tensor, affine: _Affine, given: Tensor, norm: _Norm) -> Tensor:
        """Add an affine map of `given` to the residual stream `x` [N, D], and return the norm of it."""
        if affine.bias is not None:
            x += affine.bias
        normed: Tensor = self._operations.add_rms_norm(x, self._operations.products(given, affine.weight), *norm)
        return normed


class _Affine(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]


class _Norm(NamedTuple):
    gain: Tensor  # [D]
    eps: float


class _Layer(NamedTuple):
    heads: _Affine  # of queries, then keys, then values
    head_norm: HeadNorm | None  # Qwen3's
    scale: float
    output: _Affine
    mlp_norm: _Norm
    gate_and_up: _Affine
    down: _Affine


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether `FusedDecode` with Triton's kernels equals the model's own forward."""
    is_fit = model.device.type == "cuda" and model.dtype in (torch.bfloat16, torch.float32)
    return is_fit and HAS_TRITON and is_llama_shaped(model)


def adjacent(parameters: Sequence[Tensor]) -> Tensor:
    """Parameters [n_i, ...] as one tensor [sum of n_i, ...] that shares their memory.

    If they do not lie one after the other, they are moved. Their values and their identity stay, and so does all that
    holds the parameters themselves, such as an optimizer.
    """
    first = parameters[0]
    size = sum(len(p) for p in parameters)
    end = first.data_ptr()
    for p in parameters:
        if p.data_ptr() != end or p.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            joined = torch.cat([x.detach() for x in parameters])
            for x, part in zip(parameters, joined.split([len(x) for x in parameters]), strict=True):
                x.data = part
            return joined
        end += p.numel() * p.element_size()
    return first.detach().as_strided((size, *first.shape[1:]), first.stride())


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    head_norm = None
    if hasattr(attention, "q_norm"):
        (query, eps), (key, _) = _norm(attention.q_norm), _norm(attention.k_norm)
        head_norm = HeadNorm(query, key, eps)
    return _Layer(
        heads=_affine(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norm=head_norm,
        scale=attention.scaling,
        output=_affine(attention.o_proj),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_and_up=_affine(mlp.gate_proj, mlp.up_proj),
        down=_affine(mlp.down_proj),
    )


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight.detach(), module.variance_epsilon)


def _affine(*modules: nn.Linear) -> _Affine:
    """Of modules with the same input, whose outputs stand one after the other."""
    biases = [m.bias for m in modules if m.bias is not None]
    assert len(biases) in (0, len(modules))
    return _Affine(adjacent([m.weight for m in modules]), adjacent(biases) if biases else None)
