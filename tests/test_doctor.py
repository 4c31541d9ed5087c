"""What the doctor predicts and proposes, and that a run says the same at its start."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import LlamaConfig, Qwen2Config

from tests.test_run import OPTIONS
from tinyzero_astar.cli.doctor import Doctor, doctor_main
from tinyzero_astar.cli.options import parse_as
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import Config
from tinyzero_astar.resources import machine, memory
from tinyzero_astar.resources.advice import disk_advice, memory_advice, mend_memory
from tinyzero_astar.resources.duration import evaluation_seconds, iteration_seconds, num_evaluations
from tinyzero_astar.resources.known import known_shapes
from tinyzero_astar.resources.machine import Speed, available_ram, free_disk, measure_speed
from tinyzero_astar.resources.model import read_model
from tinyzero_astar.resources.prediction import PlannedRun
from tinyzero_astar.resources.shapes import shapes_of
from tinyzero_astar.run import start as session
from tinyzero_astar.terminal import USAGE_ERROR, readable_bytes, readable_seconds
from tinyzero_astar.training.algorithms import ALGORITHMS

QWEN_3B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
}
GB = 10**9
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "measure_speed", lambda *a: Speed(1e12, 1e14))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def three_b(tmp_path_factory):
    """A folder with nothing but a config.json."""
    folder = tmp_path_factory.mktemp("3b")
    (folder / "config.json").write_text(json.dumps(QWEN_3B))
    return folder


@pytest.fixture
def has(monkeypatch):
    """Sets what the machine has, in GB."""

    def put(memory=1000, disk=1000):
        monkeypatch.setattr(machine, "free_memory", lambda device, num_processes: int(memory * GB))
        monkeypatch.setattr(machine, "free_disk", lambda folder: int(disk * GB))

    return put


def diagnose(argv, capsys):
    status = doctor_main([*argv, "--json"])
    return status, json.loads(capsys.readouterr().out)


def config_of(argv):
    command = parse_as(Doctor, "doctor", argv)
    return Config(**{f.name: getattr(command, f.name) for f in fields(Config)})


def planned(config, device="cuda"):
    return PlannedRun(config, read_model(config), 1, device)


def test_a_run_that_fits_is_told_by_part_from_config_json_alone(three_b, has, capsys):
    has()
    status, found = diagnose(["--config", "training", "--model.model-name", str(three_b)], capsys)
    assert status == 0 and found["fits"] and found["prompt_length_is_estimated"]
    assert found["parameters"] == 3_085_938_688
    memory = found["memory"]
    assert memory["needed"] == max(sum(parts.values()) for parts in memory["phases"].values())
    for phase in ("search", "evaluation", "gradients", "optimizer step"):
        parts = memory["phases"][phase]
        assert parts["weights"] == 2 * found["parameters"] and parts["master weights"] == 4 * found["parameters"]
        assert parts["Adam moments"] == 8 * found["parameters"]
        assert ("gradients" in parts) == (phase in ("gradients", "optimizer step"))
    seconds = found["time"]["seconds_per_iteration"]
    shared = found["shared_prompt_length"]  # the instruction, once in a tree
    own = 32 * (found["prompt_length"] - shared + 4 * 200)
    tokens = own + shared * math.ceil(own / 16384)
    assert 20 < shared < found["prompt_length"]
    assert seconds["update"] == pytest.approx(8 * found["parameters"] * tokens / 1e14)  # layers run again
    assert seconds["search"] > 200 * 2 * found["parameters"] / 1e12


def test_the_time_of_a_run_is_that_of_its_iterations_and_evaluations(three_b, has, capsys):
    """Where only reading the weights counts, a step takes 6.17 s for 3.09 billion in bfloat16."""
    has()
    argv = ["--config", "training", "--model.model-name", str(three_b)]
    config, speed = config_of(argv), Speed(1e9, 1e30)
    model = read_model(config)
    model = replace(model, shapes=replace(model.shapes, num_kv_heads=0))  # slots are for nothing
    run = PlannedRun(config, model, 1, "cuda")
    step = 2 * 3_085_938_688 / 1e9
    assert iteration_seconds(run, speed)["search"] == pytest.approx(200 * step)
    # 500 greedy in two chunks of 256 rows. 2,000 sampled, 64 problems at once, in eight
    assert evaluation_seconds(run, speed, True) == pytest.approx(10 * 200 * step)
    assert evaluation_seconds(run, speed, False) == pytest.approx(200 * step)  # 200 greedy
    assert num_evaluations(config) == 11  # 0, 10, .. 100
    assert num_evaluations(config_of([*argv, "--train.num-iterations", "95"])) == 11
    assert num_evaluations(config_of([*argv, "--train.num-iterations", "0"])) == 1
    time = diagnose(argv, capsys)[1]["time"]
    assert time["seconds"] == pytest.approx(
        100 * sum(time["seconds_per_iteration"].values())
        + 2 * time["seconds_per_evaluation"]
        + 9 * time["seconds_per_evaluation_between"]
    )


def test_what_a_person_reads_has_units(three_b, has, capsys):
    has()
    assert doctor_main([]) == 0
    out = capsys.readouterr().out
    assert "peak memory, MB" in out and "memory: 508 MB of 1 TB free: fits" in out
    assert "\ntime: about " in out and "\n  50 iterations of " in out and "\n  6 evaluations: " in out
    assert "e+" not in out and "e-" not in out and "checkpoint(s)" not in out
    assert "test time" not in out
    assert doctor_main(["--eval.search", "best_first"]) == 0
    assert "(without A* and beam search at test time)" in " ".join(capsys.readouterr().out.split())


def test_a_gpu_that_is_not_here_is_predicted_for_from_its_data(has, capsys):
    has(memory=0, disk=0)  # which do not count
    argv = ["--config", "training", "--gpu-memory-gb", "80"]
    status, found = diagnose(argv, capsys)
    memory = found["memory"]
    run = planned(config_of(["--config", "training"]))
    assert status == 0 and found["device"] == "cuda" and found["time"] is None
    assert (memory["needed"], memory["available"]) == (run.outlook.memory, 80 * GB)
    assert (found["host"]["needed"], found["host"]["available"]) == (run.outlook.host, None)
    assert found["disk"]["available"] is None
    assert diagnose([*argv, "--gpu-memory-gb", "24"], capsys)[0] == 1
    time = diagnose([*argv, "--gpu-tb-per-s", "3.35", "--gpu-tflops", "990"], capsys)[1]["time"]
    assert time["seconds_per_iteration"] == pytest.approx(iteration_seconds(run, Speed(3.35e12, 9.9e14)))
    assert doctor_main([*argv, "--gpu-tb-per-s", "3.35", "--gpu-tflops", "990"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        f"memory: {run.outlook.memory / GB:.1f} GB of 80 GB of such a GPU: fits",
        "host memory for a checkpoint: 43.3 GB, not compared",
        "time: at least",
        "TFLOP/s, as given",
    ):
        assert text in out


def test_processes_on_a_cpu_are_told_that_they_share_its_memory(has, capsys):
    has(memory=0.2)
    argv = ["--processes", "2", "--model.device", "cpu"]
    assert doctor_main(argv) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert " of 200 MB free for each of 2 processes: does not fit they share the memory of this machine," in out
    assert "6 evaluations: the first and the last " in out


def test_options_that_leave_the_peak_as_it_is_are_not_the_nearest(three_b):
    """A CPU's evaluation that is made smaller does not help where the checkpoint alone needs more than there is."""
    config = config_of(["--config", "training", "--model.model-name", str(three_b), *_ADAPTERS.split()])
    run = planned(config, "cpu")
    for tenths in range(5, 150, 5):
        text = memory_advice(run, tenths * GB // 10) or ""
        plan = mend_memory(run, tenths * GB // 10)
        if "The nearest is" in text:
            assert plan.outlook.memory < run.outlook.memory


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("memory", "more"), [(1000, ""), (30, ""), (1000, "--processes 4 --model.lora-rank 16")])
def test_what_a_person_reads_has_at_most_80_columns_and_whole_names(
    algorithm, memory, more, three_b, has, capsys, monkeypatch
):
    has(memory, memory)
    monkeypatch.setenv("COLUMNS", "80")
    argv = ["--config", "training", "--model.model-name", str(three_b), "--train.algorithm", algorithm, *more.split()]
    argv += [] if algorithm in ("astar_po", "optimal_advantage") else ["--search.mode", "sample"]
    assert doctor_main(argv) == (0 if memory > 30 else 1)
    lines = capsys.readouterr().out.replace(str(three_b), "model").splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    heads = {word for line in lines if line.startswith("part") for word in line.split()}
    assert {"search", "evaluation", "gradients", "checkpoint"} <= heads
    shown = [size for line in lines if line.startswith("all ") for size in line.split()[1:]]
    assert diagnose(argv, capsys)[1]["memory"]["needed"] / 1e9 == pytest.approx(max(map(float, shown)), abs=0.005)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 bytes"), (999, "999 bytes"), (999.6, "1 kB"), (546_000, "546 kB")),
        *((1_674_000_000, "1.67 GB"), (216_700_000_000, "217 GB"), (1.234e12, "1.23 TB")),
    ],
)
def test_bytes_for_people(size, text):
    assert readable_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.306, "0.306 s"), (119, "119 s"), (121, "2.02 min"), (14_500, "4.03 h"), (172_700, "48 h")),
        *((10 * 86_400, "10 days"), (86_400 * 12_345, "12,345 days")),
    ],
)
def test_seconds_for_people(seconds, text):
    assert readable_seconds(seconds) == text


# ---------------------------------------------------------------------------------------------- without a network


@pytest.mark.parametrize(
    ("name", "parameters", "sizes"),
    [
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304, (1536, 8960, 28, 12, 131_072)),
        ("Qwen/Qwen2.5-3B", 3_085_938_688, (2048, 11008, 36, 16, 32_768)),
    ],
)
def test_the_known_shapes_are_those_of_the_architecture(name, parameters, sizes):
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    config = Qwen2Config(**(QWEN_3B | dict(zip(names, sizes, strict=True))))
    assert known_shapes(name, sizes[-1]) == shapes_of(config)
    assert shapes_of(config).num_parameters == parameters
    assert known_shapes(name, sizes[-1] + 1) is None and known_shapes("Qwen/Qwen2.5-7B", 8) is None


def test_the_known_shapes_of_a_llama_are_those_of_the_architecture():
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        architectures=["LlamaForCausalLM"],
    )
    found = known_shapes("HuggingFaceTB/SmolLM2-135M", 8192)
    assert found == shapes_of(config) and found.num_parameters == 134_515_008


def test_a_preset_is_answered_without_the_hub_or_transformers(tmp_path):
    program = (
        "import socket, sys\n"
        "def refuse(*args, **options): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from tinyzero_astar.cli.doctor import doctor_main\n"
        "status = doctor_main(sys.argv[1:])\n"
        "print('loaded:', 'transformers' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, "--config", "training"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.stderr == "" and done.stdout.endswith("loaded: False\n")
    assert "Qwen/Qwen2.5-3B, 3,085,938,688 parameters, on " in done.stdout


def test_files_of_a_known_model_on_this_machine_tell_more(three_b, tmp_path, monkeypatch):
    config = config_of(["--config", "training"])
    assert read_model(config).shapes.num_layers == 36
    smaller = json.dumps(QWEN_3B | {"num_hidden_layers": 2})
    commit = tmp_path / "cache" / "models--Qwen--Qwen2.5-3B" / "snapshots" / "abc"
    commit.mkdir(parents=True)
    (commit / "config.json").write_text(smaller)
    (commit.parents[1] / "refs").mkdir()
    (commit.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert read_model(config).shapes.num_layers == 2
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    folder = tmp_path / "Qwen" / "Qwen2.5-3B"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(smaller)
    assert read_model(config).shapes.num_layers == 2


def test_tables_and_the_exit_status_of_what_does_not_fit(three_b, has, capsys):
    has(memory=40, disk=1000)
    assert doctor_main(["--config", "training", "--model.model-name", str(three_b)]) == 1
    out = capsys.readouterr().out
    for text in (
        "gradients",
        "Adam moments",
        "does not fit",
        "an estimate",
        "--model.lora-rank 16, with a predicted peak",
    ):
        assert text in " ".join(out.split())
    has()
    assert doctor_main(["--config", "training", "--model.model-name", str(three_b)]) == 0
    out = capsys.readouterr().out
    assert "does not fit" not in out and "Use --" not in out


_ADAPTERS = "--model.lora-rank 16"
_LARGE_STEP = f"{_ADAPTERS} --eval.max-rows 64 --train.batch-size 32"


@pytest.mark.parametrize(
    ("gigabytes", "options", "phase", "first"),
    [
        (56, "", "gradients", "--model.lora-rank 16"),
        (40, "", "search", "--model.lora-rank 16"),
        (14, f"{_LARGE_STEP} --train.no-gradient-checkpointing", "gradients", "--train.gradient-checkpointing"),
        (10, _LARGE_STEP, "gradients", "--train.micro-batch-tokens 8192"),
        (10, _ADAPTERS, "evaluation", "--eval.max-rows 128"),
        (8.5, _ADAPTERS, "search", "--search.num-rollouts-per-problem 2"),
    ],
)
def test_the_option_that_is_named_makes_the_run_fit(gigabytes, options, phase, first, three_b):
    argv = ["--config", "training", "--model.model-name", str(three_b), *options.split()]
    config, available = config_of(argv), int(gigabytes * GB)
    run = planned(config)
    assert run.outlook.memory > available
    advice = memory_advice(run, available)
    assert advice.startswith(f"memory: {phase} needs ") and f"Use {first}" in advice
    plan = mend_memory(run, available)
    assert plan.fits and plan.options[0] == first
    typed = [word for option in plan.options for word in option.split()]
    again = planned(config_of([*argv, *typed])).outlook  # as a user would type it
    assert again.memory == plan.outlook.memory <= available


def test_processes_are_proposed_on_gpus_and_what_cannot_fit_is_said(three_b):
    config = config_of(["--config", "training", "--model.model-name", str(three_b), *_LARGE_STEP.split()])
    run = planned(config)

    def advise(tenths):
        return memory_advice(run, tenths * GB // 10) or ""

    available = next(x * GB // 10 for x in range(90, 60, -1) if "--nproc_per_node" in advise(x))
    plan = mend_memory(run, available)
    assert plan.fits and "--distributed under torchrun --nproc_per_node" in " ".join(plan.options)
    assert "--nproc_per_node" not in memory_advice(replace(run, device="cpu"), available)
    assert "No option makes it fit" in memory_advice(run, 4 * GB)


def test_fewer_checkpoints_are_proposed_for_a_small_disk(three_b):
    config = config_of(["--config", "training", "--model.model-name", str(three_b)])
    run = planned(config)
    assert run.outlook.num_checkpoints == 4  # the two newest, the best, and one that is being written
    every = replace(run, config=config_of(["--config", "training", "--run.keep-last", "0"])).outlook
    assert every.num_checkpoints == 5
    for available, num, options in (
        (150, 3, "--run.keep-last 1"),
        (100, 2, "--run.keep-last 1 --run.keep-best 0"),
        (60, 1, "--run.keep-last 1 --run.keep-best 0 --run.checkpoint-frequency 100"),
    ):
        assert f"se {options} for " in disk_advice(run, available * GB)
        again = replace(run, config=config_of(["--config", "training", *options.split()])).outlook
        assert again.num_checkpoints == num and again.disk < available * GB
    assert "One is too much already" in disk_advice(run, 40 * GB)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--model.model-name ./nowhere", "model_name './nowhere': no folder with a config.json there"),
        ("--processes 3", "3 processes do not divide problems_per_iteration 64"),
        ("--processes 0", "--processes 0 must be at least 1"),
        ("--model.liger --model.device cpu", "model.liger asks for kernels for GPUs"),
        ("--train.gae-lambda 2", "train.gae_lambda 2.0 is out of range"),
        ("--gpu-memory-gb 0", "--gpu-memory-gb 0.0 must be more than 0"),
        ("--gpu-memory-gb nan", "--gpu-memory-gb nan must be more than 0"),
        ("--gpu-tflops 900", "--gpu-tflops 900.0 needs the size of the GPU's memory, too: add --gpu-memory-gb 80"),
        ("--gpu-memory-gb 80 --gpu-tflops 900", "--gpu-tb-per-s and --gpu-tflops go together"),
        ("--gpu-memory-gb 80 --model.device cpu", "--gpu-memory-gb 80.0 is for a CUDA GPU: leave out --model.device"),
    ],
)
def test_wrong_use_is_one_sentence(line, sentence, capsys):
    assert doctor_main(line.split()) == USAGE_ERROR
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {sentence}") and err.count("\n") == 1


# --------------------------------------------------------------------------------------------- the start of a run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_says_that_it_fits_and_its_files_are_as_large_as_predicted(dtype, tiny_base, tmp_path, capsys):
    argv = ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--model.dtype", dtype]
    assert main([*argv, "--output-dir", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("needs     ") and "warning" not in out.splitlines()[0]
    config = config_of(argv)
    outlook = planned(config, "cpu").outlook
    folders = list((tmp_path / "r" / "checkpoints").iterdir())
    assert len(folders) == outlook.num_checkpoints
    tensors = sum(file.stat().st_size for file in folders[0].glob("*.safetensors"))
    assert tensors == pytest.approx(outlook.checkpoint, rel=0.15)  # headers weigh, in so small a model
    records = sum((tmp_path / "r" / name).stat().st_size for name in ("metrics.jsonl", "samples.jsonl", "trace.jsonl"))
    assert 0.5 * records < outlook.records < 2 * records


def test_a_run_that_will_not_fit_says_so_and_starts(tiny_base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(session, "free_memory", lambda device, num_processes: 300_000)
    argv = ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--train.num-iterations", "0"]
    assert main([*argv, "--output-dir", str(tmp_path / "r")]) == 0
    first = " ".join(capsys.readouterr().err.split())
    assert first.startswith("warning: memory: ") and " of 300 kB free, " in first and ". The peak is " in first


# ------------------------------------------------------------------------------------------------- the machine


def test_the_program_itself_counts_on_a_cpu(three_b):
    config = config_of(["--config", "training", "--model.model-name", str(three_b)])
    run = planned(config, "cpu")
    alone = memory.phases(run.model.shapes, run.work)
    found = run.outlook.phases
    assert found == {name: {**parts, "Python and libraries": 380_000_000} for name, parts in alone.items()}
    assert all("Python and libraries" not in parts for parts in replace(run, device="cuda").outlook.phases.values())


def test_what_this_process_has_is_free_for_it(tmp_path, monkeypatch):
    statm = tmp_path / "statm"
    statm.write_text("9000 100 50 1 0 700 0\n")
    assert machine.own_ram(statm) == 100 * os.sysconf("SC_PAGE_SIZE")
    assert 1e8 < machine.own_ram() < 1e11 and machine.own_ram(tmp_path / "none") == 0  # PyTorch is in it
    monkeypatch.setattr(machine, "available_ram", lambda: 1000)
    monkeypatch.setattr(machine, "own_ram", lambda: 200)
    assert machine.free_memory(torch.device("cpu")) == 1200
    assert machine.free_memory(torch.device("cpu"), 3) == 400


def test_free_memory_is_what_the_system_calls_available(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    2000000 kB\n")
    assert available_ram(file) == 2_000_000 * 1024
    assert available_ram(tmp_path / "none") >= available_ram()
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(free_disk(tmp_path), rel=0.01)


def test_the_probe_measures_a_plausible_machine():
    speed = measure_speed(torch.device("cpu"), torch.float32)
    assert 1e8 < speed.bytes_per_s < 1e13 and 1e8 < speed.flops_per_s < 1e15
