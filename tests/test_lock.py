"""Two processes never work on one run, and a process that was killed is in nobody's way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tinyzero_astar.run import lock as module
from tinyzero_astar.run.lock import LOCK, locked

ROOT = Path(__file__).resolve().parents[1]
HOLD = "import sys, pathlib; from tinyzero_astar.run.lock import locked\nwith locked(pathlib.Path(sys.argv[1])):\n"
HOLD += "    print('held', flush=True)\n    sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock on a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_the_first_is_named(holder, tmp_path):
    for _ in range(2):  # being refused changes nothing
        with pytest.raises(ValueError) as refused, locked(tmp_path):
            pass
        assert str(refused.value).startswith(
            f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}: wait until that ends"
        )
    holder.communicate("")
    assert holder.returncode == 0 and list(tmp_path.iterdir()) == []  # it ended well and left nothing


def test_the_lock_of_a_killed_process_is_free_and_the_process_is_named(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path) as killed:
        assert killed == f"process {holder.pid} on {socket.gethostname()}"
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n{socket.gethostname()}\n"
    with locked(tmp_path) as killed:
        assert killed is None
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_given_back_whatever_happens_inside(tmp_path):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), locked(tmp_path):
            raise error
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "x\ny\n", "12", "\0\xff", "9" * 5000 + "\nhost\n"])
def test_a_damaged_lock_file_is_as_good_as_none(text, tmp_path):
    (tmp_path / LOCK).write_text(text, encoding="latin-1")
    with locked(tmp_path) as killed:
        assert killed is None


def test_where_the_system_has_no_locks_the_file_itself_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FileLock", module.SoftFileLock)
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().splitlines()[:2] == [str(os.getpid()), socket.gethostname()]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / LOCK).write_text("1\nanother-host\n")
    with pytest.raises(ValueError, match=r"is in use by process 1 on another-host: "), locked(tmp_path):
        pass


def test_a_folder_that_is_none_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file cannot hold a run: no file can be written "), locked(tmp_path / "file"):
        pass
