"""Everything is computed where the policy is. No tensor is made on PyTorch's default device by accident.

Without a GPU the default device plays another device. It is set to "meta", which holds no numbers, and the policy stays
on the CPU. A tensor made without `device=` then cannot be mixed with the others, as on a machine with a GPU.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests.test_run import OPTIONS
from tinyzero_astar.cli.options import parse
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import Config
from tinyzero_astar.config_json import to_json
from tinyzero_astar.eval import decoding as test_time
from tinyzero_astar.interfaces import Verdict
from tinyzero_astar.metrics.heuristic import weighted_auc
from tinyzero_astar.run import loop as trainer
from tinyzero_astar.run import start as sessions
from tinyzero_astar.run.saving import save


@pytest.fixture(scope="module")
def session(tiny_base, tmp_path_factory):
    argv = ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--eval.search", "best_first"]
    argv += ["--value.update-frequency", "1"]  # of no gradients at all torch makes a norm of its own
    command = parse(argv)
    config = Config(**{name: getattr(command, name) for name in Config.__dataclass_fields__})
    session = sessions.start_run(config, "tiny", tmp_path_factory.mktemp("runs") / "r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "guidance_gate", lambda history: (True, "always"))
        patch.setattr(type(session.task), "verify", lambda *a: Verdict(len(a[2]) % 2 == 0, True, None, "by length"))
        trainer.iterate(session, 0)  # the first step of torch's AdamW makes a counter of its own
        yield session


@pytest.mark.parametrize("mode", ["gumbel", "sample", "best_first"])
def test_an_iteration_makes_all_tensors_on_the_device_of_the_policy(session, mode):
    chosen = replace(session, search=replace(session.search, mode=mode))
    with torch.device("meta"):
        metrics, rewarded = trainer.iterate(chosen, 1)
    assert rewarded.rollouts.tokens.device.type == "cpu"
    assert 0 < metrics["rollout/accuracy"] < 1 and metrics["train/grad_norm"] > 0


def test_an_evaluation_makes_all_tensors_on_the_device_of_the_policy(session, monkeypatch):
    # transformers makes its tokenizer's tensors on the default device, before they are moved
    monkeypatch.setattr(test_time, "beam_search", lambda *a: (torch.ones(24, device="cpu"), 24.0))
    with torch.device("meta"):
        metrics = trainer.measure(session, 1).metrics
    assert 0 < metrics["eval/pass_at_1"] < 1 and metrics["decode/best_first_tokens"] > 1


def test_a_tensor_on_the_default_device_would_be_found():
    def careless(score, outcome, weight):
        return weighted_auc(score, outcome, weight) + float((torch.arange(len(score)) * score).sum())

    numbers = [torch.tensor(x) for x in ([0.1, 0.2], [0.0, 1.0], [1.0, 1.0])]
    assert careless(*numbers) > 1
    with torch.device("meta"):
        assert weighted_auc(*numbers) == 1
        with pytest.raises(RuntimeError):
            careless(*numbers)


def test_a_run_made_on_a_gpu_goes_on_and_is_evaluated_on_a_machine_without_one(session, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = tmp_path / "r"
    shutil.copytree(session.folder, run)
    config = replace(session.config, model=on("cuda", session))
    elsewhere = replace(session, folder=run, config=config, history=[{}] * 3)
    (run / "config.json").write_text(to_json(elsewhere.config))
    save(elsewhere, 3, {})
    assert main(["--resume", str(run)]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and "metrics.jsonl is missing" in warning
    assert error.startswith("error: device cuda: PyTorch ") and "use --model.device cpu, or install" in error
    assert main(["--resume", str(run), "--model.device", "cpu"]) == 0
    saved = json.loads((run / "checkpoints" / "checkpoint_iter_4" / "trainer.json").read_text())
    assert saved["config"]["model"]["device"] == "cpu"
    checkpoint = str(run / "checkpoints" / "checkpoint_iter_3")
    argv = ["--eval-only", "--checkpoint", checkpoint, "--eval.num-problems", "4", "--run.num-threads", "1"]
    assert main(argv) == 0 and main([*argv, "--model.device", "cpu"]) == 0
    assert main([*argv, "--model.device", "cuda"]) == 2


def on(device, session):
    return replace(session.config.model, device=device)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_solve_takes_a_device(device, tiny_base, session, capsys):
    save(session, 1, {})
    folder = session.folder / "checkpoints" / "checkpoint_iter_1"
    assert solve_main(["3*4", "--checkpoint", str(folder), "--device", device, "--beam-width", "2"]) == 0
    assert "3*4" in capsys.readouterr().out


def test_solve_without_the_gpu_it_is_asked_for_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert solve_main(["3*4", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("error: device cuda: PyTorch ")
