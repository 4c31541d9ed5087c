"""Will a run fit this machine, and how long will it take: `python -m tinyzero_astar doctor --config training`.

Takes every option of train.py. Status 0: it fits; 1: it does not; 2: wrong use.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from tinyzero_astar.config import Config
from tinyzero_astar.terminal import complain, printable
from tinyzero_astar.train import Command, parse_as

FITS, DOES_NOT_FIT = 0, 1


@dataclass(frozen=True)
class Doctor(Command):
    """Predict memory, disk and time of a training run before it is started; takes the options of train.py."""

    processes: int = 1
    """Predict for that many processes (torchrun's --nproc_per_node), each with a device of its own."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of tables."""


def doctor_main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    try:
        options = parse_as(Doctor, "python -m tinyzero_astar doctor", argv)
        if options.eval_only or options.resume is not None:
            raise ValueError("doctor predicts a training run from its options: leave out --eval-only and --resume")
        if options.processes < 1 or options.train.problems_per_iteration % options.processes:
            raise ValueError(
                f"--processes {options.processes} must divide problems_per_iteration"
                f" {options.train.problems_per_iteration}: all processes search the same number of problems"
            )
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
    from transformers.utils import logging as transformers_logging

    from tinyzero_astar.fit import check_options, disk_advice, memory_advice, predict, read_model, seconds
    from tinyzero_astar.machine import free_disk, free_memory, measure_speed
    from tinyzero_astar.model.loading import choose_device
    from tinyzero_astar.model.memory import peak

    transformers_logging.disable_progress_bar()
    config = Config(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Config)})
    device, count = choose_device(config.model.device), options.processes
    check_options(config, device)
    model = read_model(config, lambda text: print(printable(text), file=sys.stderr))  # stdout may be JSON
    outlook = predict(config, model, count, device.type)
    # processes on a CPU share its memory
    memory = free_memory(device) // (count if device.type == "cpu" else 1)
    disk = free_disk(options.output_dir or Path("runs"))
    torch.set_num_threads(config.run.num_threads or torch.get_num_threads())
    speed = measure_speed(device, getattr(torch, config.model.dtype))
    phase, needed = peak(outlook.phases)
    return {
        "model": config.model.model_name,
        "parameters": model.shapes.num_parameters,
        "device": str(device),
        "processes": count,
        "prompt_length": model.prompt_length,
        "prompt_length_is_estimated": model.is_estimated,
        "fits": needed <= memory and outlook.disk <= disk,
        "memory": {
            "phases": outlook.phases,
            "peak_phase": phase,
            "needed": needed,
            "available": memory,
            "advice": memory_advice(config, model, count, device.type, memory),
        },
        "disk": {
            "checkpoint": outlook.checkpoint,
            "num_checkpoints": outlook.num_checkpoints,
            "records": outlook.records,
            "needed": outlook.disk,
            "available": disk,
            "advice": disk_advice(config, model, count, device.type, disk),
        },
        "time": {
            "is_estimate": True,
            "seconds_per_iteration": seconds(config, model, count, device.type, speed),
            "copied_bytes_per_s": speed.bytes_per_s,
            "matmul_flops_per_s": speed.flops_per_s,
        },
    }


def _show(found: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from tinyzero_astar.loggers.console import Terminal, safe

    console = Terminal(highlight=False)
    memory, disk, times = found["memory"], found["disk"], found["time"]
    where = f"{found['processes']} × {found['device']}" if found["processes"] > 1 else found["device"]
    table = Table(
        title=f"{safe(found['model'])}, {found['parameters']:,} parameters, on {where}: peak memory, GB",
        box=SIMPLE,
        padding=0,
    )
    table.add_column("part", no_wrap=True)
    names = list(memory["phases"])
    for name in names:
        table.add_column(name, justify="right", style="bold" if name == memory["peak_phase"] else None)
    for part in dict.fromkeys(part for parts in memory["phases"].values() for part in parts):
        sizes = [memory["phases"][name].get(part, 0) for name in names]
        table.add_row(part, *(f"{size / 1e9:.3g}" if size else "" for size in sizes))
    table.add_section()
    table.add_row("all", *(f"{sum(memory['phases'][name].values()) / 1e9:.3g}" for name in names))
    console.print(table)
    guess = " (estimated: its tokenizer is not on this machine)" if found["prompt_length_is_estimated"] else ""
    console.print(f"longest prompt: {found['prompt_length']} tokens{guess}")
    for name, one in (("memory", memory), ("disk", disk)):
        verdict = "[green]fits[/]" if one["needed"] <= one["available"] else "[bold red]does not fit[/]"
        console.print(f"{name}: {one['needed'] / 1e9:.2f} GB of {one['available'] / 1e9:.2f} GB free: {verdict}")
    console.print(f"  {disk['num_checkpoints']} checkpoint(s) of {disk['checkpoint'] / 1e9:.2f} GB")
    parts = times["seconds_per_iteration"]
    console.print(
        f"time of an iteration, an estimate: {sum(parts.values()):.3g} s ("
        + ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
        + f"), with every completion at full length, from {times['copied_bytes_per_s'] / 1e9:.3g} GB/s and"
        f" {times['matmul_flops_per_s'] / 1e12:.3g} TFLOP/s measured just now"
    )
    for one in (memory, disk):
        if one["advice"] is not None:
            console.print(f"[bold]{safe(one['advice'])}[/]", soft_wrap=True)
