"""Recomputed decoder layers give the same gradients, fewer activations, and nothing else touched."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from tests.trees import trees_of_rows
from tinyzero_astar.cli.train import main
from tinyzero_astar.model.decoder_layers import decoder_layers
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.policy_loading import check_decoding
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.training.optimizer import MasterAdamW

NUM_LAYERS = 4
IDS = torch.randint(1, 24, (6, 20), generator=torch.Generator().manual_seed(1))
RUN = (
    "--train.num-iterations 2 --train.problems-per-iteration 4 --train.batch-size 2 --data.num-problems 12"
    " --search.num-rollouts-per-problem 3 --search.beam-width 4 --search.max-search-depth 8 --value.hidden-size 8"
    " --run.num-threads 1 --eval.num-problems 4 --eval.num-samples 1"
)


def make_policy(is_checkpointed, dtype=torch.float64):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    policy = Policy(Qwen2ForCausalLM(config).to(dtype).eval(), (0,), value_hidden_size=16)
    policy.value_model.to(torch.promote_types(dtype, torch.float32))
    policy.gradient_checkpointing = is_checkpointed
    return policy


def scores(policy):
    return policy(trees_of_rows(IDS, 3))


def gradients(policy):
    found = scores(policy)
    found.logp.sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.fixture
def mlp_calls(monkeypatch):
    """One entry per forward of a decoder layer with gradients."""
    calls, forward = [], Qwen2MLP.forward

    def counted(self, x):
        calls.extend([1] * torch.is_grad_enabled())
        return forward(self, x)

    monkeypatch.setattr(Qwen2MLP, "forward", counted)
    return calls


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_are_those_without():
    assert_same(gradients(make_policy(True)), gradients(make_policy(False)))


def test_a_model_that_would_drop_out_in_training_mode_keeps_dropout_off():
    config = OPTConfig(
        vocab_size=24,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.3,
        dropout=0.5,
    )
    found = []
    for is_checkpointed in (True, False):
        torch.manual_seed(0)
        policy = Policy(OPTForCausalLM(config).eval(), (0,), value_hidden_size=16).double()
        policy.gradient_checkpointing = is_checkpointed
        found.append(gradients(policy))
    assert_same(*found)


def test_every_layer_runs_a_second_time_in_the_backward(mlp_calls):
    gradients(make_policy(False))
    assert len(mlp_calls) == NUM_LAYERS
    mlp_calls.clear()
    policy = make_policy(True)
    found = scores(policy)
    assert len(mlp_calls) == NUM_LAYERS
    found.logp.sum().backward()
    assert len(mlp_calls) == 2 * NUM_LAYERS


def test_what_a_forward_keeps_for_its_backward_shrinks_to_a_fifth():
    kept = []
    for is_checkpointed in (True, False):
        storages = {}

        def note(x, storages=storages):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        policy = make_policy(is_checkpointed)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            found = scores(policy)
        own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        kept.append(sum(size for pointer, size in storages.items() if pointer not in own))
        del found
    assert kept[0] < kept[1] / 5


def test_bfloat16_gradients_reach_their_masters_as_without():
    found = []
    for is_checkpointed in (True, False):
        policy = make_policy(is_checkpointed, torch.bfloat16)
        optimizer = MasterAdamW(policy.language_model, 1e-3, 0.0)
        for _ in range(2):  # two micro-batches
            gradients(policy)
        found.append([master.grad for master in optimizer.stepped])
        optimizer.step()
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_decoding_and_scoring_run_the_plain_layers(mlp_calls):
    policy = make_policy(True, torch.float32)
    plain = [type(layer).forward for layer in decoder_layers(policy.language_model)]
    check_decoding(policy)  # would see a lost cache
    with torch.no_grad():
        scores(policy)
    gradients(policy)
    for layer, forward in zip(decoder_layers(policy.language_model), plain, strict=True):
        assert layer.forward.__func__ is forward and "forward" not in vars(layer) and not layer.training
    with pytest.raises(IndexError):  # a forward that fails leaves nothing behind either
        policy(trees_of_rows(IDS + 1000, 3))
    assert not any("forward" in vars(layer) for layer in decoder_layers(policy.language_model))


def test_presets_for_gpus_recompute_and_those_for_cpus_do_not():
    assert {name: p.train.gradient_checkpointing for name, p in PRESETS.items()} == {
        "tiny": False,
        "small": False,
        "local": True,
        "training": True,
    }


def test_a_run_trains_the_same_weights_and_does_recompute(tiny_base, tmp_path, mlp_calls):
    counts = []
    for flag in ("--train.gradient-checkpointing", "--train.no-gradient-checkpointing"):
        mlp_calls.clear()
        argv = ["--model.model-name", str(tiny_base), *RUN.split(), flag, "--output-dir", str(tmp_path / flag)]
        assert main(argv) == 0
        counts.append(len(mlp_calls))
    assert counts[0] == 2 * counts[1] > 0
    ours, theirs = (
        load_file(tmp_path / f"--train.{no}gradient-checkpointing" / "checkpoints/checkpoint_iter_2/model.safetensors")
        for no in ("", "no-")
    )
    assert_same(ours, theirs)
