"""Options that are allowed but not what they seem, with what a run says, and what it does instead."""

from __future__ import annotations

import json

import pytest
import torch

from tests.test_run import OPTIONS
from tinyzero_astar.cli.train import main
from tinyzero_astar.run import build as session


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run(tiny_base, line, capsys):
    """What the run warned of, in one line."""
    capsys.readouterr()
    assert main(["--model.model-name", str(tiny_base), *OPTIONS.split(), "--output-dir", "r", *line.split()]) == 0
    return " ".join(capsys.readouterr().err.split())


def test_more_threads_than_cores_are_not_taken(tiny_base, monkeypatch, capsys):
    monkeypatch.setattr(session, "num_cores", lambda: 1)
    said = run(tiny_base, "--train.num-iterations 0 --run.num-threads 1024", capsys)
    assert "warning: run.num_threads 1024 is more than this machine's cores: 1 are used" in said
    assert torch.get_num_threads() == 1
    assert "warning: run.num_threads" not in run(tiny_base, "--train.num-iterations 0 --output-dir s", capsys)


def test_as_many_threads_as_cores_are_taken(monkeypatch):
    monkeypatch.setattr(session, "num_cores", lambda: 4)
    assert [session.choose_num_threads(wanted) for wanted in (1, 4, 5)] == [1, 4, 4]


@pytest.mark.parametrize(("depth", "is_warned"), [(1, True), (6, True), (7, False)])
def test_a_depth_at_which_nothing_can_be_right_is_said(depth, is_warned, tiny_base, capsys):
    """The embedded base has 9 tokens for 12*50=600, then </think>, <answer>, three digits, </answer> and the end."""
    said = run(tiny_base, f"--train.num-iterations 0 --search.max-search-depth {depth}", capsys)
    tokens = "1 token" if depth == 1 else f"{depth} tokens"
    assert (
        f"completions of at most {tokens} cannot be right: a worked example of the task has 16 tokens, 7" in said
    ) == is_warned


@pytest.mark.parametrize(("mode", "is_thinned"), [("sample", False), ("best_first", False), ("gumbel", True)])
def test_equal_weights_are_not_thinned(mode, is_thinned, tiny_base, elsewhere, capsys):
    """Each of 64 leaves weighs 1/64 in modes sample and best_first, less than min_weight."""
    line = f"--search.mode {mode} --search.num-rollouts-per-problem 64 --search.beam-width 65 --search.min-weight 0.05"
    run(tiny_base, f"--train.num-iterations 1 {line}", capsys)
    last = json.loads((elsewhere / "r" / "metrics.jsonl").read_text().splitlines()[-1])
    leaves = len((elsewhere / "r" / "samples.jsonl").read_text().splitlines())
    assert leaves == 4 * 64
    assert (last["train/num_rows"] < leaves) == is_thinned
