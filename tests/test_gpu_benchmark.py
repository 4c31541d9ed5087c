"""benchmarks/gpu.py runs on a CPU as it will on a GPU, and its shapes are the published ones."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu, gpu_decode, gpu_run, gpu_shapes, gpu_table, gpu_update
from tests.decoding import Tape
from tinyzero_astar.model.tokenizer import textless_ids
from tinyzero_astar.resources.shapes import shapes_of

SMALL = (
    "--device cpu --shapes tiny --dtype float32 --rows 8 --forests 2 --prompt 5 --depth 12 --generate-depth 6"
    " --update-rows 4 --update-depth 12 --micro-batch-tokens 40 --value-hidden-size 8 --rounds 1"
)


def run(tmp_path, *more):
    path = tmp_path / "gpu.json"
    status = gpu.main([*SMALL.split(), *more, "--output", str(path)])
    return status, json.loads(path.read_text())


@pytest.mark.parametrize(("name", "count"), [("0.5B", 494_032_768), ("1.5B", 1_543_714_304), ("3B", 3_085_938_688)])
def test_shapes_have_the_documented_numbers_of_parameters(name, count):
    shapes = shapes_of(gpu_shapes.config_of(name))
    assert shapes.num_parameters == count and shapes.is_tied and shapes.vocab_size == 151_936


@pytest.mark.slow
def test_every_part_is_measured_on_a_cpu(tmp_path, capsys):
    profiled = ["--profile", str(tmp_path / "profile.txt"), "--profiled", "gumbel", "update_kept"]
    status, found = run(tmp_path, *profiled)
    parts = found["shapes"]["tiny"]
    decoded = ["forward@8", "sample@8", "gumbel@8", "guided@8", "forest2@8", "generate@8"]
    assert status == 0 and list(parts) == [*decoded, "gap@8", "update", "update_kept"]
    for name in decoded:
        figures = parts[name]
        assert figures["rows"] == 8 and figures["tokens_per_s"] > 0 and figures["step_ms"] > 0
        assert figures["share_of_limit"] == pytest.approx(figures["tokens_per_s"] / figures["limit_tokens_per_s"])
    assert parts["guided@8"]["cost_over_sample"] > 0
    for name in ("update", "update_kept"):
        assert parts[name]["tokens_per_s"] > 0 and 0 < parts[name]["mfu"] < 1
    assert 0 <= parts["gap@8"]["mean_nats"] <= parts["gap@8"]["max_nats"] < 1e-4  # float32: rounding alone
    assert [target["met"] for target in found["targets"]] == [None] * len(gpu_table.TARGETS)  # none is of this shape
    printed = capsys.readouterr().out
    assert "tiny gap@8: mean_nats" in printed and "1.5B update mfu >= 0.35: not measured" in printed
    text = (tmp_path / "profile.txt").read_text()
    assert "== gumbel@8" in text and "== update_kept@0" in text and "aten::mm" in text


@pytest.mark.slow
def test_recorded_steps_are_measured_beside_the_others(tmp_path, monkeypatch):
    tape = Tape()
    monkeypatch.setattr(gpu_decode, "CudaGraphs", lambda: tape)
    jobs = ["tiny/sample@8", "tiny/sample_recorded@8", "tiny/forward_recorded@8", "tiny/guided_recorded@8"]
    status, found = run(tmp_path, "--jobs", *jobs)
    parts = found["shapes"]["tiny"]
    assert status == 0 and tape.num_recorded > 0 and tape.num_replayed > 20
    sample, guided, bare = (parts[f"{name}_recorded@8"] for name in ("sample", "guided", "forward"))
    assert guided["cost_over_sample"] == pytest.approx(sample["tokens_per_s"] / guided["tokens_per_s"])
    assert guided["search_share"] == pytest.approx(1 - guided["tokens_per_s"] / bare["tokens_per_s"])
    assert sample["predicted_gb"] > 0


def test_a_part_that_fails_loses_nothing_else(tmp_path, monkeypatch):
    def broken(self, part):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(gpu.Bench, "update", broken)
    status, found = run(tmp_path, "--parts", "update", "gap")
    parts = found["shapes"]["tiny"]
    assert status == 1 and parts["gap@8"]["max_nats"] < 1e-4
    assert parts["update"]["error"].startswith("OutOfMemoryError: CUDA out of memory")


def test_no_part_is_started_when_the_time_is_over(tmp_path):
    status, found = run(tmp_path, "--parts", "update", "gap", "--budget-s", "0")
    assert status == 0 and [list(part) for part in found["shapes"]["tiny"].values()] == [["skipped"]] * 2


def test_jobs_are_done_in_their_order():
    args = gpu.options([*SMALL.split(), "--jobs", "1.5B/gumbel_recorded@256", "3B/update"])
    assert list(gpu.jobs_of(args)) == [("1.5B", "gumbel_recorded", 256), ("3B", "update", 0)]
    args = gpu.options([*SMALL.split(), "--parts", "sample", "update", "--rows", "8", "16"])
    assert list(gpu.jobs_of(args)) == [("tiny", "sample", 8), ("tiny", "sample", 16), ("tiny", "update", 0)]
    args = gpu.options([*SMALL.split(), "--shapes", "1.5B", "3B", "--parts", "update_liger", "update"])
    order = [("1.5B", "update"), ("3B", "update"), ("1.5B", "update_liger"), ("3B", "update_liger")]
    assert [job[:2] for job in gpu.jobs_of(args)] == order


@pytest.mark.slow
def test_nothing_without_liger_is_measured_after_a_part_with_it(tmp_path, monkeypatch):
    """Its kernels are in the whole process, in models that are made later too."""
    swapped = []
    monkeypatch.setattr(gpu_update, "apply_liger", lambda model, device: swapped.append(model))
    monkeypatch.setattr(gpu_update.Updates, "has_liger", False)
    names = ["update", "update_liger", "update_kept", "gap@8", "update_liger_kept"]
    status, found = run(tmp_path, "--jobs", *(f"tiny/{name}" for name in names))
    parts = found["shapes"]["tiny"]
    assert status == 1 and list(parts) == names and len(swapped) == 2
    for name in ("update", "update_liger", "update_liger_kept"):
        assert parts[name]["tokens_per_s"] > 0
    for name in ("update_kept", "gap"):
        assert parts["gap@8" if name == "gap" else name] == {
            "error": f"RuntimeError: {name} cannot come after a part with Liger, whose kernels stay in the process:"
            " measure it first, or in another process"
        }


def test_what_compares_parts_is_computed_by_rows():
    rates = {"sample": 100.0, "sample_recorded": 400.0, "forward_recorded": 500.0, "generate": 50.0}
    rates |= {"guided_recorded": 320.0}
    parts = {f"{name}@256": {"tokens_per_s": rate} for name, rate in rates.items()}
    parts |= {"sample@64": {"tokens_per_s": 90.0}, "update": {"tokens_per_s": 1.0}}
    gpu_table.finish({"shapes": {"tiny": parts}})
    assert parts["guided_recorded@256"] == {
        "tokens_per_s": 320.0,
        "over_generate": 6.4,
        "cost_over_sample": 1.25,
        "search_share": pytest.approx(0.36),
    }
    assert parts["forward_recorded@256"] == {"tokens_per_s": 500.0, "over_generate": 10.0, "cost_over_sample": 0.8}
    assert parts["generate@256"] == {"tokens_per_s": 50.0, "over_generate": 1.0}
    assert parts["sample@64"] == {"tokens_per_s": 90.0, "cost_over_sample": 1.0}
    assert parts["update"] == {"tokens_per_s": 1.0}


def test_targets_are_judged():
    result = {"shapes": {"1.5B": {"sample_recorded@256": {"share_of_limit": 0.4, "tokens_per_s": 10.0}}}}
    result["shapes"]["1.5B"]["guided_recorded@256"] = {"tokens_per_s": 9.5}
    result["shapes"]["3B"] = {"update": {"peak_gb": 79.0, "mfu": 0.3}}
    gpu_table.finish(result)
    assert [t["met"] for t in result["targets"]] == [False, None, None, True, None, True]


FEW = (
    "--train.problems-per-iteration 8 --train.batch-size 4 --data.num-problems 40 --search.max-search-depth 6"
    " --eval.num-problems 4 --eval.num-samples 2 --run.num-threads 1 --value.hidden-size 16 --model.max-seq-length 160"
)


@pytest.mark.slow
def test_a_preset_runs_on_a_stand_in_of_its_shape(tmp_path):
    path = tmp_path / "found.json"
    own = f"--device cpu --shape tiny --presets local --iterations 1 --folder {tmp_path} --output {path}"
    assert gpu_run.main([*own.split(), "--parts", *gpu_run.PARTS, *FEW.split()]) == 0
    found = json.loads(path.read_text())["presets"]["local"]
    iteration = found["iteration"]
    assert iteration["tokens"] > 0 and iteration["audit/ratio_error"] < 0.5
    for name in ("search", "update"):
        assert min(iteration[f"{name}_{what}"] for what in ("s", "predicted_s", "predicted_gb")) > 0
    assert found["evaluation"]["seconds"] > 0 and found["evaluation"]["evaluation_predicted_gb"] > 0
    assert found["commands"]["iterations"] == [0, 1, 2, 3] and found["commands"]["eval_s"] > 0


def test_a_preset_that_cannot_run_is_told(tmp_path, capsys):
    path = tmp_path / "found.json"
    own = f"--device cpu --shape tiny --presets local --parts evaluation --folder {tmp_path} --output {path}"
    assert gpu_run.main([*own.split(), "--model.max-seq-length", "8"]) == 1
    assert json.loads(path.read_text())["presets"]["local"]["evaluation"]["error"].startswith("ValueError: ")


def test_the_tokenizer_of_a_stand_in_has_every_token_and_the_words_of_the_prompts():
    texts = ["What is 12 times 34?\n<think>"]
    tokenizer = gpu_shapes.make_tokenizer(texts, 512)
    assert len(tokenizer) == 512 and tokenizer.eos_token_id == 511
    ids = tokenizer(texts[0])["input_ids"]
    assert tokenizer.decode(ids) == texts[0] and len(ids) < len(texts[0]) / 2
    assert textless_ids(tokenizer, 512) == set()
