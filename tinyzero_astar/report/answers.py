"""The questions of somebody who sees a run for the first time, each with a short answer and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyzero_astar.loggers.console import num_tokens
from tinyzero_astar.report.answer import Answer, percent
from tinyzero_astar.report.evidence import examples, half_way, known, worked_out
from tinyzero_astar.report.page_data import RunRecords
from tinyzero_astar.report.search_answers import judged, searched
from tinyzero_astar.terminal import counted, readable_seconds

_ACCURACY = "eval/greedy_accuracy"
_UNCHECKED = "The verifier reads the answer alone, so nobody knows whether the working is right."


def answers(run: RunRecords) -> list[Answer]:
    """What the records allow to say, question by question. Configuration and records need not be complete."""
    trained = [row for row in run.rows if row["iteration"] > 0]
    if not trained:
        return []
    found = [_learned(run, trained), _begun(run), searched(run, trained), judged(run, trained), _spent(run, trained)]
    return [answer for answer in found if answer is not None]


# --------------------------------------------------------------------------------------------------------- learned


def _learned(run: RunRecords, trained: Sequence[Mapping[str, Any]]) -> Answer:
    evaluated = [row for row in run.rows if row.get(_ACCURACY) is not None]
    reasons = []
    if len(evaluated) > 1:
        reasons.append(f"Before training {percent(evaluated[0][_ACCURACY])} of them were right.")
    if (half := half_way(trained)) is not None:
        reasons.append(f"Half of the gain of accuracy in training was there after iteration {half}.")
    lengths = known(trained, "rollout/length")
    if len(lengths) > 1:
        reasons.append(f"Completions have {lengths[-1]:.0f} tokens, at first {lengths[0]:.0f}.")
    if examples(run.samples) is not None:
        reasons.append("Two typical ones, of the first iteration on record and of the last, show what changed.")
    return Answer("What did it learn?", _learned_in_short(run, evaluated), [" ".join(reasons)], [])


def _learned_in_short(run: RunRecords, evaluated: Sequence[Mapping[str, Any]]) -> str:
    if len(evaluated) < 2:
        return f"Nobody measured it on unseen problems. {_task(run)}."
    first, last = evaluated[0], evaluated[-1]
    if last.get(f"{_ACCURACY}_low", last[_ACCURACY]) <= first.get(f"{_ACCURACY}_high", first[_ACCURACY]):
        return f"Nothing that the intervals on unseen problems show. {_task(run)}."
    return f"{_task(run)}. {percent(last[_ACCURACY])} of unseen problems are right."


def _task(run: RunRecords) -> str:
    task = run.setting("data", "task")
    fewest, most = run.setting("data", "min_digits"), run.setting("data", "max_digits")
    if task != "multiplication" or fewest is None or most is None:
        return f"Its task is {task}"
    second = run.setting("data", "second_min_digits") or fewest, run.setting("data", "second_max_digits") or most
    if second == (fewest, most):
        return f"Its task is to multiply two numbers of {_span(fewest, most)}"
    return f"Its task is to multiply a number of {_span(fewest, most)} by one of {_span(*second)}"


def _span(fewest: int, most: int) -> str:
    return counted(most, "digit") if fewest == most else f"{fewest} to {most} digits"


def _begun(run: RunRecords) -> Answer | None:
    found = worked_out(run.samples, run.num_problems)
    if found is None:
        return None
    question = "When did answers begin to be worked out?"
    details = [
        "That is the first recorded iteration in which more than half of the policy's completions are right and longer"
        " than a guess of the base, by the weights of the completions that the search found. A guess is"
        f" {found.guess:g} characters long, the median completion of iteration {found.first}.",
    ]
    if found.begins is None:
        iteration, most = max(found.shares, key=lambda told: told[1])
        reason = (
            "In no recorded iteration more than half of the policy's completions are both right and longer than a guess"
            f" of the base. The largest share is {percent(most)}, in iteration {iteration}."
        )
        return Answer(question, "That is not to be seen.", [reason], details)
    iteration, share = found.shares[found.begins]
    later = [after for _, after in found.shares[found.begins + 1 :]]
    reason = f"There {percent(share)} of the policy's completions are right and longer than a guess of the base."
    if found.begins > 0:
        before, little = found.shares[found.begins - 1]
        reason += f" In iteration {before}, the one recorded before, {percent(little)} were."
    if later:
        details.append(f"It is also so in {sum(x > 0.5 for x in later)} of the {len(later)} recorded ones after it.")
    return Answer(question, f"From iteration {iteration} on.", [reason, _UNCHECKED], details)


# ----------------------------------------------------------------------------------------------------------- spent


def _spent(run: RunRecords, trained: Sequence[Mapping[str, Any]]) -> Answer:
    seconds = sum(known(trained, "time/iteration_s"))
    short = f"{readable_seconds(seconds)} and {sum(map(num_tokens, trained)):,} decoded tokens."
    search, update = (sum(known(trained, f"time/{part}_s")) for part in ("search", "update"))
    reasons = [
        f"{counted(len(trained), 'iteration')}{_device(run)}. Search took {readable_seconds(search)}, the update"
        f" {readable_seconds(update)}."
    ]
    if all_tokens := sum(known(trained, "cost/tokens")):
        reasons.append(f"With the prompts {all_tokens:,.0f} tokens went through the model for the search.")
    operations = [sum(known(trained, f"cost/{part}_flops")) for part in ("search", "update")]
    if all(operations):
        reasons.append("Floating-point operations: {:.2g} of the search, {:.2g} of the update.".format(*operations))
    evaluations = len(known(run.rows, _ACCURACY))
    reasons.append(f"{counted(evaluations, 'evaluation')}, the checkpoints and the start are not in these numbers.")
    return Answer("What did it cost?", short, reasons, [])


def _device(run: RunRecords) -> str:
    told = next((p for p in run.processes if "device" in p), None)
    if told is None:
        return ""
    device, threads, processes = (told.get(name) for name in ("device", "threads", "processes"))
    text = f" on {device}"
    if isinstance(threads, int) and str(device).startswith("cpu"):
        text += f", of which the run used {counted(threads, 'thread')}"
    return text + (f", {processes} processes" if isinstance(processes, int) and processes > 1 else "")
