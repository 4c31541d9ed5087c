"""One decode step of Llama-shaped models without the overhead of module calls.

At the sizes that run on a CPU, half of a decode step is spent between operations: module calls, hooks, norms made of
six small operations. This is the same arithmetic as the model's own forward for one new token per row, written on its
weights. Used where it is known to be equal (float32, the classes below); everything else goes through the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention, silu
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from tinyzero_astar.model.slot_cache import SlotCache

_CLASSES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


class FastDecode:
    """The weights of one model, laid out for decoding: projections that read the same input are one matrix.

    Made anew for each search: the copies are small beside a search, and stale weights are impossible.

    Args:
        model: `is_supported`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._backbone: Any = model.base_model
        self._layers = [_Layer(layer) for layer in self._backbone.layers]

    def hidden(self, ids: Tensor, position_ids: Tensor, is_seen: Tensor, cache: SlotCache) -> Tensor:
        """Last hidden states [N, 1, D] of one new token per row.

        Args:
            ids: int64 [N, 1].
            position_ids: int64 [N, 1].
            is_seen: bool [N, 1, 1, L], True where the token sees a column of the cache.
            cache: planned for this step (`SlotCache.plan_tokens`).
        """
        mask = None if bool(is_seen.all()) else is_seen  # in lock step without padding every column is seen
        x = embedding(ids[:, 0], self._backbone.embed_tokens.weight)
        cos, sin = self._backbone.rotary_emb(x[:, None], position_ids)  # [N, 1, head_dim]
        half = cos.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)  # rotate_half's sign, once for all layers
        for index, layer in enumerate(self._layers):
            x = x + layer.attend(_norm(layer.input_norm, x), index, cos, sin, mask, cache)
            x = x + layer.mlp(_norm(layer.post_norm, x))
        return _norm(self._backbone.norm, x)[:, None]


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm, self.post_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.attention, self.down = attention, mlp.down_proj
        self.qkv = _stack(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = _stack(mlp.gate_proj, mlp.up_proj)
        self.width = attention.head_dim
        self.num_keys = attention.k_proj.weight.shape[0] // self.width
        self.num_queries = attention.q_proj.weight.shape[0] // self.width

    def attend(self, h: Tensor, index: int, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: SlotCache) -> Tensor:
        rows, attention = len(h), self.attention
        heads = linear(h, *self.qkv).view(rows, -1, self.width)
        turned, value = heads.split((self.num_queries + self.num_keys, self.num_keys), 1)
        if hasattr(attention, "q_norm"):  # Qwen3 norms each head
            query, key = turned.split((self.num_queries, self.num_keys), 1)
            turned = torch.cat((_norm(attention.q_norm, query), _norm(attention.k_norm, key)), 1)
        turned = turned * cos + turned.roll(self.width // 2, -1) * sin
        query, key = turned.split((self.num_queries, self.num_keys), 1)
        keys, values = cache.update(key[:, :, None], value[:, :, None], index)
        grouped = query.reshape(rows, self.num_keys, -1, self.width)  # heads that share a key: the query axis
        output = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=attention.scaling)
        return _linear(attention.o_proj, output.reshape(rows, -1))

    def mlp(self, h: Tensor) -> Tensor:
        gate, up = linear(h, *self.gate_up).chunk(2, -1)
        return _linear(self.down, silu(gate) * up)


def is_supported(model: PreTrainedModel) -> bool:
    """Whether `FastDecode` equals the model's own forward; exact classes only, a wrapped model is another one."""
    if any(name.endswith("_proj") and type(m) is not nn.Linear for name, m in model.named_modules()):  # adapted ones
        return False
    return type(model) in _CLASSES and model.config.hidden_act == "silu" and model.dtype == torch.float32


def _stack(*modules: nn.Linear) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([m.weight for m in modules]).detach()
    return weight, None if modules[0].bias is None else torch.cat([m.bias for m in modules]).detach()


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, module.weight, module.bias)


def _norm(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
