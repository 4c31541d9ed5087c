"""What a run records of its searches in trace.jsonl and processes.jsonl (docs/trace.md)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.test_run import OPTIONS, records
from tinyzero_astar import __version__
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import SearchConfig
from tinyzero_astar.interfaces import TraceNode
from tinyzero_astar.run.traces import new_trace, trace_record


def ran(folder, tiny_base, *options):
    argv = ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--run.sample-frequency", "3", *options]
    assert main([*argv, "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tiny_base, tmp_path_factory):
    """Four iterations, with two problems that share a search."""
    threads = torch.get_num_threads()
    yield ran(tmp_path_factory.mktemp("runs") / "r", tiny_base, "--search.problems-per-search", "2")
    torch.set_num_threads(threads)


def paths_of(record):
    """The tokens that lead to each node."""
    nodes, paths = record["nodes"], []
    for parent, token in zip(nodes["parent"], nodes["token"], strict=True):
        paths.append([] if parent < 0 else [*paths[parent], token])
    return paths


def test_searches_of_the_first_of_every_due_and_of_the_last_iteration_are_recorded(run):
    assert [r["iteration"] for r in records(run, "trace.jsonl")] == [1, 3, 4]
    assert sorted({r["iteration"] for r in records(run, "samples.jsonl")}) == [1, 3, 4]


def test_a_record_has_the_trees_of_the_first_problems_and_says_what_became_of_their_leaves(run, tiny_base):
    decode = AutoTokenizer.from_pretrained(tiny_base).decode
    samples = records(run, "samples.jsonl")
    for record in records(run, "trace.jsonl"):
        nodes, problems = record["nodes"], record["problems"]
        assert (record["version"], record["mode"], record["problems_per_search"]) == (2, "gumbel", 2)
        assert {len(column) for column in nodes.values()} == {record["num_nodes"]}
        assert all(parent < i for i, parent in enumerate(nodes["parent"]))
        roots = [i for i, parent in enumerate(nodes["parent"]) if parent < 0]
        assert [nodes["problem"][i] for i in roots] == list(range(len(problems)))
        paths, found = paths_of(record), []
        for leaf in record["leaves"]:
            own = problems[nodes["problem"][leaf["node"]]]
            assert nodes["status"][leaf["node"]] == "leaf" and nodes["end"][leaf["node"]] == -1
            found.append((own["problem"], leaf["reason"], leaf["weight"]))
            assert problems[0]["kappa"] is not None and own["problem"] in own["prompt"].replace(" ", "")
            text = decode(paths[leaf["node"]])
            assert any(text.startswith(s["completion"]) for s in samples if s["problem"] == own["problem"])
        names = {problem["problem"] for problem in problems}
        told = [s for s in samples if s["iteration"] == record["iteration"] and s["problem"] in names]
        assert sorted(found) == sorted((s["problem"], s["reason"], s["weight"]) for s in told)


def test_problems_alone_are_recorded_together_and_at_most_so_many():
    alone, shared = SearchConfig(), SearchConfig(problems_per_search=32)
    assert (new_trace(alone).num_groups, new_trace(shared).num_groups) == (4, 1)


def node(number, parent, priority, status="expanded"):
    return TraceNode(0, number, parent, 5, number, -1.0, 0.123456, -1.0, priority, 0.5, number, -1, status)


def test_of_too_many_nodes_the_best_are_kept_with_those_that_lead_to_them(tiny_base, monkeypatch):
    monkeypatch.setattr("tinyzero_astar.run.traces.TRACED_NODES", 3)
    nodes = [node(0, -1, 0.0), node(1, 0, -9.0), node(2, 0, -2.0), node(3, 1, -1.0, "leaf"), node(4, 0, -3.0)]
    record = trace_record(nodes, [{}], {(0, (5, 5)): {"weight": 2.0}}, AutoTokenizer.from_pretrained(tiny_base))
    assert record["num_nodes"] == 5 and record["nodes"]["parent"] == [-1, 0, 1]
    assert record["nodes"]["h"] == [0.1235] * 3
    assert record["leaves"] == [{"node": 2, "weight": 2.0}]


def stopped_before_its_end(run, folder):
    shutil.copytree(run, folder)
    shutil.rmtree(max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("_")[2])))
    return folder


def test_processes_are_recorded_with_what_started_them(run, monkeypatch, tmp_path):
    folder = stopped_before_its_end(run, tmp_path / "r")
    monkeypatch.setattr(sys, "argv", ["/some/where/train.py", "--resume", "a b"])
    assert main(["--resume", str(folder)]) == 0
    first, second = records(folder, "processes.jsonl")
    assert (first["iteration"], second["iteration"]) == (0, 2)
    assert second["command"] == "python train.py --resume 'a b'"
    assert second["versions"]["tinyzero-astar"] == __version__ and second["device"].startswith("cpu")
    assert second["processes"] == 1 and second["parameters"] > 1000


def test_a_resumed_run_records_what_an_uninterrupted_one_does(run, tmp_path):
    folder = stopped_before_its_end(run, tmp_path / "r")
    assert main(["--resume", str(folder)]) == 0
    assert records(folder, "trace.jsonl") == records(run, "trace.jsonl")


def test_recording_changes_nothing(run, tiny_base, tmp_path):
    other = ran(tmp_path / "r", tiny_base, "--search.problems-per-search", "2", "--run.sample-frequency", "1")
    told = [
        [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records(folder)] for folder in (run, other)
    ]
    assert told[0] == told[1]
    assert len(records(other, "trace.jsonl")) == 4
    assert (Path(other) / "trace.jsonl").stat().st_size < 200_000
    assert all(json.dumps(r, allow_nan=False) for r in records(other, "trace.jsonl"))
