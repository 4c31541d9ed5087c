"""How every command starts and ends, and what may be printed; needs nothing but Python itself."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

FAILED, USAGE_ERROR = 1, 2
UNREAD = 141  # the shell's for output that nobody reads
_OLDEST = (3, 11)


def run_command(run: Callable[[], int]) -> int:
    """Run a command, whatever the state of its output; returns the exit status.

    Status 2 with one sentence when Python is too old or a package is missing, 141 as soon as nobody reads the output
    any more, as in `... | head`, and 1 with one sentence when the output cannot be written, as on a full disk.
    """
    prepare_streams()
    if sys.version_info < _OLDEST:
        return complain(f"Python {'.'.join(map(str, _OLDEST))} or newer is needed, and {sys.executable} is older")
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "tinyzero_astar":
            raise
        return complain(
            f"{sys.executable} has no package {error.name!r}: `make train` sets up .venv, after that use"
            " `.venv/bin/python` instead of `python`, or run `source .venv/bin/activate` first"
        )
    except OSError as error:
        if _can_write():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        if isinstance(error, BrokenPipeError):
            return UNREAD
        return complain(f"standard output cannot be written ({error.strerror}); send it elsewhere", FAILED)


def prepare_streams() -> None:
    """Characters that standard output cannot encode are replaced; a closed stream takes everything and keeps nothing.

    Standard error needs no such care: Python writes escapes for what it cannot encode.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    if sys.stderr is None:  # print(file=None) would write to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


def complain(error: object, status: int = USAGE_ERROR) -> int:
    """One sentence on standard error; returns the status."""
    print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
    return status


def printable(text: str) -> str:
    """Text of foreign origin, with nothing in it that a terminal would obey; line breaks are kept."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def readable_bytes(size: float) -> str:
    """With a unit in which it has at most three digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def readable_seconds(seconds: float) -> str:
    """In seconds below two minutes, minutes below two hours, hours below two days, and days."""
    for unit, in_seconds, next_unit in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 24)):
        if seconds < 2 * in_seconds * next_unit:
            return f"{seconds / in_seconds:.3g} {unit}"
    return f"{seconds / 86400:,.0f} days"


def _can_write() -> bool:
    try:
        print(flush=True)
    except OSError:
        return False
    return True
