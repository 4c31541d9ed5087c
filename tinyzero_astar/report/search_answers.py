"""What a search found that sampling would not have, and whether its heuristic was any good."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinyzero_astar.config import WITH_CRITIC
from tinyzero_astar.metrics.alarms import GATE_WINDOW, MIN_AUC, MIN_SIBLING
from tinyzero_astar.report.answer import Answer, percent
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
)
from tinyzero_astar.report.page_data import RunRecords
from tinyzero_astar.terminal import counted

# -------------------------------------------------------------------------------------------------------- searched


def searched(run: RunRecords, trained: Sequence[Mapping[str, Any]]) -> Answer | None:
    """What the search found that sampling would not have. None where nothing was recorded."""
    question = "What did the search find that sampling would not have?"
    if run.setting("search", "mode") == "sample":
        return Answer(question, "Nothing.", ["Mode sample does not search. Every completion is a sample."], [])
    found, is_shared = found_by_search(run.traces), (run.setting("search", "problems_per_search") or 1) > 1
    reasons = [text for text in (_recorded(found), _phases(trained, is_shared)) if text]
    if not reasons:
        return None
    new = found.right - found.expected
    short = f"About {new:.0f} of its {found.right} recorded right completions." if found.right else "Nothing on record."
    return Answer(question, short, reasons, [*_more_of_search(run, trained, found, is_shared)])


def _recorded(found: Found) -> str:
    if not found.right:
        return ""
    return (
        f"It found {found.right} right completions in the searches on record. As many samples of the same problems"
        f" would show about {found.expected:.0f} of these. They would find other right ones too, but repeat themselves."
        f" At least {found.repeats:.0f} of {found.count:,} samples would be copies of an earlier one. The search has"
        " none."
    )


def _phases(trained: Sequence[Mapping[str, Any]], is_shared: bool) -> str:
    """How many are right, until half of the gain was there, and after it."""
    half = half_way(trained) or 0
    early = right_shares([row for row in trained if row["iteration"] <= half])
    late = right_shares([row for row in trained if row["iteration"] > half])
    told = []
    if early is not None:
        told.append(f"Until iteration {half}, {_compared(early)}.")
    if late is not None:
        why = (
            ", as it turns to problems on which the policy hesitates. That is its purpose"
            if is_shared and _more(late) == "less than"
            else ""
        )
        told.append(f"{'After that' if early else 'Over all iterations'}, {_compared(late)}{why}.")
    return " ".join(told)


def _compared(shares: Shares) -> str:
    return (
        f"{percent(shares.found)} of what it found was right, {_more(shares)} the {percent(shares.sampled)} of samples"
    )


def _more_of_search(
    run: RunRecords, trained: Sequence[Mapping[str, Any]], found: Found, is_shared: bool
) -> Iterator[str]:
    if is_shared:
        yield (
            "Problems share a search. It gives several completions to a problem on which the policy hesitates, and one"
            " or none to a problem that the policy surely solves. So a smaller share of what it finds is right."
        )
    yield (
        "What samples would give is estimated by weights (line “in training” of the chart Accuracy). More and less mean"
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
        return "more than"
    return "less than" if high is not None and high < 0 else "which is not clearly different from"


# ---------------------------------------------------------------------------------------------------------- judged


def judged(run: RunRecords, trained: Sequence[Mapping[str, Any]]) -> Answer:
    """Whether the heuristic was any good, and whether it guided."""
    question, algorithm = "Was the heuristic any good?", run.setting("train", "algorithm")
    if algorithm not in WITH_CRITIC:
        return Answer(question, "There was none.", [f"Algorithm {algorithm} trains no value model."], [])
    mean = ranking(trained)
    if mean is None:
        short, reason = "That is not known.", f"Fewer than {GATE_WINDOW} iterations could measure it."
    else:
        interval = "" if mean.low is None or mean.high is None else f" [{100 * mean.low:.0f}, {100 * mean.high:.0f}]"
        short = _verdict(mean.low, mean.high)
        reason = (
            "The heuristic is the value model, which guesses how likely a beginning is to end right. Of a right and a"
            f" wrong continuation it valued the right one higher in {percent(mean.value)}{interval} of"
            " the cases. Chance is 50 %."
        )
    details = [
        "This is the mean of the line “after the first token” in the chart Ranking of siblings. In brackets stands its"
        f" 95 % interval over iterations. {_NEEDS}"
    ]
    gated = [row for row in with_gate(trained) if row.get("guidance/is_open") is not None]
    if run.setting("search", "mode") == "sample" or run.setting("search", "guidance_strength") == 0 or not gated:
        return Answer(question, short, [reason, "It guided no search, by the settings of the run."], details)
    return Answer(question, short, [reason, *_guided(gated)], [*details, *_gate_in_words(gated)])


_NEEDS = (
    "Measuring it takes a problem with a right and a wrong completion that part after the first token. While few"
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
        f"It guided {len(open_in)} of {counted(len(gated), 'iteration')}, and iteration {open_in[0]} was the first."
        " Whether that helped cannot be told from one run. Train others with --search.guidance-strength 0 and the same"
        " seeds, and put them side by side with tinyzero compare. Or let tinyzero study do both."
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
        auc, siblings = percent(gated[-1][GATE_AUC]), percent(gated[-1][GATE_SIBLINGS])
        yield f"Before the last iteration AUC was {auc}, sibling ranking {siblings}."


def _is_waiting(row: Mapping[str, Any]) -> bool:
    return row[GATE_AUC] is None or row[GATE_SIBLINGS] is None
