"""Runs the trials of a study, each in a process of its own, as many at a time as there are cores.

A trial is `tinyzero train` with a file of settings beside its folder, so that each can be repeated by hand. One that is
done is not run again, and one that was stopped goes on where it was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tinyzero_astar.config_file import to_toml
from tinyzero_astar.config_json import differences, from_json
from tinyzero_astar.files import replace_text
from tinyzero_astar.run.folder import CONFIG
from tinyzero_astar.run.stopping import stop_requests
from tinyzero_astar.study.outcomes import is_done, sampled_evaluation
from tinyzero_astar.study.trials import Trial
from tinyzero_astar.terminal import FailedError

_POLL_S = 0.1
_FREE = ("data.task_sha256", "run.num_threads")  # filled in by the run, or without influence
# Each process has one thread, since two that wait for each other on busy cores are many times slower.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

Say = Callable[[str], None]


class StoppedError(Exception):
    """A signal stopped the study, and its runs have saved what they had."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


def run_trials(trials: Sequence[Trial], root: Path, cores: int, say: Say) -> None:
    """Run what is not done yet of some trials.

    Args:
        trials: in the order in which they begin.
        root: folder of the study.
        cores: processes at a time.
        say: what is worth saying goes there.

    Raises:
        ValueError: a folder holds another run than the study says, or its records are damaged.
        FailedError: a trial failed. Those that ran beside it were stopped.
        StoppedError: a signal asked to stop.
    """
    done_before = finished(trials, root)
    waiting = [trial for trial in trials if trial not in done_before]
    if not waiting:
        return
    say(f"{len(trials) - len(waiting)} of {len(trials)} runs are done, {cores} at a time")
    began = time.monotonic()
    with stop_requests("waiting for the runs to save") as received, _processes() as running:
        for done, trial in enumerate(_ended(waiting, root, cores, running, received), 1):
            left = (time.monotonic() - began) / done * (len(waiting) - done)
            say(f"{done}/{len(waiting)}  {trial.folder.relative_to('runs')}  about {_readable(left)} left")


def _ended(
    waiting: Sequence[Trial], root: Path, cores: int, running: dict[subprocess.Popen[bytes], Trial], received: list[int]
) -> Iterator[Trial]:
    """The trials as they end. `running` holds those that go, and `received` a signal that asked to stop."""
    queue = iter(waiting)
    while True:
        while len(running) < cores and not received and (trial := next(queue, None)) is not None:
            running[_start(trial, root)] = trial
        if not running:
            return
        time.sleep(_POLL_S)
        if received:
            raise StoppedError(received[0])
        for process in [process for process in running if process.poll() is not None]:
            trial = running.pop(process)
            if process.returncode != 0:
                raise FailedError(_why(trial, root, process.returncode))
            if _is_finished(trial, root):
                yield trial
            elif process.args == _command(trial, root):
                raise FailedError(f"a run ended without its results; all that it printed is in {_log(trial, root)}")
            else:  # trained, and still to be sampled
                running[_start(trial, root)] = trial


def finished(trials: Sequence[Trial], root: Path) -> list[Trial]:
    """Those of some trials that are done.

    Raises:
        ValueError: a folder holds another run than the study says, or its records are damaged.
    """
    return [trial for trial in trials if _is_finished(trial, root)]


def _is_finished(trial: Trial, root: Path) -> bool:
    folder = root / trial.folder
    if not (folder / CONFIG).is_file():
        return False
    found = differences(from_json(folder / CONFIG), trial.config)
    if others := [name for name in found if name not in _FREE]:
        raise ValueError(
            f"{folder} was made with another {others[0]} than the study says now; name another folder with --output, or"
            " remove that run"
        )
    return is_done(trial, root) and (trial.samples == 1 or sampled_evaluation(trial, root) is not None)


def _command(trial: Trial, root: Path) -> list[str]:
    """What a trial needs next."""
    folder = root / trial.folder
    if is_done(trial, root):
        words = ["eval", str(root / trial.checkpoint), "--eval.num-samples", str(trial.samples)]
        words += ["--eval.num-problems", str(trial.sampled_problems)]
    elif (folder / CONFIG).is_file():
        words = ["train", "--resume", str(folder)]
    else:
        words = ["train", "--config", str(_settings(trial, root)), "--output-dir", str(folder)]
    return [sys.executable, "-m", "tinyzero_astar", *words]


def _start(trial: Trial, root: Path) -> subprocess.Popen[bytes]:
    folder = root / trial.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).is_file():
        replace_text(_settings(trial, root), to_toml(trial.config, trial.preset))
    with _log(trial, root).open("ab") as log:
        return subprocess.Popen(
            _command(trial, root),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,  # or a terminal's Ctrl-C would reach it, beside the signal that it gets from here
        )


@contextmanager
def _processes() -> Iterator[dict[subprocess.Popen[bytes], Trial]]:
    """Those that still run when the block ends are asked to stop, and awaited. They save what they have.

    A signal that stops the study at once asks them again, upon which they stop at once too.
    """
    running: dict[subprocess.Popen[bytes], Trial] = {}
    try:
        yield running
    finally:
        try:
            _stop(running)
        except KeyboardInterrupt:
            _stop(running)
            raise


def _stop(running: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in running:
        process.send_signal(signal.SIGINT)  # nothing where it has ended
    for process in running:
        process.wait()


def _settings(trial: Trial, root: Path) -> Path:
    folder = root / trial.folder
    return folder.with_name(f"{folder.name}.toml")


def _log(trial: Trial, root: Path) -> Path:
    folder = root / trial.folder
    return folder.with_name(f"{folder.name}.log")


def _why(trial: Trial, root: Path, status: int) -> str:
    path = _log(trial, root)
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it printed nothing"]
    return f"a run of the study ended with status {status} ({lines[-1].strip()}); all that it printed is in {path}"


def _readable(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
