"""Alarms about silent failures, and the gate of the guidance. Pure functions of a run's metrics.

Rules in docs/metrics.md.

Both the alarms and the gate look at what `remembered` keeps of each iteration and at nothing else. A checkpoint holds
just that, so a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
History = Sequence[Record]  # training iterations only, oldest first

GATE_WINDOW = 3  # iterations whose measures are averaged
MIN_AUC, MIN_SIBLING = 0.60, 0.55  # both must be exceeded for guidance to switch on
MAX_ROOT_ERROR, MIN_ROOT_AUC = 0.10, 0.55  # the first must not be reached, the second exceeded, for a tilted root
_LONG = 20
_SHORT = 5
_REMEMBERED = (
    *(f"value/auc_depth_{quartile}" for quartile in (1, 2, 3, 4)),
    "value/sibling_accuracy_later",
    "value/auc_root",
    "value/root_calibration_error",
    "rollout/mixed_fraction",
    "rollout/policy_accuracy",
    "audit/ratio_error",
    "policy/entropy",
    "weight/sum",
    "reward/length_correlation",
    "reward/accuracy_correlation",
    "alarms",
)


def remembered(record: Record) -> dict[str, Any]:
    """What the alarms and the gate of later iterations look at."""
    return {name: record[name] for name in _REMEMBERED if name in record}


def _recent(history: History, name: str, count: int) -> list[float]:
    """The last `count` finite values of a metric."""
    values = [float(r[name]) for r in history if r.get(name) is not None]
    return [v for v in values if math.isfinite(v)][-count:]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def sibling_ranking(history: History) -> float | None:
    """The share of siblings ranked right that the guidance gate uses. None before enough was measured."""
    values = _recent(history, "value/sibling_accuracy_later", GATE_WINDOW)
    return _mean(values) if len(values) == GATE_WINDOW else None


def guidance_gate(history: History) -> tuple[bool, str]:
    """Whether the value model ranks well enough to guide the search, and why.

    It is open when, averaged over the last 3 iterations that measured it, both the AUC of the value over visited
    prefixes (mean of the four depth quartiles) and the sibling-ranking accuracy exceed their bounds. Siblings are
    ranked by the values that guide the search, at forks after the first token. Siblings at the first token are ranked
    right by almost any value model, and soon there are none.
    """
    quartiles = [_recent(history, f"value/auc_depth_{q}", GATE_WINDOW) for q in (1, 2, 3, 4)]
    sibling = sibling_ranking(history)
    if sibling is None or min(len(q) for q in quartiles) < GATE_WINDOW:
        return False, f"fewer than {GATE_WINDOW} iterations with both successes and failures"
    auc = _mean([_mean(q) for q in quartiles])
    measured = f"AUC {auc:.2f} (bound {MIN_AUC}), sibling ranking {sibling:.2f} (bound {MIN_SIBLING})"
    return auc > MIN_AUC and sibling > MIN_SIBLING, measured


def root_gate(history: History) -> tuple[bool, str]:
    """Whether the value model knows the prompts well enough to choose between problems, and why.

    Open when, averaged over the last 3 iterations that measured it, the calibration error of its values at the prompts
    is below its bound, and it ranks problems better than chance.
    """
    error, auc = (_recent(history, name, GATE_WINDOW) for name in ("value/root_calibration_error", "value/auc_root"))
    if min(len(error), len(auc)) < GATE_WINDOW:
        return False, f"fewer than {GATE_WINDOW} iterations with both successes and failures"
    measured = (
        f"calibration error at the prompts {_mean(error):.2f} (bound {MAX_ROOT_ERROR}),"
        f" AUC {_mean(auc):.2f} (bound {MIN_ROOT_AUC})"
    )
    return _mean(error) < MAX_ROOT_ERROR and _mean(auc) > MIN_ROOT_AUC, measured


def _value_ranks_by_chance(history: History) -> str | None:
    values = _recent(history, "value/sibling_accuracy_later", _LONG)
    if len(values) == _LONG and _mean(values) <= 0.5:
        return f"the value model has ranked no better than chance for {_LONG} iterations: guidance is off"
    return None


def _no_gradient(history: History) -> str | None:
    values = _recent(history, "rollout/mixed_fraction", _SHORT)
    if len(values) == _SHORT and _mean(values) < 0.1:
        return f"all rollouts of {100 * (1 - _mean(values)):.0f} % of the problems agree: hardly any gradient"
    return None


def _ratio(history: History, tolerance: float) -> str | None:
    error = history[-1].get("audit/ratio_error")  # None where nothing was learned
    if error is not None and error > tolerance:
        return (
            f"sampler and trainer disagree at unchanged weights: a ratio is off by {error:.2g}"
            f" (tolerance {tolerance:g})"
        )
    return None


def _entropy_collapse(history: History) -> str | None:
    values = _recent(history, "policy/entropy", _SHORT)
    accuracy = _recent(history, "rollout/policy_accuracy", _SHORT)
    if len(values) == len(accuracy) == _SHORT and max(values) < 0.02 and _mean(accuracy) < 0.5:
        return f"the policy's entropy has collapsed to {values[-1]:.3f} nats at {100 * _mean(accuracy):.0f} % accuracy"
    return None


def _weight_drift(history: History) -> str | None:
    values = _recent(history, "weight/sum", _LONG)
    if len(values) == _LONG:
        mean = _mean(values)
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
        if abs(mean - 1) > max(0.05, 4 * error):
            return f"the weights sum to {mean:.2f} instead of 1 over {_LONG} iterations: the gradient is biased"
    return None


def _length_hacking(history: History) -> str | None:
    length = _recent(history, "reward/length_correlation", _SHORT)
    correct = _recent(history, "reward/accuracy_correlation", _SHORT)
    if len(length) == _SHORT and len(correct) == _SHORT and abs(_mean(length)) > max(0.5, abs(_mean(correct))):
        return f"reward follows length (correlation {_mean(length):+.2f}) more than correctness ({_mean(correct):+.2f})"
    return None


def active_alarms(history: History, ratio_tolerance: float) -> dict[str, str]:
    """The alarms that hold after the last iteration, by name."""
    rules: dict[str, Callable[[History], str | None]] = {
        "value_ranks_by_chance": _value_ranks_by_chance,
        "no_gradient": _no_gradient,
        "ratio": lambda h: _ratio(h, ratio_tolerance),
        "entropy_collapse": _entropy_collapse,
        "weight_drift": _weight_drift,
        "length_hacking": _length_hacking,
    }
    found = {name: rule(history) for name, rule in rules.items()} if history else {}
    return {name: text for name, text in found.items() if text is not None}
