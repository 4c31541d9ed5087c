"""What a machine has: idle cores, from files like the system's, and memory that is kept when it is freed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tinyzero_astar.resources import allocator, machine
from tinyzero_astar.run import build as session

ROOT = Path(__file__).resolve().parents[1]
BEFORE = {0: (100, 900), 1: (500, 500), 2: (0, 1000), 3: (700, 300)}  # busy and idle ticks of each core


def write_stat(path, times):
    lines = [f"cpu{i} {busy} 0 0 {idle} 0 0 0 0 77 0" for i, (busy, idle) in times.items()]  # 77: guests', also in busy
    path.write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 9 0", *lines, "intr 12 0 0", "ctxt 345"]) + "\n")


@pytest.fixture
def idle(tmp_path, monkeypatch):
    """What `idle_cores` says of a fifth of a second in which cores of four were busy for so many ticks of 20."""
    monkeypatch.setattr(machine, "_allowed_cores", lambda: {0, 1, 2, 3})

    def measured(*busy):
        write_stat(tmp_path / "stat", BEFORE)
        after = {i: (BEFORE[i][0] + n, BEFORE[i][1] + 20 - n) for i, n in enumerate(busy)}
        monkeypatch.setattr(machine.time, "sleep", lambda _: write_stat(tmp_path / "stat", after))
        return machine.idle_cores(tmp_path / "stat")

    return measured


@pytest.mark.parametrize(
    ("busy", "num_idle"), [((0, 0, 0, 0), 4.0), ((20, 0, 0, 20), 2.0), ((10, 10, 5, 0), 2.75), ((20, 20, 20, 20), 0.0)]
)
def test_idle_cores_are_those_of_the_moment(idle, busy, num_idle):
    assert idle(*busy) == pytest.approx(num_idle)


def test_cores_that_wait_for_a_disk_are_idle(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_allowed_cores", lambda: {0})
    stat = tmp_path / "stat"
    stat.write_text("cpu0 10 0 0 100 50 0 0 0 0 0\n")
    monkeypatch.setattr(machine.time, "sleep", lambda _: stat.write_text("cpu0 15 0 0 105 60 0 0 0 0 0\n"))
    assert machine.idle_cores(stat) == pytest.approx(15 / 20)


def test_cores_of_others_do_not_count(idle, monkeypatch):
    monkeypatch.setattr(machine, "_allowed_cores", lambda: {1, 3})
    assert idle(20, 0, 0, 5) == pytest.approx(1.75)
    assert machine.num_cores() == 2


def test_without_proc_stat_the_load_average_is_what_is_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_allowed_cores", lambda: set(range(8)))
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (2.5, 9.0, 9.0))
    assert machine.idle_cores(tmp_path / "none") == pytest.approx(5.5)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)]
)
def test_a_quota_of_the_container_bounds_the_cores(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(machine, "_allowed_cores", lambda: set(range(8)))
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert machine.num_cores(tmp_path / "cpu.max") == cores


@pytest.mark.parametrize(
    ("num_idle", "processes", "threads"), [(8.0, 1, 8), (7.8, 1, 8), (7.7, 1, 7), (8.0, 3, 2), (1.9, 4, 1), (0.0, 1, 1)]
)
def test_threads_are_the_idle_cores_shared_by_the_processes_here(monkeypatch, num_idle, processes, threads):
    monkeypatch.setattr(session, "idle_cores", lambda: num_idle)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert session.choose_num_threads(0) == threads


FAULTS = """
import resource
from tinyzero_astar.resources.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"1") * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
print(keep_freed_memory())
faults()
print(faults())
"""


@pytest.mark.skipif(allocator.platform.libc_ver()[0] != "glibc", reason="memory is kept with glibc only")
def test_memory_that_was_freed_is_not_fetched_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    before, is_kept, after = done.stdout.split()
    assert int(before) > 30 and is_kept == "True" and int(after) < 5  # 32 pages of 2 MiB, or 16,384 small ones


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("nothing is called"))
    assert allocator.keep_freed_memory() is False
