"""What a run came to in a few sentences, for the head of its page. It is text alone, which the template escapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tinyzero_astar.loggers.console import num_tokens
from tinyzero_astar.report.page_data import RunRecords
from tinyzero_astar.run.model_card import shown
from tinyzero_astar.terminal import counted, readable_seconds

_ACCURACY, _POLICY = "eval/greedy_accuracy", "rollout/policy_accuracy"
_RARE = 0.05  # probability under the policy below which one sample would hardly show a completion

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


class Headline(NamedTuple):
    """The head of one run."""

    name: str
    sentence: str  # what it is
    before: Accuracy | None
    after: Accuracy | None
    facts: list[tuple[str, str]]  # names and what is to be said
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
        facts=[*_facts(run, evaluated, trained)],
        alarms=[*_alarms(trained)],
        processes=[*map(_process, run.processes)],
    )


def _setting(run: RunRecords, section: str, name: str) -> Any:
    return run.config.get(section, {}).get(name)


def _sentence(run: RunRecords) -> str:
    model, task = (shown(str(_setting(run, *name))) for name in (("model", "model_name"), ("data", "task")))
    name = "the embedded base model" if model == "embedded" else model
    size = next((p["parameters"] for p in run.processes if isinstance(p.get("parameters"), int)), None)
    parameters = "" if size is None else f" ({size:,} parameters)"
    return f"{name}{parameters} on the task {task}, by algorithm {_setting(run, 'train', 'algorithm')}"


def _accuracy(row: Mapping[str, Any]) -> Accuracy:
    low, high = (row.get(f"{_ACCURACY}{end}") for end in ("_low", "_high"))
    interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
    return Accuracy(f"{100 * row[_ACCURACY]:.1f} %", interval)


def _facts(
    run: RunRecords, evaluated: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    if trained:
        seconds = sum(row.get("time/iteration_s") or 0.0 for row in trained)
        device = next((str(p["device"]) for p in run.processes if "device" in p), "")
        on = f" on {device}" if device else ""
        yield "Time", f"{readable_seconds(seconds)} of search and update in {counted(len(trained), 'iteration')}{on}"
        yield "Tokens", f"{sum(map(num_tokens, trained)):,} decoded for training"
    if (half := _half_way(trained)) is not None:
        yield "Half way", f"half of the gain of accuracy in training was there after iteration {half}"
    if told := _lengths(trained):
        yield "Length", told
    if rare := _rare(run.traces):
        yield "Search", rare
    if guided := [row for row in trained if row.get("guidance/is_open") is not None]:
        count = sum(row["guidance/is_open"] == 1 for row in guided)
        yield "Heuristic", f"guided {count} of {counted(len(guided), 'iteration')}. {guided[-1].get('guidance/reason')}"


def _half_way(trained: Sequence[Mapping[str, Any]]) -> int | None:
    """The first iteration half way from the first to the last mean over three estimates. None without a gain."""
    known = [(int(row["iteration"]), float(row[_POLICY])) for row in trained if row.get(_POLICY) is not None]
    means = [(known[i][0], sum(x for _, x in known[i - 1 : i + 2]) / 3) for i in range(1, len(known) - 1)]
    if len(means) < 2 or means[-1][1] <= means[0][1]:
        return None
    return next(iteration for iteration, mean in means if mean >= (means[0][1] + means[-1][1]) / 2)


def _lengths(trained: Sequence[Mapping[str, Any]]) -> str:
    known = [row["rollout/length"] for row in trained if row.get("rollout/length") is not None]
    if len(known) < 2:
        return ""
    return (
        f"completions grew from {known[0]:.0f} to {known[-1]:.0f} tokens, as answers were worked out"
        if (known[-1] > 1.2 * known[0])
        else f"completions had {known[0]:.0f} tokens at first and {known[-1]:.0f} at the end"
    )


def _rare(traces: Sequence[Mapping[str, Any]]) -> str:
    """What the recorded searches found that sampling would hardly have."""
    right = [trace["nodes"]["g"][leaf["node"]] for trace in traces for leaf in trace["leaves"] if leaf["accuracy"]]
    if not right:
        return ""
    rare = sum(math.exp(g) < _RARE for g in right)
    return (
        f"{counted(len(right), 'right completion')} in the recorded searches, {rare} of which the policy itself would"
        f" write with a probability below {100 * _RARE:.0f} %"
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
