"""The questions of somebody who sees a run for the first time, each with a short answer and what it rests on."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tinyzero_astar.config import WITH_CRITIC
from tinyzero_astar.loggers.console import num_tokens
from tinyzero_astar.metrics.alarms import GATE_WINDOW, MIN_AUC, MIN_SIBLING
from tinyzero_astar.report.evidence import (
    GATE_AUC,
    GATE_SIBLINGS,
    RARE,
    Found,
    Shares,
    found_by_search,
    half_way,
    known,
    ranking,
    right_shares,
    with_gate,
    worked_out,
)
from tinyzero_astar.report.page_data import RunRecords
from tinyzero_astar.terminal import counted, readable_seconds

_ACCURACY = "eval/greedy_accuracy"
_UNCHECKED = "The verifier reads the answer alone, so nobody knows whether the working is right."


class Answer(NamedTuple):
    """To one question."""

    question: str
    short: str
    reasons: list[str]  # paragraphs
    details: list[str]  # further ones, for those who want to know how this is known


def answers(run: RunRecords) -> list[Answer]:
    """What the records allow to say, question by question. Configuration and records need not be complete."""
    trained = [row for row in run.rows if row["iteration"] > 0]
    if not trained:
        return []
    found = [_learned(run, trained), _begun(run), _searched(run, trained), _judged(run, trained), _spent(run, trained)]
    return [answer for answer in found if answer is not None]


def setting(run: RunRecords, section: str, name: str) -> Any:
    """Of a run's configuration, None where it is not there."""
    return run.config.get(section, {}).get(name)


def percent(share: float) -> str:
    """With a digit after the point below 10 %."""
    return f"{100 * share:.1f} %" if abs(100 * share) < 9.95 else f"{100 * share:.0f} %"


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
    return Answer("What did it learn?", _learned_in_short(run, evaluated), [" ".join(reasons)], [])


def _learned_in_short(run: RunRecords, evaluated: Sequence[Mapping[str, Any]]) -> str:
    if len(evaluated) < 2:
        return f"Nobody measured it on unseen problems. {_task(run)}."
    first, last = evaluated[0], evaluated[-1]
    if last.get(f"{_ACCURACY}_low", last[_ACCURACY]) <= first.get(f"{_ACCURACY}_high", first[_ACCURACY]):
        return f"Nothing that the intervals on unseen problems show. {_task(run)}."
    return f"{_task(run)}. {percent(last[_ACCURACY])} of unseen problems are right."


def _task(run: RunRecords) -> str:
    task = setting(run, "data", "task")
    fewest, most = setting(run, "data", "min_digits"), setting(run, "data", "max_digits")
    if task != "multiplication" or fewest is None or most is None:
        return f"Its task is {task}"
    second = setting(run, "data", "second_min_digits") or fewest, setting(run, "data", "second_max_digits") or most
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


# -------------------------------------------------------------------------------------------------------- searched


def _searched(run: RunRecords, trained: Sequence[Mapping[str, Any]]) -> Answer | None:
    question = "What did the search find that sampling would not have?"
    if setting(run, "search", "mode") == "sample":
        return Answer(question, "Nothing.", ["Mode sample does not search. Every completion is a sample."], [])
    found = found_by_search(run.traces)
    reasons = [text for text in (_recorded(found), _phases(trained)) if text]
    if not reasons:
        return None
    new = found.right - found.expected
    short = f"About {new:.0f} of its {found.right} recorded right completions." if found.right else "Nothing on record."
    return Answer(question, short, reasons, [*_more_of_search(run, trained, found)])


def _recorded(found: Found) -> str:
    if not found.right:
        return ""
    return (
        f"Samples of the same problems, as many of each, would be expected to contain {found.expected:.0f} of these"
        f" {found.right}, and some other right ones. They would repeat an earlier one at least {found.repeats:.0f} times"
        f" in {found.count:,}. What the search finds is all different."
    )


def _phases(trained: Sequence[Mapping[str, Any]]) -> str:
    """How many are right, until half of the gain was there, and after it."""
    half = half_way(trained) or 0
    early = right_shares([row for row in trained if row["iteration"] <= half])
    late = right_shares([row for row in trained if row["iteration"] > half])
    return " ".join(
        f"{name} the search found {_more(part)} right ones, {percent(part.found)} of its completions, and"
        f" {percent(part.sampled)} of as many samples."
        for name, part in (
            (f"In number, until iteration {half}", early),
            ("After that" if early else "In number", late),
        )
        if part is not None
    )


def _more_of_search(run: RunRecords, trained: Sequence[Mapping[str, Any]], found: Found) -> Iterator[str]:
    if (setting(run, "search", "problems_per_search") or 1) > 1:
        yield (
            "Problems share a search. It gives several completions to a problem on which the policy hesitates, and one"
            " or none to a problem that the policy surely solves. So a smaller share of what it finds is right."
        )
    yield (
        "What samples would give is estimated by weights (line “in training” of the chart Accuracy). More and fewer mean"
        " that the 95 % interval of the difference over iterations leaves out 0."
    )
    if found.count:
        yield (
            f"On record are the first searches of {counted(len(run.traces), 'iteration')}, with"
            f" {found.count:,} completions. {found.rare} of the {found.right} right ones have a probability below"
            f" {100 * RARE:.0f} % under the policy."
        )
    if ratios := known(trained, "weight/variance_ratio"):
        yield (
            f"An estimate from what the search found has {statistics.fmean(ratios):.2f} times the variance of one from"
            f" as many samples (mean over {counted(len(ratios), 'iteration')}, median {statistics.median(ratios):.2f})."
        )


def _more(shares: Shares) -> str:
    """Whether the search found more, by the 95 % interval of the difference over iterations."""
    low, high = shares.difference.low, shares.difference.high
    if low is not None and low > 0:
        return "more"
    return "fewer" if high is not None and high < 0 else "about as many"


# ---------------------------------------------------------------------------------------------------------- judged


def _judged(run: RunRecords, trained: Sequence[Mapping[str, Any]]) -> Answer | None:
    question, algorithm = "Was the heuristic any good?", setting(run, "train", "algorithm")
    if algorithm not in WITH_CRITIC:
        return Answer(question, "There was none.", [f"Algorithm {algorithm} trains no value model."], [])
    mean = ranking(trained)
    if mean is None:
        short, reason = "That is not known.", f"Fewer than {GATE_WINDOW} iterations could measure it."
    else:
        interval = "" if mean.low is None or mean.high is None else f" [{100 * mean.low:.0f}, {100 * mean.high:.0f}]"
        short = _verdict(mean.low, mean.high)
        reason = (
            f"Of a right and a wrong continuation it valued the right one higher in {percent(mean.value)}{interval} of"
            " the cases. Chance is 50 %."
        )
    details = [
        "This is the mean of the line “after the first token” in the chart Ranking of siblings. In brackets stands its"
        f" 95 % interval over iterations. {_NEEDS}"
    ]
    gated = [row for row in with_gate(trained) if row.get("guidance/is_open") is not None]
    if setting(run, "search", "mode") == "sample" or setting(run, "search", "guidance_strength") == 0 or not gated:
        return Answer(question, short, [reason, "It guided no search, by the settings of the run."], details)
    return Answer(question, short, [reason, *_guided(gated)], [*details, *_gate_in_words(gated)])


_NEEDS = (
    "That takes a problem with a right and a wrong completion which part after the first token, and while few"
    " completions are right such pairs are rare."
)


def _verdict(low: float | None, high: float | None) -> str:
    if low is not None and low > 0.5:
        return "Yes, it ranked better than chance."
    if high is not None and high < 0.5:
        return "No, it ranked worse than chance."
    return "No, it ranked no better than chance, as far as is known."


def _guided(gated: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    open_in = [row["iteration"] for row in gated if row["guidance/is_open"] == 1]
    if not open_in:
        yield f"It guided none of {counted(len(gated), 'iteration')}."
        return
    yield (
        f"It guided {len(open_in)} of {counted(len(gated), 'iteration')}, first iteration {open_in[0]}. Whether that"
        " helped cannot be told from one run. Train another one with --search.guidance-strength 0 and the same seed,"
        " and put the two side by side with tinyzero compare."
    )


def _gate_in_words(gated: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Why guidance was on or off."""
    yield (
        f"A gate decides. It takes the means of AUC and sibling ranking over the last {GATE_WINDOW} iterations that"
        f" measured them, and lets the value model guide while both exceed their bounds, {100 * MIN_AUC:.0f} and"
        f" {100 * MIN_SIBLING:.0f} % (chart Gate of the guidance)."
    )
    is_open = [row["guidance/is_open"] == 1 for row in gated]
    first = is_open.index(True) if any(is_open) else len(gated)
    unmeasured = sum(_is_waiting(row) for row in gated[:first])
    if first:
        yield (
            f"Before the first guided iteration it was closed {counted(first, 'time')},"
            f" {unmeasured} of these because fewer than {GATE_WINDOW} iterations had measured both."
        )
    if closed := is_open[first:].count(False):
        yield f"Later it was closed in {counted(closed, 'iteration')}, as a mean had fallen to its bound."
    if not _is_waiting(gated[-1]):
        yield f"Before the last iteration AUC was {percent(gated[-1][GATE_AUC])}, sibling ranking {percent(gated[-1][GATE_SIBLINGS])}."


def _is_waiting(row: Mapping[str, Any]) -> bool:
    return row[GATE_AUC] is None or row[GATE_SIBLINGS] is None


# ----------------------------------------------------------------------------------------------------------- spent


def _spent(run: RunRecords, trained: Sequence[Mapping[str, Any]]) -> Answer:
    seconds = sum(known(trained, "time/iteration_s"))
    short = f"{readable_seconds(seconds)} and {sum(map(num_tokens, trained)):,} decoded tokens."
    search, update = (sum(known(trained, f"time/{part}_s")) for part in ("search", "update"))
    reasons = [
        f"{counted(len(trained), 'iteration')}{_device(run)}. Search took {readable_seconds(search)}, the update"
        f" {readable_seconds(update)}."
    ]
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
