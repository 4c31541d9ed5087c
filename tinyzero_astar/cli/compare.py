"""Runs side by side, by `tinyzero compare runs/a-001 runs/a-002 runs/b-001 runs/b-002`."""

from __future__ import annotations

import csv
import json
import string
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tinyzero_astar.report.compare import Comparison, Measure, Row, compare_runs
from tinyzero_astar.report.intervals import Mean
from tinyzero_astar.terminal import complain, printable

_WIDTH = 80
_MOST = len(string.ascii_uppercase)  # groups that have a letter


@dataclass(frozen=True)
class Compare:
    """Held-out accuracy of runs where they have spent as much, paired over seeds.

    Runs that differ in their seed alone are one group. Groups are compared with that of the first run, seed by seed.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    by: Measure = "tokens"
    """What is spent. Decoded tokens, seconds of search and update, or iterations."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""
    csv: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print CSV instead of a table."""
    page: Path | None = None
    """Also write an HTML page with the table and the curves of all runs to this file."""


def compare_main(argv: Sequence[str]) -> int:
    """Run the command line, and return the exit status."""
    options = tyro.cli(Compare, prog="tinyzero compare", args=list(argv))
    try:
        if not options.runs:
            raise ValueError("compare needs the folders of runs, such as runs/tiny-001 runs/tiny-002")
        if options.json and options.csv:
            raise ValueError("--json and --csv exclude each other; name one of them")
        found = compare_runs(options.runs, options.by)
        if len(found.groups) > _MOST:
            raise ValueError(f"{len(found.groups)} groups of runs are too many for a table; compare at most {_MOST}")
        if options.page is not None:
            write_page(options.page, found)
    except ValueError as error:
        return complain(error)
    if options.csv:
        _print_csv(found)
    else:
        print(json.dumps(_as_json(found), indent=1) if options.json else "\n".join(_lines(found)))
    return 0


def write_page(path: Path, found: Comparison) -> None:
    """The table and the curves of all runs as one HTML page.

    Raises:
        ValueError: it cannot be written.
    """
    from tinyzero_astar.report.page import write_comparison_page

    names = [f"{letter}  {_named(found, i)}" for i, letter in enumerate(string.ascii_uppercase[: len(found.groups)])]
    rows = [
        (_budget(found, row), string.ascii_uppercase[row.group], _mean(row.accuracy, ".1f"), _gain(row))
        for row in found.rows
    ]
    folders = [[run.folder for run in group] for group in found.groups]
    try:
        write_comparison_page(path, folders, found.by, names, rows, [*_notes(found)])
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); name another file with --page") from None


def _as_json(found: Comparison) -> dict[str, object]:
    groups: list[dict[str, object]] = [
        {"name": name, "runs": [str(run.folder) for run in runs], "seeds": [run.seed for run in runs]}
        for name, runs in zip(found.names, found.groups, strict=True)
    ]
    return {"by": found.by, "groups": groups, "rows": [_row_as_json(row) for row in found.rows]}


def _row_as_json(row: Row) -> dict[str, object]:
    gain = None if row.gain is None else row.gain._asdict()
    return {**row._asdict(), "accuracy": row.accuracy._asdict(), "gain": gain}


def _print_csv(found: Comparison) -> None:
    """A line for each row of the table. Accuracies are shares, and what is not known is empty."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    ends = ("", "_low", "_high")
    head = [f"{what}{end}" for what in ("accuracy", "gain") for end in ends]
    writer.writerow([found.by, "group", "name", "seeds", *head])
    for row in found.rows:
        seeds = " ".join(str(run.seed) for run in found.groups[row.group])
        name = printable(found.names[row.group])
        means = (*row.accuracy, *(row.gain or (None, None, None)))
        writer.writerow([row.budget, string.ascii_uppercase[row.group], name, seeds, *means])


def _lines(found: Comparison) -> Iterator[str]:
    for i, letter in enumerate(string.ascii_uppercase[: len(found.groups)]):
        text = printable(f"{letter}  {_named(found, i)}")
        yield textwrap.fill(text, _WIDTH, subsequent_indent="   ")
    yield ""
    yield "held-out greedy accuracy in %, means over seeds and their 95 % bootstrap"
    yield "intervals"
    yield ""
    yield _line(found.by, " ", "accuracy", "minus A, same seeds" if len(found.groups) > 1 else "")
    for row in found.rows:
        budget = _budget(found, row)
        accuracy = _mean(row.accuracy, ".1f")
        yield _line(budget if row.group == 0 else "", string.ascii_uppercase[row.group], accuracy, _gain(row))
    yield ""
    yield from textwrap.wrap(" ".join(_notes(found)), _WIDTH)


def _notes(found: Comparison) -> Iterator[str]:
    """What a reader must know of the numbers."""
    yield "An accuracy between two evaluations is read off the straight line between them."
    single = [letter for letter, runs in zip(string.ascii_uppercase, found.groups, strict=False) if len(runs) == 1]
    if single:
        yield (
            f"There is no interval for {' and '.join(single)}, which is one run. Train the same settings with other"
            " seeds, as in --run.seed 1, and name all their folders."
        )
    if any(row.group > 0 and row.gain is None for row in found.rows):
        yield "A group without a gain has no seed in common with A."


def _named(found: Comparison, group: int) -> str:
    runs = found.groups[group]
    seeds = f"seed{'' if len(runs) == 1 else 's'} {', '.join(str(run.seed) for run in runs)}"
    return f"{found.names[group]}; {seeds}"


def _budget(found: Comparison, row: Row) -> str:
    return f"{row.budget:,.0f}" if found.by == "tokens" else f"{row.budget:,.1f}"


def _gain(row: Row) -> str:
    return "" if row.gain is None else _mean(row.gain, "+.1f")


def _line(budget: str, letter: str, accuracy: str, gain: str) -> str:
    return f"{budget:>14s}   {letter}   {accuracy:<24s} {gain}".rstrip()


def _mean(mean: Mean, pattern: str) -> str:
    value = format(100 * mean.value, pattern)
    if mean.low is None or mean.high is None:
        return value
    return f"{value} [{100 * mean.low:{pattern}}, {100 * mean.high:{pattern}}]"
