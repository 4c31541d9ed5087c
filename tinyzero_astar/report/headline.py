"""What a run came to in a few sentences, for the head of its page. It is text alone, which the template escapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tinyzero_astar.report.answer import Answer
from tinyzero_astar.report.answers import answers
from tinyzero_astar.report.evidence import examples
from tinyzero_astar.report.page_data import RunRecords
from tinyzero_astar.run.model_card import shown
from tinyzero_astar.terminal import counted, printable

_ACCURACY = "eval/greedy_accuracy"
_MOST_SHOWN = 600  # characters of an example

# what each alarm of metrics/alarms.py means, and what to do
ALARMS = {
    "value_ranks_by_chance": "The value model ranked no better than chance, so it could not guide the search.",
    "no_gradient": "The completions of nearly every problem agreed: hardly any gradient. Take problems of another"
    " difficulty, or more completions for each.",
    "ratio": "Sampler and trainer disagreed at unchanged weights: something is wrong with numbers or versions.",
    "entropy_collapse": "The policy became certain before it was right. Lower the learning rate.",
    "weight_drift": "The weights did not sum to 1: the gradient was biased.",
    "length_hacking": "Reward followed length more than being right. Look at the completions.",
}


class Accuracy(NamedTuple):
    """Of one evaluation, in per cent as text."""

    value: str
    interval: str


class Example(NamedTuple):
    """A completion."""

    title: str
    problem: str
    completion: str


class Headline(NamedTuple):
    """The head of one run."""

    name: str
    sentence: str  # what it is
    before: Accuracy | None
    after: Accuracy | None
    answers: list[Answer]
    examples: list[Example]  # of the first completions and of the last, or none
    alarms: list[tuple[str, str]]  # when each held, and what it means
    processes: list[tuple[str, str, str]]  # when each began, its command, what it ran on


def headline(run: RunRecords) -> Headline:
    """Of a run whose configuration need not be complete, since it may be of another version."""
    evaluated = [row for row in run.rows if row.get(_ACCURACY) is not None]
    trained = [row for row in run.rows if row["iteration"] > 0]
    return Headline(
        name=run.name,
        sentence=_sentence(run),
        before=_accuracy(evaluated[0]) if len(evaluated) > 1 else None,
        after=_accuracy(evaluated[-1]) if evaluated else None,
        answers=answers(run),
        examples=_examples(run),
        alarms=[*_alarms(trained)],
        processes=[*map(_process, run.processes)],
    )


def _sentence(run: RunRecords) -> str:
    model, task = (shown(str(run.setting(*name))) for name in (("model", "model_name"), ("data", "task")))
    name = "the embedded base model" if model == "embedded" else model
    size = next((p["parameters"] for p in run.processes if isinstance(p.get("parameters"), int)), None)
    parameters = "" if size is None else f" ({size:,} parameters)"
    return f"{name}{parameters} on the task {task}, by algorithm {run.setting('train', 'algorithm')}"


def _accuracy(row: Mapping[str, Any]) -> Accuracy:
    low, high = (row.get(f"{_ACCURACY}{end}") for end in ("_low", "_high"))
    interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
    return Accuracy(f"{100 * row[_ACCURACY]:.1f} %", interval)


def _examples(run: RunRecords) -> list[Example]:
    found = examples(run.samples)
    return [] if found is None else [_example(sample) for sample in found]


def _example(sample: Mapping[str, Any]) -> Example:
    verdict = "right answer" if sample.get("accuracy") else f"wrong ({sample.get('reason')})"
    completion = str(sample.get("completion", ""))
    shown = completion if len(completion) <= _MOST_SHOWN else f"{completion[:_MOST_SHOWN]}…"
    return Example(
        f"Iteration {sample['iteration']}, {verdict}", printable(str(sample.get("problem"))), printable(shown)
    )


def _alarms(trained: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    held: dict[str, list[int]] = {}
    for row in trained:
        for name in row.get("alarms") or []:
            held.setdefault(str(name), []).append(row["iteration"])
    for name, iterations in held.items():
        when = f"{name}, {counted(len(iterations), 'iteration')}, first in iteration {iterations[0]}"
        yield when, ALARMS.get(name, "See docs/metrics.md.")


def _process(record: Mapping[str, Any]) -> tuple[str, str, str]:
    versions = record.get("versions")
    parts = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
    parts += [str(record[name]) for name in ("device",) if name in record]
    parts += [f"{name} {record[name]}" for name in ("threads", "processes") if name in record]
    return (
        f"After iteration {record['iteration']}, {record.get('began', '')}",
        str(record.get("command", "")),
        " · ".join(parts),
    )
