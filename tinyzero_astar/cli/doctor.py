"""Will a run fit this machine, and how long will it take: `tinyzero doctor --config training`.

Takes the options of a new run. Status 0: it fits; 1: it does not; 2: wrong use.
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
from tinyzero_astar.config import check, check_processes
from tinyzero_astar.run.checkpoint_folders import model_of_run
from tinyzero_astar.terminal import complain, counted, printable, readable_bytes, readable_seconds

if TYPE_CHECKING:
    from tinyzero_astar.loggers.console import Terminal
    from tinyzero_astar.resources.machine import Speed
    from tinyzero_astar.resources.prediction import PlannedRun

FITS, DOES_NOT_FIT = 0, 1


@dataclass(frozen=True)
class Doctor(Options):
    """Predict memory, disk and time of a training run before it is started."""

    output_dir: Path | None = None
    """Folder of the run, whose disk counts; default: runs/."""
    processes: int = 1
    """Predict for that many processes (torchrun's --nproc_per_node), each with a device of its own."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of tables."""


def doctor_main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    try:
        options = parse_as(Doctor, "tinyzero doctor", argv)
        check(options)
        if options.processes < 1:
            raise ValueError(f"--processes {options.processes} must be at least 1")
        check_processes(options, options.processes)
        with redirect_stdout(sys.stderr):  # a task of the user's own may print, and stdout may be JSON
            found = _diagnose(options)
    except ValueError as error:
        return complain(error)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    return FITS if found["fits"] else DOES_NOT_FIT


def _diagnose(options: Doctor) -> dict[str, Any]:
    import torch

    from tinyzero_astar.resources.machine import choose_device, free_disk, free_memory, measure_speed, num_cores
    from tinyzero_astar.resources.model import check_options, read_model
    from tinyzero_astar.resources.prediction import PlannedRun
    from tinyzero_astar.training.algorithms import make_algorithm

    config = model_of_run(config_of(options))
    device = choose_device(config.model.device)
    check_options(config, device)
    make_algorithm(config)  # or refuses it
    model = read_model(config, lambda text: print(printable(text), file=sys.stderr))  # stdout may be JSON
    run = PlannedRun(config, model, options.processes, device.type)
    memory = _memory(run, free_memory(device, options.processes))
    disk = _disk(run, free_disk(options.output_dir or Path("runs")))
    torch.set_num_threads(min(config.run.num_threads or torch.get_num_threads(), num_cores()))
    return {
        "model": config.model.model_name,
        "parameters": model.shapes.num_parameters,
        "device": str(device),
        "processes": options.processes,
        "prompt_length": model.prompt_length,
        "prompt_length_is_estimated": model.is_estimated,
        "fits": all(part["needed"] <= part["available"] for part in (memory, disk)),
        "memory": memory,
        "disk": disk,
        "time": _time(run, measure_speed(device, getattr(torch, config.model.dtype))),
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


def _disk(run: PlannedRun, available: int) -> dict[str, Any]:
    from tinyzero_astar.resources.advice import disk_advice

    outlook = run.outlook
    return {
        "checkpoint": outlook.checkpoint,
        "num_checkpoints": outlook.num_checkpoints,
        "records": outlook.records,
        "needed": outlook.disk,
        "available": available,
        "advice": disk_advice(run, available),
    }


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


def _show(found: dict[str, Any]) -> None:
    from tinyzero_astar.loggers.console import Terminal, safe

    console = Terminal(highlight=False)
    memory, disk = found["memory"], found["disk"]
    _show_phases(console, found)
    guess = " (estimated: its tokenizer is not on this machine)" if found["prompt_length_is_estimated"] else ""
    console.print(f"longest prompt: {found['prompt_length']} tokens{guess}")
    for name, one in (("memory", memory), ("disk", disk)):
        verdict = "[green]fits[/]" if one["needed"] <= one["available"] else "[bold red]does not fit[/]"
        console.print(f"{name}: {readable_bytes(one['needed'])} of {readable_bytes(one['available'])} free: {verdict}")
    console.print(f"  {disk['num_checkpoints']} checkpoint(s) of {readable_bytes(disk['checkpoint'])}")
    _show_time(console, found["time"])
    for one in (memory, disk):
        if one["advice"] is not None:
            console.print(f"[bold]{safe(one['advice'])}[/]", soft_wrap=True)


def _show_phases(console: Terminal, found: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from tinyzero_astar.loggers.console import safe

    memory = found["memory"]
    unit, in_bytes = ("GB", 1e9) if memory["needed"] >= 1e9 else ("MB", 1e6)

    def cell(size: int) -> str:
        if 0 < size < 0.005 * in_bytes:
            return "<0.01"
        return f"{size / in_bytes:.2f}" if size else ""

    where = f"{found['processes']} × {found['device']}" if found["processes"] > 1 else found["device"]
    table = Table(
        title=f"{safe(found['model'])}, {found['parameters']:,} parameters, on {where}: peak memory, {unit}",
        box=SIMPLE,
        padding=0,
    )
    table.add_column("part", no_wrap=True)
    names = list(memory["phases"])
    for name in names:
        table.add_column(name, justify="right", style="bold" if name == memory["peak_phase"] else None)
    for part in dict.fromkeys(part for parts in memory["phases"].values() for part in parts):
        table.add_row(part, *(cell(memory["phases"][name].get(part, 0)) for name in names))
    table.add_section()
    table.add_row("all", *(cell(sum(memory["phases"][name].values())) for name in names))
    console.print(table)


def _show_time(console: Terminal, time: dict[str, Any]) -> None:
    parts = time["seconds_per_iteration"]
    evaluation, between = (readable_seconds(time[f"seconds_per_evaluation{x}"]) for x in ("", "_between"))
    left_out = " (without A* and beam search at test time)" if time["is_test_time_search_left_out"] else ""
    console.print(
        f"time, an estimate: {readable_seconds(time['seconds'])} = {counted(time['num_iterations'], 'iteration')} of"
        f" {readable_seconds(sum(parts.values()))} ("
        + ", ".join(f"{name} {readable_seconds(value)}" for name, value in parts.items())
        + f") and {counted(time['num_evaluations'], 'evaluation')} of {evaluation} ({between} between the first and the"
        f" last){left_out}, with every completion at full length, from {readable_bytes(time['copied_bytes_per_s'])}/s"
        f" and {time['matmul_flops_per_s'] / 1e12:.3g} TFLOP/s measured just now",
        soft_wrap=True,
    )
