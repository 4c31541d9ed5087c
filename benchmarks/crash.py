"""Runs that are killed again and again, and what is left of them, by `python -m benchmarks.crash` or `make crash`.

A small run of the embedded base is trained once without disturbance. Then runs with the same settings are killed with
SIGKILL and continued, until so many kills are done. Each must end with the very files of the undisturbed run, and no
file more. Only times may differ. It prints a table, then JSON.

A kill comes at a random time of the process (`time`), just before a random one of its operations on files (`file`), or
while something is being written (`write`). A continued run is killed in the same ways. With two processes one of them
is killed. The other ends by itself as soon as it misses it, or is ended as torchrun would.

As root on Linux it also tries full and read-only disks (a small tmpfs) and the loss of power (copies of an ext4 image
that were taken without a sync). benchmarks/crash_disks.py has these. Elsewhere it says that it leaves these out.

Processes are forked from one that has imported PyTorch, so that 50 kills take minutes and not an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import crash_disks
from tinyzero_astar.cli.train import main as train
from tinyzero_astar.files import METRICS, PARTIAL, PROCESSES
from tinyzero_astar.run import loop, start  # imported here, so that no forked process has to
from tinyzero_astar.run.folder import CONFIG
from tinyzero_astar.terminal import run_command

OPTIONS = [
    *("--train.num-iterations", "6", "--train.problems-per-iteration", "8", "--train.batch-size", "4"),
    *("--data.num-problems", "64", "--search.problems-per-search", "1", "--search.num-rollouts-per-problem", "4"),
    *("--search.max-search-depth", "24", "--eval.num-problems", "8", "--eval.eval-frequency", "3"),
    *("--run.checkpoint-frequency", "2", "--run.sample-frequency", "1", "--run.keep-last", "1"),
]
KINDS = ("time", "file", "write")
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")  # audit events
UNLIKE = {PROCESSES, "README.md", "report.html"}  # tell of times and commands, which differ
PATIENCE_S = 30.0  # after which torchrun kills a process whose companion is gone


class Killed(NamedTuple):
    """One kill and what became of it."""

    kind: str
    is_resume: bool  # whether a continued run was killed, not a new one
    saw: str  # files that were half-written then, or the last that were whole


def fork(argv: Sequence[str], log: Path, prepare: Callable[[], object] = bool, **environment: str) -> int:
    """The number of a new process that runs a command of train.py."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ |= environment
        prepare()
        status = run_command(lambda: train(argv))
    finally:
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def wait(pid: int, patience_s: float = 1e9) -> int | None:
    """The exit status, or minus the number of the signal that ended it. None if it runs on."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def watch_files(folder: Path, act: Callable[[], None]) -> None:
    """Call `act` before each operation of this process that changes something below a folder."""

    def see(event: str, args: tuple[Any, ...]) -> None:
        is_change = event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE)
        if is_change and str(args[0]).startswith(str(folder)):
            act()

    sys.addaudithook(see)


class Runs:
    """Runs of one configuration, with one process or several.

    Args:
        root: where they lie.
        num_processes: of each.
        options: of all.
    """

    def __init__(self, root: Path, num_processes: int, options: Sequence[str]) -> None:
        self.root, self.num_processes, self.options = root, num_processes, options
        self.log = root / "log.txt"
        root.mkdir()
        self.whole = root / "whole"
        began = time.monotonic()
        count = root / "count.txt"
        pids = self.start(self.whole, lambda: watch_files(self.whole, lambda: _count(count)))
        statuses = [wait(pid) for pid in pids]
        if any(statuses):
            raise SystemExit(f"the undisturbed run ended with {statuses}:\n{self.log.read_text()}")
        self.duration_s = time.monotonic() - began
        self.num_changes = count.stat().st_size // num_processes

    def start(self, folder: Path, prepare: Callable[[], object] = bool) -> list[int]:
        """Start or continue a run, and return the numbers of its processes."""
        again = (folder / CONFIG).exists()
        argv = ["--resume", str(folder)] if again else [*self.options, "--output-dir", str(folder)]
        if self.num_processes == 1:
            return [fork(argv, self.log, prepare)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        group = {"WORLD_SIZE": str(self.num_processes), "LOCAL_WORLD_SIZE": str(self.num_processes)}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            fork([*argv, "--distributed"], self.log, prepare, RANK=str(rank), LOCAL_RANK=str(rank), **group)
            for rank in range(self.num_processes)
        ]

    def kill(self, folder: Path, kind: str, rng: random.Random) -> tuple[bool, str]:
        """Start or continue a run and kill one of its processes.

        Returns:
            Whether it was still there, and what was half-written.
        """
        left = rng.randrange(self.num_changes)
        pids = self.start(folder, lambda: watch_files(folder, _killer(left)) if kind == "file" else None)
        chosen = pids[0] if kind == "write" else rng.choice(pids)
        end = time.monotonic() + (rng.uniform(0, self.duration_s) if kind == "time" else 1e9)
        num_waited, later = 0, rng.randrange(12)  # moments after the first, in which something is being written
        while time.monotonic() < end and (status := wait(chosen, 0.003)) is None:
            num_waited += kind == "write" and bool(_half_written(folder))
            if num_waited > later:
                break
        else:
            status = None if time.monotonic() >= end else status
        if status is None:
            os.kill(chosen, signal.SIGKILL)
            status = wait(chosen)
        for pid in pids:
            if pid != chosen and wait(pid, PATIENCE_S) is None:
                os.kill(pid, signal.SIGKILL)
                wait(pid)
        return status != 0, ", ".join(_half_written(folder)) or "nothing half-written"

    def finish(self, folder: Path) -> str | None:
        """Continue a run to its end, and say in what it differs from the undisturbed one. None if in nothing."""
        statuses = [wait(pid) for pid in self.start(folder)]
        return f"the resumed run ended with {statuses}" if any(statuses) else difference(folder, self.whole)


def _count(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b".")
    os.close(descriptor)


def _killer(left: int) -> Callable[[], None]:
    """Ends its process when it is called for the time after `left` others."""
    calls = iter(range(left))
    return lambda: None if next(calls, None) is not None else os.kill(os.getpid(), signal.SIGKILL)


def _half_written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"*{PARTIAL}"))


def contents(folder: Path) -> dict[str, bytes | list[Any]]:
    """What a run left, by path. Of metrics all but the times, and of what holds times only that it is there."""
    found: dict[str, bytes | list[Any]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found[str(path.relative_to(folder))] = b"" if path.name in UNLIKE else path.read_bytes()
    lines = (folder / METRICS).read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]
    return found | {METRICS: records}


def difference(folder: Path, whole: Path) -> str | None:
    """In which file a run differs from another one. None if in none."""
    ours, theirs = contents(folder), contents(whole)
    if ours.keys() != theirs.keys():
        return f"files {sorted(ours.keys() ^ theirs.keys())}"
    return next((f"{name} is another" for name in theirs if ours[name] != theirs[name]), None)


def kill_runs(runs: Runs, num_kills: int, rng: random.Random) -> tuple[list[Killed], list[str]]:
    """Kill and continue runs until so many kills are done. Each kill, and for each run in what it differs, or ""."""
    kills, outcomes = list[Killed](), list[str]()
    while len(kills) < num_kills:
        folder = runs.root / f"run-{len(outcomes)}"
        while True:
            kind, is_resume = rng.choice(KINDS), (folder / CONFIG).exists()
            was_killed, saw = runs.kill(folder, kind, rng)
            if not was_killed:
                break
            kills.append(Killed(kind, is_resume, saw))
            if len(kills) >= num_kills or rng.random() < 0.5:
                break
        outcomes.append(runs.finish(folder) or "")
        shutil.rmtree(folder)
        print(f"  {len(kills):3d} kills, {len(outcomes):3d} runs: {outcomes[-1] or 'identical'}", flush=True)
    return kills, outcomes


def table(name: str, kills: Sequence[Killed], outcomes: Sequence[str]) -> dict[str, Any]:
    """The figures of one row, printed."""
    kinds, wrong = Counter(kill.kind for kill in kills), [text for text in outcomes if text]
    row = {
        "what": name,
        "kills": len(kills),
        "by kind": dict(kinds),
        "while continuing": sum(kill.is_resume for kill in kills),
        "while a checkpoint was being written": sum("checkpoint_iter" in kill.saw for kill in kills),
        "runs": len(outcomes),
        "identical": len(outcomes) - len(wrong),
        "differences": wrong,
    }
    print("\n".join(f"{key:38s} {value}" for key, value in row.items()), flush=True)
    return row


def main() -> int:
    """Status 0 if every run ended as the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of one process")
    parser.add_argument("--kills-of-two", type=int, default=10, help="of one of two processes")
    parser.add_argument("--power-losses", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a file for the JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, rows = random.Random(args.seed), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="crash-") as root:
        for count, processes in ((args.kills, 1), (args.kills_of_two, 2)):
            if count:
                runs = Runs(Path(root) / f"of-{processes}", processes, OPTIONS)
                print(f"{processes} process{'es' * (processes > 1)}, {runs.duration_s:.1f} s undisturbed", flush=True)
                rows.append(table(f"SIGKILL, of {processes}", *kill_runs(runs, count, rng)))
        runs = Runs(Path(root) / "disks", 1, OPTIONS)
        rows += crash_disks.cases(runs, Path(root), args.power_losses, rng)
    found = {"seed": args.seed, "python": platform.python_version(), "torch": torch.__version__, "rows": rows}
    print(text := json.dumps(found, indent=1))
    if args.output:
        args.output.write_text(text + "\n")
    return int(any(row["differences"] for row in rows))


if __name__ == "__main__":
    assert loop and start
    sys.exit(main())
