"""What a page shows of a run, read from the run's folder and cut to a size that a page can bear."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tinyzero_astar.config import WITH_CRITIC, SearchConfig
from tinyzero_astar.files import METRICS, PROCESSES, SAMPLES, TRACE
from tinyzero_astar.loggers.console import num_tokens
from tinyzero_astar.report.charts import CALIBRATION, drawn_metrics
from tinyzero_astar.report.evidence import with_gate
from tinyzero_astar.run.folder import CONFIG
from tinyzero_astar.run.records import read_jsonl

MOST_POINTS = 500  # of a curve
MOST_CHARACTERS = 4_000  # of a completion
SAMPLE_BYTES, TREE_BYTES = 200_000, 480_000  # of a page, shared by its runs
_DIGITS = 5  # that count
_PLACES = 3  # after the point, in trees
_NODE_COLUMNS = ("parent", "g", "h", "priority", "success", "step", "end")
_STATUS = ("expanded", "leaf", "open", "dropped")
_READ = ("time/iteration_s", "cost/tokens", "cost/search_flops", "cost/update_flops")  # besides what is drawn
_SAMPLE_FIELDS = ("iteration", "problem", "answer", "completion", "accuracy", "reason", "weight")

Rows = Sequence[Mapping[str, Any]]


class RunRecords:
    """Everything that a run's folder holds for its page.

    Raises:
        ValueError: there is no run, or a record is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = read_jsonl(folder / METRICS)
        if not self.rows:
            raise ValueError(f"{folder}: no {METRICS} there; name the folder of a run")
        self.samples = read_jsonl(folder / SAMPLES)
        self.traces = read_jsonl(folder / TRACE)
        self.processes = read_jsonl(folder / PROCESSES)
        for row in self.rows:
            for name in (*drawn_metrics(), *_READ):
                if not _is_number(row.get(name)):
                    raise ValueError(f"{folder / METRICS}: {name} of iteration {row['iteration']} is no number")
        self.config = _config(folder / CONFIG)

    def setting(self, section: str, name: str) -> Any:
        """Of the configuration, None where it is not there."""
        return self.config.get(section, {}).get(name)

    @property
    def has_value(self) -> bool:
        """Whether its value model was trained."""
        return self.setting("train", "algorithm") in WITH_CRITIC

    @property
    def num_problems(self) -> int | None:
        """Of an iteration, where the configuration says so."""
        number = self.setting("train", "problems_per_iteration")
        return number if isinstance(number, int) and number > 0 else None

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and math.isfinite(value))


def _config(path: Path) -> dict[str, dict[str, Any]]:
    """By section and field, as it was written, since a page must not need the files of a run's task."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and all(isinstance(section, dict) for section in config.values()):
            return config
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); name the folder of a run") from None
    raise ValueError(f"{path} is no configuration; name the folder of a run")


def page_data(runs: Sequence[RunRecords]) -> list[dict[str, Any]]:
    """What the page's scripts draw, a record for each run."""
    return [
        {
            "name": run.name,
            **curves(run.rows),
            "samples": _samples(run.samples, SAMPLE_BYTES // len(runs)),
            "numSamples": len(run.samples),
            "traces": _traces(run.traces, run.config.get("search", {}), TREE_BYTES // len(runs)),
            "numTraces": len(run.traces),
            "numProblems": run.num_problems,
            "hasValue": run.has_value,
        }
        for run in runs
    ]


# ---------------------------------------------------------------------------------------------------------- curves


def curves(rows: Rows) -> dict[str, Any]:
    """Iterations, what was spent until each, and the metrics. At most so many points, evaluations first."""
    tokens, seconds = [], []
    spent, took = 0, 0.0
    for row in rows:
        spent, took = spent + num_tokens(row), took + (row.get("time/iteration_s") or 0.0)
        tokens.append(spent)
        seconds.append(_rounded(took))
    stride = math.ceil(len(rows) / MOST_POINTS)
    kept = [i for i, row in enumerate(rows) if i % stride == 0 or i == len(rows) - 1 or "eval/greedy_accuracy" in row]
    if len(kept) > 2 * MOST_POINTS:
        kept = kept[:: math.ceil(len(kept) / MOST_POINTS)]
    gated = with_gate(rows)
    found = {name: [_rounded(gated[i].get(name)) for i in kept] for name in drawn_metrics()}
    last = next((row for row in reversed(rows) if row.get(CALIBRATION)), None)
    return {
        "iterations": [rows[i]["iteration"] for i in kept],
        "tokens": [tokens[i] for i in kept],
        "seconds": [seconds[i] for i in kept],
        "metrics": {name: values for name, values in found.items() if any(v is not None for v in values)},
        "calibration": None if last is None else {"iteration": last["iteration"], "bins": last[CALIBRATION]},
    }


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.{_DIGITS}g}")


# --------------------------------------------------------------------------------------------------------- samples


def _samples(samples: Rows, budget: int) -> list[dict[str, Any]]:
    """As many completions of each iteration as there is room for, in their order."""
    by_iteration: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        by_iteration.setdefault(sample["iteration"], []).append(_shown(sample))
    chosen: dict[int, list[dict[str, Any]]] = {number: [] for number in by_iteration}
    for place in range(max(map(len, by_iteration.values()), default=0)):
        for number, own in by_iteration.items():
            if place < len(own):
                budget -= _size(own[place])
                if budget < 0:
                    return [sample for some in chosen.values() for sample in some]
                chosen[number].append(own[place])
    return [sample for some in chosen.values() for sample in some]


def _shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    text = str(sample.get("completion", ""))
    cut = len(text) - MOST_CHARACTERS
    told = {name: sample.get(name) for name in _SAMPLE_FIELDS}
    weight = _rounded(told["weight"]) if _is_number(told["weight"]) else None
    return told | {"completion": text[:MOST_CHARACTERS], "weight": weight, "cut": max(0, cut)}


def _size(value: Any) -> int:
    return len(json.dumps(value))


# ----------------------------------------------------------------------------------------------------------- trees


def _traces(traces: Rows, search: Mapping[str, Any], budget: int) -> list[dict[str, Any]]:
    """The recorded searches, fewer of those between the first and the last where there are too many for a page."""
    bound = search.get("max_inverse_beta", SearchConfig.max_inverse_beta)
    found = [packed(trace, search.get("inverse_beta", SearchConfig.inverse_beta), bound) for trace in traces]
    while len(found) > 1 and sum(map(_size, found)) > budget:
        found = [found[0], *found[2:-1:2], found[-1]] if len(found) > 2 else found[-1:]
    return found


def packed(
    trace: Mapping[str, Any],
    inverse_beta: float | Literal["balanced"] = "balanced",
    bound: float = SearchConfig.max_inverse_beta,
) -> dict[str, Any]:
    """A record of trace.jsonl, of which docs/trace.md tells, with each text once and three digits after the point.

    Args:
        trace: the record.
        inverse_beta: 1/beta of the heuristic, nats. With balanced it is clip(-logit(p), ±bound) of each prompt.
        bound: on it where it is balanced, nats.

    Raises:
        ValueError: it is none.
    """
    try:
        tilts = [_tilt(p, inverse_beta, bound) for p in _successes(trace["nodes"])]
        return _packed(trace) | {"tilts": tilts}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise ValueError(
            f"the record of iteration {trace.get('iteration')} in {TRACE} is damaged; restore the file, or move it away"
        ) from None


def _successes(nodes: Mapping[str, Any]) -> list[float]:
    """Of the prompts."""
    return [float(p) for p, parent in zip(nodes["success"], nodes["parent"], strict=True) if parent < 0]


def _tilt(success: float, inverse_beta: float | Literal["balanced"], bound: float) -> float:
    """1/beta of a problem with so much success at its prompt, nats (eq. 7 of docs/algorithm.md)."""
    if inverse_beta != "balanced":
        return float(inverse_beta)
    if not 0 < success < 1:
        return bound if success <= 0 else -bound
    return round(min(bound, max(-bound, math.log((1 - success) / success))), _PLACES)


def _packed(trace: Mapping[str, Any]) -> dict[str, Any]:
    nodes = trace["nodes"]
    texts = list(dict.fromkeys(nodes["text"]))
    place = {text: i for i, text in enumerate(texts)}
    columns = {name: [_short(x) for x in nodes[name]] for name in _NODE_COLUMNS}
    return {
        "iteration": trace.get("iteration"),
        "mode": trace["mode"],
        "shared": trace["problems_per_search"],
        "numNodes": trace["num_nodes"],
        "problems": trace["problems"],
        "texts": texts,
        "nodes": columns
        | {
            "problem": [n for n, parent in zip(nodes["problem"], nodes["parent"], strict=True) if parent < 0],
            "text": [place[text] for text in nodes["text"]],
            "status": [_STATUS.index(status) for status in nodes["status"]],
        },
        "leaves": [{name: _short(value) for name, value in leaf.items()} for leaf in trace["leaves"]],
    }


def _short(x: Any) -> Any:
    return round(x, _PLACES) if isinstance(x, float) else x
