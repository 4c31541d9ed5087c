"""Signals that ask a run to stop, noted, said once, and agreed on by all ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tinyzero_astar.distributed import gather, is_distributed, is_main

SIGNALS = [  # that ask a run to stop, of which some systems lack some
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]
_SAME_SIGNAL_S = 2.0  # within it, torchrun and the system may send a process the same request twice


@contextmanager
def stop_requests(what_follows: str = "finishing this iteration, then saving") -> Iterator[list[int]]:
    """A list that holds the number of the first signal that asked to stop. A second one stops at once.

    `what_follows` is said at the first.
    """
    received: list[int] = []
    times: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        times.append(time.monotonic())
        if received and not (is_distributed() and times[-1] - times[0] < _SAME_SIGNAL_S):
            raise KeyboardInterrupt(number)
        if not received:
            received.append(number)
            _announce(f"\n{signal.Signals(number).name}: {what_follows}. A second signal stops at once\n")

    # nohup has SIGHUP ignored, and so it stays
    heeded = [n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    before = [(number, signal.signal(number, note)) for number in heeded]
    try:
        yield received
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _announce(text: str) -> None:
    """Print from inside a signal's handler. Where the terminal is gone, nothing more is printed to it."""
    if not is_main():
        return
    try:
        os.write(1, text.encode())  # print() is not made to be interrupted by itself
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)


def agreed(received: list[int]) -> int:
    """The number of the signal that some rank received, the same on all, 0 for none."""
    return max(gather(received[0] if received else 0))
