"""What a run has come to, for people, from where to where, at which cost, and what to do with it now."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyzero_astar.config import Config
from tinyzero_astar.loggers.console import TOKENS, num_tokens
from tinyzero_astar.run.build import Session
from tinyzero_astar.terminal import counted, readable_seconds

_ACCURACY = "eval/greedy_accuracy"
_LONGEST_QUESTION = 40  # characters that still read well in a command


def summary(config: Config, records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names and sentences.

    Args:
        config: of the run.
        records: of its iterations, those of earlier processes included.
    """
    if evaluated := [r for r in records if r.get(_ACCURACY) is not None]:
        yield "held out", _result(evaluated)
    if trained := [r for r in records if TOKENS[0] in r]:
        seconds = [r.get("time/iteration_s") for r in trained]
        known = sum(s for s in seconds if s is not None)
        least = "at least " if None in seconds else ""  # a process was stopped before it could record the time
        yield (
            "cost",
            f"{sum(map(num_tokens, trained)):,} tokens decoded for training, {least}{known:.0f} s of search and update",
        )
        yield "guidance", _guidance(config, trained)


def _result(evaluated: Sequence[Mapping[str, Any]]) -> str:
    first, last = evaluated[0], evaluated[-1]
    if last is first:
        return f"{_interval(last)} right after {counted(last['iteration'], 'iteration')}"
    num = last["iteration"] - first["iteration"]
    return f"from {_interval(first)} to {_interval(last)} right in {counted(num, 'iteration')}"


def _interval(record: Mapping[str, Any]) -> str:
    value, low, high = (100 * record[f"{_ACCURACY}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _guidance(config: Config, trained: Sequence[Mapping[str, Any]]) -> str:
    if config.search.mode == "sample":
        return "none: mode sample does not search"
    if config.search.guidance_strength == 0:
        return "none: search.guidance_strength is 0"
    count = sum(r["guidance/is_open"] == 1 for r in trained)
    return f"used in {count} of {len(trained)} iterations. At the end {trained[-1]['guidance/reason']}"


def commands(folder: Path, question: str) -> Iterator[tuple[str, str]]:
    """Names and commands that show more of a run.

    Args:
        folder: of the run.
        question: an example of its task.
    """
    run = shlex.quote(str(folder))
    asked = shlex.quote(question) if len(question) <= _LONGEST_QUESTION else "QUESTION"
    yield "tree", f"tinyzero solve {asked} --checkpoint {run}"
    yield "evaluate", f"tinyzero eval {run}"


def say_goodbye(session: Session, records: Sequence[Mapping[str, Any]], seconds: float, card: Path) -> None:
    """The last words of a run.

    Args:
        session: of the run.
        records: of its iterations.
        seconds: that this process took.
        card: the newest checkpoint's model card.
    """
    last, say = session.config.train.num_iterations, session.console
    trained = last - session.first_iteration
    if trained > 0:
        say.say(f"\n{counted(trained, 'iteration')} in {readable_seconds(seconds)}, evaluations included")
    else:
        say.say(f"nothing to train. This run has finished its {counted(last, 'iteration')}.")
        say.say("A larger --train.num-iterations continues it.")
    for name, text in summary(session.config, records):
        say.fact(name, text)
    if last > 0:
        for name, command in commands(session.folder, session.held_out[0].text):
            say.command(name, command)
        say.command("card", str(card))
