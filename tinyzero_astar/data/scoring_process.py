"""A process of its own for scorers of others, which may hang, crash or misbehave. It speaks in lines of JSON.

It greets with a line on its standard output. Then each request is a line to its standard input, and each reply a line
from its standard output. Only JSON is used, so nothing that it sends can be code. A process that gives no proper reply
in time is ended, and the next request starts a new one.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

MISHAPS = (  # whatever code of others may raise
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_MAX_REPLY_BYTES = 1_000_000
_START_LIMIT_S = 120.0  # imports on a busy machine
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class LostError(Exception):
    """The process gave no proper reply and was ended. The message says what happened, in a few words."""


class ScoringProcess:
    """The process, started when it is first asked, ended with this object.

    Args:
        command: program and arguments, see `python_module`.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, object], limit_s: float) -> dict[str, object]:
        """The reply to a request.

        Args:
            request: what JSON can hold, below 64 kB as a line, so that sending it never waits.
            limit_s: seconds that the reply may take. A start that is needed first has seconds of its own.

        Raises:
            LostError: no reply in time, or none that is a JSON object on one line of at most a megabyte.
            ValueError: the process greets with an error, which is the message.
        """
        reply = None
        try:
            process = self._process or self._start()
            reply = _exchange(process, json.dumps(request).encode() + b"\n", limit_s)
            return reply
        finally:
            if reply is None:  # interrupted, too, since what it still owes must not answer the next request
                self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._end()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        path = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            self._command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # equal hashes make the order of sets equal, which some generators of questions depend on
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is answered by the parent alone
        )
        self._end = weakref.finalize(self, _end, self._process)
        greeting = _exchange(self._process, b"", _START_LIMIT_S)
        if "error" in greeting:
            raise ValueError(str(greeting["error"]))
        return self._process


def python_module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package with this Python, without the current folder on its path."""
    return [sys.executable, "-P", "-m", name, *arguments]


def _exchange(process: subprocess.Popen[bytes], request: bytes, limit_s: float) -> dict[str, object]:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(request)
        line = _line(process.stdout.fileno(), limit_s)
    except BrokenPipeError:
        raise LostError("ended") from None
    try:
        reply = json.loads(line)  # two lines are no JSON
    except (ValueError, RecursionError):
        raise LostError("gave a reply that is no JSON") from None
    if not isinstance(reply, dict):
        raise LostError("gave a reply that is no JSON object")
    return reply


def _line(pipe: int, limit_s: float) -> bytes:
    """What comes up to the end of a line."""
    found, last = b"", time.monotonic() + limit_s
    while not found.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, last - time.monotonic()))
        if not ready:
            raise LostError(f"gave no reply in {limit_s:g} s")
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            raise LostError("ended")
        found += chunk
        if len(found) > _MAX_REPLY_BYTES:
            raise LostError("wrote without end")
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
