"""One self-contained HTML file that shows a run, several runs, or the search for one answer.

Nothing in it is loaded from elsewhere, and a policy in its head forbids that. What a model wrote is data. It is text
that the template escapes, and JSON without a `<` that the scripts show as text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tinyzero_astar import __version__
from tinyzero_astar.files import replace_text
from tinyzero_astar.report.charts import CHARTS
from tinyzero_astar.report.headline import headline
from tinyzero_astar.report.page_data import RunRecords, packed, page_data

PAGE = "report.html"  # of a run
_ASSETS = files("tinyzero_astar") / "assets" / "page"
_STYLES = ("vendor/uPlot.min.css", "page.css")
_SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "vendor/d3-hierarchy.min.js",
    "core.js",
    "charts.js",
    "samples.js",
    "tree.js",
    "explorer.js",
)
_LICENSES = ("uPlot 1.6.32", "vendor/uPlot.LICENSE"), ("d3-hierarchy 3.1.3", "vendor/d3-hierarchy.LICENSE")


def write_run_page(path: Path, folders: Sequence[Path]) -> None:
    """Write the page of some runs.

    Raises:
        ValueError: one is no run, or its records are damaged.
        OSError: the page cannot be written.
    """
    replace_text(path, run_page([RunRecords(folder) for folder in folders]))


def write_comparison_page(
    path: Path,
    groups: Sequence[Sequence[Path]],
    axis: str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> None:
    """Write the page of groups of runs, each of which has a colour.

    Args:
        path: of the page.
        groups: the folders of the runs of each.
        axis: of the curves at first, such as tokens.
        names: of the groups.
        rows: of the table, each what was spent, the group's letter, its accuracy, and what it gained.
        notes: sentences about the table.

    Raises:
        ValueError: a folder holds no run, or its records are damaged.
        OSError: the page cannot be written.
    """
    runs = [RunRecords(folder) for group in groups for folder in group]
    places = [place for place, group in enumerate(groups) for _ in group]
    replace_text(path, run_page(runs, Compared(axis, names, rows, places, notes)))


@dataclass(frozen=True)
class Compared:
    """How the runs of a page compare."""

    axis: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    places: Sequence[int]  # the group of each run
    notes: Sequence[str]  # sentences about the table


def run_page(runs: Sequence[RunRecords], compared: Compared | None = None) -> str:
    """The page of some runs, at least one.

    Raises:
        ValueError: a record is damaged.
    """
    places = range(len(runs)) if compared is None else compared.places
    charts = {
        group: [
            {"title": c.title, "note": c.note, "unit": c.unit, "band": c.band, "series": [*c.series.items()]}
            for c in charts
        ]
        for group, charts in CHARTS.items()
    }
    shown = [told | {"colour": place} for told, place in zip(page_data(runs), places, strict=True)]
    axis = "iterations" if compared is None else compared.axis
    data = {"charts": [*charts.items()], "runs": shown, "axis": axis}
    names = ", ".join(run.name for run in runs)
    heads = [(headline(run), run.config, place) for run, place in zip(runs, places, strict=True)]
    return _rendered(data, title=names, runs=heads, compared=compared)


def solve_page(
    trace: Mapping[str, Any], facts: Sequence[tuple[str, str]], *, has_value: bool, inverse_beta: float
) -> str:
    """The page of one search.

    Args:
        trace: a record as of trace.jsonl, docs/trace.md.
        facts: what is to be said of the answer, the question first.
        has_value: whether the value model was trained.
        inverse_beta: 1/beta of the heuristic, nats.
    """
    run = {"name": "", "traces": [packed(trace, inverse_beta)], "numTraces": 1, "samples": [], "hasValue": has_value}
    data = {"charts": [], "runs": [run]}
    return _rendered(data, title=trace["problems"][0]["problem"], facts=facts)


def _rendered(data: Mapping[str, Any], **told: Any) -> str:
    style, script = (Markup("\n".join(map(_asset, names))) for names in (_STYLES, _SCRIPTS))
    page = _template().render(
        data=data,
        style=style,
        script=script,
        script_hash=_hash(script),
        version=__version__,
        licenses=[(name, _asset(file)) for name, file in _LICENSES],
        **told,
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _asset(name: str) -> str:
    return _ASSETS.joinpath(*name.split("/")).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.from_string(_asset("page.html.j2"))
