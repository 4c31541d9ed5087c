"""Disks that are full, read-only, or lose their power, for `python -m benchmarks.crash` as root.

Full and read-only disks are a small tmpfs. A run that has no room for one checkpoint is refused before its first
iteration. One that has room for its first but not for its second ends with one sentence, and its first stays good.

For a loss of power a run works on an ext4 file system in a file. Its processes are halted, the file is copied without a
sync, and they are killed. The copy is what the disk would hold had the power failed then. It is mounted, its journal is
replayed, and the run in it is continued. As a control the same is done with fsync switched off. That must lose
something, or the copies would prove nothing.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tinyzero_astar.run.folder import numbered_checkpoints

IMAGE_BYTES = 96 << 20  # of the file system, which is several times a run's files
FEW = 4  # losses of power of the control


class Runs(Protocol):
    """See benchmarks.crash."""

    log: Path
    whole: Path
    duration_s: float

    def start(self, folder: Path, prepare: Callable[[], object] = ...) -> list[int]: ...

    def finish(self, folder: Path) -> str | None: ...


def cases(runs: Runs, root: Path, num_losses: int, rng: random.Random) -> list[dict[str, Any]]:
    """A row for each case. None where this machine cannot mount anything."""
    if sys.platform != "linux" or os.geteuid() != 0 or not _can_mount(root):
        print("left out, as this needs root on Linux: full and read-only disks, loss of power", flush=True)
        return []
    [last] = numbered_checkpoints(runs.whole).values()
    checkpoint = sum(path.stat().st_size for path in last.iterdir())
    rows = [
        _row("no room for a checkpoint", [_no_room(runs, root, checkpoint)]),
        _row("room for one checkpoint", [_room_for_one(runs, root, checkpoint)]),
        _row("a disk that became read-only", [_read_only(runs, root, checkpoint)]),
    ]
    if num_losses and shutil.which("mkfs.ext4"):
        rows.append(_row("loss of power", [_power(runs, root, rng, True) for _ in range(num_losses)]))
        control = [_power(runs, root, rng, False) for _ in range(FEW)]
        print(f"control, without fsync: {sum(map(bool, control))} of {FEW} losses of power do damage: {control}")
        if not any(control):
            rows[-1]["differences"].append("the control lost nothing, so that these copies prove nothing")
    return rows


def _row(name: str, outcomes: list[str | None]) -> dict[str, Any]:
    wrong = [text for text in outcomes if text]
    print(f"{name:38s} {len(outcomes) - len(wrong)} of {len(outcomes)} as they should be {wrong or ''}", flush=True)
    return {"what": name, "tries": len(outcomes), "right": len(outcomes) - len(wrong), "differences": wrong}


def _can_mount(root: Path) -> bool:
    try:
        with _mounted(root / "try", "-t", "tmpfs", "tmpfs"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _mounted(at: Path, *what: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", *what, str(at)], check=True, capture_output=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def _run_to_its_end(runs: Runs, folder: Path) -> tuple[int, str]:
    """Exit status and last line of a run, which may fail."""
    runs.log.write_bytes(b"")
    [pid] = runs.start(folder)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = runs.log.read_text(encoding="utf-8", errors="replace")
    return status, "" if "Traceback" in text else next((x for x in text.splitlines() if x.startswith("error: ")), "")


def _no_room(runs: Runs, root: Path, checkpoint: int) -> str | None:
    with _mounted(root / "small", "-t", "tmpfs", "-o", f"size={checkpoint * 2 // 3}", "tmpfs") as disk:
        status, sentence = _run_to_its_end(runs, disk / "run")
        if (status, "cannot hold a run" in sentence, list(disk.iterdir())) != (2, True, []):
            return f"status {status}, {sentence!r}, left {list(disk.iterdir())}"
    return None


def _room_for_one(runs: Runs, root: Path, checkpoint: int) -> str | None:
    with _mounted(root / "small", "-t", "tmpfs", "-o", f"size={checkpoint * 3 // 2}", "tmpfs") as disk:
        status, sentence = _run_to_its_end(runs, disk / "run")
        if status != 1 or "No space left on device" not in sentence or list(numbered_checkpoints(disk / "run")) != [2]:
            return f"status {status}, {sentence!r}, checkpoints {list(numbered_checkpoints(disk / 'run'))}"
        subprocess.run(["mount", "-o", f"remount,size={checkpoint * 9}", str(disk)], check=True)
        return runs.finish(disk / "run")


def _read_only(runs: Runs, root: Path, checkpoint: int) -> str | None:
    with _mounted(root / "small", "-t", "tmpfs", "-o", f"size={checkpoint * 9}", "tmpfs") as disk:
        [pid] = runs.start(disk / "run")
        while not numbered_checkpoints(disk / "run"):
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        status, sentence = _run_to_its_end(runs, disk / "run")
        if status != 2 or "Read-only file system" not in sentence:
            return f"status {status}, {sentence!r}"
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        return runs.finish(disk / "run")


def _power(runs: Runs, root: Path, rng: random.Random, is_synced: bool) -> str | None:
    """A run whose disk loses its power at a random moment after the first checkpoint has its name, and goes on."""
    image, copy = root / "disk.img", root / "copy.img"
    image.write_bytes(b"")
    os.truncate(image, IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with _mounted(root / "disk", "-o", "loop", str(image)) as disk:
        [pid] = runs.start(disk / "run", bool if is_synced else _without_fsync)
        while not numbered_checkpoints(disk / "run"):
            time.sleep(0.001)
        time.sleep(rng.choice([0, rng.uniform(0, runs.duration_s / 2)]))
        os.kill(pid, signal.SIGSTOP)
        named = max(numbered_checkpoints(disk / "run"))
        subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with _mounted(root / "disk", "-o", "loop", str(copy)) as disk:
        if named not in numbered_checkpoints(disk / "run"):
            return f"checkpoint {named} lost its name"
        runs.log.write_bytes(b"")
        found = runs.finish(disk / "run")
        went_back = re.search(r"after iteration (\d+)", runs.log.read_text(encoding="utf-8", errors="replace"))
        if found is None and (went_back is None or int(went_back[1]) < named):
            return f"checkpoint {named} was not good"
        return found


def _without_fsync() -> None:
    os.fsync = lambda descriptor: None
