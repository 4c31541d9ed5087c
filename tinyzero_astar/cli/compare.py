"""Runs side by side, by `tinyzero compare runs/a-001 runs/a-002 runs/b-001 runs/b-002`."""

from __future__ import annotations

import json
import string
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tinyzero_astar.report.compare import MEASURES, Comparison, Measure, Row, compare_runs
from tinyzero_astar.report.intervals import Mean
from tinyzero_astar.terminal import complain, printable

_WIDTH = 80
_MOST = len(string.ascii_uppercase)  # groups that have a letter


@dataclass(frozen=True)
class Compare:
    """Held-out accuracy of runs at equal decoded tokens and at equal seconds.

    Runs that differ in their seed alone are one group. Groups are compared with that of the first run, seed by seed.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of tables."""


def compare_main(argv: Sequence[str]) -> int:
    """Run the command line, and return the exit status."""
    options = tyro.cli(Compare, prog="tinyzero compare", args=list(argv))
    try:
        if not options.runs:
            raise ValueError("compare needs the folders of runs, such as runs/tiny-001 runs/tiny-002")
        found = compare_runs(options.runs)
        if len(found.groups) > _MOST:
            raise ValueError(f"{len(found.groups)} groups of runs are too many for a table; compare at most {_MOST}")
    except ValueError as error:
        return complain(error)
    print(json.dumps(_as_json(found), indent=1) if options.json else "\n".join(_lines(found)))
    return 0


def _as_json(found: Comparison) -> dict[str, object]:
    groups: list[dict[str, object]] = [
        {"name": name, "runs": [str(run.folder) for run in runs], "seeds": [run.seed for run in runs]}
        for name, runs in zip(found.names, found.groups, strict=True)
    ]
    return {"groups": groups, **{measure: [_row_as_json(row) for row in rows] for measure, rows in found.rows.items()}}


def _row_as_json(row: Row) -> dict[str, object]:
    gain = None if row.gain is None else row.gain._asdict()
    return {**row._asdict(), "accuracy": row.accuracy._asdict(), "gain": gain}


def _lines(found: Comparison) -> Iterator[str]:
    for letter, name, runs in zip(string.ascii_uppercase, found.names, found.groups, strict=False):
        seeds = f"seed{'' if len(runs) == 1 else 's'} {', '.join(str(run.seed) for run in runs)}"
        text = printable(f"{letter}  {name}; {seeds}")
        yield textwrap.fill(text, _WIDTH, subsequent_indent="   ")
    yield ""
    yield "held-out greedy accuracy in %, means over seeds and their 95 % intervals (t)"
    for measure in MEASURES:
        yield ""
        if measure in found.rows:
            yield from _table(measure, found.rows[measure], len(found.groups))
        else:
            yield "seconds: not compared, a run was stopped where its time was not recorded"


def _table(measure: Measure, rows: Sequence[Row], num_groups: int) -> Iterator[str]:
    gain = "minus A, same seeds" if num_groups > 1 else ""
    yield _line(measure, " ", "accuracy", gain)
    for row in rows:
        budget = f"{row.budget:,.0f}" if measure == "tokens" else f"{row.budget:,.1f}"
        yield _line(
            budget if row.group == 0 else "",
            string.ascii_uppercase[row.group],
            _mean(row.accuracy, ".1f"),
            "" if row.gain is None else _mean(row.gain, "+.1f"),
        )


def _line(budget: str, letter: str, accuracy: str, gain: str) -> str:
    return f"{budget:>14s}   {letter}   {accuracy:<24s} {gain}".rstrip()


def _mean(mean: Mean, pattern: str) -> str:
    value = format(100 * mean.value, pattern)
    if mean.low is None or mean.high is None:
        return value
    return f"{value} [{100 * mean.low:{pattern}}, {100 * mean.high:{pattern}}]"
