"""How every command starts and ends, and what may be printed. It needs nothing but Python itself."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import NoReturn, TextIO

FAILED, USAGE_ERROR = 1, 2
UNREAD = 141  # the shell's for output that nobody reads
_OLDEST = (3, 11)
_MAX_SHOWN, _MAX_SHOWN_BITS = 60, 150  # characters of a value in a message, and bits of a whole number
_noted: list[int] = []  # signals that `_Interruptible` received in this command


class FailedError(Exception):
    """Ends a command with status 1. The message is the one sentence that a person needs."""


def run_command(run: Callable[[], int]) -> int:
    """Run a command, whatever the state of its output, and return the exit status.

    Status 2 with one sentence when Python is too old or a package is missing, 141 as soon as nobody reads the output
    any more, as in `... | head`. Status 1 with one sentence after a `FailedError`, when memory does not suffice, or
    when the output cannot be written, as on a full disk. After a signal that stopped it, 128 plus its number, with
    one sentence too.
    """
    prepare_streams()
    if sys.version_info < _OLDEST:
        return complain(f"Python {'.'.join(map(str, _OLDEST))} or newer is needed, and {sys.executable} is older")
    try:
        with _Interruptible() as interruptible:
            try:
                return run()
            finally:
                sys.stdout.flush()
        return _stopped_by(interruptible.number)
    except FailedError as error:
        return complain(error, FAILED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return complain(
            f"there is not enough memory ({first_line(error)}); what was saved before is kept, and `tinyzero doctor`"
            " with the same options tells what a run needs",
            FAILED,
        )
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
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return UNREAD
        return complain(f"standard output cannot be written ({error.strerror}); send it elsewhere", FAILED)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is what a failed allocation raises, on a CPU or a GPU."""
    is_told = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)  # PyTorch, the system
    return isinstance(error, MemoryError) or is_told


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(x.strip() for x in lines[: 2 if lines[0].endswith(":") else 1])
    return f"{type(error).__name__} {line}" if isinstance(error, KeyError) else line  # whose line is the key alone


def end_process(status: int) -> NoReturn:
    """End the process with a status, once there is nothing left to do.

    Under torchrun it ends at once. Threads that PyTorch keeps for a process group may abort the interpreter's own end,
    with status -6, after the group was left in good order.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)
    raise SystemExit(status)


class _Interruptible:
    """Ends with its block where a signal stopped that. `number` is the signal's, 0 for none.

    Libraries may catch the KeyboardInterrupt and raise something else. For example, the lazy imports of transformers
    say that a module is missing. So SIGINT is noted, and after that any exception means that the command was stopped.
    """

    number = 0

    def __enter__(self) -> _Interruptible:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # background jobs ignore it, and so it stays
            signal.signal(signal.SIGINT, _note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if signal.getsignal(signal.SIGINT) is _note:  # nothing is left to stop but the interpreter's own end
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if isinstance(error, KeyboardInterrupt):
            self.number = error.args[0] if error.args else signal.SIGINT
        elif error is not None and _noted:
            self.number = _noted[0]
        _noted.clear()
        return self.number > 0


def _note(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # once more ends the process, whatever it is doing
    _noted.append(number)
    raise KeyboardInterrupt(number)


def status_of(number: int) -> int:
    """The exit status of a command that the signal of this number stopped."""
    return 128 + number


def _stopped_by(number: int) -> int:
    with suppress(OSError):
        print("stopped at once. Only what was saved before is kept", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):  # Ctrl-C stops what reads them, too
        try:
            stream.flush()
        except OSError:
            _discard(stream)
    return status_of(number)


def _discard(stream: TextIO) -> None:
    """What cannot be written goes nowhere, because the interpreter flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def prepare_streams() -> None:
    """Replace characters that standard output cannot encode. A closed stream takes everything and keeps nothing.

    Standard error needs no such care, since Python writes escapes for what it cannot encode.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    if sys.stderr is None:  # print(file=None) would write to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


def complain(error: object, status: int = USAGE_ERROR) -> int:
    """Print one sentence on standard error, and return the status.

    Raises:
        KeyboardInterrupt: the command was interrupted, and the error may be only what a library made of that.
    """
    if _noted:
        raise KeyboardInterrupt(_noted[0])
    print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
    return status


def printable(text: str) -> str:
    """Text of foreign origin, with nothing in it that a terminal would obey. Line breaks are kept."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(value: object) -> str:
    """Any value for a message, as it would be written in Python, but never long."""
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN_BITS:  # of 4,300 digits Python writes none
        return f"a number of {value.bit_length():,} bits"
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 3]}..."


def counted(count: int, name: str) -> str:
    """A number of things, such as 1 beam or 2 beams."""
    return f"{count} {name}{'' if count == 1 else 's'}"


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
