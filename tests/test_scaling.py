"""The tables of predictions in docs/scaling.md and docs/commands.md are what doctor predicts."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tinyzero_astar.cli.doctor import Doctor
from tinyzero_astar.cli.options import config_of, parse_as
from tinyzero_astar.config_checks import check, check_processes
from tinyzero_astar.resources.duration import evaluation_seconds, iteration_seconds, num_evaluations
from tinyzero_astar.resources.machine import Speed
from tinyzero_astar.resources.model import read_model
from tinyzero_astar.resources.prediction import PlannedRun

DOCS = Path(__file__).resolve().parents[1] / "docs"
SPEED = Speed(4e12, 790e12)  # of the table of times
COUNTS = (1, 2, 4, 8)
ADAPTERS = ("--model.lora-rank", "16")


@cache
def planned(preset, count, more=()):
    """A run on GPUs, with the options that the page names for it."""
    if (preset, count) == ("local", 8):
        more = (*more, "--search.problems-per-search", "2")
    config = config_of(parse_as(Doctor, "doctor", ["--config", preset, *more]))
    check(config)
    check_processes(config, count)
    return PlannedRun(config, read_model(config), count, "cuda")


def rows_of(page, head):
    """The cells of the table whose first line begins so, by the first cell of each row."""
    lines = (DOCS / page).read_text("utf-8").split(f"\n{head}", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name: rest for name, *rest in cells}


def columns():
    return [
        [planned("local", n) for n in COUNTS],
        [planned("training", n) for n in COUNTS],
        [planned("training", 1, ADAPTERS)],
    ]


def told(values, digits):
    return " / ".join("–" if value is None else f"{value:.{digits}f}" for value in values)


@pytest.mark.parametrize(
    "phase", ["loading", "search", "evaluation", "divergence", "gradients", "optimizer step", "value training"]
)
def test_the_peaks_of_the_page_are_those_of_doctor(phase):
    for cell, runs in zip(rows_of("scaling.md", "| phase | local")[phase], columns(), strict=True):
        peaks = [sum(run.outlook.phases[phase].values()) / 1e9 if phase in run.outlook.phases else None for run in runs]
        assert cell in (told(peaks, 1), "–") and (cell != "–" or not any(peaks))


@pytest.mark.parametrize(
    ("name", "part"),
    [("search", "search"), ("divergence from the base", "divergence"), ("gradient steps, layers recomputed", "update")],
)
def test_the_seconds_of_the_page_are_those_of_doctor(name, part):
    for cell, runs in zip(rows_of("scaling.md", "| part, s | local")[name], columns(), strict=True):
        seconds = [iteration_seconds(run, SPEED).get(part) for run in runs]
        assert cell in (told(seconds, 2), "–") and (cell != "–" or not any(seconds))


def test_what_the_page_says_of_checkpoints_is_what_doctor_says():
    text = " ".join((DOCS / "scaling.md").read_text("utf-8").split())
    one, several = ([planned(preset, n).outlook.host / 1e9 for preset in ("local", "training")] for n in (1, 4))
    assert f"takes 14 n bytes, {one[0]:.1f} and {one[1]:.1f} GB" in text
    assert f"it takes 18 n, {several[0]:.1f} and {several[1]:.1f} GB" in text
    sizes = [planned(preset, 1).outlook.checkpoint / 1e9 for preset in ("local", "training")]
    assert f"A checkpoint of `local` takes {sizes[0]:.1f} GB on disk, one of `training` {sizes[1]:.1f}." in text


def test_the_table_of_presets_tells_peaks_and_times_of_doctor():
    rows = rows_of("commands.md", "| preset | model |")
    for preset, counts in (("local", (1, 2, 4)), ("training", COUNTS)):
        _, memory, time, where = rows[f"`{preset}`"]
        peaks = [f"{planned(preset, n).outlook.memory / 1e9:.1f}" for n in counts]
        assert re.findall(r"\d+\.\d", memory)[: len(peaks)] == peaks
        assert where.startswith("none yet")
        run = planned(preset, 1)
        whole, between = (evaluation_seconds(run, SPEED, is_whole) for is_whole in (True, False))
        seconds = run.config.train.num_iterations * sum(iteration_seconds(run, SPEED).values())
        seconds += 2 * whole + (num_evaluations(run.config) - 2) * between
        assert re.search(r"at least (\d+) s ", time)[1] == f"{seconds:.0f}"
    assert f"{planned('training', 1, ADAPTERS).outlook.memory / 1e9:.1f} with" in rows["`training`"][1]
