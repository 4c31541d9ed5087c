"""Runs and searches that pages are made of in tests: folders with records, harmless or hostile."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from tinyzero_astar.report.charts import CALIBRATION, drawn_metrics

HOSTILE = (
    "</script><script>document.title = 'hacked'</script><img src=x onerror=\"document.title='hacked'\">"
    "<!--<script>{{ 7 * 7 }}${document.title='hacked'}</title>&lt;b&gt; \x00\x07\x1b[31m\u2028\u202e\ud83d\n'\"`"
)
GREEDY = "eval/greedy_accuracy"


def write_jsonl(path: Path, records) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def row(i: int, last: int, **more):
    """Metrics of an iteration; all that is drawn, evaluated every tenth time."""
    share = i / last
    values = {name: round(share * (1 + k % 7) / 7, 4) for k, name in enumerate(drawn_metrics())}
    if i % 10:
        values = {name: value for name, value in values.items() if not name.startswith("eval/")}
    else:
        values |= {GREEDY: share, f"{GREEDY}_low": 0.9 * share, f"{GREEDY}_high": 0.1 + 0.9 * share}
    return {
        "iteration": i,
        **values,
        "search/num_decoded_tokens": 100 * min(i, 1),
        "time/iteration_s": 0.5,
        CALIBRATION: [[0.1, 0.2, 0.5], [0.9, 0.7, 0.5]],
        "alarms": [],
        "guidance/reason": "AUC 0.7",
        **more,
    }


def sample(i: int, k: int, text: str = "6*7=42</think><answer>42</answer>", right: bool = True):
    return {
        "iteration": i,
        "problem": f"{k}*7",
        "answer": 42,
        "completion": text,
        "accuracy": right,
        "format": True,
        "reason": "correct" if right else "wrong",
        "weight": 0.5,
        "priority": -1.0,
    }


def trace(iteration: int, branches: int = 3, depth: int = 4, problems: int = 2, text: str = "a"):
    """Trees of so many branches, of which the first is pushed out in step 2; a search in lock step."""
    columns = {
        name: []
        for name in (
            "problem",
            "parent",
            "token",
            "g",
            "h",
            "f",
            "priority",
            "success",
            "step",
            "end",
            "status",
            "text",
        )
    }
    leaves = []

    def add(problem, parent, step, end, status, word):
        number = len(columns["parent"])
        g = 0.0 if parent < 0 else columns["g"][parent] - 0.1 * (1 + number % 5)
        told = (problem, parent, number, g, 0.5, g + 0.5, g, (number % 11) / 10, step, end, status, word)
        for column, value in zip(columns.values(), told, strict=True):
            column.append(value)
        return number

    for problem in range(problems):
        root = add(problem, -1, 0, 1, "expanded", "")
        for branch in range(branches):
            node = root
            for step in range(1, depth + 1):
                is_last = step == depth
                node = add(problem, node, step, -1 if is_last else step + 1, "leaf" if is_last else "expanded", text)
                if branch == 0 and step == 2 and depth > 2:
                    columns["end"][node] = 3
                    break
            else:
                told = {"accuracy": branch == 1, "format": True, "reason": "correct" if branch == 1 else "wrong"}
                leaves.append({"node": node, "reward": 1.1 * (branch == 1), "weight": 0.7, **told})
    return {
        "iteration": iteration,
        "version": 2,
        "mode": "gumbel",
        "beam_width": 4,
        "problems_per_search": problems,
        "num_nodes": len(columns["parent"]),
        "problems": [{"problem": f"{p}*7", "answer": 42, "prompt": f"{p}*7=?", "kappa": -0.5} for p in range(problems)],
        "nodes": columns,
        "leaves": leaves,
    }


def make_run(folder: Path, last: int = 20, *, rows=None, samples=None, traces=None, config=None, processes=None):
    """The folder of a run with all records."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "metrics.jsonl", rows or [row(i, last) for i in range(last + 1)])
    default = [sample(i, k, right=k % 2 == 0) for i in (1, 10, 20) for k in range(4)]
    write_jsonl(folder / "samples.jsonl", default if samples is None else samples)
    write_jsonl(folder / "trace.jsonl", [trace(i) for i in (1, 10)] if traces is None else traces)
    process = {
        "iteration": 0,
        "began": "2026-01-01T00:00:00+00:00",
        "command": "python train.py --run.seed 3",
        "versions": {"torch": "2"},
        "device": "cpu, 2 cores",
        "parameters": 1234,
    }
    write_jsonl(folder / "processes.jsonl", processes or [process])
    sections = {
        "model": {"model_name": "embedded"},
        "data": {"task": "multiplication"},
        "train": {"algorithm": "astar_po"},
    }
    (folder / "config.json").write_text(json.dumps(config or sections), encoding="utf-8")
    return folder


def hostile_run(folder: Path):
    """A run in which everything that a model, a task or a name can say is hostile."""
    rows = [row(i, 20, alarms=["no_gradient", HOSTILE], **{"guidance/reason": HOSTILE}) for i in range(21)]
    samples = [
        sample(1, k, HOSTILE, k % 2 == 0) | {"problem": HOSTILE, "answer": HOSTILE, "reason": HOSTILE} for k in (0, 1)
    ]
    tree = trace(1, text=HOSTILE)
    for problem in tree["problems"]:
        problem |= {"problem": HOSTILE, "prompt": HOSTILE, "answer": HOSTILE}
    for leaf in tree["leaves"]:
        leaf["reason"] = HOSTILE
    process = {"iteration": 0, "began": HOSTILE, "command": HOSTILE, "versions": {HOSTILE: HOSTILE}, "device": HOSTILE}
    config = {"model": {"model_name": HOSTILE}, "data": {"task": HOSTILE, HOSTILE: HOSTILE}, HOSTILE: {"x": [HOSTILE]}}
    told = {"rows": rows, "samples": samples, "traces": [tree], "processes": [process], "config": config}
    return make_run(folder / "<img src=x onerror=alert(1)>", **told)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.found and self.cdata_elem == "script":
            self.scripts[-1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0])
