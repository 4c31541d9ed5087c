"""Work on fixed tensors, recorded once and replayed as CUDA graphs.

A decode step of a model of about thirty layers is a thousand kernels of a few microseconds each, and a GPU waits for
Python between them. A graph starts them all at once, on the very memory that it was recorded on. So whoever records
keeps the tensors that the work reads, and reads its results before the next replay.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
BLOCK = 128  # columns of the cache. A recorded decode step attends to a whole number of blocks


class Recorder(Protocol):
    """What turns work into a replay of it."""

    def record(self, work: Callable[[], T], kind: Hashable) -> Callable[[], T]:
        """Return what repeats `work`. Recording may do it once, so that whoever records restores what it reads.

        Args:
            work: reads and writes tensors that live on. It must neither allocate what it reads nor wait.
            kind: equal for works that start the same kernels on tensors of the same shapes.
        """
        ...


class CudaGraphs:
    """Records on the current GPU. All graphs share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._known: set[Hashable] = set()
        # It keeps the pool alive. PyTorch ends a pool whose graphs are all gone, and fails if it is used again.
        self._first: torch.cuda.CUDAGraph | None = None

    def record(self, work: Callable[[], T], kind: Hashable) -> Callable[[], T]:
        """See `Recorder.record`."""
        if kind not in self._known:
            self._known.add(kind)
            beside = _beside()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                work()  # at first use libraries allocate and kernels are compiled, which a recording must not contain
            torch.cuda.current_stream().wait_stream(beside)
        if self._first is None:
            self._first = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._first, pool=self._pool, stream=_beside()):
                _something()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=_beside()):
            result = work()

        def replay() -> T:
            graph.replay()
            return result

        return replay


@cache
def _beside() -> torch.cuda.Stream:
    """The stream of all recordings and first runs. For each new one cuBLAS would take, and keep, 32 MiB."""
    return torch.cuda.Stream()


def _something() -> None:
    """A graph must not be empty."""
    torch.zeros(1, device="cuda")
