"""Whether a run fits this machine, and how long it takes, by `tinyzero doctor --config training`.

It takes the options of a new run. Status 0 means that it fits, 1 that it does not, and 2 wrong use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tinyzero_astar.cli.options import Options, config_of, parse_as
from tinyzero_astar.config_checks import check, check_processes
from tinyzero_astar.run.checkpoint_folders import model_of_run
from tinyzero_astar.terminal import complain, counted, printable, readable_bytes, readable_seconds

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
    """Predict for that many processes (torchrun's --nproc_per_node), each with a device of its own."""
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
        "shared_prompt_length": model.shared_length,
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
    from tinyzero_astar.loggers.text import broken

    console = Terminal(highlight=False, soft_wrap=True)

    def say(text: str, style: str = "default") -> None:
        console.print(f"[{style}]{safe(broken(text, console.width, '  '))}[/]")

    memory, disk = found["memory"], found["disk"]
    where = f"{found['processes']} × {found['device']}" if found["processes"] > 1 else found["device"]
    unit, in_bytes = ("GB", 1e9) if memory["needed"] >= 1e9 else ("MB", 1e6)
    say(f"{found['model']}, {found['parameters']:,} parameters, on {where}: peak memory, {unit}\n")
    for line in _phase_lines(memory["phases"], memory["peak_phase"], in_bytes, console.width):
        console.print(line)
    guess = " (estimated: its tokenizer is not on this machine)" if found["prompt_length_is_estimated"] else ""
    shared = f", {found['shared_prompt_length']} of them in all prompts" if found["shared_prompt_length"] else ""
    say(f"\nlongest prompt: {counted(found['prompt_length'], 'token')}{shared}{guess}")
    for name, one in (("memory", memory), ("disk", disk)):
        verdict = "[green]fits[/]" if one["needed"] <= one["available"] else "[bold red]does not fit[/]"
        console.print(f"{name}: {readable_bytes(one['needed'])} of {readable_bytes(one['available'])} free: {verdict}")
    say(f"  {counted(disk['num_checkpoints'], 'checkpoint')} of {readable_bytes(disk['checkpoint'])}")
    for line in _time_lines(found["time"]):
        say(line)
    for one in (memory, disk):
        if one["advice"] is not None:
            say(one["advice"], "bold")


def _phase_lines(phases: dict[str, dict[str, int]], peak_phase: str, in_bytes: float, most: int) -> Iterator[str]:
    """The table of memory as markup, with a row for each part and a column for each phase, its name one word a line.

    Columns that would go beyond `most` characters follow in a table of their own, with the rows that they fill.
    """

    def cell(size: int) -> str:
        return f"{size / in_bytes:.2f}" if size >= 0.005 * in_bytes else "<0.01" if size else ""

    parts = list(dict.fromkeys(part for parts in phases.values() for part in parts))
    columns = {name: [cell(sizes.get(part, 0)) for part in parts] for name, sizes in phases.items()}
    for name, sizes in phases.items():
        columns[name].append(cell(sum(sizes.values())))
    height = max(len(name.split()) for name in phases)
    for name, column in columns.items():
        words = name.split()
        column[:0] = [""] * (height - len(words)) + words
    names = [*[""] * (height - 1), "part", *parts, "all"]
    width = max(map(len, names))
    tables: list[dict[str, list[str]]] = [{}]
    for name, column in columns.items():
        if tables[-1] and width + sum(1 + max(map(len, c)) for c in (*tables[-1].values(), column)) > most:
            tables.append({})
        tables[-1][name] = column
    for table in tables:
        if table is not tables[0]:
            yield ""
        for i, part in enumerate(names):
            if any(column[i] for column in table.values()):
                yield _phase_line(f"{part:{width}s}", table, i, peak_phase)


def _phase_line(line: str, table: dict[str, list[str]], row: int, peak_phase: str) -> str:
    for name, column in table.items():
        text = column[row].rjust(max(map(len, column)))
        line += f" [bold]{text}[/]" if name == peak_phase and text.strip() else f" {text}"
    return line.rstrip()


def _time_lines(time: dict[str, Any]) -> Iterator[str]:
    parts, num_evaluations = time["seconds_per_iteration"], time["num_evaluations"]
    evaluation, between = (readable_seconds(time[f"seconds_per_evaluation{x}"]) for x in ("", "_between"))
    yield f"time: about {readable_seconds(time['seconds'])}, an estimate with every completion at full length"
    told = ", ".join(f"{name} {readable_seconds(value)}" for name, value in parts.items())
    yield (f"  {counted(time['num_iterations'], 'iteration')} of {readable_seconds(sum(parts.values()))}: {told}")
    others = f", {between} between the first and the last" if num_evaluations > 2 else ""
    left_out = " (without A* and beam search at test time)" if time["is_test_time_search_left_out"] else ""
    yield f"  {counted(num_evaluations, 'evaluation')} of {evaluation}{others}{left_out}"
    yield (
        f"  from {readable_bytes(time['copied_bytes_per_s'])}/s and {time['matmul_flops_per_s'] / 1e12:.3g} TFLOP/s"
        " measured just now"
    )
