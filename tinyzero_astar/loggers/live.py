"""What a terminal shows of a run while it goes on, drawn anew in the same place.

All other output goes above the view. Text that a model wrote is drawn as text. It is no markup, and nothing in it that
a terminal would obey is kept.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from tinyzero_astar.loggers.text import percent, short_count, sparkline
from tinyzero_astar.terminal import printable, readable_seconds

_NAME_WIDTH = 11  # of a line
_BAR, _SPARK = (10, 32), 32  # least and most width of the bar, most of a row of bars
_RECENT = 10  # iterations by whose duration the time left is told
_REFRESH = 4  # times a second
_ROTATION_S = 5.0  # a sample stays so long
_MOST_SAMPLES = 12  # of an iteration
_FULL_HEIGHT, _TALL_HEIGHT = 20, 34  # rows of a terminal for two samples, and for long ones
_WAITING = "the first iteration is still to come"
_COLOURS = {True: "green", False: "red"}

Line = tuple[str, Text]  # a name, and what is to be said of it


class LiveView:
    """The view of a run. Every method may be called at any time, as a thread draws what is known by then.

    Args:
        console: where it is drawn.
        total: iterations of the run.
        has_guidance: whether the value model may guide the searches of the run.
        num_leaves: completions of an iteration.
        owns_stderr: whether the same terminal shows standard error, which then goes above the view, too.
        clock: seconds, from any time on.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        has_guidance: bool,
        num_leaves: int,
        owns_stderr: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._total, self._clock = console, total, clock
        self._has_guidance, self._num_leaves = has_guidance, num_leaves
        self._done, self._began, self._is_over = 0, clock(), False
        self._stamps: list[float] = []  # when the iterations of this process ended
        self._accuracy: list[float | None] = []
        self._held_out: list[float | None] = []
        self._last: Mapping[str, Any] = {}
        self._evaluated: tuple[int, Mapping[str, Any]] | None = None
        self._num_tokens = 0
        self._alarms: dict[str, int] = {}  # those that hold, and since which iteration
        self._samples: Sequence[Mapping[str, Any]] = ()
        self._sampled = 0, 0.0  # in which iteration, and when they came
        self._live = Live(
            self,
            console=console,
            refresh_per_second=_REFRESH,
            redirect_stderr=owns_stderr,
            vertical_overflow="crop",
        )
        self._moved: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    # ------------------------------------------------------------------------------------------------ what is told

    def earlier(self, done: int, records: Sequence[Mapping[str, Any]]) -> None:
        """What earlier processes recorded of the `done` iterations."""
        self._done = done
        for record in records:
            if "rollout/accuracy" in record:
                self._note(record["iteration"], record)
            if "eval/greedy_accuracy" in record:
                self.evaluation(record["iteration"], record)

    def iteration(self, number: int, metrics: Mapping[str, Any], num_tokens: int) -> None:
        """Iteration `number` is over. `num_tokens` were decoded so far."""
        self._done, self._num_tokens = number, num_tokens
        self._stamps.append(self._clock())
        self._note(number, metrics)

    def _note(self, number: int, metrics: Mapping[str, Any]) -> None:
        self._accuracy.append(metrics["rollout/policy_accuracy"])
        self._last = metrics
        self._alarms = {name: self._alarms.get(name, number) for name in metrics.get("alarms") or ()}

    def samples(self, number: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Completions to show in turn."""
        self._samples, self._sampled = samples[:_MOST_SAMPLES], (number, self._clock())

    def evaluation(self, number: int, metrics: Mapping[str, Any]) -> None:
        """The model after iteration `number` has been evaluated."""
        self._held_out.append(metrics["eval/greedy_accuracy"])
        self._evaluated = number, metrics

    def tokens(self, num_tokens: int) -> None:
        """So many were decoded so far."""
        self._num_tokens = num_tokens

    # ------------------------------------------------------------------------------------------- the place of it

    def start(self) -> None:
        """Draw it from now on. What others write to the terminal goes above it."""
        before = sys.stdout, sys.stderr
        self._live.start()
        for handler in _stream_handlers():  # which keep the stream that they were made with
            for old, new in zip(before, (sys.stdout, sys.stderr), strict=True):
                if handler.stream is old and new is not old:
                    self._moved.append((handler, old))
                    handler.setStream(new)

    def stop(self) -> None:
        """Draw it once more and leave it there. It may be stopped twice."""
        self._is_over = True
        self._live.stop()
        while self._moved:
            handler, stream = self._moved.pop()
            handler.setStream(stream)

    # --------------------------------------------------------------------------------------------- what is drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich."""
        yield from self.lines(options.max_width, console.height)

    def lines(self, width: int, height: int) -> list[Text]:
        """The view in so many columns. It has less than `height` lines, and the samples go first."""
        now = self._clock()
        lines = [
            row
            for name, said in self._facts(max(width - _NAME_WIDTH, 1), now)
            for row in self._named(name, said, width, most=2)
        ]
        count, most = (2 if height >= _FULL_HEIGHT else 1), self._sample_height(width, height)
        if lines and self._samples and len(lines) + 1 + count * (1 + most) < height:
            lines += self._sample_lines(width, count, most, now)
        return lines[: max(height - 1, 1)]

    def _facts(self, width: int, now: float) -> Iterator[Line]:
        yield "iteration", self._progress(width, now)
        yield (
            "accuracy",
            _trend(self._accuracy, percent(self._last.get("rollout/policy_accuracy")), "in training", width),
        )
        if self._evaluated is not None:
            number, metrics = self._evaluated
            value, low, high = (metrics.get(f"eval/greedy_accuracy{end}") for end in ("", "_low", "_high"))
            interval = "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}] "
            yield "held out", _trend(self._held_out, percent(value), f"{interval}at iteration {number}", width)
        if not self._last:
            yield "", Text(_WAITING, "dim")
            return
        yield (
            "found",
            Text(f"{percent(self._last['rollout/accuracy']).strip()} of {self._num_leaves} completions right"),
        )
        if self._has_guidance:
            is_open = self._last["guidance/is_open"] == 1
            said = Text("on" if is_open else "off", "green" if is_open else "yellow")
            yield "guidance", said.append(f": {self._last.get('guidance/reason')}", "default")
        yield "speed", self._speed()
        yield "alarms", self._alarm_text()

    def _progress(self, width: int, now: float) -> Text:
        place = f"{self._done}/{self._total} "
        took = readable_seconds(now - self._began)
        left = self.seconds_left(now)
        times = f" {took}" + ("" if left is None else f", {readable_seconds(left)} left")
        room = min(width - len(place) - len(times), _BAR[1])
        if room < _BAR[0]:
            return Text(place + times.strip())
        filled = room * self._done // max(self._total, 1)
        return Text.assemble(place, ("━" * filled, "green"), ("╌" * (room - filled), "dim"), times)

    def seconds_left(self, now: float) -> float | None:
        """For the iterations to come and their evaluations, by the last ones. None before the first and at the end."""
        if self._is_over or self._done >= self._total or not self._stamps:
            return None
        recent = [self._began, *self._stamps][-_RECENT - 1 :]
        each = (recent[-1] - recent[0]) / (len(recent) - 1)
        return max(0.0, each * (self._total - self._done) - (now - recent[-1]))

    def _speed(self) -> Text:
        parts = [f"{part} {_rate(self._last, *names)}" for part, names in _SPEEDS.items()]
        return Text(", ".join([*parts, f"{short_count(self._num_tokens)} tokens decoded"]))

    def _alarm_text(self) -> Text:
        if not self._alarms:
            return Text("none", "green")
        return Text(", ".join(f"{name} since iteration {number}" for name, number in self._alarms.items()), "bold red")

    def _sample_height(self, width: int, height: int) -> int:
        """Lines of each completion, the same for all of them, or the view would jump."""
        longest = max((len(_told(sample)) for sample in self._samples), default=0)
        return min(5 if height >= _TALL_HEIGHT else 2, 1 + longest // max(width - _NAME_WIDTH, 1))

    def _sample_lines(self, width: int, count: int, most: int, now: float) -> Iterator[Text]:
        number, since = self._sampled
        shown = min(count, len(self._samples))
        first = shown * int((now - since) / _ROTATION_S)
        places = " and ".join(str(i % len(self._samples) + 1) for i in range(first, first + shown))
        said = f"completions that iteration {number} ranked first, {places} of {len(self._samples)}"
        yield Text(_shortened(said, width), "dim")
        for i in range(first, first + shown):
            sample = self._samples[i % len(self._samples)]
            question = _shortened(sample["problem"], width - _NAME_WIDTH - 1)
            yield from self._named("question", Text(question, "cyan"), width, most=1)
            is_right = sample["accuracy"] > 0.5
            colour = _COLOURS[is_right]
            # words that are moved to the next line leave room
            said = _shortened(sample["completion"], most * (width - _NAME_WIDTH - 6) - len(_verdict(sample)))
            text = Text.assemble(said, (_verdict(sample), colour))
            rows = self._named("right" if is_right else "wrong", text, width, most, colour)
            yield from itertools.islice(itertools.chain(rows, itertools.repeat(Text())), most)  # always as high

    def _named(self, name: str, said: Text, width: int, most: int, style: str = "dim") -> list[Text]:
        """A name and a text, broken at words into at most so many lines."""
        rows = said.wrap(self._console, max(width - _NAME_WIDTH, 1))
        if len(rows) > most:
            rows[most - 1].truncate(max(width - _NAME_WIDTH - 1, 1))
            rows[most - 1].append("…")
        head = [Text(f"{name:{_NAME_WIDTH}s}", style), *(Text(" " * _NAME_WIDTH) for _ in rows[1:most])]
        return [Text.assemble(a, b) for a, b in zip(head, rows, strict=False)]


_SPEEDS = {
    "search": ("search/num_decoded_tokens", "time/search_s"),
    "update": ("train/num_tokens", "time/update_s"),
}


def _rate(metrics: Mapping[str, Any], count: str, seconds: str) -> str:
    """Tokens per second of one iteration, or a dash where that is not known."""
    num, took = metrics.get(count), metrics.get(seconds)
    return "–" if num is None or not took else f"{short_count(round(num / took))}/s"


def _trend(shares: Sequence[float | None], value: str, note: str, width: int) -> Text:
    told = f"{value.strip()} {note}"
    room = min(width - len(told) - 1, _SPARK)
    bars = sparkline(list(shares), room) if room >= _BAR[0] else ""
    return Text.assemble((f"{bars} " if bars.strip() else "", "cyan"), (value.strip(), "bold"), f" {note}")


def _verdict(sample: Mapping[str, Any]) -> str:
    return f"  ({printable(sample['reason'])})"


def _told(sample: Mapping[str, Any]) -> str:
    return f"{sample['completion']}{_verdict(sample)}"


def _shortened(text: str, most: int) -> str:
    """On one line, without its middle where it is too long, since a completion ends with its answer."""
    line = " ⏎ ".join(printable(text).split("\n"))
    most = max(most, 9)
    if len(line) <= most:
        return line
    head = (most - 3) // 2
    return f"{line[:head]} … {line[len(line) - (most - 3 - head) :]}"


def _stream_handlers() -> Iterator[logging.StreamHandler[TextIO]]:
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    seen = {id(handler): handler for logger in loggers for handler in logger.handlers}
    return (handler for handler in seen.values() if isinstance(handler, logging.StreamHandler))
