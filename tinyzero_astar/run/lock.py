"""One process at a time works on a run. A second one would write the same iterations once more.

The system gives the lock back when its process ends, however it ends. So a lock is never in the way of a run that was
killed. The file, which names the process, is removed when a run ends well, and stays when it was killed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

LOCK = "run.lock"


@contextmanager
def locked(run: Path) -> Iterator[str | None]:
    """Inside, no other process can do the same.

    Yields the process that was killed with the lock in hand, in words, if any.

    Raises:
        ValueError: another process works on the run, or the folder cannot be written to.
    """
    path = run / LOCK
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{run} is in use by {_holder(path) or 'another process'}: wait until that ends, or stop it first"
        ) from None
    except OSError as error:
        raise cannot_hold(run, error) from None
    was = None
    try:
        if not isinstance(lock, SoftFileLock):  # where the system has no locks, that one writes the same by itself
            was = _holder(path)  # one that ended well would have removed it
            with suppress(OSError):  # a full disk, which `prepare` reports
                path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
        yield was
    finally:
        if not isinstance(lock, SoftFileLock):
            with suppress(OSError):  # before it is given back, while nobody else can have it
                path.unlink()
        lock.release()


def cannot_hold(run: Path, error: OSError, num_bytes: int = 0) -> ValueError:
    """The refusal of a folder that cannot be written to, or has no room for so many bytes."""
    what = f"{num_bytes:,} bytes cannot" if num_bytes else "no file can"
    return ValueError(
        f"{run} cannot hold a run: {what} be written there ({error.strerror or error}); use another folder, make"
        " room or raise the limit"
    )


def _holder(path: Path) -> str | None:
    with suppress(OSError, ValueError):  # no file, no UTF-8, no number
        pid, host, *_ = path.read_text(encoding="utf-8").splitlines()
        return f"process {int(pid)} on {host}"
    return None
