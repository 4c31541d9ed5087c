"""Whole runs with each algorithm, refused, continued and evaluated, and the policy that a run began with."""

from __future__ import annotations

import json
import shutil
import typing
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import test_run as runs
from tests.test_run import assert_same_run, checkpoint, records
from tinyzero_astar.cli.doctor import doctor_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import WITH_CRITIC, WITH_REFERENCE, Config, TrainConfig
from tinyzero_astar.manifest import write_manifest
from tinyzero_astar.metrics.heuristic import MEASURES
from tinyzero_astar.resources.advice import mend_memory
from tinyzero_astar.resources.duration import iteration_seconds
from tinyzero_astar.resources.machine import Speed
from tinyzero_astar.resources.model import read_model
from tinyzero_astar.resources.prediction import PlannedRun
from tinyzero_astar.run import build
from tinyzero_astar.run import start as session
from tinyzero_astar.training.algorithms import ALGORITHMS

judged_by_a_hash = runs.judged_by_a_hash_and_guided_early
SAMPLED = ("--search.mode", "sample")
FEW = ("--data.num-problems", "6")  # two thirds of them come up in an iteration
REGRESSION = ("--train.algorithm", "optimal_advantage", "--train.regression-beta", "0.05", *FEW)


@pytest.fixture
def options(tiny_base):
    return ["--model.model-name", str(tiny_base), *runs.OPTIONS.split()]


def refused(argv, capsys):
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


def weights(folder, iteration=4, name="model"):
    return load_file(checkpoint(folder, iteration) / f"{name}.safetensors")


def test_the_configuration_names_the_algorithms_and_what_they_keep():
    choices = typing.get_args(typing.get_type_hints(TrainConfig)["algorithm"])
    assert set(choices) == ALGORITHMS.keys() and TrainConfig().algorithm == "astar_po"
    assert {name for name, kind in ALGORITHMS.items() if kind.has_critic} == set(WITH_CRITIC)
    assert {name for name, kind in ALGORITHMS.items() if kind.needs_reference} == set(WITH_REFERENCE)
    for kind in ALGORITHMS.values():
        assert type(kind.from_config(Config())) is kind


# ------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--train.algorithm grpo --search.problems-per-search 1",
            "algorithm grpo compares a problem's rollouts with their mean, which leaves that are no independent draws"
            " would bias: use --search.mode sample, not gumbel",
        ),
        (
            "--train.algorithm rloo --search.mode best_first",
            "algorithm rloo compares a rollout with the mean of the others, which leaves that are no independent draws"
            " would bias: use --search.mode sample, not best_first",
        ),
        (
            "--train.algorithm rloo --search.mode sample --search.num-rollouts-per-problem 1",
            "algorithm rloo compares the rollouts of a problem, and num_rollouts_per_problem is 1: use at least 2",
        ),
        (
            "--train.algorithm rejection --eval.search best_first",
            "algorithm rejection trains no value model, which --eval.search best_first would look ahead with: use"
            " --eval.search greedy",
        ),
    ],
)
def test_what_does_not_go_together_is_one_sentence_with_a_remedy(words, sentence, options, tmp_path, capsys):
    assert refused([*options, *words.split(), "--output-dir", tmp_path / "r"], capsys) == sentence
    assert not (tmp_path / "r").exists()


# ----------------------------------------------------------------------------------- without a value model


@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - {"astar_po"}))
def test_without_a_critic_no_value_model_is_trained_and_nothing_is_said_of_it(name, options, tmp_path, monkeypatch):
    folder, begun = tmp_path / "r", []
    make = session.build

    def remember(*args):
        found = make(*args)
        begun.append({k: x.clone() for k, x in found.policy.value_model.state_dict().items()})
        return found

    monkeypatch.setattr(session, "build", remember)
    assert main([*options, *SAMPLED, "--train.algorithm", name, "--output-dir", str(folder)]) == 0
    saved = weights(folder, name="trainer")
    assert not any(key.startswith("value_optimizer.") for key in saved)
    for key, x in begun[0].items():
        assert torch.equal(saved[f"value_model.{key}"], x)
    for record in records(folder)[1:]:
        silent = (*MEASURES, "heuristic/bellman_residual", "weight/variance_ratio", "train/value_loss")
        assert [record[key] for key in silent] == [None] * len(silent)
        assert record["guidance/is_open"] == 0
        assert record["guidance/reason"] == f"algorithm {name} trains no value model"
    assert main(["--eval-only", "--checkpoint", str(checkpoint(folder, 4))]) == 0


@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - {"astar_po"}))
def test_a_run_goes_on_as_if_never_stopped(name, options, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "r"
    assert main([*options, *SAMPLED, *FEW, "--train.algorithm", name, "--output-dir", str(whole)]) == 0
    shutil.copytree(whole, folder)
    shutil.rmtree(checkpoint(folder, 4))
    assert main(["--resume", str(folder)]) == 0
    assert_same_run(folder, whole)
    assert any(not torch.equal(x, weights(whole, 2)[key]) for key, x in weights(whole, 4).items())


# ------------------------------------------------------------------------------------------------- the reference


@pytest.fixture(scope="module")
def regressed(tiny_base, tmp_path_factory):
    """A finished run on a base of its own, which tests may replace by what they like."""
    folder = tmp_path_factory.mktemp("regressed")
    shutil.copytree(tiny_base, folder / "base")
    command = ["--model.model-name", str(folder / "base"), *runs.OPTIONS.split(), *REGRESSION]
    assert main([*command, "--output-dir", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def stopped(regressed, tmp_path):
    """The same after its second iteration, with a base to be damaged."""
    shutil.copytree(regressed, tmp_path / "copy")
    folder = tmp_path / "copy" / "run"
    shutil.rmtree(checkpoint(folder, 4))
    path = folder / "config.json"  # a base may have moved
    path.write_text(path.read_text().replace(str(regressed), str(tmp_path / "copy")))
    return tmp_path / "copy"


def test_every_problem_is_valued_once(regressed):
    measured = records(regressed / "run")[1:]
    assert [r["reference/num_problems"] for r in measured] == [4, 2, 0, 0]
    assert [r["reference/num_decoded_tokens"] > 0 for r in measured] == [True, True, False, False]
    state = json.loads((checkpoint(regressed / "run", 4) / "trainer.json").read_text())
    assert len(state["reference"]["values"]) == 6 and len(set(state["reference"]["values"].values())) > 1


def test_the_policy_is_its_own_reference_before_it_is_trained(regressed):
    first, *_, last = [r["reference/divergence"] for r in records(regressed / "run")[1:]]
    assert abs(first) < 1e-5 and abs(last) > 1e-2


def test_a_resumed_run_loads_the_same_reference(regressed, stopped):
    assert main(["--resume", str(stopped / "run")]) == 0
    assert_same_run(stopped / "run", regressed / "run")


def test_a_base_that_is_another_one_by_now_is_refused(stopped, capsys):
    path = stopped / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, path, {"format": "pt"})
    assert refused(["--resume", stopped / "run"], capsys) == (
        f"the weights of model {stopped / 'base'} are not those that the run in {stopped / 'run'} began with, which"
        " algorithm optimal_advantage compares the policy with: put them back, or start a new run"
    )


def test_a_base_that_is_gone_is_refused_to_train_with_and_not_missed_in_an_evaluation(stopped, capsys):
    (stopped / "base").rename(stopped / "elsewhere")
    sentence = refused(["--resume", stopped / "run"], capsys)
    assert sentence.startswith("algorithm optimal_advantage needs the model that the run began with: model_name")
    assert main(["--eval-only", "--checkpoint", str(checkpoint(stopped / "run", 2))]) == 0
    path = stopped / "run" / "config.json"
    assert sentence.endswith(f"; on --resume a folder is told as model.model_name in {path}")
    path.write_text(path.read_text().replace(str(stopped / "base"), str(stopped / "elsewhere")))
    assert main(["--resume", str(stopped / "run")]) == 0


def test_a_checkpoint_without_its_reference_is_refused(stopped, capsys):
    path = checkpoint(stopped / "run", 2) / "trainer.json"
    state = json.loads(path.read_text())
    for wrong in ({}, {"digest": "", "values": {"x": 0.5}}, {"digest": 1, "values": {}}):
        path.write_text(json.dumps({**state, "reference": wrong}))
        write_manifest(path.parent)
        assert "trainer.json lacks what is known of the reference" in refused(["--resume", stopped / "run"], capsys)


def test_with_adapters_the_reference_is_the_policy_without_them(options, tmp_path):
    pytest.importorskip("peft")
    whole, folder = tmp_path / "whole", tmp_path / "r"
    assert main([*options, *REGRESSION, "--model.lora-rank", "2", "--output-dir", str(whole)]) == 0
    measured = records(whole)[1:]
    assert abs(measured[0]["reference/divergence"]) < 1e-5 and abs(measured[-1]["reference/divergence"]) > 1e-3
    assert json.loads((checkpoint(whole, 4) / "trainer.json").read_text())["reference"]["digest"] == ""
    shutil.copytree(whole, folder)
    shutil.rmtree(checkpoint(folder, 4))
    assert main(["--resume", str(folder)]) == 0
    assert_same_run(folder, whole)


def test_a_digest_knows_every_weight_and_its_name(tiny_base):
    def digest(change):
        config = Config()
        policy = build.load_policy(
            str(tiny_base), dtype=torch.float32, device=torch.device("cpu"), value_hidden_size=4,
            max_length=config.model.max_seq_length,
        )[0]  # fmt: skip
        change(dict(policy.language_model.named_parameters()))
        return build.digest_of(policy)

    def swap(weights):
        one, other = (weights[f"model.layers.0.{name}_layernorm.weight"].data for name in ("input", "post_attention"))
        one[0], other[0] = 2.0, 1.0

    def swapped(weights):
        one, other = (weights[f"model.layers.0.{name}_layernorm.weight"].data for name in ("input", "post_attention"))
        one[0], other[0] = 1.0, 2.0

    found = [digest(change) for change in (lambda w: None, lambda w: None, swap, swapped)]
    assert found[0] == found[1] and len(set(found)) == 3


# -------------------------------------------------------------------------------------------------- its resources


def planned(num_processes=1, device="cpu", **train):
    config = Config()
    config = replace(config, train=replace(config.train, **train))
    return PlannedRun(config, read_model(config), num_processes, device)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_predictions_count_the_copy_of_the_first_policy(num_processes):
    plain, kept = (planned(num_processes, algorithm=name) for name in ("astar_po", "optimal_advantage"))
    policy = build.load_policy(
        "embedded", dtype=torch.float32, device=torch.device("cpu"), max_length=128,
        value_hidden_size=Config().value.hidden_size,
    )[0]  # fmt: skip
    size = sum(p.numel() * p.element_size() for p in policy.parameters()) // num_processes
    for name, parts in kept.outlook.phases.items():
        assert parts.get("reference", 0) == pytest.approx(size, abs=1), name
        assert name == "reference" or "reference" not in plain.outlook.phases[name]
    assert "reference" not in plain.outlook.phases
    assert plain.outlook.checkpoint == kept.outlook.checkpoint


def test_more_samples_of_the_reference_need_more_memory_and_time_and_adapters_need_no_copy():
    few, many = (planned(algorithm="optimal_advantage", num_reference_samples=n) for n in (64, 512))
    assert many.outlook.needed("reference") > 4 * few.outlook.needed("reference") - 4e8
    times = [iteration_seconds(run, Speed(1e10, 1e11)) for run in (few, many, planned(algorithm="rloo"))]
    assert times[1]["reference"] > 2 * times[0]["reference"] > 0 and "reference" not in times[2]
    adapted = few.changed("model", "lora_rank", 4).outlook.phases
    assert "reference" in adapted and not any("reference" in parts for parts in adapted.values())


def test_what_mends_a_reference_that_does_not_fit_are_fewer_samples():
    run = planned(algorithm="optimal_advantage", num_reference_samples=1024)
    plan = mend_memory(run, max(run.outlook.needed(phase) for phase in run.outlook.phases if phase != "reference"))
    assert plan.fits and plan.options[0].startswith("--train.num-reference-samples ")


def test_the_doctor_refuses_what_a_run_would(capsys):
    assert doctor_main(["--train.algorithm", "grpo"]) == 2
    assert "use --search.mode sample" in capsys.readouterr().err
