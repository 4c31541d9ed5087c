"""LoRA tests of what is trained and what is frozen, what a checkpoint of it is, and the distance to the base."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.distributed_worker import planted
from tests.test_training import make_policy, make_rows, make_updater
from tests.trees import trees_of, trees_of_rows
from tinyzero_astar.cli.train import main
from tinyzero_astar.engine.fast_decode import is_supported
from tinyzero_astar.manifest import write_manifest
from tinyzero_astar.model.adapters import add_adapters, merged
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.policy_loading import load_policy
from tinyzero_astar.training.optimizer import MasterAdamW

RANK = 3
IDS = torch.randint(1, 20, (5, 9), generator=torch.Generator().manual_seed(1))
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OPTIONS = (
    f"--model.lora-rank {RANK} --train.num-iterations 4 --train.problems-per-iteration 4 --train.batch-size 2"
    " --train.learning-rate 0.02 --data.num-problems 12 --search.num-rollouts-per-problem 3 --search.beam-width 4"
    " --search.max-search-depth 8 --value.hidden-size 8 --run.num-threads 1 --run.checkpoint-frequency 2"
    " --eval.num-problems 24 --eval.num-samples 2 --eval.eval-frequency 4"
)


def adapted(dtype=torch.float64, is_trained=True):
    """A policy with adapters, and a copy of it from before they were there."""
    policy = make_policy()
    policy.language_model.to(dtype)
    policy.dtype = dtype
    plain = copy.deepcopy(policy)
    add_adapters(policy.language_model, RANK)
    if is_trained:
        generator = torch.Generator().manual_seed(2)
        for name, p in policy.language_model.named_parameters():
            if "lora_B" in name:
                p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return policy, plain


# ---------------------------------------------------------------------------------------------------- the model


def test_all_projections_of_the_layers_are_adapted_and_nothing_else_is_trained():
    policy, plain = adapted()
    model = policy.language_model
    assert type(model) is type(plain.language_model) and policy.has_adapters and not plain.has_adapters
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = {
        f"model.layers.0.{'self_attn' if name in PROJECTIONS[:4] else 'mlp'}.{name}.lora_{which}.default.weight"
        for name in PROJECTIONS
        for which in "AB"
    }
    assert trained == wanted
    assert is_supported(plain.float().language_model) and not is_supported(policy.float().language_model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_policy_begins_as_its_base_to_the_bit_and_returns_to_it(dtype):
    policy, plain = adapted(dtype, is_trained=False)
    want = plain.language_model(IDS).logits
    assert torch.equal(policy.language_model(IDS).logits, want)
    policy, plain = adapted(dtype)
    moved = policy.language_model(IDS).logits
    assert not torch.allclose(moved, want, atol=0.1)
    with policy.base():
        assert torch.equal(policy.language_model(IDS).logits, want)
    assert torch.equal(policy.language_model(IDS).logits, moved)
    assert sum(p.requires_grad for p in policy.language_model.parameters()) == 2 * len(PROJECTIONS)


@torch.no_grad()
def test_a_projection_adds_the_formula_and_merging_gives_the_same_model():
    policy, plain = adapted()
    layers = policy.language_model.model.layers
    for name in PROJECTIONS:
        block, before = (
            getattr(p.language_model.model.layers[0], "self_attn" if name in PROJECTIONS[:4] else "mlp")
            for p in (policy, plain)
        )
        ours, theirs = getattr(block, name), getattr(before, name)
        a, b = ours.lora_A["default"].weight, ours.lora_B["default"].weight
        assert a.shape[0] == b.shape[1] == RANK and a.abs().min() > 0
        x = torch.randn(4, a.shape[1], dtype=torch.float64)
        bias = 0.0 if theirs.bias is None else theirs.bias
        for row in x:
            want = [
                sum(float(theirs.weight[o, i] * row[i]) for i in range(len(row)))
                + 32 / RANK * sum(float(b[o, r] * a[r, i] * row[i]) for r in range(RANK) for i in range(len(row)))
                for o in range(len(b))
            ]
            assert (ours(row) - bias).tolist() == pytest.approx(want, abs=1e-10)
    plain.language_model.load_state_dict(merged(policy.language_model.state_dict()))
    torch.testing.assert_close(plain.language_model(IDS).logits, policy.language_model(IDS).logits, rtol=0, atol=1e-10)
    assert len(layers) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_adapters_are_stepped_and_their_masters_are_float32(dtype):
    policy, plain = adapted(dtype, is_trained=False)
    policy.value_model.float()
    optimizer = MasterAdamW(policy.language_model, 1e-3, 0.0, dtype)
    assert {p.dtype for p in optimizer.stepped} == {torch.float32} and len(optimizer.stepped) == 14
    for _ in range(2):  # in the first one B is 0, so A has no gradient
        policy(trees_of_rows(IDS, 3)).logp.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = policy.language_model.state_dict()
    for name, before in plain.language_model.state_dict().items():
        own = name if name in after else name.replace("_proj.", "_proj.base_layer.")
        assert torch.equal(after[own], before), name
    assert all(float(after[name].abs().max()) > 0 for name in after if "lora_B" in name)


def test_layers_without_linear_projections_are_refused():
    policy = make_policy()
    for parent in [*policy.language_model.model.layers[0].modules()]:
        for name, child in [*parent.named_children()]:
            if type(child) is nn.Linear:
                setattr(parent, name, nn.Identity())
    with pytest.raises(ValueError, match=r"^lora_rank 3: the layers of Qwen2ForCausalLM have no linear projections"):
        add_adapters(policy.language_model, RANK)


# ------------------------------------------------------------------------------------------- distance to the base


def kl_oracle(model, base, ids, n, m):
    """sum_a pi(a) log(pi(a) / base(a)) before each of the m tokens after n, in Python floats."""
    found = []
    for t in range(m):
        p, q = (x(ids[None, : n + t]).logits[0, -1].tolist() for x in (model, base))
        zp, zq = (math.log(sum(math.exp(x) for x in row)) for row in (p, q))
        found.append(sum(math.exp(x - zp) * ((x - zp) - (y - zq)) for x, y in zip(p, q, strict=True)))
    return found


@torch.no_grad()
def test_kl_to_base_is_the_weighted_mean_of_the_sum_over_the_vocabulary(monkeypatch):
    policy, plain = adapted()
    batch = make_rows(policy)
    monkeypatch.setattr("tinyzero_astar.model.model.CHUNK_ELEMENTS", 20 * 7)  # chunks of seven positions
    total = mass = 0.0
    for r in range(len(batch.tokens)):
        prompt, m = batch.prompts[batch.problem[r]], int(batch.is_token[r].sum())
        completion = batch.tokens[r, :m].tolist()
        ids = torch.tensor(prompt + completion)
        want = kl_oracle(policy.language_model, plain.language_model, ids, len(prompt), m)
        got = policy.kl_to_base(trees_of([prompt], [[completion]]))[0]
        assert got.tolist() == pytest.approx(want, abs=1e-12) and min(want) > 1e-3
        total += float(batch.weight[r]) * sum(want)
        mass += float(batch.weight[r]) * m
    for tokens in (10_000, 25):
        found = make_updater(policy, micro_batch_tokens=tokens)._kl_to_base(batch)
        assert found == pytest.approx(total / mass, abs=1e-12)
    with torch.enable_grad():
        assert "policy/kl_to_base" in make_updater(policy).update(batch, 4, 0)
        assert "policy/kl_to_base" not in make_updater(plain).update(batch, 4, 0)


@pytest.mark.parametrize("policy", adapted(), ids=["adapters", "all weights"])
def test_an_update_without_rows_has_every_name_and_only_rate_and_counts_are_known(policy):
    batch, updater = make_rows(policy), make_updater(policy)
    empty = replace(batch, **{name: x[:0] for name, x in vars(batch).items() if torch.is_tensor(x)})
    whole, none = updater.update(batch, 4, 0), updater.update(empty, 4, 5)
    assert none.keys() == whole.keys()
    known = {name: x for name, x in none.items() if not math.isnan(x)}
    counts = {"train/num_rows": 0, "train/num_tokens": 0, "train/num_updates": 1}
    assert known == counts | {"train/learning_rate": pytest.approx(0.005)}  # half of 10 iterations are over


@torch.no_grad()
def test_kl_to_base_survives_impossible_tokens():
    plain, _ = adapted()
    policy = Policy(plain.language_model, plain.eos_ids, 8, textless=(3,))
    assert torch.isfinite(policy.kl_to_base(trees_of_rows(IDS, 3))).all()


# ---------------------------------------------------------------------------------------------------------- runs


def run(base, folder, *more):
    with planted(False):
        return main(["--model.model-name", str(base), *OPTIONS.split(), *more, "--output-dir", str(folder)])


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def finished(request, tiny_base, tmp_path_factory):
    """A run of four iterations."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    assert run(tiny_base, folder, "--model.dtype", request.param) == 0
    return folder


def checkpoint(folder, iteration=4):
    return folder / "checkpoints" / f"checkpoint_iter_{iteration}"


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def test_the_distance_to_the_base_is_logged_and_begins_at_zero(finished):
    found = [r["policy/kl_to_base"] for r in records(finished)[1:]]
    assert found[0] == 0.0 < 1e-4 < min(found[1:])


def test_a_resumed_run_equals_an_uninterrupted_one_without_its_base(finished, tiny_base, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "r")
    shutil.rmtree(checkpoint(folder))
    config = json.loads((folder / "config.json").read_text())
    config["model"]["model_name"] = "gone/elsewhere"
    (folder / "config.json").write_text(json.dumps(config))
    with planted(False):
        assert main(["--resume", str(folder)]) == 0
    for name in ("model", "trainer"):
        ours, theirs = (load_file(checkpoint(x) / f"{name}.safetensors") for x in (folder, finished))
        assert ours.keys() == theirs.keys()
        assert [k for k in theirs if not torch.equal(ours[k], theirs[k])] == []
    assert records(folder) == records(finished)
    before, after = (load_file(checkpoint(finished, i) / "trainer.safetensors") for i in (2, 4))
    assert all(not torch.equal(before[k], after[k]) for k in after if ".lora_" in k)
    base = load_file(tiny_base / "model.safetensors")
    for key in (k for k in after if k.endswith(".base_layer.weight")):
        own = base[key.removeprefix("language_model.").replace(".base_layer.", ".")]
        assert torch.equal(after[key], own.to(after[key].dtype))


@torch.no_grad()
def test_plain_from_pretrained_gives_the_logits_of_the_trained_policy(finished, tiny_base):
    dtype = getattr(torch, finished.name)
    folder = checkpoint(finished)
    options = {"dtype": dtype, "device": torch.device("cpu"), "value_hidden_size": 8, "max_length": 128}
    policy, _ = load_policy(str(tiny_base), **options, lora_rank=RANK)
    saved = {k: v for k, v in load_file(folder / "trainer.safetensors").items() if k.startswith("language_model.")}
    assert not policy.load_state_dict(saved, strict=False).unexpected_keys and len(saved) == 21
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert not any("lora" in name or "base_layer" in name for name in plain.state_dict())
    want = policy.language_model(IDS).logits
    rounding = {torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype] * float(want.std())
    torch.testing.assert_close(plain(IDS).logits, want, rtol=0, atol=rounding)
    assert (
        float((AutoModelForCausalLM.from_pretrained(tiny_base, dtype=dtype)(IDS).logits - want).abs().max()) > rounding
    )


def test_a_checkpoint_is_evaluated_without_peft(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoint(finished), tmp_path / "c")
    monkeypatch.setitem(sys.modules, "peft", None)
    options = "--eval.num-problems 24 --eval.num-samples 2 --run.num-threads 1"
    with planted(False):
        assert main(["--eval-only", "--checkpoint", str(folder), *options.split()]) == 0
    measured = json.loads((folder / "evaluation.json").read_text())
    if finished.name == "float32":  # merging rounds bfloat16 weights
        for name, value in measured.items():
            assert records(finished)[-1][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(
    "change",
    [
        lambda t: [t.pop(k) for k in list(t) if ".lora_B." in k],
        lambda t: [t.pop(k) for k in list(t) if k.startswith("language_model.")],
        lambda t: t.update({k: v[:2].clone() for k, v in t.items() if ".lora_A." in k and k.startswith("lang")}),
    ],
    ids=["no B", "none", "another rank"],
)
def test_a_checkpoint_without_its_adapters_is_refused(change, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "r")
    path = checkpoint(folder) / "trainer.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    write_manifest(path.parent)
    assert main(["--resume", str(folder / "checkpoints" / "checkpoint_iter_4")]) == 2
    err = capsys.readouterr().err
    assert "does not hold what resuming needs (the adapters of 21 matrices)" in err and err.count("\n") == 1


@pytest.mark.parametrize("missing", ["peft", "accelerate"])
def test_without_peft_one_sentence_before_anything_is_loaded(missing, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    argv = ["--model.model-name", "no/such-model", "--model.lora-rank", "8", "--output-dir", str(tmp_path / "r")]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err == (
        f"error: lora_rank 8 needs the package {missing}, which is not installed: pip install -e '.[lora]',"
        " or train all weights with --model.lora-rank 0\n"
    )
    assert not (tmp_path / "r").exists()
