"""Predicted memory against the peaks that CUDA's allocator counts, at a real shape on random weights."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from tests.devices import DEVICE, IS_CUDA, cuda_only, on_device
from tests.live_memory import LiveBytes
from tests.test_memory import CASES, QWEN, UPDATE, Case, config_of, make_policy, measured, search, work_of
from tinyzero_astar.engine.cuda_graphs import CudaGraphs
from tinyzero_astar.resources.memory import phases
from tinyzero_astar.resources.shapes import shapes_of
from tinyzero_astar.resources.standing import resident

pytestmark = on_device

WITHIN = 0.10
ON_GPU = {"is_host": False, "is_fused": True}  # AdamW steps by one kernel
_HALF = Case(QWEN["0.5B"], 64, 100, 100, 16, 16, 4096, dtype=torch.bfloat16, value_size=512, searches=())
_SEARCHED = replace(_HALF, rows=256, problems=64, depth=60)
SHAPES = {"plain": _HALF, "recomputed": replace(_HALF, checkpointing=True)}


class CudaBytes:
    """What `LiveBytes` is on a CPU. The allocator itself counts here."""

    def __enter__(self):
        torch.cuda.synchronize()
        return self

    def __exit__(self, *args):
        pass

    def watch(self, tensors):
        """It has seen them all."""

    def restart(self):
        gc.collect()
        torch.cuda.reset_peak_memory_stats()

    @property
    def now(self):
        return torch.cuda.memory_allocated()

    @property
    def peak(self):
        return torch.cuda.max_memory_allocated()


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = 0
    if IS_CUDA:
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
    yield
    if IS_CUDA:
        gc.collect()
        torch.cuda.empty_cache()
        # What libraries keep for their products may be new. Weights that a test leaves behind are larger.
        assert torch.cuda.memory_allocated() - before < 100e6


def assert_within(got, want):
    table = "\n".join(f"{k:22s} {got[k] / 1e6:10.1f} {want[k] / 1e6:10.1f} {want[k] / got[k] - 1:+.1%}" for k in want)
    print(f"\n{'MB':22s} {'measured':>10s} {'predicted':>10s}\n{table}")
    assert got.keys() == want.keys()
    assert {k for k in want if abs(want[k] / got[k] - 1) > WITHIN} == set(), table


@pytest.mark.parametrize("name", SHAPES)
def test_the_peak_of_an_update_is_near_its_prediction(name):
    case = SHAPES[name] if IS_CUDA else replace(CASES["embedded"], searches=())
    got = measured(case, CudaBytes if IS_CUDA else LiveBytes, DEVICE)
    work, shapes = work_of(case, **ON_GPU if IS_CUDA else {}), shapes_of(config_of(case))
    found = phases(shapes, work)
    want = {phase: sum(found[phase].values()) for phase in UPDATE[1:]}
    want["between"] = sum(resident(shapes, work).values())
    got.pop("checkpoint", None)
    assert_within(got, want)


@pytest.mark.parametrize("is_recorded", [False, pytest.param(True, marks=cuda_only)], ids=["single", "recorded"])
@pytest.mark.parametrize("name", ["sample", "gumbel", "guided"])
def test_the_peak_of_a_search_is_near_its_prediction(name, is_recorded):
    """Without an optimizer, whose masters and moments would hide what the search itself takes."""
    case = _SEARCHED if IS_CUDA else CASES["embedded"]
    with torch.device(DEVICE):
        policy = make_policy(case).to(DEVICE)
    policy.recorder = CudaGraphs() if is_recorded else None
    with (CudaBytes if IS_CUDA else LiveBytes)() as live:
        live.watch([*policy.parameters(), *policy.buffers()])
        for _ in range(2):  # the first also allocates what libraries keep
            live.restart()
            search(name, case, policy)
        got = {name: live.peak}
    mode, is_guided = ("gumbel", True) if name == "guided" else (name, False)
    work = work_of(case, mode, is_guided, cuda_graphs=is_recorded, **ON_GPU if IS_CUDA else {})
    parts = phases(shapes_of(config_of(case)), work)["search"]
    optimizer = {"master weights", "Adam moments", "value model"}
    own = sum(p.numel() * p.element_size() for p in policy.value_model.parameters())
    assert_within(got, {name: sum(n for part, n in parts.items() if part not in optimizer) + own})
