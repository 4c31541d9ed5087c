"""A number that is not finite ends a run before it does harm, and what led to it is saved."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tests import test_run as runs
from tests.test_run import checkpoint, contents, records
from tinyzero_astar.cli.train import main
from tinyzero_astar.run import loop as trainer
from tinyzero_astar.run.non_finite import DESCRIPTION, TENSORS
from tinyzero_astar.training.update import Updater

finished, options = runs.session, runs.options
judged_by_a_hash_and_guided_early = runs.judged_by_a_hash_and_guided_early


def test_what_was_trained_on_is_saved_and_the_sentence_says_what_to_try(
    finished, options, tmp_path, capsys, monkeypatch
):
    make_batch, made = trainer.make_batch, []

    def poisoned(rewarded):
        made.append(make_batch(rewarded))
        if len(made) == 3:
            made[-1].reward[1] = math.inf
        return made[-1]

    monkeypatch.setattr(trainer, "make_batch", poisoned)
    folder = tmp_path / "r"
    (folder / "non_finite_iter_3.partial").mkdir(parents=True)  # of a process that was killed
    assert main([*options, "--output-dir", str(folder)]) == 1
    held = folder / "non_finite_iter_3"
    err = capsys.readouterr().err
    assert err.startswith("error: iteration 3: the ") and err.count("\n") == 1
    assert err.endswith(
        f"; the last checkpoint is untouched. What was trained on is saved in {held}. --resume would come to the same."
        f" Start a new run, from there with --model.model-name {checkpoint(folder, 2)}, with a lower"
        " --train.learning-rate or --train.max-grad-norm\n"
    )
    assert {path.name for path in held.iterdir()} == {TENSORS, DESCRIPTION}
    tensors, description = load_file(held / TENSORS), json.loads((held / DESCRIPTION).read_text())
    for name, x in tensors.items():
        assert torch.equal(x, getattr(made[2], name)), name
    assert {"tokens", "weight", "reward", "logp_old", "problem"} <= tensors.keys() and tensors["reward"][1] == math.inf
    assert description["prompt_tokens"] == made[2].prompts and description["reason"].startswith("the ")
    shown = [r["problem"] for r in records(folder, "samples.jsonl") if r["iteration"] == 2]
    assert len(description["problems"]) == 4 and not {p["text"] for p in description["problems"]} & set(shown)
    assert contents(checkpoint(folder, 2)) == contents(checkpoint(finished.folder, 2))


@pytest.mark.parametrize("name", ["language_model.model.norm.weight", "value_model.output.weight"])
def test_weights_that_are_not_finite_are_never_saved(name, options, tmp_path, capsys, monkeypatch):
    update = Updater.update

    def overflowing(self, *args):
        metrics = update(self, *args)
        dict(self.policy.named_parameters())[name].data.view(-1)[-1] = -math.inf
        return metrics

    monkeypatch.setattr(Updater, "update", overflowing)
    folder = tmp_path / "r"
    assert main([*options, "--run.checkpoint-frequency", "1", "--output-dir", str(folder)]) == 1
    assert capsys.readouterr().err == (
        f"error: iteration 1: the weights {name} are no longer finite after the optimizer step; the last checkpoint is"
        f" untouched. What was trained on is saved in {folder / 'non_finite_iter_1'}. --resume would come to the same."
        " Start a new run, with a lower --train.learning-rate or --train.max-grad-norm\n"
    )
    assert list((folder / "checkpoints").iterdir()) == []
