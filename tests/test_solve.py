"""`solve`: one question, its answer and its search tree."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_run import OPTIONS
from tinyzero_astar.cli.doctor import doctor_main
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main

NOTE = "the value model is untrained"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tiny_base, tmp_path_factory):
    """The folder of a run of two iterations with a checkpoint after each, whose sequences have at most 14 tokens."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = [*OPTIONS.split(), "--train.num-iterations", "2", "--run.checkpoint-frequency", "1"]
    argv += ["--model.max-seq-length", "14", "--output-dir", str(folder)]
    assert main(["--model.model-name", str(tiny_base), *argv]) == 0
    return folder


def damaged(run, folder, file, key):
    shutil.copytree(run / "checkpoints" / "checkpoint_iter_2", folder)
    tensors = load_file(folder / file)
    tensors[key] = torch.full_like(tensors[key], float("nan"))
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return str(folder)


def refusal(argv, capsys, status=2):
    assert solve_main(argv) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err.removeprefix("error: ")


def test_a_run_folder_means_its_newest_checkpoint(run, capsys):
    assert solve_main(["3*4", "--checkpoint", str(run)]) == 0
    out = capsys.readouterr().out
    assert solve_main(["3*4", "--checkpoint", str(run / "checkpoints" / "checkpoint_iter_2")]) == 0
    assert capsys.readouterr().out == out and NOTE not in out
    assert solve_main(["3*4", "--checkpoint", str(run / "checkpoints" / "checkpoint_iter_1")]) == 0
    assert capsys.readouterr().out != out


def test_evaluation_takes_a_run_folder_too(run, capsys):
    assert main(["--eval-only", "--checkpoint", str(run), "--eval.num-problems", "4"]) == 0
    newest = run / "checkpoints" / "checkpoint_iter_2"
    assert f"saved to {newest / 'evaluation.json'}" in capsys.readouterr().out


def test_the_base_says_that_its_value_model_is_untrained_and_spaces_are_visible(capsys):
    assert solve_main(["3*4", "--max-nodes", "200"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(NOTE) and lines[1] == "3*4"
    tree = [line.split("  g ")[0] for line in lines if "  g " in line]
    texts = [line.lstrip("│├─└ ") for line in tree]
    assert "␣let" in texts and "" not in texts


def test_a_checkpoint_without_a_critic_says_that_its_value_model_is_untrained(tiny_base, capsys):
    argv = [*OPTIONS.split(), "--train.num-iterations", "1", "--search.mode", "sample", "--train.algorithm", "rloo"]
    assert main(["--model.model-name", str(tiny_base), *argv, "--output-dir", "r"]) == 0
    capsys.readouterr()
    assert solve_main(["3*4", "--checkpoint", "r", "--inverse-beta", "0"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(NOTE) and "algorithm rloo does without it" in first


@pytest.mark.parametrize(
    ("file", "key", "what"),
    [
        ("model.safetensors", "model.norm.weight", "the decoder returned NaN logits"),
        ("trainer.safetensors", "value_model.output.weight", "the decoder returned a value that is NaN or infinite"),
    ],
)
def test_weights_that_are_nan_are_one_sentence_that_names_the_checkpoint(file, key, what, run, tmp_path, capsys):
    folder = damaged(run, tmp_path / "nan", file, key)
    sentence = refusal(["3*4", "--checkpoint", folder], capsys, 1)
    assert sentence.startswith(f"{folder}: {what}") and "its weights are damaged" in sentence


def test_a_prompt_that_does_not_fit_names_both_lengths(run, tiny_base, capsys):
    """The template has three tokens besides the digits and the *."""
    assert solve_main(["12345*12345", "--checkpoint", str(run)]) == 0  # 13 tokens: one is left
    capsys.readouterr()
    sentence = refusal(["12345*123456", "--checkpoint", str(run)], capsys)
    newest = run / "checkpoints" / "checkpoint_iter_2"
    assert sentence.startswith(f"{newest}: max_seq_length 14 leaves no room after a prompt of 14 tokens: ")
    argv = ["--model.model-name", str(tiny_base), "--model.max-seq-length", "9", "--data.max-digits", "3"]
    for command in (main, doctor_main):
        assert command(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: max_seq_length 9 leaves no room after a prompt of 9 tokens: raise it to 89 ")
    assert not Path("runs").exists()
