"""What rank 0 writes for all ranks, with an outcome that is the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinyzero_astar.distributed import from_main
from tinyzero_astar.files import WriteFailedError, writing


def write_for_all(path: Path, write: Callable[[], None]) -> None:
    """Write something that only rank 0 writes. `write` runs on every rank, as it may hold collectives.

    Raises:
        WriteFailedError: rank 0 could not write it. Every rank raises it.
    """

    def write_path() -> None:
        with writing(path):
            write()

    fail_together(write_path)


def fail_together(write: Callable[[], None]) -> None:
    """Run `write` on every rank.

    Raises:
        WriteFailedError: rank 0 raised it. Every rank does.
    """
    failure = None
    try:
        write()
    except WriteFailedError as error:
        failure = str(error)
    failure = from_main(failure)
    if failure is not None:
        raise WriteFailedError(failure)
