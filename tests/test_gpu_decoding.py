"""Decoding on a GPU. The slot cache gives what one full forward does, and CUDA graphs what single kernels do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from benchmarks.gpu_shapes import config_of
from tests.decoding import (
    LED,
    PROMPTS,
    assert_forks_swaps_and_uneven_lengths_equal_recomputation,
    assert_recorded_scores_equal_one_full_forward,
    shake_value_model,
)
from tests.devices import DEVICE, IS_CUDA, make_recorder, on_device
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import Forest, Guidance, astar_rollouts

pytestmark = on_device

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.08,
}
CONFIGS = {
    "qwen2": Qwen2Config(**SHAPE),
    "llama": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "qwen3": Qwen3Config(**SHAPE),
}
DTYPES = [torch.float32, torch.bfloat16]
GUIDED = Guidance(inverse_beta=1.5, cap=2.0)
PLAIN = Guidance(strength=0.0)


def make_policy(config, dtype, textless=()):
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        for name, p in model.named_parameters():  # gains of 1 and biases of 0 would hide what is left out
            if p.ndim == 1:
                nn.init.uniform_(p, 0.5, 1.5) if "norm" in name else nn.init.normal_(p, std=0.1)
        policy = Policy(model, (0,), value_hidden_size=16, textless=textless)
    return shake_value_model(policy.to(DEVICE), std=0.05)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """What prompts share is read once, and recorded steps are in blocks of 4 columns, however small all is."""
    monkeypatch.setattr("tinyzero_astar.engine.shared_prompt.MIN_SAVED", 1)
    monkeypatch.setattr("tinyzero_astar.engine.decoder.BLOCK", 4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("is_recorded", [False, True], ids=["single", "recorded"])
def test_slots_and_forks_equal_the_full_forward(name, is_recorded):
    """In float32, which shows more. The next test has bfloat16 too."""
    policy = make_policy(CONFIGS[name], torch.float32)
    policy.recorder = make_recorder() if is_recorded else None
    for prompts in (PROMPTS, LED):  # of which some begin alike
        assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy, prompts)
    for mode in ("sample", "gumbel", "best_first"):
        assert_recorded_scores_equal_one_full_forward(policy, mode)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slots_and_forks_of_the_exact_shape_of_qwen_equal_the_full_forward(dtype):
    policy = make_policy(config_of("0.5B" if IS_CUDA else "tiny"), dtype)
    for recorder in (None, make_recorder()):
        policy.recorder = recorder
        assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy, LED)
    assert_recorded_scores_equal_one_full_forward(policy, "gumbel")


SEARCHES = {
    "sample": {"mode": "sample", "num_rollouts": 3},
    "gumbel": {"mode": "gumbel", "num_rollouts": 3, "guidance": PLAIN},
    "guided": {"mode": "gumbel", "num_rollouts": 3, "guidance": GUIDED},
    "forest": {"mode": "gumbel", "num_rollouts": 1.75, "guidance": GUIDED, "forest": Forest(4)},
    "forest, fewer leaves than problems": {
        "mode": "gumbel",
        "num_rollouts": 0.5,
        "guidance": PLAIN,
        "forest": Forest(4),
    },
    "forest, tilted": {
        "mode": "gumbel",
        "num_rollouts": 1.5,
        "guidance": GUIDED,
        "forest": Forest(2, torch.tensor([1.6, 0.4] * 4, dtype=torch.float64).log()),
    },
    "forest of samples": {"mode": "sample", "num_rollouts": 1.75, "forest": Forest(4)},
    "best_first": {"mode": "best_first", "num_rollouts": 2, "guidance": Guidance(inverse_beta=1.5)},
    "best_first, forest": {"mode": "best_first", "num_rollouts": 0.5, "guidance": GUIDED, "forest": Forest(4)},
}
PROBLEMS = [*PROMPTS, *LED]


def search(policy, **options):
    given = {"seeds": torch.arange(len(PROBLEMS)), "beam_width": 5, "max_search_depth": 24} | options
    return astar_rollouts(SlotDecoder(policy, 24), PROBLEMS, **given)


@pytest.mark.parametrize("name", SEARCHES)
def test_recorded_searches_find_what_single_kernels_do(name):
    """In float32, where another kernel's rounding changes no token. Some ids among the others have no text."""
    policy = make_policy(CONFIGS["qwen2"], torch.float32, textless=(30, 31, 511))
    plain = search(policy, **SEARCHES[name])
    policy.recorder = make_recorder()
    for _ in range(2):  # what the first search leaves behind must not reach the second
        recorded = search(policy, **SEARCHES[name])
        assert recorded.tokens.tolist() == plain.tokens.tolist()
        assert recorded.length.tolist() == plain.length.tolist()
        for field in ("logp", "logq", "value", "baseline", "child_value", "priority", "kappa", "weight"):
            got, want = getattr(recorded, field), getattr(plain, field)
            torch.testing.assert_close(
                got, want, atol=2e-4, rtol=1e-3, equal_nan=True, msg=lambda m, f=field: f"{f}: {m}"
            )
        for field in ("num_expanded", "num_forks", "num_decoded_tokens", "num_capped"):
            assert getattr(recorded.stats, field).tolist() == getattr(plain.stats, field).tolist(), field


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_search_finds_the_same_twice(dtype):
    policy = make_policy(CONFIGS["qwen2"], dtype)
    for recorder in (None, make_recorder()):
        policy.recorder = recorder
        first, second = (search(policy, **SEARCHES["forest"]) for _ in range(2))
        for field, x in vars(first).items():
            if isinstance(x, torch.Tensor):
                torch.testing.assert_close(getattr(second, field), x, atol=0, rtol=0, equal_nan=True)
