"""Decoding with small Llama-shaped models on a CPU, without the overhead of module calls.

At these sizes half of a decode step is spent between operations, on module calls, hooks and norms made of six small
operations. This is the model's own arithmetic written on its weights, with everything folded into them that can be. The
norms' gains and the attention's scale go into the projections. Each head's halves are interleaved, so that the rotation
is one complex product. It is used where it is known to be equal (float32, the classes below). Everything else goes
through the model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention, silu
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from tinyzero_astar.engine.slot_cache import SlotCache, Visible

_CLASSES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_FIXED_ROPE = ("default", "linear", "llama3")  # angles that depend on the position alone
_Affine = tuple[Tensor, Tensor | None]
_MAX_PARAMETERS = 1 << 27  # beyond, operations are long enough and a copy of the weights too large


class FastDecode:
    """The weights of one model, laid out for decoding. Implements `engine.decoder.HiddenFn`.

    It is made anew for each search. The copies are small beside a search, and stale weights are impossible. Keys lie in
    the cache with their halves interleaved, so one search uses either this or the model, for prompts and tokens alike.

    Args:
        model: `is_supported`.
        num_positions: of the longest sequence.
    """

    reads_lengths = False

    def __init__(self, model: PreTrainedModel, num_positions: int) -> None:
        backbone: Any = model.base_model
        self._tokens = backbone.embed_tokens.weight
        self._layers = [_Layer(layer) for layer in backbone.layers]
        self._gain, self._floor = _gain(backbone.norm), _floor(backbone.norm)
        position = torch.arange(num_positions, device=self._tokens.device)[None]
        cos, sin = backbone.rotary_emb(self._tokens, position)  # [1, C, head_dim], both halves alike
        half = cos.shape[-1] // 2
        self._turn = torch.complex(cos[0, :, :half], sin[0, :, :half])

    def __call__(self, ids: Tensor, position_ids: Tensor, seen: Tensor | Visible, cache: SlotCache) -> Tensor:
        """Last hidden states [N, Q, D], see `engine.decoder.HiddenFn`."""
        is_seen = seen.mask(cache.get_seq_length()) if isinstance(seen, Visible) else seen
        x = embedding(ids.flatten(), self._tokens)
        turn = self._turn[position_ids.flatten(), None, None]  # [N Q, 1, 1, head_dim / 2]
        for index, layer in enumerate(self._layers):
            layer.add_attention(x, ids.shape, turn, is_seen, cache, index)
            layer.add_mlp(x)
        return (_to_unit(x, self._floor) * self._gain).view(*ids.shape, -1)


class _Layer:
    """One decoder layer. Its matrices are transposed and take rows of length 1 (`_to_unit`).

    One product computes all heads, grouped by key. A group has the queries that share the key, the key, and the value.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.width = width = attention.head_dim
        self.num_keys = attention.k_proj.weight.shape[0] // width
        self.num_shared = attention.q_proj.weight.shape[0] // width // self.num_keys  # queries per key
        self.floor = _floor(layer.input_layernorm), _floor(layer.post_attention_layernorm)
        # Within a head, element i stands beside element i + width / 2, the pair that the rotation turns.
        pairs = torch.arange(width, device=layer.input_layernorm.weight.device).view(2, -1).T.flatten()
        gain = _gain(layer.input_layernorm)
        query, key, value = (_affine(x, gain) for x in (attention.q_proj, attention.k_proj, attention.v_proj))
        self.head_gain = None
        if hasattr(attention, "q_norm"):  # Qwen3's
            gains = [_gain(attention.q_norm) * attention.scaling] * self.num_shared + [_gain(attention.k_norm)]
            self.head_gain, self.head_floor = torch.stack(gains)[:, pairs], _floor(attention.q_norm)
        else:
            query = query[0] * attention.scaling, None if query[1] is None else query[1] * attention.scaling
        weights = self._grouped(query[0], key[0], value[0], pairs)
        biases = None
        if query[1] is not None and key[1] is not None and value[1] is not None:
            biases = self._grouped(query[1], key[1], value[1], pairs)
        self.heads = weights, biases
        self.output = _affine(attention.o_proj)
        gain = _gain(layer.post_attention_layernorm)
        self.gate, self.up = _affine(mlp.gate_proj, gain), _affine(mlp.up_proj, gain)
        self.down = _affine(mlp.down_proj)

    def _grouped(self, query: Tensor, key: Tensor, value: Tensor, pairs: Tensor) -> Tensor:
        """Columns [..., heads * width] of the three projections, in the order of the class's docstring."""
        query, key, value = (x.unflatten(-1, (self.num_keys, -1, self.width)) for x in (query, key, value))
        return torch.cat((query[..., pairs], key[..., pairs], value), -2).flatten(-3)

    def add_attention(
        self, x: Tensor, shape: torch.Size, turn: Tensor, is_seen: Tensor | None, cache: SlotCache, index: int
    ) -> None:
        """Add the attention's output to the residual stream `x` [N Q, D] of `shape` (N, Q)."""
        num_rows, num_tokens = shape
        heads = _apply(self.heads, _to_unit(x, self.floor[0])).view(len(x), self.num_keys, -1, self.width)
        turned = heads.narrow(2, 0, self.num_shared + 1)
        if self.head_gain is not None:
            turned.copy_(_to_unit(turned, self.head_floor).mul_(self.head_gain))
        torch.view_as_complex(turned.view(*turned.shape[:-1], -1, 2)).mul_(turn)  # in `heads` too
        query, new = heads.narrow(2, 0, self.num_shared), heads.narrow(2, self.num_shared, 2).permute(2, 0, 1, 3)
        if cache.get_seq_length() > 0:
            attended = self._attend_one(query, *cache.add_tokens(new, index), is_seen)
        else:  # prompts
            by_row = (num_rows, num_tokens, -1, self.width)
            query, key, value = (y.reshape(by_row).transpose(1, 2) for y in (query, *new))
            keys, values = cache.update(key, value, index)
            attended = scaled_dot_product_attention(query, keys, values, is_seen, scale=1.0, enable_gqa=True)
            attended = attended.transpose(1, 2)
        _add(self.output, attended.reshape(len(x), -1), x)

    def _attend_one(self, query: Tensor, keys: Tensor, values: Tensor, is_seen: Tensor | None) -> Tensor:
        """One query per row and head. Two batched products are faster than the fused kernel's blocks."""
        by_key = (len(keys) * self.num_keys, -1, self.width)
        score = torch.bmm(query.view(by_key), keys.view(by_key).mT)
        if is_seen is not None:
            score = score.view(*keys.shape[:2], -1, keys.shape[2]).masked_fill(~is_seen, -torch.inf).flatten(0, 1)
        return torch.bmm(torch.softmax(score, -1), values.view(by_key))

    def add_mlp(self, x: Tensor) -> None:
        """Add the MLP's output to the residual stream `x` [N Q, D]."""
        h = _to_unit(x, self.floor[1])
        _add(self.down, silu(_apply(self.gate, h), inplace=True).mul_(_apply(self.up, h)), x)


def is_supported(model: PreTrainedModel) -> bool:
    """Whether `FastDecode` equals the model's own forward, and is worth it."""
    is_small = model.dtype == torch.float32 and model.num_parameters() <= _MAX_PARAMETERS
    return is_small and is_llama_shaped(model)


def is_llama_shaped(model: PreTrainedModel) -> bool:
    """Whether all that a model computes is what this module knows, on plain weights."""
    if type(model) not in _CLASSES:
        return False  # exact classes only, because a wrapped model is another one
    if model.config.hidden_act != "silu" or model.config.rope_parameters["rope_type"] not in _FIXED_ROPE:
        return False
    layers: Any = model.base_model.layers
    return all(type(m) is nn.Linear for layer in layers for n, m in layer.named_modules() if n.endswith("_proj"))


def _gain(norm: Any) -> Tensor:
    """What an RMS norm multiplies rows of length 1 by."""
    weight: Tensor = norm.weight
    return weight.detach() * math.sqrt(len(weight))


def _floor(norm: Any) -> Tensor:
    """The floor of `_to_unit`, from x / sqrt(mean x^2 + eps) = sqrt(D) x / hypot(|x|, sqrt(D eps))."""
    return torch.tensor(math.sqrt(len(norm.weight) * norm.variance_epsilon), device=norm.weight.device)


def _to_unit(x: Tensor, floor: Tensor) -> Tensor:
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def _affine(module: nn.Linear, gain: Tensor | None = None) -> _Affine:
    """Transposed weight [in, out] and bias [out], for inputs that `gain` [in] was not yet applied to."""
    weight = module.weight.detach().T
    bias = None if module.bias is None else module.bias.detach()
    return (weight if gain is None else weight * gain[:, None]).contiguous(), bias


def _apply(affine: _Affine, x: Tensor) -> Tensor:
    weight, bias = affine
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def _add(affine: _Affine, x: Tensor, total: Tensor) -> None:
    weight, bias = affine
    total.addmm_(x, weight)
    if bias is not None:
        total += bias
