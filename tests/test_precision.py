"""bfloat16 weights with float32 masters, with what is kept in which precision, and that small steps are not lost."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.distributed_worker import planted
from tests.oracles import homes
from tests.trees import scores_of, trees_of, trees_of_rows
from tinyzero_astar.cli.train import main
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.manifest import write_manifest
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.policy_loading import check_decoding
from tinyzero_astar.rollout.astar_search import astar_rollouts
from tinyzero_astar.training.optimizer import MasterAdamW

IDS = torch.randint(1, 24, (8, 12), generator=torch.Generator().manual_seed(1))


def make_policy(dtype):
    """The same bfloat16 numbers, held in `dtype`."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return Policy(Qwen2ForCausalLM(config).to(torch.bfloat16).to(dtype).eval(), (0,), value_hidden_size=16)


def linear(dtype):
    torch.manual_seed(0)
    return nn.Linear(4, 3).to(torch.bfloat16).to(dtype)


def set_gradients(module, seed):
    """As backward would, through autograd, so that hooks run, with the same numbers whatever the dtype."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        (p * torch.randn(p.shape, generator=generator).bfloat16().to(p.dtype)).sum().backward()


# ------------------------------------------------------------------------------------------------- optimizer


def test_float32_parameters_are_stepped_as_by_adamw_itself_and_not_copied():
    ours, theirs = linear(torch.float32), linear(torch.float32)
    optimizer = MasterAdamW(ours, 0.1, 0.5)
    assert all(a is b for a, b in zip(optimizer.stepped, ours.parameters(), strict=True))
    groups = [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        assert ours.weight.grad is optimizer.stepped[0].grad is not None
        for o in (optimizer, oracle):
            o.step()
            o.zero_grad()
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert all(slots.keys() == {"step", "exp_avg", "exp_avg_sq"} for slots in optimizer.state_dict()["state"].values())


def test_bfloat16_weights_are_rounded_masters_that_move_as_float32_weights_would():
    low, full = linear(torch.bfloat16), linear(torch.float32)
    optimizer, oracle = MasterAdamW(low, 0.003, 0.5), MasterAdamW(full, 0.003, 0.5)
    for step in range(20):
        set_gradients(low, step)
        set_gradients(full, step)
        assert low.weight.grad is None  # freed: it was added to the master's
        for o in (optimizer, oracle):
            o.step()
            o.zero_grad()
        for master, weight, wanted in zip(optimizer.stepped, low.parameters(), full.parameters(), strict=True):
            assert torch.equal(master, wanted)
            assert weight.dtype == torch.bfloat16 and torch.equal(weight, wanted.bfloat16())
    for slots in optimizer.state_dict()["state"].values():
        assert {name: x.dtype for name, x in slots.items()} == dict.fromkeys(
            ("step", "exp_avg", "exp_avg_sq", "master"), torch.float32
        )


def test_a_step_on_cuda_is_one_fused_kernel_and_elsewhere_it_is_not():
    with FakeTensorMode():  # tensors without storage may say that they are on a GPU
        for device, is_fused in (("cuda", True), ("cpu", False), ("mps", False)):
            module = nn.ParameterList([nn.Parameter(torch.empty(3, 2, device=device))])
            assert MasterAdamW(module, 0.1, 0.0).adamw.param_groups[0]["fused"] is is_fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("was_fused", [True, False])
def test_steps_go_on_fused_or_not_whichever_made_the_state(was_fused, dtype):
    """A run made on a GPU goes on without one, and the other way around. A CPU has such a kernel too."""
    modules, optimizers = [linear(dtype) for _ in range(2)], []
    for module, is_fused in zip(modules, (was_fused, not was_fused), strict=True):
        optimizers.append(MasterAdamW(module, 0.1, 0.5))
        for settings in (optimizers[-1].adamw.defaults, *optimizers[-1].adamw.param_groups):
            settings["fused"] = is_fused
    before, after = optimizers
    for step in range(5):
        if step == 3:
            after.load_state_dict(copy.deepcopy(before.state_dict()))
            modules[1].load_state_dict(modules[0].state_dict())
        for module, optimizer in zip(modules, optimizers, strict=True):
            set_gradients(module, step)
            optimizer.step()
            optimizer.zero_grad()
    assert [group["fused"] for o in optimizers for group in o.adamw.param_groups] == [was_fused] * 2 + [
        not was_fused
    ] * 2
    for p, q in zip(before.parameters, after.parameters, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)
        assert float(after.adamw.state[q]["step"]) == 5


def test_a_count_of_steps_that_lies_on_a_gpu_comes_back_to_the_cpu():
    optimizer = MasterAdamW(linear(torch.float32), 0.1, 0.0)
    set_gradients(nn.ParameterList(optimizer.stepped), 0)
    optimizer.step()
    state = optimizer.state_dict()
    moved, found = [], {}

    class OnGPU:
        """A number that is only to be had on the CPU after a copy."""

        def cpu(self):
            moved.append(self)
            return torch.tensor(1.0)

    for index, slots in state["state"].items():
        found[index] = {**slots, "step": OnGPU()}
    optimizer.load_state_dict({**state, "state": found})
    assert len(moved) == 2 and all(torch.is_tensor(slots["step"]) for slots in optimizer.adamw.state.values())


def test_gradients_of_micro_batches_are_added_in_float32():
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = MasterAdamW(module, 0.1, 0.0)
    for scale in (1.0, *[2.0**-9] * 128):  # in bfloat16 1 + 2**-9 is 1
        (module.weight * scale).sum().backward()
    assert optimizer.stepped[0].grad.item() == 1.25
    optimizer.zero_grad()
    assert optimizer.stepped[0].grad is None


def test_a_gradient_that_missed_its_master_is_no_silent_loss():
    module = linear(torch.bfloat16)
    optimizer = MasterAdamW(module, 0.1, 0.0)
    module.weight.grad = torch.ones_like(module.weight)
    with pytest.raises(AssertionError, match="did not reach its master weight"):
        optimizer.step()


@pytest.mark.parametrize(("rate", "num_steps"), [(1e-4, 20), (1e-5, 60)])
def test_small_steps_of_a_bfloat16_policy_add_up_as_in_float32_where_plain_adamw_stands_still(rate, num_steps):
    def gain(dtype, make_optimizer):
        policy = make_policy(dtype)
        optimizer = make_optimizer(policy.language_model)
        losses = []
        for _ in range(num_steps):
            loss = -policy.token_scores(trees_of_rows(IDS, 4)).logp.mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses[0] - losses[-1]

    def ours(module):
        return MasterAdamW(module, rate, 0.0)

    def plain(module):
        return torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)

    wanted = gain(torch.float32, ours)
    assert gain(torch.float32, plain) == pytest.approx(wanted, rel=1e-4)
    assert gain(torch.bfloat16, ours) > 0.6 * wanted
    assert gain(torch.bfloat16, plain) < 0.2 * wanted


# ----------------------------------------------------------------------------------------------------- policy


def test_scores_of_a_bfloat16_policy_are_float32_and_finer_than_bfloat16():
    policy = make_policy(torch.bfloat16)
    assert {p.dtype for p in policy.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in policy.value_model.parameters()} == {torch.float32}
    scores = scores_of(policy, trees_of_rows(IDS, 4))
    assert {x.dtype for x in vars(scores).values()} == {torch.float32}
    assert not torch.equal(scores.logp, scores.logp.bfloat16().float())
    start = SlotDecoder(policy, 6).start(IDS[:2].tolist(), homes(2, 3))
    children = start.child_logit(start.logits.log_softmax(-1))
    assert {x.dtype for x in (start.logits, start.value_logit, children)} == {torch.float32}
    options = {"num_rollouts": 3, "beam_width": 4, "max_search_depth": 6}
    rollouts = astar_rollouts(SlotDecoder(policy, 6), IDS[:2].tolist(), seeds=torch.arange(2), **options)
    for name in ("logp", "logq", "priority", "kappa", "weight"):
        assert getattr(rollouts, name).dtype == torch.float64, name


def test_a_bfloat16_policy_decodes_as_it_scores_up_to_rounding():
    policy = make_policy(torch.bfloat16)
    check_decoding(policy)
    prompts = IDS[:4, :5].tolist()
    options = {"num_rollouts": 3, "beam_width": 4, "max_search_depth": 30}
    rollouts = astar_rollouts(SlotDecoder(policy, 30), prompts, seeds=torch.arange(4), **options)
    gaps = []
    for i, prompt in enumerate(prompts):
        for k in range(3):
            tokens = rollouts.tokens[i, k, : rollouts.length[i, k]]
            logp = policy.token_scores(trees_of([prompt], [[tokens.tolist()]])).logp[0]
            gaps.append((logp - rollouts.logp[i, k, : len(tokens)]).abs())
    gap = torch.cat(gaps)
    assert 0 < gap.max() < 0.1 and gap.mean() < 0.02


# ------------------------------------------------------------------------------------------------------- runs

OPTIONS = (
    "--model.dtype bfloat16 --train.num-iterations 4 --train.problems-per-iteration 4 --train.batch-size 2"
    " --train.learning-rate 1e-4 --data.num-problems 12 --search.num-rollouts-per-problem 3 --search.beam-width 4"
    " --search.max-search-depth 8 --value.hidden-size 8 --run.num-threads 1 --run.checkpoint-frequency 2"
    " --eval.num-problems 4 --eval.num-samples 1 --eval.eval-frequency 4"
)


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory):
    """A bfloat16 run of four iterations."""
    folder = tmp_path_factory.mktemp("runs") / "bfloat16"
    with planted(False):  # a random base is never right: there would be nothing to learn
        assert main(["--model.model-name", str(tiny_base), *OPTIONS.split(), "--output-dir", str(folder)]) == 0
    return folder


def tensors(folder, iteration, name):
    return load_file(folder / "checkpoints" / f"checkpoint_iter_{iteration}" / f"{name}.safetensors")


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def test_a_checkpoint_holds_bfloat16_weights_and_their_float32_masters(finished):
    weights, state = tensors(finished, 4, "model"), tensors(finished, 4, "trainer")
    assert {x.dtype for x in weights.values()} == {torch.bfloat16}
    masters = [x for name, x in state.items() if name.endswith(".master")]
    assert all(name.startswith("policy_optimizer.") for name in state if name.endswith(".master"))
    assert {x.dtype for x in masters} == {torch.float32}
    rounded = sorted(x.bfloat16().flatten().tolist() for x in masters)
    assert rounded == sorted(x.flatten().tolist() for x in weights.values())
    assert any(not torch.equal(x, x.bfloat16().float()) for x in masters)
    assert {x.dtype for name, x in state.items() if name.startswith("value_")} == {torch.float32}


def test_a_resumed_bfloat16_run_equals_an_uninterrupted_one(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "r")
    shutil.rmtree(folder / "checkpoints" / "checkpoint_iter_4")
    with planted(False):
        assert main(["--resume", str(folder)]) == 0
    for name in ("model", "trainer"):
        ours, theirs = tensors(folder, 4, name), tensors(finished, 4, name)
        assert ours.keys() == theirs.keys()
        assert [k for k in theirs if not torch.equal(ours[k], theirs[k])] == []
    assert records(folder) == records(finished)
    before, after = tensors(finished, 2, "trainer"), tensors(finished, 4, "trainer")
    assert any(not torch.equal(before[k], after[k]) for k in after if k.endswith(".master"))


def test_a_checkpoint_without_its_masters_is_refused(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "r")
    path = folder / "checkpoints" / "checkpoint_iter_4" / "trainer.safetensors"
    kept = {k: v for k, v in load_file(path).items() if not k.endswith(".master")}
    save_file(kept, path)
    write_manifest(path.parent)  # as if it had been saved without them
    assert main(["--resume", str(path.parent)]) == 2
    err = capsys.readouterr().err
    assert "does not hold what resuming needs ('master')" in err and err.count("\n") == 1


@pytest.mark.parametrize(("tolerance", "alarms"), [("1", []), ("1e-6", ["ratio"])])
def test_the_gap_between_sampler_and_trainer_is_logged_and_alarmed(tolerance, alarms, tiny_base, tmp_path, capsys):
    model = shutil.copytree(tiny_base, tmp_path / "model")  # its tokenizer. One layer of width 16 rounds too little
    torch.manual_seed(0)
    wider = {"hidden_size": 64, "num_hidden_layers": 2, "layer_types": None}
    Qwen2ForCausalLM(Qwen2Config(**Qwen2Config.from_pretrained(tiny_base).to_dict() | wider)).save_pretrained(model)
    argv = ["--model.model-name", str(model), *OPTIONS.split(), "--train.num-iterations", "1"]
    argv += ["--search.max-search-depth", "30"]
    assert main([*argv, "--train.ratio-tolerance", tolerance, "--output-dir", str(tmp_path / "r")]) == 0
    record = records(tmp_path / "r")[1]
    # rounding to 8 bits, more than float32 would show. How much more depends on the kind of CPU
    assert 1e-4 < record["audit/ratio_error"] < 0.2
    assert [name for name in record["alarms"] if name == "ratio"] == alarms
    assert ("sampler and trainer disagree" in capsys.readouterr().err) == bool(alarms)
