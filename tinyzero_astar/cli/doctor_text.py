"""What doctor prints, as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinyzero_astar.terminal import counted, readable_bytes, readable_seconds


def show(found: dict[str, Any]) -> None:
    """Print what doctor found."""
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
    for line in _room_lines(found):
        console.print(line)
    for line in _time_lines(found["time"], found["is_this_machine"]):
        say(line)
    for one in (memory, disk):
        if one["advice"] is not None:
            say(one["advice"], "bold")


def _room_lines(found: dict[str, Any]) -> Iterator[str]:
    """What is needed of memory and disk, and whether it is there, as markup."""
    is_here, count, disk = found["is_this_machine"], found["processes"], found["disk"]
    is_shared = count > 1 and found["device"] == "cpu"
    where = "" if is_here else " of such a GPU"
    yield _room_line("memory", found["memory"], f" free for each of {count} processes" if is_shared else where)
    if is_shared:
        yield "  they share the memory of this machine, each with its part of what is free"
    if found["host"]["needed"]:
        yield _room_line("host memory for a checkpoint", found["host"])
    yield _room_line("disk", disk)
    yield f"  {counted(disk['num_checkpoints'], 'checkpoint')} of {readable_bytes(disk['checkpoint'])}"


def _room_line(name: str, one: dict[str, Any], where: str = "") -> str:
    needed, available = one["needed"], one["available"]
    if available is None:
        return f"{name}: {readable_bytes(needed)}, not compared with this machine's"
    verdict = "[green]fits[/]" if needed <= available else "[bold red]does not fit[/]"
    return f"{name}: {readable_bytes(needed)} of {readable_bytes(available)}{where or ' free'}: {verdict}"


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


def _time_lines(time: dict[str, Any] | None, is_measured: bool) -> Iterator[str]:
    if time is None:
        yield "time: not predicted, since it depends on --gpu-tb-per-s and --gpu-tflops"
        return
    parts = time["seconds_per_iteration"]
    least = "about" if is_measured else "at least"
    yield f"time: {least} {readable_seconds(time['seconds'])}, an estimate with every completion at full length"
    told = ", ".join(f"{name} {readable_seconds(value)}" for name, value in parts.items())
    yield (f"  {counted(time['num_iterations'], 'iteration')} of {readable_seconds(sum(parts.values()))}: {told}")
    yield f"  {_evaluations(time)}"
    speed = f"{readable_bytes(time['copied_bytes_per_s'])}/s and {time['matmul_flops_per_s'] / 1e12:.3g} TFLOP/s"
    yield f"  from {speed}, {'measured just now' if is_measured else 'as given'}"
    yield "  imports, loading and the work of Python are left out, which for small models take most of the time"


def _evaluations(time: dict[str, Any]) -> str:
    """How long each evaluation takes. Those between the first and the last have fewer problems."""
    whole, between = (readable_seconds(time[f"seconds_per_evaluation{x}"]) for x in ("", "_between"))
    number = time["num_evaluations"]
    left_out = " (without A* and beam search at test time)" if time["is_test_time_search_left_out"] else ""
    if number < 3:
        return f"{counted(number, 'evaluation')} of {whole}{left_out}"
    return f"{number} evaluations: the first and the last {whole} each, the others {between} each{left_out}"
