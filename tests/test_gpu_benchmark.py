"""benchmarks/gpu.py runs on a CPU as it will on a GPU, and its shapes are the published ones."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu
from tests.decoding import Tape
from tinyzero_astar.resources.shapes import shapes_of

SMALL = (
    "--device cpu --shapes tiny --dtype float32 --rows 8 --prompt 5 --depth 12 --update-rows 4"
    " --micro-batch-tokens 40 --value-hidden-size 8 --rounds 1"
)


@pytest.mark.parametrize(("name", "count"), [("0.5B", 494_032_768), ("1.5B", 1_543_714_304), ("3B", 3_085_938_688)])
def test_shapes_have_the_documented_numbers_of_parameters(name, count):
    shapes = shapes_of(gpu.config_of(name))
    assert shapes.num_parameters == count and shapes.is_tied and shapes.vocab_size == 151_936


@pytest.mark.slow
def test_every_part_is_measured_on_a_cpu(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert gpu.main([*SMALL.split(), "--output", str(path)]) == 0
    found = json.loads(path.read_text())
    parts = found["shapes"]["tiny"]
    on_a_cpu = ["sample", "gumbel", "guided", "generate", "update", "gap"]
    assert list(parts) == on_a_cpu
    for name in on_a_cpu[:4]:
        figures = parts[name]
        assert figures["rows"] == 8 and figures["tokens_per_s"] > 0
        assert figures["share_of_limit"] == pytest.approx(figures["tokens_per_s"] / figures["limit_tokens_per_s"])
    assert parts["guided"]["cost_over_sample"] > 0
    assert parts["update"]["tokens_per_s"] > 0 and 0 < parts["update"]["mfu"] < 1
    assert 0 <= parts["gap"]["mean_nats"] <= parts["gap"]["max_nats"] < 1e-4  # float32: rounding alone
    assert [target["met"] for target in found["targets"]] == [None] * len(gpu.TARGETS)  # none is of this shape
    assert "share_of_limit" in capsys.readouterr().out


@pytest.mark.slow
def test_recorded_steps_are_measured_beside_the_others(tmp_path, monkeypatch):
    tape = Tape()
    monkeypatch.setattr(gpu, "CudaGraphs", lambda: tape)
    path = tmp_path / "gpu.json"
    named = ["--parts", "sample", "sample_recorded", "guided_recorded"]
    assert gpu.main([*SMALL.split(), *named, "--output", str(path)]) == 0
    parts = json.loads(path.read_text())["shapes"]["tiny"]
    assert tape.num_recorded > 0 and tape.num_replayed > 20
    assert parts["guided_recorded"]["cost_over_sample"] == pytest.approx(
        parts["sample_recorded"]["tokens_per_s"] / parts["guided_recorded"]["tokens_per_s"]
    )
    assert parts["sample_recorded"]["predicted_gb"] > parts["sample"]["predicted_gb"]


def test_a_part_that_fails_loses_nothing_else(tmp_path, monkeypatch):
    def broken(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(gpu.Bench, "update", broken)
    path = tmp_path / "gpu.json"
    assert gpu.main([*SMALL.split(), "--parts", "update", "gap", "--output", str(path)]) == 1
    parts = json.loads(path.read_text())["shapes"]["tiny"]
    assert parts["update"]["error"].startswith("CUDA out of memory") and parts["gap"]["max_nats"] < 1e-4


def test_targets_are_judged():
    result = {"shapes": {"1.5B": {"sample_recorded": {"share_of_limit": 0.4, "tokens_per_s": 10.0}}}}
    result["shapes"]["1.5B"]["guided_recorded"] = {"tokens_per_s": 9.5}
    result["shapes"]["3B"] = {"update": {"peak_gb": 79.0, "mfu": 0.3}}
    gpu.finish(result)
    assert [t["met"] for t in result["targets"]] == [False, True, None, True]
