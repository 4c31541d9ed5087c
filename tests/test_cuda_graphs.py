"""What is asked of CUDA when work is recorded, and in which order. A stand-in for torch.cuda does the work at once."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import pytest
import torch

from tinyzero_astar.engine import cuda_graphs
from tinyzero_astar.engine.cuda_graphs import CudaGraphs


class Cuda:
    """Notes what happens. Inside a graph's capture work runs, and a replay runs it again."""

    def __init__(self):
        self.events, self.current, self.num_pools = [], "main", 0
        self.num_streams = 0
        self.captured = None

    def note(self, *event):
        self.events.append(event)

    def graph_pool_handle(self):
        self.num_pools += 1
        return f"pool {self.num_pools}"

    def current_stream(self):
        return Stream(self, self.current)

    def Stream(self):
        self.num_streams += 1
        return Stream(self, "beside")

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        yield
        self.current = before

    def CUDAGraph(self):
        return Graph(self)

    @contextmanager
    def graph(self, graph, pool, stream):
        assert stream.name == "beside"
        self.note("capture begins", pool)
        self.captured = graph
        yield
        self.captured = None
        self.note("capture ends")


class Stream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.note(self.name, "waits for", other.name)


class Graph:
    def __init__(self, cuda):
        self.cuda, self.work = cuda, None

    def replay(self):
        self.work()


@pytest.fixture
def cuda(monkeypatch):
    stand_in = Cuda()
    monkeypatch.setattr(torch, "cuda", stand_in)
    monkeypatch.setattr(cuda_graphs, "_something", lambda: stand_in.note("something"))
    monkeypatch.setattr(cuda_graphs, "_beside", cache(stand_in.Stream))
    return stand_in


def test_work_is_tried_on_a_stream_beside_then_captured_and_each_replay_refills_the_same_result(cuda):
    x, out = torch.zeros(3), torch.empty(3)

    def work():
        cuda.note("work", cuda.current)
        if cuda.captured is not None:
            cuda.captured.work = work
        return torch.mul(x, 2, out=out)

    replay = CudaGraphs().record(work, "doubled")
    assert cuda.events == [
        ("beside", "waits for", "main"),  # for what the work reads
        ("work", "beside"),  # libraries allocate at first use, which a capture must not contain
        ("main", "waits for", "beside"),
        ("capture begins", "pool 1"),  # of a graph that lives as long as the recorder, and so does the pool
        ("something",),
        ("capture ends",),
        ("capture begins", "pool 1"),
        ("work", "main"),
        ("capture ends",),
    ]
    for value in (1.0, 5.0):
        x.fill_(value)
        found = replay()
        assert found is out and found.tolist() == [2 * value] * 3
    assert [event for event in cuda.events if event[0] == "work"] == [("work", "beside")] + [("work", "main")] * 3


def test_all_recordings_share_one_pool_of_memory_and_one_stream(cuda):
    graphs = CudaGraphs()
    for _ in range(3):
        graphs.record(lambda: torch.zeros(1), "zeros")
    pools = [pool for what, *pool in cuda.events if what == "capture begins"]
    assert pools == [["pool 1"]] * 4 and cuda.num_pools == 1 and cuda.num_streams == 1


def test_work_of_a_known_kind_is_captured_untried(cuda):
    graphs, tried = CudaGraphs(), []
    for kind in ("short", "long", "short"):
        graphs.record(lambda kind=kind: tried.append((kind, cuda.captured is not None)), kind)
    assert tried == [("short", False), ("short", True), ("long", False), ("long", True), ("short", True)]
