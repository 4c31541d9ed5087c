"""The fast path on every kind of model that it claims gives the same scores as the model's own forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.decoding import LED, PROMPTS, assert_forks_swaps_and_uneven_lengths_equal_recomputation, shake_value_model
from tinyzero_astar.engine.fast_decode import FastDecode, is_supported
from tinyzero_astar.model.model import OwnDecode, Policy

_SHAPE = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "rms_norm_eps": 0.02,  # large enough to see that it is there
}
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}


def make(config: AutoConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, p in model.named_parameters():  # gains of 1 and biases of 0 would hide what is left out
        if p.ndim == 1:
            nn.init.uniform_(p, 0.5, 1.5) if "norm" in name else nn.init.normal_(p, std=0.3)
    return model


MODELS = {
    "qwen2": Qwen2Config(**_SHAPE),
    "qwen3": Qwen3Config(**_SHAPE, head_dim=12),
    "llama": LlamaConfig(**_SHAPE, attention_bias=True, mlp_bias=True),
    "llama3": LlamaConfig(**_SHAPE, rope_parameters=_LLAMA3),
    "mistral": MistralConfig(**_SHAPE, sliding_window=None, head_dim=16),
    "no grouping": Qwen2Config(**{**_SHAPE, "num_key_value_heads": 4}),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_full_forward(name, monkeypatch):
    monkeypatch.setattr("tinyzero_astar.engine.shared_prompt.MIN_SAVED", 1)
    model = make(MODELS[name])
    assert is_supported(model)
    policy = shake_value_model(Policy(model, (0,), value_hidden_size=16))
    assert isinstance(policy.decoding_fn(40), FastDecode)
    for prompts in (PROMPTS, LED):  # of which some begin alike
        assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy, prompts)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (GemmaConfig(**_SHAPE, head_dim=8), torch.float32),
        (Qwen2Config(**_SHAPE), torch.bfloat16),
        (Qwen2Config(**_SHAPE), torch.float64),
        (Qwen2Config(**_SHAPE, hidden_act="gelu"), torch.float32),
        (
            Qwen2Config(**_SHAPE, rope_parameters=_DYNAMIC),
            torch.float32,
        ),
    ],
    ids=["class", "bfloat16", "float64", "activation", "rotation"],
)
def test_everything_else_goes_through_the_model(config, dtype):
    model = make(config, dtype)
    assert not is_supported(model)
    policy = Policy(model, (0,), value_hidden_size=16)
    assert isinstance(policy.decoding_fn(40), OwnDecode)


def test_a_changed_projection_goes_through_the_model():
    class Adapted(nn.Linear):
        pass

    model = make(MODELS["qwen2"])
    layer = model.model.layers[1].mlp
    layer.up_proj = Adapted(layer.up_proj.in_features, layer.up_proj.out_features, bias=False)
    assert not is_supported(model)
