"""Whole runs of the program against the loops of tests/run_oracle.py, leaves exactly, numbers and weights closely."""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import inspect
import json
import math
import random
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from recipes.embedded_base.make_base import make_tokenizer
from tests import run_oracle
from tests.run_oracle import DECODING, Oracle, held_out_pairs, search_samples, training_pairs
from tinyzero_astar import config as configuration
from tinyzero_astar.cli.train import main
from tinyzero_astar.config_checks import check
from tinyzero_astar.eval.decoding import majority
from tinyzero_astar.eval.power import Chains, spend
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.rollout.generator import problem_seeds
from tinyzero_astar.run import loop as trainer
from tinyzero_astar.run.start import start_run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model that answers without thinking, mostly well-formed, at times right, at times too long."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = make_tokenizer(320, 0, 0.03)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=512,
                initializer_range=0.3,
                tie_word_embeddings=False,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                pad_token_id=tokenizer.eos_token_id,
            )
        )
        teach_the_format(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def teach_the_format(model, tokenizer):
    """One direction of the hidden state for each kind of token, and what follows it."""
    digits = [tokenizer(d)["input_ids"][0] for d in "0123456789"]
    opened, closed, answer, ended = (
        tokenizer(tag)["input_ids"][0] for tag in ("<think>", "</think>", "<answer>", "</answer>")
    )
    kinds = [[opened], [closed], [answer], digits, [ended]]
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for direction, tokens in enumerate(kinds):
        embedding[:, direction] = 0.0
        embedding[tokens, direction] = 8.0
        head[:, direction] = -0.2
    embedding[:, 5] = 4.0
    for kind in kinds:
        embedding[kind, 5] = 0.0
    head[closed, 0] = 3.4
    head[answer, 1] = 3.4
    head[digits[1:5], 2] = 3.0
    head[digits[1], 2] += 0.3
    head[digits[1:5], 3] = 2.4
    head[digits[2], 3] += 0.3
    head[ended, 3] = 3.0
    head[tokenizer.eos_token_id, 4] = 3.0
    head[closed, 5] = 2.6


BASE = {
    "model": {"max_seq_length": 256},
    "data": {"min_digits": 1, "max_digits": 1, "num_problems": 12},
    "reward": {"accuracy": 1.5, "format": 0.2},
    "search": {
        "num_rollouts_per_problem": 3,
        "problems_per_search": 1,
        "root_tilt": 0.0,
        "beam_width": 4,
        "max_search_depth": 9,
        "max_inverse_beta": 1.0,
        "unguided_fraction": 0.3,
        "min_weight": 0.15,
    },
    "value": {"hidden_size": 8, "learning_rate": 0.02, "update_frequency": 2, "num_steps": 2},
    "train": {
        "num_iterations": 1,
        "problems_per_iteration": 4,
        "batch_size": 2,
        "learning_rate": 0.01,
        "warmup_iterations": 0,
        "weight_decay": 0.5,
        "max_grad_norm": 0.5,
        "clip_low": 0.05,
        "clip_high": 0.1,
        "gae_lambda": 0.8,
    },
    "eval": {"num_problems": 1, "num_samples": 1, "eval_frequency": 9},
    "run": {"seed": 951, "sample_frequency": 1},
}
OPEN = [
    {
        **{f"value/auc_depth_{q}": 0.9 for q in (1, 2, 3, 4)},
        "value/sibling_accuracy_later": 0.9,
        "value/root_calibration_error": 0.05,
        "value/auc_root": 0.9,
    }
] * 3
UNTOLD = {
    "alarms",
    "audit/ratio_error",
    "guidance/reason",
    "guidance/root_reason",
    "time/search_s",
    "time/update_s",
    "time/iteration_s",
    "time/cpu_s",
}


def make_config(base, changes):
    """The base configuration with fields like `search.min_weight` changed."""
    sections = {name: dict(section) for name, section in BASE.items()}
    sections["model"]["model_name"] = str(base)
    for name, value in changes.items():
        section, key = name.split(".")
        sections[section][key] = value
    tiny = PRESETS["tiny"]
    found = configuration.Config(
        **{name: dataclasses.replace(getattr(tiny, name), **section) for name, section in sections.items()}
    )
    check(found)
    return found


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with beside its base, copied before it is trained."""

    value: dict[str, torch.Tensor]
    adapters: dict[str, torch.Tensor]
    history: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run began with and what it wrote."""

    start: Start
    config: dict[str, Any]
    records: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    model_after: dict[str, torch.Tensor]
    trainer_after: dict[str, torch.Tensor]


def shake(policy):
    """A value model that says something else of every prefix, and adapters that do something."""
    generator = torch.Generator().manual_seed(1)
    adapters = [p for name, p in policy.language_model.named_parameters() if ".lora_B." in name]
    with torch.no_grad():
        for p in [*policy.value_model.parameters(), *adapters]:
            p.add_(0.5 * torch.randn(p.shape, generator=generator))


def start_of(session, history=()):
    policy = session.policy
    value, model = (
        {name: p.detach().clone() for name, p in part.named_parameters() if p.requires_grad}
        for part in (policy.value_model, policy.language_model)
    )
    return Start(value, {name: p for name, p in model.items() if ".lora_" in name}, list(history))


def begun(base, folder, changes=(), history=()):
    session = start_run(make_config(base, dict(changes)), "tiny", folder)
    session.history.extend(history)
    shake(session.policy)
    return session, start_of(session, history)


def run_program(base, folder, changes=(), history=()):
    session, start = begun(base, folder, changes, history)
    assert trainer.train(session) == 0
    return read_run(folder, start)


def read_run(folder, start):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    checkpoint = folder / "checkpoints" / f"checkpoint_iter_{config['train']['num_iterations']}"
    records, samples = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").split("\n")[:-1]]
        for name in ("metrics.jsonl", "samples.jsonl")
    )
    weights = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "trainer"))
    return Run(start, config, records, samples, *weights)


@functools.cache
def loaded(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return model, AutoTokenizer.from_pretrained(folder)


_SEEN = {}  # what the base says of a prefix, by the weights beside it


def oracle_of(base, config, start):
    model, tokenizer = loaded(base)
    oracle = Oracle(config, copy.deepcopy(model), start.value, tokenizer, start.history, start.adapters)
    key = tuple(x.numpy().tobytes() for x in [*start.value.values(), *start.adapters.values()])
    oracle.net.seen = _SEEN.setdefault(key, {})
    return oracle


def assert_agree(base, run):
    oracle = oracle_of(base, run.config, run.start)
    wanted, found = oracle.run()
    assert_same_leaves(oracle, run.samples, [result for results in found for result in results])
    for got, want in zip(run.records, wanted, strict=True):
        assert_same_record(got, want)
    assert_same_weights(oracle, run)


def assert_same_leaves(oracle, samples, found):
    leaves = [(f, k) for f in found for k in range(len(f.leaves))]
    for sample, (f, k) in zip(samples, leaves, strict=True):
        leaf = f.leaves[k]
        tokens = leaf.tokens[:-1] if leaf.is_finished else leaf.tokens
        assert sample["completion"] == oracle.tokenizer.decode(list(tokens))
        assert (sample["accuracy"], sample["format"]) == (f.accuracy[k], f.format[k])
        assert sample["weight"] == pytest.approx(f.weight[k], rel=1e-4)
        assert sample["priority"] == pytest.approx(leaf.priority, abs=1e-4)


def assert_same_record(got, want):
    told = {name: x for name, x in got.items() if name not in UNTOLD and "beam_search" not in name}
    assert told.keys() == want.keys()
    for name, x in want.items():
        if isinstance(x, list):
            assert got[name] == [pytest.approx(row, abs=1e-4) for row in x], name  # written with four digits
        elif isinstance(x, float) and math.isnan(x):
            assert got[name] is None, name
        else:
            assert got[name] == pytest.approx(x, rel=1e-4, abs=1e-5), name
    if want["iteration"] > 0:
        error = got["audit/ratio_error"]
        assert error is None if want["train/num_rows"] == 0 else error < 1e-4


def assert_same_weights(oracle, run):
    """Moments, which are linear in the gradients or their squares, and weights, in steps of the learning rate."""
    train, value = run.config["train"], run.config["value"]
    wholes = (
        ("policy", oracle.net.policy, policy_after(run), "", train["learning_rate"]),
        ("value", oracle.net.value, run.trainer_after, "value_model.", value["learning_rate"]),
    )
    for kind, parameters, after, prefix, rate in wholes:
        if kind == "value" and not oracle.has_critic:
            continue
        num_steps = oracle.num_value_updates if kind == "value" else 4  # each carries the rounding of those before on
        matrices_first = sorted(parameters, key=lambda name: parameters[name].ndim <= 1)
        for index, name in enumerate(matrices_first):
            mean, square = oracle.moments[f"{kind}.{name}"]
            for slot, wanted in (("exp_avg", mean), ("exp_avg_sq", square)):
                gap = run.trainer_after[f"{kind}_optimizer.{index}.{slot}"] - wanted
                assert gap.abs().max() <= 5e-4 * max(1, num_steps / 4) * wanted.abs().max(), f"{slot} of {name}"
            steps = (after[prefix + name] - parameters[name].detach()) / (rate or 1e-3)
            allowed = 1e-3 * oracle.num_updates + 1e-4 * oracle.doubt[f"{kind}.{name}"]
            assert (steps.abs() <= allowed).all(), f"{name} is off by {steps.abs().max():.2g} steps"


def policy_after(run):
    """What was trained of the language model."""
    prefix = "language_model."
    kept = {key.removeprefix(prefix): x for key, x in run.trainer_after.items() if key.startswith(prefix)}
    return kept if run.start.adapters else run.model_after


# ------------------------------------------------------------------------------------------------------- whole runs


def test_the_loops_know_nothing_of_the_package():
    nodes = list(ast.walk(ast.parse(inspect.getsource(run_oracle))))
    modules = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    assert "torch" in names and not any("tinyzero" in name or "tests" in name for name in modules | names)


def test_two_iterations_of_the_program_are_what_the_documents_say(base, tmp_path):
    changes = {
        "train.num_iterations": 2,
        "train.num_epochs": 2,
        "eval.num_problems": 3,
        "eval.num_samples": 2,
        "eval.eval_frequency": 1,
        "run.seed": 1010,
    }
    run = run_program(base, tmp_path / "run", changes, OPEN)
    assert_shows_everything(run)
    assert_agree(base, run)


def assert_shows_everything(run):
    """Right and wrong, finished and cut, thinned and whole, guided, capped, since otherwise agreement says little."""
    verdicts = {(s["accuracy"], s["format"]) for s in run.samples}
    assert verdicts == {(True, True), (False, True), (False, False)}
    assert any("</answer>" in s["completion"] and s["reason"].startswith("cut off") for s in run.samples)
    first = run.records[1]
    assert first["guidance/is_open"] == 1 and 0 < first["weight/capped_fraction"] < 1
    assert first["train/num_rows"] < 12 and first["value/sibling_pairs"] > 0
    assert first["train/grad_norm"] > run.config["train"]["max_grad_norm"]
    assert first["train/ratio_deviation"] > 0.1


def test_the_command_line_trains_as_the_documents_say(base, tmp_path):
    """From the value model that a run begins with, behind the gate that it then has."""
    changes = {"train.num_iterations": 2, "train.warmup_iterations": 1}
    config = make_config(base, changes)
    start = start_of(start_run(config, "tiny", tmp_path / "fresh"))
    assert not start.value["output.weight"].any() and not start.value["up.weight"].any()
    assert start.value["output.bias"].tolist() == [-4.0, 0.0, 0.0]
    assert main([*options_of(config), "--output-dir", str(tmp_path / "run")]) == 0
    run = read_run(tmp_path / "run", start)
    assert run.config == json.loads(json.dumps(dataclasses.asdict(config)))  # tuples are lists there
    assert [r["guidance/is_open"] for r in run.records[1:]] == [0, 0]
    assert_agree(base, run)


def options_of(config):
    default = dataclasses.asdict(PRESETS["tiny"])
    changed = [
        (f"--{section}.{key.replace('_', '-')}", str(value))
        for section, fields in dataclasses.asdict(config).items()
        for key, value in fields.items()
        if value != default[section][key]
    ]
    return [word for pair in changed for word in pair]


def test_a_shut_gate_keeps_a_value_model_that_has_something_to_say_from_the_search(base, tmp_path):
    shut = [{**record, "value/sibling_accuracy_later": 0.5} for record in OPEN]
    run = run_program(base, tmp_path / "run", history=shut)
    assert run.records[1]["guidance/is_open"] == 0
    assert_agree(base, run)


TILTED = {
    "train.batch_size": 4,
    "search.problems_per_search": 4,
    "data.max_digits": 2,
    "value.hidden_size": 64,
    "value.num_steps": 1,  # a second one, after AdamW has made whole steps of rounding, is tried with smaller models
}


def test_a_root_is_not_tilted_behind_a_shut_gate(base, tmp_path):
    shut = [{**record, "value/root_calibration_error": 0.2} for record in OPEN]
    run = run_program(base, tmp_path / "run", {**TILTED, "search.root_tilt": 0.9}, shut)
    assert (run.records[1]["guidance/is_open"], run.records[1]["guidance/is_root_open"]) == (1, 0)
    assert_agree(base, run)


def test_how_many_problems_were_never_searched_is_told(base, tmp_path):
    """Ten problems, five in an iteration, so that the third and fourth bring the same ones again."""
    changes = {
        "data.num_problems": 10,
        "train.problems_per_iteration": 5,
        "train.batch_size": 5,
        "search.problems_per_search": 5,
        "search.num_rollouts_per_problem": 0.4,
        "train.num_iterations": 2,
    }
    run = run_program(base, tmp_path / "run", changes)
    assert [record["search/unsearched_fraction"] >= 0.6 for record in run.records[1:]] == [True, True]
    assert_agree(base, run)


def test_the_longest_prompt_of_a_run_limits_the_depth_of_every_iteration(base, tmp_path):
    """Else a problem's leaves would depend on what is searched beside it."""
    two = {"train.problems_per_iteration": 2, "run.seed": 0}
    run = run_program(base, tmp_path / "run", {**two, "data.max_digits": 2, "model.max_seq_length": 14}, OPEN)
    oracle = oracle_of(base, run.config, run.start)
    prompts = [oracle.prompt_of(pair) for pair in training_pairs(run.config, 0)]
    assert oracle.depth == 14 - 7 and max(len(p) for p in prompts) < 7
    assert_agree(base, run)


def test_every_declared_end_token_ends_a_completion_in_training_and_evaluation(base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    path = folder / "generation_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    end, other = said["eos_token_id"], loaded(base)[1]("2")["input_ids"][0]
    path.write_text(json.dumps({**said, "eos_token_id": [end, other]}), encoding="utf-8")
    run = run_program(folder, tmp_path / "run", {"search.max_search_depth": 12}, OPEN)
    oracle = oracle_of(folder, run.config, run.start)
    assert oracle.ends == {end, other}
    last = {leaf.tokens[-1] for f in oracle.iterate(0)[1] for leaf in f.leaves if leaf.is_finished}
    assert last == {end, other}
    assert_agree(folder, run)


def test_an_iteration_of_which_thinning_keeps_no_leaf_is_recorded_and_trains_nothing(base, tmp_path):
    one = {"train.problems_per_iteration": 1, "train.batch_size": 1, "search.num_rollouts_per_problem": 1}
    run = run_program(base, tmp_path / "run", {**one, "search.min_weight": 1.0, "run.seed": 1}, OPEN)
    oracle = oracle_of(base, run.config, run.start)
    [_, want], [found] = oracle.run()
    assert want["train/num_rows"] == oracle.num_updates == 0
    assert_same_leaves(oracle, run.samples, found)
    assert_same_record(run.records[1], want)
    assert all(torch.equal(x, loaded(base)[0].state_dict()[name].float()) for name, x in run.model_after.items())


def test_rows_of_the_model_without_a_token_are_never_generated_and_never_trained(base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    model = AutoModelForCausalLM.from_pretrained(base)
    head = model.get_output_embeddings().weight.detach().clone()
    model.resize_token_embeddings(len(head) + 8, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(head) :] = head[loaded(base)[1]("4")["input_ids"][0]]
    model.save_pretrained(folder)
    run = run_program(folder, tmp_path / "run", {"eval.num_samples": 2}, OPEN)
    assert_agree(folder, run)


def test_other_ways_of_decoding_are_measured_as_the_documents_say(base, tmp_path):
    changes = {"eval.search": "best_first", "eval.num_problems": 6, "eval.beam_width": 4, "train.num_iterations": 0}
    session, start = begun(base, tmp_path / "run", changes)
    got = trainer.finite(trainer.measure(session, 0).metrics)
    want = oracle_of(base, dataclasses.asdict(session.config), start).evaluate(6, 1)
    assert_same_record({"iteration": 0, **got}, {"iteration": 0, **want})
    assert want["decode/gumbel_forks"] > 0 and want["decode/power_tokens"] > want["decode/best_of_n_tokens"]
    assert len({want[f"decode/{name}_accuracy"] for name in ("greedy", "best_first", "best_of_n")}) > 1


def test_votes_and_chains_choose_what_the_loops_choose(base, tmp_path):
    """With more samples and steps than A* leaves them above, completion by completion."""
    session, start = begun(base, tmp_path / "run", {"eval.num_problems": 6, "train.num_iterations": 0})
    oracle = oracle_of(base, dataclasses.asdict(session.config), start)
    generator, problems, pairs = session.generator, session.held_out, held_out_pairs(oracle.config)
    found = generator.generate(problems, session.search.one_by_one("sample", 12), seed=0, iteration=DECODING)
    place = majority(dataclasses.replace(found, accuracy=torch.arange(12.0).expand(6, -1)))  # which one is chosen
    wanted = []
    for i, pair in enumerate(pairs):
        starts = oracle.alone(pair, oracle.root(oracle.decoding_seed(pair)))
        wanted.append(oracle.majority(search_samples(oracle.net, starts, 12)[0].leaves).tokens)
        k = int(place[i])
        assert tuple(found.rollouts.tokens[i, k, : found.rollouts.length[i, k]].tolist()) == wanted[i]
    assert place.any() and len(set(wanted)) > 1  # not always the likeliest sample
    prompts, depth = generator.encode(problems, session.search.max_search_depth)
    chains = Chains(generator.decoder_fn, prompts, problem_seeds(problems, 0, DECODING), depth, max_rows=4)
    got, steps = spend(chains, 200)
    leaves, num_tokens = oracle.powered(pairs, 200)
    pairs_of_lists = zip(got.tokens.tolist(), got.length.tolist(), strict=True)
    assert [tuple(row[:n]) for row, n in pairs_of_lists] == [leaf.tokens for leaf in leaves]
    assert got.num_tokens == num_tokens and steps > 5


# ---------------------------------------------------------------------------------------------------------- settings


def test_adapters_are_trained_as_the_documents_say(base, tmp_path):
    pytest.importorskip("peft")
    run = run_program(base, tmp_path / "run", {"model.lora_rank": 2, "train.num_epochs": 2}, OPEN)
    assert len(run.start.adapters) == 2 * 7 and run.records[1]["policy/kl_to_base"] > 0.1
    assert_agree(base, run)
    oracle = oracle_of(base, run.config, dataclasses.replace(run.start, adapters=policy_after(run)))
    merged = oracle.net.merged()
    for name, x in run.model_after.items():  # a model like any other
        want = merged.get(name, oracle.net.model.state_dict()[name])
        torch.testing.assert_close(x.double(), want.detach(), atol=1e-5, rtol=1e-5)


WAYS = [
    ("grpo", {"train.group_loss": "dapo"}),
    *(pytest.param("grpo", {"train.group_loss": kind}, marks=pytest.mark.slow) for kind in ("grpo", "dr_grpo")),
    ("rloo", {"run.seed": 950}),  # with many another seed float32's rounding grows as large as what is allowed
    ("optimal_advantage", {"train.regression_beta": 0.1}),
    *(
        pytest.param("optimal_advantage", {"train.regression_beta": 0.1, **others}, marks=pytest.mark.slow)
        for others in ({"search.mode": "gumbel"}, {"model.lora_rank": 2})
    ),
    pytest.param("rejection", {}, marks=pytest.mark.slow),
    ("rejection", {"search.mode": "gumbel", "search.num_rollouts_per_problem": 5, "search.beam_width": 6}),
]


@pytest.mark.parametrize(("algorithm", "others"), WAYS)
def test_every_algorithm_trains_as_the_documents_say(base, tmp_path, algorithm, others):
    """Two passes over an iteration, so that ratios move."""
    changes = {"train.algorithm": algorithm, "search.mode": "sample", "train.num_epochs": 2, "run.seed": 955}
    run = run_program(base, tmp_path / "run", {**changes, **others}, OPEN)
    assert_agree(base, run)
    assert abs(run.records[1]["train/policy_loss"]) > 1e-3 and run.records[1]["train/ratio_deviation"] > 0.01


CASES = {  # field: another value, a number of the record that it must change, what else differs from BASE in both runs
    "model.max_seq_length": (13, "rollout/length", {}),
    "data.min_digits": (2, "train/num_tokens", {"data.max_digits": 2}),
    "data.max_digits": (2, "train/num_tokens", {}),
    "data.num_problems": (30, "weight/sum", {}),
    "data.num_shots": (2, "train/num_tokens", {}),
    "data.second_min_digits": (2, "train/num_tokens", {"data.second_max_digits": 2}),
    "data.second_max_digits": (2, "train/num_tokens", {}),
    "data.template": ("conversation", "train/num_tokens", {"search.guidance_strength": 0.5}),
    "reward.accuracy": (2.0, "rollout/reward", {}),
    "reward.format": (0.5, "rollout/reward", {}),
    "search.mode": ("sample", "weight/max", {"search.min_weight": 0.5}),
    "search.num_rollouts_per_problem": (2, "search/num_decoded_tokens", {}),
    "search.problems_per_search": (4, "weight/sum", {"train.batch_size": 4}),
    "search.root_tilt": (
        0.9,
        "weight/sum",
        TILTED,
    ),
    "search.beam_width": (2, "search/num_pruned", {"search.mode": "best_first", "search.max_search_depth": 6}),
    "search.max_search_depth": (6, "rollout/length", {}),
    "search.guidance_strength": (0.5, "weight/sum", {}),
    "search.inverse_beta": (-1.5, "weight/sum", {}),
    "search.max_inverse_beta": (0.5, "weight/sum", {}),
    "search.weight_cap": (None, "weight/capped_fraction", {}),
    "search.unguided_fraction": (1.0, "weight/capped_fraction", {}),
    "search.min_weight": (0.5, "train/num_rows", {}),
    "value.hidden_size": (4, "train/value_loss", {}),
    "value.learning_rate": (0.1, "value model", {}),
    "value.update_frequency": (1, "value model", {}),
    "value.num_steps": (3, "value model", {}),
    "train.num_iterations": (2, "train/learning_rate", {}),
    "train.problems_per_iteration": (3, "search/num_decoded_tokens", {}),
    "train.batch_size": (4, "train/num_updates", {}),
    "train.num_epochs": (2, "train/num_updates", {}),
    "train.learning_rate": (0.02, "policy", {}),
    "train.warmup_iterations": (1, "train/learning_rate", {"train.num_iterations": 2}),
    "train.weight_decay": (0.0, "policy", {}),
    "train.max_grad_norm": (5.0, "policy", {}),
    "train.clip_low": (0.5, "train/policy_loss", {}),
    "train.clip_high": (0.5, "train/policy_loss", {}),
    "train.gae_lambda": (0.2, "advantage/rms", {}),
    "train.advantage_floor": (1.0, "train/policy_loss", {}),
    "train.entropy_bonus": (0.5, "policy", {}),
    "train.algorithm": ("grpo", "train/policy_loss", {"search.mode": "sample"}),
    "train.group_loss": ("dr_grpo", "advantage/rms", {"train.algorithm": "grpo", "search.mode": "sample"}),
    "train.num_reference_samples": (2, "reference/value", {"train.algorithm": "optimal_advantage"}),
    "train.optimal_value_beta": (5.0, "reference/value", {"train.algorithm": "optimal_advantage"}),
    "train.regression_beta": (0.3, "train/policy_loss", {"train.algorithm": "optimal_advantage"}),
    "run.seed": (952, "train/num_tokens", {}),
}

SAME = {  # no effect on what is learned: the run must agree with BASE's oracle. A reason for what cannot be tried here
    "train.micro_batch_tokens": 20,
    "train.gradient_checkpointing": True,
    "search.beam_width": 9,  # lossless from K + 1 on
    "eval.max_rows": 1,
    "run.checkpoint_frequency": 1,
    "run.keep_last": 1,
    "run.keep_best": 0,
    "run.collective_timeout_s": 5.0,
    "train.ratio_tolerance": 0.01,  # of an alarm
}
ELSEWHERE = {
    "model.model_name": "the base itself",
    "model.dtype": "rounding: tests/test_precision.py",
    "model.device": "tests/test_device.py",
    "model.cuda_graphs": "needs a GPU: tests/test_gpu_runs.py, tests/test_recorded.py",
    "model.liger": "needs a GPU: tests/test_liger.py",
    "data.task": "tests/test_task_of_run.py",
    "data.task_sha256": "as above",
    "data.verifier": "tests/test_own.py",
    "data.reward_function": "tests/test_own.py",
    "data.min_numbers": "tests/test_countdown.py",
    "data.max_numbers": "as above",
    "data.max_number": "as above",
    "data.max_target": "as above",
    "train.sharding": "needs processes: tests/test_distributed.py",
    "eval.eval_frequency": "what is measured, not learned: tests/test_run.py",
    "eval.num_problems": "as above: tests/test_evaluate.py",
    "eval.num_samples": "as above: tests/test_evaluate.py",
    "eval.num_problems_between": "as above: tests/test_run.py",
    "eval.search": "as above: tests/test_evaluate.py",
    "eval.beam_width": "as above: tests/test_evaluate.py",
    "run.num_threads": "speed: tests/test_cli.py",
    "run.sample_frequency": "what is shown: tests/test_run.py",
    "run.loggers": "where it is recorded: tests/test_loggers.py",
}


def test_every_field_is_varied_or_said_to_change_nothing():
    sections = {f.name: f.default_factory for f in dataclasses.fields(configuration.Config)}
    fields = {f"{name}.{f.name}" for name, section in sections.items() for f in dataclasses.fields(section)}
    assert {"model.lora_rank"} | CASES.keys() | SAME.keys() | ELSEWHERE.keys() == fields
    assert not (CASES.keys() | SAME.keys()) & ELSEWHERE.keys()


@pytest.fixture(scope="module")
def run_of(base, tmp_path_factory):
    """Runs by what differs from BASE, each made once and held against its oracle."""
    made = {}

    def find(changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = run_program(base, tmp_path_factory.mktemp("runs") / "run", changes, OPEN)
            assert_agree(base, made[key])
        return made[key]

    return find


def measured(run, name):
    if name == "policy":
        return torch.cat([x.flatten() for x in run.model_after.values()])
    if name == "value model":
        return torch.cat([run.trainer_after[f"value_model.{key}"].flatten() for key in run.start.value])
    return torch.tensor(run.records[-1][name])


@pytest.mark.parametrize("field", CASES)
def test_every_setting_changes_what_it_says_by_what_the_documents_say(run_of, field):
    value, name, others = CASES[field]
    one, other = (measured(run_of(changes), name) for changes in (others, {**others, field: value}))
    assert float((one - other).abs().max()) > 1e-3


def test_settings_that_change_nothing_change_nothing(base, tmp_path):
    run = run_program(base, tmp_path / "run", SAME, OPEN)
    told = {"train.gradient_checkpointing": SAME["train.gradient_checkpointing"]}  # it costs operations
    plain = dataclasses.asdict(make_config(base, told))
    assert_agree(base, dataclasses.replace(run, config=plain))


CHOICES = {  # of settings that may be anything at once
    "data.template": ["compact", "compact", "conversation"],
    "data.num_shots": [0, 0, 1, 3],
    "data.second_max_digits": [None, 2],
    "reward.accuracy": [0.5, 1.0, 3.0],
    "reward.format": [0.0, 0.1, 1.0],
    "search.mode": ["gumbel", "gumbel", "gumbel", "sample", "best_first"],
    "search.num_rollouts_per_problem": [1, 2, 4],
    "search.beam_width": [5, 8],
    "search.max_search_depth": [4, 7, 12],
    "search.guidance_strength": [0.3, 1.0],
    "search.inverse_beta": ["balanced", "balanced", 0.7],
    "search.max_inverse_beta": [0.5, 3.0],
    "search.weight_cap": [1.1, 2.0, None],
    "search.unguided_fraction": [0.0, 0.5],
    "search.min_weight": [0.0, 0.02, 0.4],
    "value.hidden_size": [1, 16],
    "value.learning_rate": [0.0, 0.01],
    "value.update_frequency": [1, 3],
    "value.num_steps": [1, 2, 4],
    "train.problems_per_iteration": [3, 5],
    "train.batch_size": [1, 2, 3],
    "train.num_epochs": [1, 3],
    "train.learning_rate": [0.001, 0.01],
    "train.warmup_iterations": [0, 1],
    "train.weight_decay": [0.0, 1.0],
    "train.max_grad_norm": [0.1, 2.0, 1000.0],
    "train.clip_low": [0.01, 0.3],
    "train.clip_high": [0.02, 0.3],
    "train.gae_lambda": [0.0, 0.5, 1.0],
    "train.advantage_floor": [0.01, 0.2, 2.0],
    "train.entropy_bonus": [0.0, 0.3],
    "train.micro_batch_tokens": [1, 64, 2048],
    "train.gradient_checkpointing": [False, True],
    "eval.num_samples": [1, 3],
    "eval.num_problems_between": [1, 2],
    "eval.eval_frequency": [1, 9],
    "eval.num_problems": [2],
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(11), *range(12, 21)])  # 11: Adam makes a rounding as large as is allowed
def test_any_settings_together_do_what_the_documents_say(base, tmp_path, seed):
    rng = random.Random(seed)
    changes = {name: rng.choice(values) for name, values in CHOICES.items()}
    history = OPEN if rng.random() < 0.8 else []
    assert_agree(
        base,
        run_program(
            base, tmp_path / "run", {**changes, "train.num_iterations": 2, "model.max_seq_length": 512}, history
        ),
    )
