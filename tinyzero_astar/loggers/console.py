"""What a person sees.

Facts at the start, then a view that is drawn anew in its place, with evaluations above it. Where the output is no
terminal, a legend, a line for each iteration, evaluations and samples. A line of an iteration fits into 80 columns.
Other text is broken at words where the width is known. A pipe gets each sentence on one line, and commands stay whole
everywhere.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from tinyzero_astar.config import WITH_CRITIC
from tinyzero_astar.interfaces import Logger, Table
from tinyzero_astar.loggers.live import LiveView
from tinyzero_astar.loggers.text import broken, on_one_line, percent, short_count, short_seconds
from tinyzero_astar.terminal import printable

_MAX_SAMPLE_CHARACTERS = 600
_MAX_QUESTION_CHARACTERS = 200
_NUM_SHOWN = 3  # samples of an iteration
_NAME_WIDTH = 10  # of a fact
_HELD_OUT, _SAMPLED = "eval/greedy", "eval/sampled_format"
TOKENS = ("search/num_decoded_tokens", "reference/num_decoded_tokens")


class Terminal(Console):
    """Rich's console, but output that nobody reads any more ends in `run_command`, not in status 1."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)  # :smile: stays what a model wrote

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        if threading.current_thread() is threading.main_thread():
            raise BrokenPipeError
        raise SystemExit  # ends a progress bar's thread silently, and the main thread will notice by itself


def safe(text: str) -> str:
    """Text of foreign origin for rich, without markup and without anything that a terminal would obey."""
    return escape(printable(text))


def has_guidance(config: Mapping[str, Any]) -> bool:
    """Whether the value model may guide the searches of a run, by the sections of its configuration."""
    search = config["search"]
    return (
        config["train"]["algorithm"] in WITH_CRITIC and search["mode"] != "sample" and search["guidance_strength"] > 0
    )


def leaves_of(config: Mapping[str, Any]) -> int:
    """Completions of an iteration, by the sections of its configuration."""
    num: float = config["search"]["num_rollouts_per_problem"] * config["train"]["problems_per_iteration"]
    return round(num)


def _legend(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    search = config["search"]
    mode = search["mode"]
    if mode == "best_first":
        yield "accuracy", "unknown: the best completions do not tell how often the policy is right"
    else:
        weighted = "weighted " if mode == "gumbel" else ""
        yield "accuracy", f"how often the policy is right, by the {weighted}completions of the iteration"
    no_accuracy = "" if mode == "sample" else ". This is no accuracy, as a search finds rare ones too"
    yield "found", f"right ones among the completions of the iteration{no_accuracy}"
    if has_guidance(config):
        told = "on while the value model guides the search, which it does when it ranks well."
        yield (
            "guide",
            f"{told} In brackets: how often it ranked the right one of two continuations higher (.50 is chance, – is"
            " not known yet)",
        )
    yield "tokens", "decoded for training so far"
    yield "s", "seconds for search and update"
    yield "held out", "problems never trained on, decoded greedily, with 95 % intervals"


class ConsoleLogger(Logger):
    """Writes to the terminal, or plain lines when the output is no terminal. Warnings and errors go to standard error.

    Args:
        console: for all else. Standard output by default.
        is_silent: write nothing, as all processes of a run but one do.
    """

    def __init__(self, console: Console | None = None, is_silent: bool = False) -> None:
        terminal = False if is_silent else None
        options: dict[str, Any] = {"highlight": False, "soft_wrap": True, "quiet": is_silent}
        self.console = console or Terminal(force_terminal=terminal, **options)
        self._errors = Terminal(stderr=True, force_terminal=terminal, **options)
        self._view: LiveView | None = None
        self._num_iterations: int | None = None  # of the run that has begun
        self._spent: dict[int, int] = {}  # tokens by iteration

    def say(self, text: str) -> None:
        """One line. Brackets in it are not markup."""
        self.console.print(safe(text))

    def fact(self, name: str, text: str) -> None:
        """A name and what is to be said of it, broken at words."""
        whole = f"{name:{_NAME_WIDTH - 1}s} {text}"
        self._named(name, _fitted(self.console, whole, " " * _NAME_WIDTH))

    def command(self, name: str, command: str) -> None:
        """A name and a command to be copied, which no line break divides."""
        self._named(name, f"{name:{_NAME_WIDTH - 1}s} {command}")

    def _named(self, name: str, whole: str) -> None:
        self.console.print(f"[dim]{safe(name)}[/]{safe(whole.removeprefix(name))}")

    def warn(self, text: str) -> None:
        """A sentence that stands out, on standard error."""
        whole = _fitted(self._errors, f"warning: {text}", "  ")
        self._alert(f"[bold yellow]warning:[/]{safe(whole.removeprefix('warning:'))}")

    def fail(self, text: str) -> None:
        """One line that says why a run ends, on standard error."""
        self._alert(f"[bold red]error:[/] {safe(text)}")

    def _alert(self, markup: str) -> None:
        # a terminal that shows the view must get its lines through the view's console, or they would be overwritten
        is_shared = self._view is not None and self._errors.is_terminal
        (self.console if is_shared else self._errors).print(markup)

    def begin(self, config: Mapping[str, Any], folder: Path, done: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Show the view until `end`, or explain the lines to come."""
        self._num_iterations = config["train"]["num_iterations"]
        self._num_leaves = leaves_of(config)
        self._has_guidance = has_guidance(config)
        self._spent = {r["iteration"]: num_tokens(r) for r in records}
        if _can_show_a_view(self.console):
            self._view = LiveView(
                self.console, self._num_iterations, self._has_guidance, self._num_leaves, self._errors.is_terminal
            )
            self._view.earlier(done, records)
            self._view.tokens(self._tokens())
            self._view.start()
        elif done < self._num_iterations:
            self.say("\na line for each iteration:")
            for name, text in _legend(config):
                indent = " " * _NAME_WIDTH
                self._named(name, broken(f"{name:{_NAME_WIDTH - 1}s} {text}", self.console.width, indent))
            self.say("")

    def iteration(self, number: int, metrics: Mapping[str, Any], ranking: float | None) -> None:
        """The one line of an iteration, or the view with it."""
        self._spent[number] = num_tokens(metrics)
        if self._view is not None:
            self._view.iteration(number, metrics, self._tokens())
            return
        parts = [
            f"[bold]{self._place(number)}[/]",
            f"accuracy [bold]{percent(metrics['rollout/policy_accuracy'])}[/]",
            f"found {percent(metrics['rollout/accuracy'])} of {self._num_leaves}",
        ]
        if self._has_guidance:
            state = "on" if metrics["guidance/is_open"] else "off"
            known = "–" if ranking is None else f"{ranking:.2f}".lstrip("0")
            parts.append(f"guide {state} ({known})".ljust(15))
        parts.append(f"{short_count(self._tokens()):>5s} tokens")
        parts.append(f"{short_seconds(metrics['time/iteration_s']):>6s}")
        line = Text.from_markup("  ".join(parts))
        self.console.print(line if line.cell_len <= self.console.width else " ".join(line.plain.split()))

    def record(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Count what an earlier process decoded in an iteration that it could not record."""
        self._spent[number] = num_tokens(metrics)
        if self._view is not None:
            self._view.tokens(self._tokens())

    def _tokens(self) -> int:
        return sum(self._spent.values())

    def _place(self, number: int) -> str:
        width = len(str(self._num_iterations))
        return f"{number:{width}d}/{self._num_iterations}"

    def alarm(self, number: int, text: str) -> None:
        """A warning."""
        self.warn(text)

    def samples(self, number: int, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """The best completion of each of the first problems, with what the verifier said, or of more in the view."""
        best = (first for first, *_ in filter(None, records))
        if self._view is not None:
            self._view.samples(number, [*best])
            return
        self.say("  completions that the search ranked first:")
        for first in itertools.islice(best, _NUM_SHOWN):
            self._sample(first["problem"], first["completion"], first["reason"])

    def _sample(self, question: str, completion: str, verdict: str) -> None:
        question = _fitted(self.console, f"  {on_one_line(question, _MAX_QUESTION_CHARACTERS)}", "  ")
        text = _fitted(self.console, f"    {on_one_line(completion, _MAX_SAMPLE_CHARACTERS)}", "    ")
        self.console.print(f"[cyan]{safe(question)}[/]  [dim]({safe(verdict)})[/]\n{safe(text)}")

    def evaluation(self, number: int, metrics: Mapping[str, Any], tables: Sequence[Table]) -> None:
        """The tables. For the few greedy completions between the first and the last evaluation it is one line."""
        if self._view is not None:
            self._view.evaluation(number, metrics)
        if f"{_HELD_OUT}_format" not in metrics or _SAMPLED in metrics or self._num_iterations is None:
            for table in tables:
                self._table(table)
            return
        value, low, high = (100 * metrics[f"{_HELD_OUT}_accuracy{end}"] for end in ("", "_low", "_high"))
        self.console.print(
            f"[bold]{self._place(number)}[/]  held out [bold]{value:.1f} %[/] \\[{low:.1f}, {high:.1f}]"
            f" of {metrics['eval/num_problems']} right, {100 * metrics[f'{_HELD_OUT}_format']:.0f} % well-formed"
        )
        for table in tables[1:]:
            self._table(table)

    def _table(self, table: Table) -> None:
        """A title, and a line for each row."""
        width = max(len(name) for name, _ in table.rows)
        self.console.print(f"[bold]{safe(_fitted(self.console, table.title, '  '))}[/]")
        for name, value in table.rows:
            whole = f"  {name:{width}s}  {value}"
            self.console.print(safe(_fitted(self.console, whole, " " * (width + 4))))

    def end(self) -> None:
        """Leave the view as it is."""
        if self._view is not None:
            self._view.stop()
            self._view = None


def _can_show_a_view(console: Console) -> bool:
    """Whether it is a terminal that moves its cursor and knows the characters of the view."""
    return console.is_interactive and console.encoding.startswith("utf")


def _fitted(console: Console, text: str, indent: str) -> str:
    """Broken at words where a terminal or COLUMNS says how wide a line may be."""
    is_known = console.is_terminal or "COLUMNS" in os.environ
    return broken(text, console.width, indent) if is_known else text


def num_tokens(metrics: Mapping[str, Any]) -> int:
    """Decoded in an iteration, those of a reference included."""
    return sum(int(metrics.get(name) or 0) for name in TOKENS)
