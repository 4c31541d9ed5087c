"""What is predicted of a run, in work, memory and files, number by number. The config.json has Qwen's size."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.test_doctor import GB, QWEN_3B, config_of, diagnose, elsewhere, has  # noqa: F401 - fixtures
from tinyzero_astar.resources import machine
from tinyzero_astar.resources.memory import phases
from tinyzero_astar.resources.model import read_model
from tinyzero_astar.resources.prediction import PlannedRun
from tinyzero_astar.resources.standing import checkpoint_bytes, checkpoint_copies, kv_bytes, resident
from tinyzero_astar.resources.update_memory import saved_by_layer
from tinyzero_astar.resources.workload import trainable_parameters

OPTIONS = (
    "--config training --train.num-iterations 10 --train.problems-per-iteration 12 --train.batch-size 6"
    " --search.num-rollouts-per-problem 4 --eval.num-problems 30 --run.checkpoint-frequency 4 --run.sample-frequency 3"
)


@pytest.fixture
def three_b(tmp_path):
    """Options of a run of a model of which there is nothing but a config.json."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN_3B))
    return [*OPTIONS.split(), "--model.model-name", str(tmp_path)]


def planned(argv, num_processes=1, device="cuda"):
    config = config_of(argv)
    return PlannedRun(config, read_model(config), num_processes, device)


def shapes_and_work(argv, num_processes=1, device="cuda"):
    run = planned(argv, num_processes, device)
    return run.model.shapes, run.work


def test_a_process_does_its_share_of_the_work(three_b):
    _, alone = shapes_and_work(three_b)
    assert (alone.num_problems, alone.num_rows, alone.step_rows, alone.eval_problems) == (12, 48, 24, 30)
    _, shared = shapes_and_work(three_b, 4)
    assert (shared.num_problems, shared.num_rows, shared.step_rows, shared.eval_problems) == (3, 12, 6, 8)
    assert (shared.num_shards, alone.num_shards) == (4, 1)
    assert (alone.is_fused, alone.is_host) == (True, False)
    _, on_cpu = shapes_and_work(three_b, 1, "cpu")
    assert (on_cpu.is_fused, on_cpu.is_host) == (False, True)


def test_only_a_search_that_asks_for_values_of_children_is_guided(three_b):
    for options, is_guided in (
        ("", True),
        ("--search.guidance-strength 0", False),
        ("--search.mode sample", False),
    ):
        assert shapes_and_work([*three_b, *options.split()])[1].is_guided == is_guided


def test_hybrid_sharding_splits_over_the_processes_of_one_machine(three_b, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert shapes_and_work([*three_b, "--train.sharding", "hybrid"], 4)[1].num_shards == 2
    assert shapes_and_work(three_b, 4)[1].num_shards == 4


def test_files_are_those_of_every_due_iteration_and_of_the_last(three_b):
    outlook = planned(three_b).outlook
    assert outlook.num_checkpoints == 3  # 4, 8 and 10
    depth = shapes_and_work(three_b)[1].depth
    # 11 lines of metrics. Samples of 48 leaves and trees with 16 in iterations 1, 3, 6, 9 and 10
    shown = 48 * (250 + 6 * depth) + 75 * min(5_000, 16 * depth)
    assert outlook.records == 11 * 3_000 + 5 * shown
    assert outlook.disk == 3 * outlook.checkpoint + outlook.records
    nothing = planned([*three_b, "--train.num-iterations", "0"]).outlook
    assert nothing.num_checkpoints == 0


def test_a_layer_with_kernels_of_liger_keeps_two_numbers_per_norm_and_three_per_mlp(three_b):
    """Two norms keep input and output instead of 8 bytes, and the MLP no silu(gate). All of this is bfloat16."""
    shapes, work = shapes_and_work(three_b)
    own, liger = (saved_by_layer(shapes, replace(work, has_liger=x)) for x in (False, True))
    assert own - liger == 2 * 2048 * (8 - 2 * 2) + 11_008 * 2


def test_what_stays_in_memory_and_what_a_checkpoint_holds_are_counted_by_parameter(three_b):
    n = 3_085_938_688
    shapes, work = shapes_and_work(three_b)
    stays = resident(shapes, work)
    value = stays.pop("value model")
    assert stays.pop("workspaces") == 3 * 2**25  # on a GPU
    assert stays == {"weights": 2 * n, "master weights": 4 * n, "Adam moments": 8 * n}
    assert checkpoint_bytes(shapes, work) == 2 * n + 12 * n + value
    assert kv_bytes(shapes, work, 5) == 5 * (work.prompt_length + work.depth + 1) * 36 * 2 * 2 * 128 * 2
    shapes, full = shapes_and_work([*three_b, "--model.dtype", "float32"])
    stays = resident(shapes, full)
    assert (stays["weights"], stays["master weights"], stays["Adam moments"]) == (4 * n, 0, 8 * n)
    assert checkpoint_bytes(shapes, full) == 12 * n + value
    shapes, adapted = shapes_and_work([*three_b, "--model.lora-rank", "16"])
    own = trainable_parameters(shapes, 16)
    assert own == 36 * 16 * (2048 * 9 + 256 * 2 + 3 * 11008)  # in and out of q, k, v, o and of gate, up, down
    stays = resident(shapes, adapted)
    assert (stays["weights"], stays["master weights"], stays["Adam moments"]) == (2 * (n + own), 4 * own, 8 * own)


def test_what_is_copied_to_write_a_checkpoint_is_counted_by_parameter(three_b):
    n, adapted = 3_085_938_688, [*three_b, "--model.lora-rank", "16"]
    own, merged = 36 * 16 * (2048 * 9 + 256 * 2 + 3 * 11008), 36 * 2 * (2048 * (2 * 2048 + 2 * 256 + 3 * 11008))
    shapes, work = shapes_and_work(three_b)
    value = resident(shapes, work)["value model"]
    for argv, count, device, copies in (
        (three_b, 1, "cpu", 0),  # all of it lies there
        (three_b, 1, "cuda", 12 * n + 2 * n + value),  # masters, moments, weights
        (three_b, 4, "cuda", 12 * n + 4 * n + 2 * n + value),  # weights in float32, and rounded
        (three_b, 4, "cpu", 18 * n + value),
        ([*three_b, "--model.dtype", "float32"], 4, "cuda", 8 * n + 4 * n + value),
        (adapted, 1, "cpu", merged),
        (adapted, 1, "cuda", 12 * own + 2 * (n + own) + value + merged),
        (adapted, 4, "cuda", 12 * own + 2 * (n + own) + 4 * own + value + merged),
    ):
        assert checkpoint_copies(*shapes_and_work(argv, count, device)) == copies, (argv, count, device)
        assert planned(argv, count, device).outlook.host == (copies if device == "cuda" else 0)


def test_a_checkpoint_of_a_gpu_must_fit_the_memory_of_its_machine(three_b, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * GB, 1000 * GB))
    monkeypatch.setattr(machine, "choose_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(machine, "free_disk", lambda folder: 1000 * GB)
    monkeypatch.setattr(machine, "own_ram", lambda: 0)
    for ram, status in ((44, 0), (43, 1)):  # it takes 43.3
        monkeypatch.setattr(machine, "available_ram", lambda ram=ram: ram * GB)
        assert diagnose(three_b, capsys)[0] == status


def test_each_of_four_processes_keeps_a_quarter_and_gathers_the_rest_for_a_while(three_b):
    shapes, alone = shapes_and_work(three_b)
    _, shared = shapes_and_work(three_b, 4)
    whole, part = resident(shapes, alone), resident(shapes, shared)
    assert part["master weights"] == whole["master weights"] // 4 and part["Adam moments"] == whole["Adam moments"] // 4
    assert part["weights"] == 0  # the shards are the master weights
    found = phases(shapes, shared)
    for phase in ("search", "evaluation"):
        assert found[phase].get("gathered weights", 0) >= whole["weights"]
    assert "gathered weights" not in phases(shapes, alone)["search"]
    assert found["loading"]["master weights"] == whole["master weights"]


def test_processes_on_a_cpu_share_its_memory_and_those_on_gpus_do_not(three_b, capsys, monkeypatch):
    monkeypatch.setattr(machine, "available_ram", lambda: 90 * GB)
    monkeypatch.setattr(machine, "own_ram", lambda: 10 * GB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * GB, 200 * GB))
    argv = [*three_b, "--processes", "2"]
    assert diagnose([*argv, "--model.device", "cpu"], capsys)[1]["memory"]["available"] == 50 * GB
    monkeypatch.setattr(machine, "choose_device", lambda device: torch.device("cuda"))
    assert diagnose(argv, capsys)[1]["memory"]["available"] == 100 * GB


@pytest.mark.parametrize(("memory", "disk", "fits"), [(1000, 1000, True), (1000, 50, False), (5, 1000, False)])
def test_a_run_fits_when_memory_and_disk_do(memory, disk, fits, three_b, has, capsys):  # noqa: F811
    has(memory=memory, disk=disk)
    status, found = diagnose(three_b, capsys)
    assert found["fits"] == fits and status == (0 if fits else 1)
    assert (found["memory"]["advice"] is None) == (memory == 1000)
    assert (found["disk"]["advice"] is None) == (disk == 1000)
