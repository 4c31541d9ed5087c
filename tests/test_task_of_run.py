"""A run, its checkpoints and `solve` use the task that the run began with, or refuse by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.test_run import OPTIONS
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.data.tasks import make_problems, make_task
from tinyzero_astar.data.text import prompt_tokens, text_fault
from tinyzero_astar.interfaces import END_OF_EXAMPLE, Verdict
from tinyzero_astar.manifest import write_manifest
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.resources.model import read_model
from tinyzero_astar.run.measure import in_json
from tinyzero_astar.training.reward import RewardConfig, WeightedReward

SHORT = "--train.num-iterations 1 --eval.num-problems 3"
TABLE = [{"prompt": f"{i} + 1 = ?", "answer": i + 1} for i in range(60)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def train(tiny_base, line, folder="r"):
    return main(["--model.model-name", str(tiny_base), *OPTIONS.split(), *line.split(), "--output-dir", folder])


def refusal(command, argv, capsys):
    capsys.readouterr()
    assert command(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.fixture
def of_table(tiny_base, elsewhere):
    """A run on a task that comes from a file."""
    (elsewhere / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    assert train(tiny_base, f"{SHORT} --data.task sums.jsonl") == 0
    return elsewhere / "r"


def ways_on(folder):
    """Commands that go on with a run, each with its arguments."""
    return [
        (main, ["--resume", str(folder)]),
        (main, ["--eval-only", "--checkpoint", str(folder), "--eval.num-problems", "3"]),
        (solve_main, ["5 + 1 = ?", "--checkpoint", str(folder)]),
    ]


def test_a_run_on_countdown_goes_on_with_countdown(tiny_base, elsewhere, capsys):
    assert train(tiny_base, f"{SHORT} --data.task countdown --data.max-number 9") == 0
    sample = json.loads((elsewhere / "r" / "samples.jsonl").read_text().splitlines()[0])
    assert json.loads((elsewhere / "r" / "config.json").read_text())["data"]["task"] == "countdown"
    for command, argv in ways_on("r"):
        argv = [sample["problem"] if word == "5 + 1 = ?" else word for word in argv]
        assert command(argv) == 0
    assert sample["problem"] in capsys.readouterr().out
    assert "is not" in refusal(solve_main, ["37*84", "--checkpoint", "r"], capsys)


def test_another_task_than_the_runs_own_is_refused_by_both_names(tiny_base, capsys):
    assert train(tiny_base, SHORT) == 0
    for command, argv in ways_on("r"):
        argv = ["3*4" if word == "5 + 1 = ?" else word for word in argv]
        said = refusal(command, [*argv, "--data.task", "countdown"], capsys)
        assert "data.task cannot be given: the run's task 'multiplication' comes from no file" in said


def test_a_task_that_this_version_does_not_know_is_refused_by_name(tiny_base, capsys):
    assert "data.task 'sums' is unknown; choose one of: countdown" in refusal(
        main, ["--model.model-name", str(tiny_base), "--data.task", "sums"], capsys
    )
    assert train(tiny_base, SHORT) == 0
    for path in ("r/config.json", "r/checkpoints/checkpoint_iter_1/trainer.json"):
        with open(path) as file:
            text = file.read()
        with open(path, "w") as file:
            file.write(text.replace('"multiplication"', '"sums"'))
    write_manifest(Path("r/checkpoints/checkpoint_iter_1"))
    for command, argv in ways_on("r"):
        assert "data.task 'sums' is unknown" in refusal(command, argv, capsys)


def test_the_file_of_a_task_may_have_moved_but_not_changed(of_table, elsewhere, capsys):
    saved = json.loads((of_table / "config.json").read_text())["data"]
    assert saved["task"] == str(elsewhere / "sums.jsonl") and len(saved["task_sha256"]) == 64
    for command, argv in ways_on(of_table):
        assert command(argv) == 0
    shutil.move("sums.jsonl", "elsewhere.jsonl")
    for command, argv in ways_on(of_table):
        assert "sums.jsonl cannot be read (No such file" in refusal(command, argv, capsys)
        assert command([*argv, "--data.task", "elsewhere.jsonl"]) == 0
    (elsewhere / "elsewhere.jsonl").write_text(json.dumps(TABLE[0]) + "\n")
    for command, argv in ways_on(of_table):
        said = refusal(command, [*argv, "--data.task", "elsewhere.jsonl"], capsys)
        assert "is not what the run was trained on: " in said and "elsewhere.jsonl has changed" in said


def test_a_run_that_goes_on_saves_where_the_file_lies_now(tiny_base, of_table, elsewhere):
    """Its next checkpoint names another place than its config.json. Both are the same task."""
    shutil.move("sums.jsonl", "elsewhere.jsonl")
    path = of_table / "config.json"
    newest = of_table / "checkpoints" / "checkpoint_iter_1" / "trainer.json"
    path.write_text(path.read_text().replace('"num_iterations": 1', '"num_iterations": 3'))
    newest.write_text(newest.read_text().replace('"num_iterations": 1', '"num_iterations": 3'))
    write_manifest(newest.parent)
    moved = ["--data.task", "elsewhere.jsonl"]
    assert main(["--resume", str(of_table), *moved, "--run.checkpoint-frequency", "1"]) == 0
    saved = json.loads((of_table / "checkpoints" / "checkpoint_iter_3" / "trainer.json").read_text())["config"]
    assert saved["data"]["task"] == str(elsewhere / "elsewhere.jsonl") != json.loads(path.read_text())["data"]["task"]
    assert main(["--resume", str(of_table), *moved]) == 0


# ---- worked examples


def test_worked_examples_end_with_the_models_end_token_and_are_counted(tiny_base, capsys):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    problem = make_task(DataConfig(num_problems=1, num_shots=2), 0).ask("23*45")
    ids = prompt_tokens(tokenizer, [problem.prompt, "1*1"])
    assert ids[0].count(tokenizer.eos_token_id) == 2 and tokenizer.eos_token_id not in ids[1]
    assert tokenizer.decode(ids[0]) == problem.prompt.replace(END_OF_EXAMPLE, tokenizer.eos_token)
    assert text_fault(tokenizer, [problem.prompt]) is None
    config = PRESETS["tiny"]
    lengths = []
    for shots in (0, 1, 2):
        data = dataclasses.replace(config.data, num_shots=shots, num_problems=50, min_digits=1)
        model = dataclasses.replace(config.model, model_name=str(tiny_base))
        shown = dataclasses.replace(config, data=data, model=model)
        longest = max(map(len, prompt_tokens(tokenizer, make_problems(shown).prompts)))
        assert read_model(shown).prompt_length == longest
        lengths.append(longest)
    assert lengths[0] + 30 < lengths[1] + 15 < lengths[2]
    said = refusal(main, ["--model.model-name", str(tiny_base), "--data.num-shots", "9"], capsys)
    assert "max_seq_length 128 leaves no room after a prompt of " in said


def test_a_run_with_worked_examples_is_solved_with_them(tiny_base, capsys):
    line = f"{SHORT} --data.num-shots 1 --data.second-min-digits 1 --data.second-max-digits 1"
    assert train(tiny_base, line) == 0
    capsys.readouterr()
    assert solve_main(["12*3", "--checkpoint", "r", "--json"]) == 0
    trace = json.loads(capsys.readouterr().out)
    eos = AutoTokenizer.from_pretrained(tiny_base).eos_token
    assert trace["prompt"].count("<think>") == 2 and f"</answer>{eos}\n\n12*3=?\n<think>" in trace["prompt"]
    assert trace["nodes"][0]["text"] == trace["prompt"]


# ---- grades and answers of any type


def test_a_grade_takes_the_place_of_accuracy_in_the_reward():
    reward = WeightedReward(RewardConfig(accuracy=2.0, format=0.5))
    assert reward(Verdict(False, True, None, "", score=0.25)) == 2.0 * 0.25 + 0.5
    assert reward(Verdict(True, True, None, "", score=0.0)) == 0.5
    assert reward(Verdict(True, True, None, "")) == 2.5


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_grade_that_no_probability_could_predict_is_refused(score):
    with pytest.raises(ValueError, match="score must lie between 0 and 1, got"):
        Verdict(True, True, None, "", score=score)


@pytest.mark.parametrize(
    ("answer", "written"), [(12, 12), (-3, -3), (Fraction(3, 4), "3/4"), ("b", "b"), (True, "True"), ((1, 2), "(1, 2)")]
)
def test_right_answers_of_every_type_can_be_written(answer, written):
    assert json.loads(json.dumps(in_json(answer))) == written and type(in_json(answer)) is type(written)


def test_the_value_model_learns_the_grade_and_accuracy_stays_apart(tiny_base, monkeypatch, elsewhere):
    def graded(self, problem, completion, is_finished):
        return Verdict(False, True, None, "graded", score=0.75)

    monkeypatch.setattr(Multiplication, "verify", graded)
    assert train(tiny_base, f"{SHORT} --reward.format 0") == 0
    record = json.loads((elsewhere / "r" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["rollout/accuracy"] == 0.0 and record["rollout/reward"] == pytest.approx(0.75)
    bins = record["value/calibration_bins"]
    assert all(observed == pytest.approx(0.75) for _, observed, _ in bins)
    assert json.loads((elsewhere / "r" / "samples.jsonl").read_text().splitlines()[0])["score"] == 0.75
