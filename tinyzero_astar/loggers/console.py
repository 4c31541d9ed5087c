"""What a person sees: one line per iteration, a progress bar with the time left, tables, samples."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from tinyzero_astar.interfaces import Logger, Table
from tinyzero_astar.terminal import printable

_MAX_SAMPLE_CHARACTERS = 600
_NUM_SHOWN = 3  # samples of an iteration


class Terminal(Console):
    """Rich's console, but output that nobody reads any more ends in `run_command`, not in status 1."""

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        if threading.current_thread() is threading.main_thread():
            raise BrokenPipeError
        raise SystemExit  # ends a progress bar's thread without a word; the main thread will notice by itself


def safe(text: str) -> str:
    """Text of foreign origin for rich: neither markup nor anything that a terminal would obey."""
    return escape(printable(text))


def _shown(value: float | None, pattern: str) -> str:
    """A metric; a dash where nothing could be measured."""
    return "–" if value is None else format(value, pattern)


class ConsoleLogger(Logger):
    """Writes to the terminal; plain lines when the output is no terminal. Warnings and errors go to standard error.

    Args:
        console: for all else; default: standard output.
        is_silent: write nothing: the processes of a run but one.
    """

    def __init__(self, console: Console | None = None, is_silent: bool = False) -> None:
        terminal = False if is_silent else None
        options: dict[str, Any] = {"highlight": False, "soft_wrap": True, "quiet": is_silent}
        self.console = console or Terminal(force_terminal=terminal, **options)
        self._errors = Terminal(stderr=True, force_terminal=terminal, **options)
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        """One line; brackets in it are not markup."""
        self.console.print(safe(text))

    def warn(self, text: str) -> None:
        """One line that stands out, on standard error."""
        self._alert(f"[bold yellow]warning:[/] {safe(text)}")

    def fail(self, text: str) -> None:
        """One line that says why a run ends, on standard error."""
        self._alert(f"[bold red]error:[/] {safe(text)}")

    def _alert(self, markup: str) -> None:
        # a terminal that shows the bar must get its lines through the bar's console, or they would be overwritten
        is_shared = self._progress is not None and self._errors.is_terminal
        (self.console if is_shared else self._errors).print(markup)

    def begin(self, config: Mapping[str, Any], folder: Path, done: int) -> None:
        """Show a progress bar until `end`."""
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("iterations"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=config["train"]["num_iterations"], completed=done)
        self._progress.start()

    def iteration(self, number: int, metrics: Mapping[str, Any]) -> None:
        """The one line of an iteration."""
        m = metrics
        num_tokens = int(m["search/num_decoded_tokens"] + m.get("reference/num_decoded_tokens", 0))
        self.console.print(
            f"iteration [bold]{number:3d}[/]"
            f" rollouts [bold]{100 * m['rollout/accuracy']:4.1f}%[/]"
            f" policy [bold]{_shown(m['rollout/policy_accuracy'], '5.1%')}[/] Σŵ {m['weight/sum']:.2f}"
            f" loss {_shown(m['train/policy_loss'], '+.2f')} value {_shown(m['train/value_loss'], '.2f')}"
            f" tokens {num_tokens:,} expanded {int(m['search/num_expanded']):,}"
            f" {m['time/iteration_s']:.1f} s"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=number)

    def alarm(self, number: int, text: str) -> None:
        """A warning."""
        self.warn(text)

    def samples(self, number: int, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """The best completion of each of the first problems, with what the verifier said."""
        for first, *_ in itertools.islice(filter(None, records), _NUM_SHOWN):
            self._sample(first["problem"], first["completion"], first["reason"])

    def _sample(self, question: str, completion: str, verdict: str) -> None:
        shown = completion[:_MAX_SAMPLE_CHARACTERS]
        rest = len(completion) - len(shown)
        text = " ⏎ ".join(shown.split("\n")) + (f" … ({rest} more characters)" if rest else "")
        self.console.print(f"  [cyan]{safe(question)}[/]  {safe(text)}  [dim]({safe(verdict)})[/]")

    def evaluation(self, number: int, metrics: Mapping[str, Any], tables: Sequence[Table]) -> None:
        """The tables."""
        for table in tables:
            self._table(table)

    def _table(self, table: Table) -> None:
        shown = RichTable(title=safe(table.title), show_header=False, title_justify="left", title_style="bold")
        for name, value in table.rows:
            shown.add_row(safe(name), safe(value))
        self.console.print(shown)

    def end(self) -> None:
        """Remove the progress bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
