"""What a machine has, which is its device, free memory and disk, and by a short probe its bandwidth and arithmetic."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_WATCHED_S = 0.2  # 20 ticks of a core
_SECONDS = 0.3  # per probe, at least two repetitions
_COPIED = {"cpu": 1 << 27, "mps": 1 << 28, "cuda": 1 << 30}  # bytes, beyond any cache
_WIDTH = {"cpu": 1024, "mps": 4096, "cuda": 8192}  # of the multiplied matrices


@dataclass(frozen=True)
class Speed:
    """Measured now, on this machine, with what else it is doing."""

    bytes_per_s: float  # read and written in a large copy
    flops_per_s: float  # of a large matrix product


def choose_device(wanted: str) -> torch.device:
    """`cpu`, `cuda`, `mps`, or for `auto` the CUDA device if there is one.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(
                f"device mps: PyTorch {torch.__version__} finds no Apple GPU on this machine; use --model.device cpu"
            )
        return torch.device("mps")
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ValueError(
            f"device cuda: PyTorch {torch.__version__} finds no CUDA device on this machine; use --model.device cpu,"
            " or install a driver and a CUDA build of PyTorch"
        )
    return torch.device("cuda" if has_gpu and wanted != "cpu" else "cpu")


def measure_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """The best of a few repetitions. It takes about a second."""
    source = torch.ones(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / _fastest(lambda: target.copy_(source), device)
    width = _WIDTH[device.type]
    a = torch.ones(width, width, dtype=dtype, device=device)
    out = torch.empty_like(a)
    return Speed(copied, 2 * width**3 / _fastest(lambda: torch.matmul(a, a, out=out), device))


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest repetition after a first one that warms up."""
    seconds: list[float] = []
    work()
    while len(seconds) < 2 or sum(seconds) < _SECONDS:
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def num_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPU cores that this process may use, by its affinity and the quota of its container."""
    allowed = len(_allowed_cores())
    share, period = quota.read_text().split() if quota.exists() else ("max", "100000")
    return allowed if share == "max" else max(1, min(allowed, int(share) // int(period)))


def idle_cores(stat: Path = Path("/proc/stat")) -> float:
    """Those of `num_cores` that nobody uses just now. It takes a fifth of a second.

    Where the system does not tell, the load average stands for the cores in use. It still counts what has just ended.
    """
    if not stat.exists():
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return max(0.0, num_cores() - load)
    before = _core_times(stat)
    time.sleep(_WATCHED_S)
    idle = 0.0
    for core, (idle_after, total_after) in _core_times(stat).items():
        idle_before, total_before = before.get(core, (idle_after, total_after))
        if core in _allowed_cores():
            idle += (idle_after - idle_before) / max(total_after - total_before, 1)
    return min(idle, num_cores())


def _allowed_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _core_times(stat: Path) -> dict[int, tuple[int, int]]:
    """Of every core, ticks that it was idle or waited for a disk, and all ticks (man 5 proc_stat)."""
    times = {}
    for name, *fields in (line.split() for line in stat.read_text().splitlines()):
        if name.startswith("cpu") and name != "cpu":
            ticks = [int(x) for x in fields[:8]]  # guests' time is in the user's already
            times[int(name.removeprefix("cpu"))] = ticks[3] + ticks[4], sum(ticks)
    return times


def free_memory(device: torch.device, num_processes: int = 1) -> int:
    """Bytes that each process may take of its GPU, or of the machine, whose memory all share, without swapping.

    What this process has already is among them.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return (available_ram() + own_ram()) // num_processes


def all_memory(device: torch.device, num_processes: int = 1) -> int:
    """The same if nothing else ran, in bytes of its GPU, or each process's share of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // num_processes


def own_ram(statm: Path = Path("/proc/self/statm")) -> int:
    """Bytes of this process that are in memory. It is 0 where the system does not tell."""
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def available_ram(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that programs may take without swapping. It is all of the machine's where the system does not tell."""
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
