"""Decoding with small Llama-shaped models on a CPU, without the overhead of module calls.

At these sizes half of a decode step is spent between operations: module calls, hooks, norms made of six small
operations. This is the model's own arithmetic written on its weights, with everything folded into them that can be:
the norms' gains and the attention's scale into the projections, and each head's halves interleaved, so that the
rotation is one complex product. Used where it is known to be equal (float32, the classes below); everything else goes
through the model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm, scaled_dot_product_attention, silu
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from tinyzero_astar.model.slot_cache import SlotCache

_CLASSES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_FIXED_ROPE = ("default", "linear", "llama3")  # angles that depend on the position alone
_MAX_PARAMETERS = 1 << 27  # beyond, operations are long enough and a copy of the weights too large


class FastDecode:
    """The weights of one model, laid out for decoding.

    Made anew for each search: the copies are small beside a search, and stale weights are impossible. Keys lie in the
    cache with their halves interleaved, so one search uses either this or the model, for prompts and tokens alike.

    Args:
        model: `is_supported`.
        num_positions: of the longest sequence.
    """

    def __init__(self, model: PreTrainedModel, num_positions: int) -> None:
        backbone: Any = model.base_model
        self._tokens, self._norm = backbone.embed_tokens.weight, backbone.norm
        self._layers = [_Layer(layer) for layer in backbone.layers]
        position = torch.arange(num_positions, device=self._tokens.device)[None]
        cos, sin = backbone.rotary_emb(self._tokens, position)  # [1, C, head_dim], both halves alike
        half = cos.shape[-1] // 2
        self._turn = torch.complex(cos[0, :, :half], sin[0, :, :half])

    def hidden(self, ids: Tensor, position_ids: Tensor, is_seen: Tensor | None, cache: SlotCache) -> Tensor:
        """Last hidden states [N, Q, D]; see `model.decoder.Network.hidden`."""
        x = embedding(ids.flatten(), self._tokens)
        turn = self._turn[position_ids.flatten(), None]  # [N Q, 1, head_dim / 2]
        for index, layer in enumerate(self._layers):
            layer.add_attention(x, ids.shape, turn, is_seen, cache, index)
            layer.add_mlp(x)
        norm = self._norm
        return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon).view(*ids.shape, -1)


class _Layer:
    """One decoder layer; its matrices are transposed and take rows of length 1 (`_to_unit`)."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.width = width = attention.head_dim
        self.num_queries = attention.q_proj.weight.shape[0] // width
        self.num_keys = attention.k_proj.weight.shape[0] // width
        self.floor = _floor(layer.input_layernorm), _floor(layer.post_attention_layernorm)
        # within a head: element i beside element i + width / 2, the pair that the rotation turns
        self.pairs = torch.arange(width, device=layer.input_layernorm.weight.device).view(2, -1).T.flatten()
        gain = _gain(layer.input_layernorm)
        queries, keys, values = (_affine(x, gain) for x in (attention.q_proj, attention.k_proj, attention.v_proj))
        scale = attention.scaling
        self.has_head_norms = hasattr(attention, "q_norm")  # Qwen3's
        if self.has_head_norms:
            self.head_floor = _floor(attention.q_norm), _floor(attention.k_norm)
            self.query_gain = _gain(attention.q_norm)[self.pairs] * scale
            self.key_gain = _gain(attention.k_norm)[self.pairs]
        else:
            queries = queries[0] * scale, queries[1] * scale
        parts = self._interleaved(queries), self._interleaved(keys), values
        self.qkv = torch.cat([weight for weight, _ in parts], 1), torch.cat([bias for _, bias in parts])
        self.output = _affine(attention.o_proj)
        gain = _gain(layer.post_attention_layernorm)
        self.gate, self.up = _affine(mlp.gate_proj, gain), _affine(mlp.up_proj, gain)
        self.down = _affine(mlp.down_proj)

    def add_attention(
        self, x: Tensor, shape: torch.Size, turn: Tensor, is_seen: Tensor | None, cache: SlotCache, index: int
    ) -> None:
        """Add the attention's output to the residual stream `x` [N Q, D] of `shape` (N, Q)."""
        heads = _apply(self.qkv, _to_unit(x, self.floor[0])).view(len(x), -1, self.width)
        query, key, value = heads.split((self.num_queries, self.num_keys, self.num_keys), 1)
        if self.has_head_norms:
            query = _to_unit(query, self.head_floor[0]) * self.query_gain
            key = _to_unit(key, self.head_floor[1]) * self.key_gain
        query, key = _turned(query, turn), _turned(key, turn)
        by_row = (*shape, self.num_keys, self.width)
        keys, values = cache.update(key.view(by_row).transpose(1, 2), value.view(by_row).transpose(1, 2), index)
        if shape[1] == 1:
            attended = self._attend_one(query, keys, values, is_seen)
        else:
            query = query.view(*shape, -1, self.width).transpose(1, 2)
            attended = scaled_dot_product_attention(query, keys, values, is_seen, scale=1.0, enable_gqa=True)
            attended = attended.transpose(1, 2)
        _add(self.output, attended.reshape(len(x), -1), x)

    def _attend_one(self, query: Tensor, keys: Tensor, values: Tensor, is_seen: Tensor | None) -> Tensor:
        """One query per row and head: two batched products are faster than the fused kernel's blocks."""
        by_key = len(keys) * self.num_keys
        query = query.view(by_key, -1, self.width)  # the heads that share a key
        score = torch.bmm(query, keys.flatten(0, 1).mT)
        if is_seen is not None:
            score = score.view(*keys.shape[:2], -1, keys.shape[2]).masked_fill(~is_seen, -torch.inf).flatten(0, 1)
        return torch.bmm(torch.softmax(score, -1), values.flatten(0, 1))

    def add_mlp(self, x: Tensor) -> None:
        """Add the MLP's output to the residual stream `x` [N Q, D]."""
        h = _to_unit(x, self.floor[1])
        _add(self.down, silu(_apply(self.gate, h), inplace=True).mul_(_apply(self.up, h)), x)

    def _interleaved(self, affine: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        weight, bias = (x.unflatten(-1, (-1, self.width))[..., self.pairs].flatten(-2) for x in affine)
        return weight, bias


def is_supported(model: PreTrainedModel) -> bool:
    """Whether `FastDecode` equals the model's own forward, and is worth it."""
    if type(model) not in _CLASSES or model.dtype != torch.float32 or model.num_parameters() > _MAX_PARAMETERS:
        return False  # exact classes only: a wrapped model is another one
    if model.config.hidden_act != "silu" or model.config.rope_parameters["rope_type"] not in _FIXED_ROPE:
        return False
    layers: Any = model.base_model.layers
    return all(type(m) is nn.Linear for layer in layers for n, m in layer.named_modules() if n.endswith("_proj"))


def _gain(norm: Any) -> Tensor:
    """What an RMS norm multiplies rows of length 1 by."""
    weight: Tensor = norm.weight
    return weight.detach() * math.sqrt(len(weight))


def _floor(norm: Any) -> Tensor:
    """Of `_to_unit`: x / sqrt(mean x^2 + eps) = sqrt(D) x / hypot(|x|, sqrt(D eps))."""
    return torch.tensor(math.sqrt(len(norm.weight) * norm.variance_epsilon), device=norm.weight.device)


def _to_unit(x: Tensor, floor: Tensor) -> Tensor:
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def _turned(heads: Tensor, turn: Tensor) -> Tensor:
    """Rotated heads [M, H, head_dim], whose neighbouring elements are pairs."""
    pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def _affine(module: nn.Linear, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Transposed weight [in, out] and bias [out], for inputs that `gain` [in] was not yet applied to."""
    weight = module.weight.detach().T
    bias = weight.new_zeros(weight.shape[1]) if module.bias is None else module.bias.detach()
    return (weight if gain is None else weight * gain[:, None]).contiguous(), bias


def _apply(affine: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    weight, bias = affine
    return torch.addmm(bias, x, weight)


def _add(affine: tuple[Tensor, Tensor], x: Tensor, total: Tensor) -> None:
    weight, bias = affine
    total.add_(bias).addmm_(x, weight)
