"""The commands of `tinyzero`, which there are, what each takes, and that each does what the long form does."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_run import OPTIONS
from tinyzero_astar import __main__, __version__
from tinyzero_astar.cli import commands
from tinyzero_astar.cli.options import parse, parse_evaluate, parse_train
from tinyzero_astar.config import Config
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run.checkpoint_folders import model_of_run

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["train", "eval", "solve", "doctor", "report", "compare", "study", "version"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_without_a_command_all_are_listed(capsys):
    assert list(commands.COMMANDS) == NAMES
    for argv in ([], ["--help"], ["-h"]):
        assert commands.main(argv) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
        assert listed == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_command_tells_its_options_under_its_name(name, capsys):
    with pytest.raises(SystemExit) as leaving:
        commands.main([name, "--help"])
    assert leaving.value.code == 0
    assert f"tinyzero {name}" in capsys.readouterr().out


def test_an_unknown_command_is_answered_with_the_nearest_one(capsys):
    assert commands.main(["sovle", "3*4"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: 'sovle' is not a command. The nearest is solve. ") and err.count("\n") == 1
    assert commands.main(["qqq"]) == 2
    assert "nearest" not in capsys.readouterr().err


def test_the_console_script_is_what_pyproject_names(monkeypatch, capsys):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"tinyzero": "tinyzero_astar.cli.commands:console_script"}
    monkeypatch.setattr(sys, "argv", ["tinyzero", "nonsense"])
    with pytest.raises(SystemExit) as leaving:
        commands.console_script()
    assert leaving.value.code == 2 and "not a command" in capsys.readouterr().err


def test_the_list_and_a_mistake_load_next_to_nothing():
    for word in ("--help", "nonsense"):
        code = f"import sys; from tinyzero_astar.cli.commands import main; main(['{word}'])"
        code += "; print(sorted({'torch', 'tyro', 'rich'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_module_takes_commands_and_the_options_of_the_launcher(monkeypatch, capsys):
    for argv, status, said in (
        (["version"], 0, "torch"),
        (["--train.gae-lambda", "2"], 2, "out of range"),
        (["--help"], 0, "python -m tinyzero_astar COMMAND"),
        (["-h"], 0, "runs side by side"),
    ):
        monkeypatch.setattr(sys, "argv", ["x", *argv])
        assert __main__._run() == status
        assert said in "".join(capsys.readouterr())


def test_version_tells_what_a_report_of_a_fault_needs(capsys):
    assert commands.main(["version"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(told) == ["tinyzero-astar", "python", "torch", "transformers", "device"]
    assert told["tinyzero-astar"] == __version__ and told["torch"] == torch.__version__
    assert told["device"].startswith(("cpu, ", "cuda, "))


def test_train_and_eval_are_the_launcher_without_what_does_not_go_together():
    line = ["--config", "local", "--search.beam-width", "9", "--output-dir", "o"]
    assert parse_train(line) == parse(line)
    line = ["--eval.num-problems", "7"]
    assert parse_evaluate(["c", *line]) == parse(["--eval-only", "--checkpoint", "c", *line])
    assert parse_evaluate(line) == parse(["--eval-only", *line])


@pytest.mark.parametrize(
    ("name", "line"),
    [("train", "--eval-only"), ("train", "--checkpoint c"), ("eval", "--resume r"), ("eval", "--output-dir o")],
)
def test_what_belongs_to_another_command_is_no_option(name, line, capsys):
    with pytest.raises(SystemExit) as leaving:
        commands.main([name, *line.split()])
    assert leaving.value.code == 2
    assert line.split()[0] in capsys.readouterr().err


def test_eval_refuses_what_its_checkpoint_decides(capsys):
    assert commands.main(["eval", "c", "--data.max-digits", "3"]) == 2
    assert "error: checkpoint c is evaluated with its own configuration" in capsys.readouterr().err


def test_the_folder_of_a_run_is_taken_wherever_a_checkpoint_or_a_model_is(tiny_base, elsewhere, capsys):
    short = ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--output-dir"]
    assert commands.main(["train", *short, "first", "--train.num-iterations", "1", "--eval.num-problems", "2"]) == 0
    assert commands.main(["eval", "first"]) == 0
    assert (elsewhere / "first/checkpoints/checkpoint_iter_1/evaluation.json").is_file()
    again = ["--model.model-name", "first", *OPTIONS.split(), "--train.num-iterations", "0"]
    assert commands.main(["train", *again, "--output-dir", "second"]) == 0
    saved = json.loads((elsewhere / "second/config.json").read_text())
    assert saved["model"]["model_name"] == "first/checkpoints/checkpoint_iter_1"
    capsys.readouterr()
    assert commands.main(["doctor", *again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "first/checkpoints/checkpoint_iter_1"


def test_the_newest_checkpoint_of_a_run_is_its_model(elsewhere):
    def named(name):
        return replace(Config(), model=replace(PRESETS["tiny"].model, model_name=name))

    for number in (2, 10):
        (elsewhere / "run" / "checkpoints" / f"checkpoint_iter_{number}").mkdir(parents=True)
    assert model_of_run(named("run")) == named("run/checkpoints/checkpoint_iter_10")
    assert model_of_run(named("embedded")) == named("embedded")
    assert model_of_run(named("~nobody/x")) == named("~nobody/x")
