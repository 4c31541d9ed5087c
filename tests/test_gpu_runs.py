"""Whole runs on a GPU. They end well, and what goes on from a checkpoint is what was never interrupted."""

from __future__ import annotations

import hashlib
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.devices import DEVICE, IS_CUDA, cuda_only, on_device
from tests.distributed_worker import planted
from tinyzero_astar.cli.train import main

pytestmark = on_device

FILES = ("model.safetensors", "trainer.safetensors")
EVAL = "--eval.num-problems 16 --eval.num-problems-between 16 --eval.eval-frequency 4"
SMALL = (
    "--config tiny --train.num-iterations 4 --train.problems-per-iteration 32 --train.batch-size 16"
    " --search.max-search-depth 24 --value.update-frequency 2 --run.checkpoint-frequency 1 --run.keep-last 4"
    f" --run.sample-frequency 1 {EVAL}"
)
KINDS = {
    "float32": "--model.dtype float32",
    "bfloat16": "--model.dtype bfloat16 --train.ratio-tolerance 0.1",
}


def run(folder, *options):
    """A hash of the text stands for the verifier, and guidance begins early."""
    with planted(False):
        assert main([*SMALL.split(), *options, "--model.device", str(DEVICE), "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    return run(folder, *KINDS[request.param].split()), request.param


def records(folder):
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def differences(got, want):
    """In words, from the first iteration that differs on. Empty if every file of every checkpoint has the same hash."""
    found = []
    for iteration in range(1, 5):
        for name in FILES:
            ours, theirs = (f / "checkpoints" / f"checkpoint_iter_{iteration}" / name for f in (got, want))
            if len({hashlib.sha256(path.read_bytes()).hexdigest() for path in (ours, theirs)}) == 1:
                continue
            a, b = load_file(ours), load_file(theirs)
            gaps = {key: float((a[key].double() - b[key].double()).abs().max()) for key in b if a[key].numel()}
            worst = sorted((key for key in gaps if gaps[key] > 0), key=lambda key: -gaps[key])
            text = ", ".join(f"{key} by {gaps[key]:.2e}" for key in worst[:3])
            found.append(f"iteration {iteration}, {name}: {len(worst)} of {len(b)} tensors differ, {text}")
    for a, b in zip(records(got), records(want), strict=True):
        names = sorted(k for k in b if repr(a.get(k)) != repr(b[k]))
        if names:
            pairs = ", ".join(f"{k} {a.get(k)!r} for {b[k]!r}" for k in names[:6])
            found.append(f"record of iteration {b['iteration']}: {len(names)} differ, {pairs}")
    return found


def test_the_same_run_twice_is_the_same_to_the_bit(finished, tmp_path):
    folder, kind = finished
    found = differences(run(tmp_path / "again", *KINDS[kind].split()), folder)
    assert not found, "\n".join(found)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "r")
    for iteration in (3, 4):
        shutil.rmtree(folder / "checkpoints" / f"checkpoint_iter_{iteration}")
    with planted(False):
        assert main(["--resume", str(folder)]) == 0
    found = differences(folder, finished[0])
    assert not found, "\n".join(found)


def test_sampler_and_trainer_agree_in_a_run(finished):
    folder, kind = finished
    allowed = 1e-4 if kind == "float32" else 0.1
    errors = [r["audit/ratio_error"] for r in records(folder) if "audit/ratio_error" in r]
    print(f"{kind}: {errors}")
    assert len(errors) == 4 and all(0 <= error < allowed for error in errors)
    assert not any("ratio" in r.get("alarms", ()) for r in records(folder))


def assert_sound(folder, iterations):
    found = [r for r in records(folder) if "train/grad_norm" in r]
    assert [r["iteration"] for r in found] == list(range(1, iterations + 1))
    for r in found:
        assert 0 <= r["rollout/accuracy"] <= 1 and 0 < r["train/grad_norm"] < 1e3
        assert math.isfinite(r["train/policy_loss"]) and r["policy/entropy"] > 0
    assert 0 <= records(folder)[-1]["eval/pass_at_1"] <= 1


@pytest.mark.parametrize("options", ["", "--search.mode sample --search.root-tilt 0", "--model.no-cuda-graphs"])
def test_preset_tiny_runs(options, tmp_path):
    argv = ["--config", "tiny", "--model.device", str(DEVICE), "--train.num-iterations", "3", *EVAL.split()]
    assert main([*argv, *options.split(), "--output-dir", str(tmp_path / "r")]) == 0
    assert_sound(tmp_path / "r", 3)


@cuda_only
def test_a_run_with_graphs_finds_what_one_without_does(tmp_path):
    """In float32, the first iteration's rollouts. Later ones follow weights that rounding has changed."""
    first, second = (
        records(run(tmp_path / name, *options.split(), "--train.num-iterations", "1"))
        for name, options in (("single", "--model.no-cuda-graphs"), ("graphs", "--model.cuda-graphs"))
    )
    for name in ("rollout/accuracy", "rollout/length"):
        assert first[1][name] == second[1][name]
    assert first[1]["policy/entropy"] == pytest.approx(second[1]["policy/entropy"], rel=1e-3)


def test_a_checkpoint_is_evaluated(finished):
    folder = finished[0] / "checkpoints" / "checkpoint_iter_4"
    argv = ["--eval-only", "--checkpoint", str(folder), "--model.device", str(DEVICE), "--eval.num-problems", "8"]
    assert main([*argv, "--eval.search", "best_first"]) == 0


@pytest.fixture(autouse=True)
def memory_is_given_back():
    yield
    if IS_CUDA:
        torch.cuda.empty_cache()
