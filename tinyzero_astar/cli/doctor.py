"""Whether a run fits this machine, and how long it takes, by `tinyzero doctor --config training`.

It takes the options of a new run. Status 0 means that it fits, 1 that it does not, and 2 wrong use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tinyzero_astar.cli.options import Options, config_of, parse_as
from tinyzero_astar.config_checks import check, check_processes
from tinyzero_astar.run.checkpoint_folders import model_of_run
from tinyzero_astar.terminal import complain, printable

if TYPE_CHECKING:
    from tinyzero_astar.resources.machine import Speed
    from tinyzero_astar.resources.prediction import PlannedRun

FITS, DOES_NOT_FIT = 0, 1


@dataclass(frozen=True)
class Doctor(Options):
    """Predict memory, disk and time of a training run before it is started."""

    output_dir: Path | None = None
    """Folder of the run, whose disk counts. By default runs/."""
    processes: int = 1
    """Predict for that many processes (torchrun's --nproc_per_node).

    Each has a GPU of its own. On a CPU they share the memory.
    """
    gpu_memory_gb: float | None = None
    """Predict for a CUDA GPU with so many GB (10^9 bytes), which this machine need not have."""
    gpu_tb_per_s: float | None = None
    """Bandwidth of that GPU's memory in TB/s. The time is predicted if --gpu-tflops is given, too."""
    gpu_tflops: float | None = None
    """Arithmetic of that GPU in model.dtype, in TFLOP/s."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of tables."""


def doctor_main(argv: Sequence[str]) -> int:
    """Run the command line, and return the exit status."""
    try:
        options = parse_as(Doctor, "tinyzero doctor", argv)
        check(options)
        if options.processes < 1:
            raise ValueError(f"--processes {options.processes} must be at least 1")
        check_processes(options, options.processes)
        _check_gpu(options)
        with redirect_stdout(sys.stderr):  # a task of the user's own may print, and stdout may be JSON
            found = _diagnose(options)
    except ValueError as error:
        return complain(error)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        from tinyzero_astar.cli.doctor_text import show

        show(found)
    return FITS if found["fits"] else DOES_NOT_FIT


def _check_gpu(options: Doctor) -> None:
    """Refuse a GPU that cannot be, or that is not asked for.

    Raises:
        ValueError: names the option, its value and the remedy.
    """
    given = {name: getattr(options, name) for name in ("gpu_memory_gb", "gpu_tb_per_s", "gpu_tflops")}
    for name, value in given.items():
        option = f"--{name.replace('_', '-')} {value}"
        if value is not None and not 0 < value < 1e6:
            raise ValueError(f"{option} must be more than 0 and less than 1000000")
        if value is not None and options.gpu_memory_gb is None:
            raise ValueError(f"{option} needs the size of the GPU's memory, too: add --gpu-memory-gb 80, for example")
    if options.gpu_memory_gb is not None and options.model.device not in ("auto", "cuda"):
        raise ValueError(
            f"--gpu-memory-gb {options.gpu_memory_gb} is for a CUDA GPU: leave out --model.device"
            f" {options.model.device}"
        )
    if (options.gpu_tb_per_s is None) != (options.gpu_tflops is None):
        raise ValueError("--gpu-tb-per-s and --gpu-tflops go together: a time depends on both")


def _diagnose(options: Doctor) -> dict[str, Any]:
    import torch

    from tinyzero_astar.resources.machine import Speed, choose_device, free_memory, measure_speed, num_cores
    from tinyzero_astar.resources.model import check_options, read_model
    from tinyzero_astar.resources.prediction import PlannedRun
    from tinyzero_astar.training.algorithms import make_algorithm

    config, is_here = model_of_run(config_of(options)), options.gpu_memory_gb is None
    device = choose_device(config.model.device) if is_here else torch.device("cuda")
    check_options(config, device)
    make_algorithm(config)  # or refuses it
    model = read_model(config, lambda text: print(printable(text), file=sys.stderr))  # stdout may be JSON
    run = PlannedRun(config, model, options.processes, device.type)
    speed: Speed | None = None
    if options.gpu_memory_gb is None:
        memory = free_memory(device, options.processes)
        torch.set_num_threads(min(config.run.num_threads or torch.get_num_threads(), num_cores()))
        speed = measure_speed(device, getattr(torch, config.model.dtype))
    else:
        memory = int(options.gpu_memory_gb * 1e9)
        if options.gpu_tb_per_s and options.gpu_tflops:
            speed = Speed(options.gpu_tb_per_s * 1e12, options.gpu_tflops * 1e12)
    parts = {"memory": _memory(run, memory), "disk": _disk(run, options, is_here), "host": _host(run, is_here)}
    return {
        "model": config.model.model_name,
        "parameters": model.shapes.num_parameters,
        "device": str(device),
        "is_this_machine": is_here,
        "processes": options.processes,
        "prompt_length": model.prompt_length,
        "shared_prompt_length": model.shared_length,
        "prompt_length_is_estimated": model.is_estimated,
        "fits": all(part["available"] is None or part["needed"] <= part["available"] for part in parts.values()),
        **parts,
        "time": None if speed is None else _time(run, speed),
    }


def _memory(run: PlannedRun, available: int) -> dict[str, Any]:
    from tinyzero_astar.resources.advice import memory_advice
    from tinyzero_astar.resources.memory import peak

    phases = run.outlook.phases
    phase, needed = peak(phases)
    return {
        "phases": phases,
        "peak_phase": phase,
        "needed": needed,
        "available": available,
        "advice": memory_advice(run, available),
    }


def _disk(run: PlannedRun, options: Doctor, is_here: bool) -> dict[str, Any]:
    from tinyzero_astar.resources.advice import disk_advice
    from tinyzero_astar.resources.machine import free_disk

    outlook, available = run.outlook, free_disk(options.output_dir or Path("runs")) if is_here else None
    return {
        "checkpoint": outlook.checkpoint,
        "num_checkpoints": outlook.num_checkpoints,
        "records": outlook.records,
        "needed": outlook.disk,
        "available": available,
        "advice": None if available is None else disk_advice(run, available),
    }


def _host(run: PlannedRun, is_here: bool) -> dict[str, Any]:
    """The machine's own memory while a GPU's run writes a checkpoint. On a CPU it is a phase of its memory."""
    from tinyzero_astar.resources.machine import available_ram, own_ram

    return {"needed": run.outlook.host, "available": available_ram() + own_ram() if is_here else None}


def _time(run: PlannedRun, speed: Speed) -> dict[str, Any]:
    from tinyzero_astar.resources.duration import evaluation_seconds, iteration_seconds, num_evaluations

    parts, evaluations = iteration_seconds(run, speed), num_evaluations(run.config)
    evaluation, between = (evaluation_seconds(run, speed, is_whole) for is_whole in (True, False))
    num_between = max(0, evaluations - 2)  # but for the first and the last
    num_iterations = run.config.train.num_iterations
    return {
        "is_estimate": True,
        "seconds_per_iteration": parts,
        "seconds_per_evaluation": evaluation,
        "seconds_per_evaluation_between": between,
        "num_iterations": num_iterations,
        "num_evaluations": evaluations,
        "seconds": num_iterations * sum(parts.values())
        + (evaluations - num_between) * evaluation
        + num_between * between,
        "is_test_time_search_left_out": run.config.eval.search == "best_first",
        "copied_bytes_per_s": speed.bytes_per_s,
        "matmul_flops_per_s": speed.flops_per_s,
    }
