"""Presets `small`, `local` and `training` from end to end by the command line, with a model in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_loading import make_config, save_checkpoint
from tinyzero_astar.model.loading import load_language_model

ROOT = Path(__file__).resolve().parents[1]
FEW = (  # what somebody types who tries a preset on a laptop. Everything else is the preset's
    "--train.num-iterations 2 --train.problems-per-iteration 4 --train.batch-size 2 --data.num-problems 40"
    " --search.max-search-depth 6 --eval.num-problems 4 --eval.num-samples 2 --eval.eval-frequency 2"
    " --run.num-threads 1 --model.device cpu"
)


@pytest.fixture(scope="module")
def stand_in(tiny_base, tmp_path_factory):
    """A random Qwen2 with the tokenizer of the embedded base, and positions enough for max_seq_length 512."""
    folder = tmp_path_factory.mktemp("stand-in") / "Qwen2.5-tiny"
    config = make_config(tiny_base, "qwen2", max_position_embeddings=1024, tie_word_embeddings=True)
    return save_checkpoint(folder, tiny_base, config)


def run(folder, words, launcher=()):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def assert_finished(folder, preset, output):
    (found,) = (folder / "runs").iterdir()
    assert found.name == f"{preset}-001"
    saved = json.loads((found / "config.json").read_text())
    is_for_gpus = preset != "small"
    assert saved["model"]["dtype"] == ("bfloat16" if is_for_gpus else "float32")
    assert saved["data"]["template"] == ("conversation" if is_for_gpus else "compact")
    assert saved["train"]["micro_batch_tokens"] == (16384 if is_for_gpus else 1024)
    assert saved["train"]["gradient_checkpointing"] == is_for_gpus
    records = [json.loads(line) for line in (found / "metrics.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in records] == [0, 1, 2]
    assert records[1]["audit/ratio_error"] < saved["train"]["ratio_tolerance"]
    assert all(r["train/num_rows"] > 0 and r["train/grad_norm"] >= 0 for r in records[1:])
    assert "needs     " in output and "warning: memory" not in output
    checkpoint = found / "checkpoints" / "checkpoint_iter_2"
    dtype = getattr(torch, saved["model"]["dtype"])
    model, tokenizer = load_language_model(str(checkpoint), dtype)
    assert model.dtype == dtype and tokenizer.eos_token_id is not None
    return checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["small", "local", "training"])
def test_a_preset_trains_and_its_checkpoint_is_evaluated(preset, stand_in, tmp_path):
    words = ["--config", preset, "--model.model-name", str(stand_in), *FEW.split()]
    done = run(tmp_path, words)
    assert done.returncode == 0, done.stdout + done.stderr
    checkpoint = assert_finished(tmp_path, preset, done.stdout)
    words = ["--config", preset, "--eval-only", "--checkpoint", f"checkpoints/{checkpoint.name}.pt"]
    done = run(tmp_path, [*words, "--eval.num-problems", "4", "--run.num-threads", "1", "--model.device", "cpu"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((checkpoint / "evaluation.json").read_text())["eval/num_problems"] == 4


@pytest.mark.slow
def test_preset_training_runs_on_two_processes(stand_in, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["--config", "training", "--model.model-name", str(stand_in), *FEW.split(), "--distributed"]
    done = run(tmp_path, words, launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "processes 2, sharding full" in done.stdout
    assert_finished(tmp_path, "training", done.stdout)
