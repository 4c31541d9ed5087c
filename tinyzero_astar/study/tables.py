"""The tables of a study: for the terminal, for a document in Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinyzero_astar.report.intervals import RANGE_UP_TO, Mean
from tinyzero_astar.study.outcomes import BUDGETS, Budget
from tinyzero_astar.study.summary import Reached, Row

_UNITS: dict[Budget, tuple[str, float]] = {
    "tokens": ("k tokens", 1e3),
    "flops": ("TFLOP", 1e12),
    "seconds": ("core s", 1.0),
}


def spread_of(num_seeds: int) -> str:
    """What the brackets of a table hold, after the numbers themselves."""
    if num_seeds == 1:
        return "with 1 seed, no interval"
    return f"and {'range' if num_seeds <= RANGE_UP_TO else '95 % intervals'} over {num_seeds} seeds"


def terminal_lines(rows: Sequence[Row], baseline: str, level: float) -> Iterator[str]:
    """A line for each arm, 80 columns wide.

    Args:
        rows: of one task.
        baseline: the arm that the others are compared with.
        level: the accuracy whose cost in tokens is told.

    The baseline's own mean accuracy has no sign, and differences from it have one.
    """
    cost = f"tokens to {100 * level:g}%"
    yield f"{'':22s} {'end':>5s} {'mean accuracy, minus':>21s}  {cost:>15s} {'ratio':>6s} {'lost':>5s}"
    yield f"{'':22s} {'':5s} {baseline[:21]:>21s}"
    for row in rows:
        found = row.reached["tokens"][level]
        gain = _points(row.area["tokens"]) if row.arm == baseline else _points(row.gain["tokens"], sign="+")
        ratio = "" if found.ratio is None or row.arm == baseline else f"{found.ratio.value:.2f}"
        yield (
            f"{row.arm[:22]:22s} {100 * row.end.value:5.1f} {gain:>21s}  {_cost(found, 'tokens'):>15s} {ratio:>6s}"
            f" {row.lost:>2d}/{len(row.seeds)}"
        )


def markdown(rows: Sequence[Row], baseline: str, levels: Sequence[float]) -> str:
    """Tables of a task: how well arms learned, what accuracies cost, and what their rollouts were like."""
    tables = [
        f"Accuracy in % {spread_of(len(rows[0].seeds))}.",
        _learned(rows, baseline),
        *(_costs(rows, baseline, levels, budget) for budget in BUDGETS),
        _rollouts(rows),
    ]
    return "\n\n".join(tables) + "\n"


def _learned(rows: Sequence[Row], baseline: str) -> str:
    ks = sorted({k for row in rows for k in row.passes})
    head = ["arm", "swept", "end", "middle half", "lost"]
    head += [f"mean accuracy over {budget}, minus {baseline}" for budget in BUDGETS] + ["effect", "better"]
    head += [f"pass@{k}" for k in ks]
    lines = []
    for row in rows:
        cells = [row.arm, "" if row.value is None else f"{row.value:g}"]
        cells += [_points(row.end), _points(row.middle), f"{row.lost} of {len(row.seeds)}"]
        if row.arm == baseline:
            cells += [_points(row.area[budget]) + " (itself)" for budget in BUDGETS] + ["", ""]
        else:
            effect = row.effect["tokens"]
            cells += [_points(row.gain[budget], sign="+") for budget in BUDGETS]
            cells += ["" if effect is None else f"{effect:+.1f}", f"{row.wins['tokens']} of {len(row.seeds)}"]
        cells += [_points(row.passes[k]) if k in row.passes else "" for k in ks]
        lines.append(cells)
    return _table(head, lines)


def _costs(rows: Sequence[Row], baseline: str, levels: Sequence[float], budget: Budget) -> str:
    unit, _ = _UNITS[budget]
    head = ["arm"]
    for level in levels:
        head += [f"{unit} to {100 * level:g}% (runs)", f"÷ {baseline}"]
    lines = []
    for row in rows:
        cells = [row.arm]
        for level in levels:
            found = row.reached[budget][level]
            cells += [_cost(found, budget), "" if row.arm == baseline else _ratio(found)]
        lines.append(cells)
    return _table(head, lines)


def _rollouts(rows: Sequence[Row]) -> str:
    names = list(rows[0].means)
    lines = [[row.arm, *("–" if row.means[n] is None else f"{row.means[n]:.3g}" for n in names)] for row in rows]
    return _table(["arm", *(f"`{name}`" for name in names)], lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _points(mean: Mean, sign: str = "") -> str:
    """In points of a hundred."""
    value = f"{100 * mean.value:{sign}.1f}"
    if mean.low is None or mean.high is None:
        return value
    return f"{value} [{100 * mean.low:{sign}.1f}, {100 * mean.high:{sign}.1f}]"


def _cost(found: Reached, budget: Budget) -> str:
    if found.median is None:
        return "– (0)"
    _, scale = _UNITS[budget]
    return f"{found.median / scale:,.1f} ({found.runs})"


def _ratio(found: Reached) -> str:
    if found.ratio is None:
        return "–"
    low, high = found.ratio.low, found.ratio.high
    return f"{found.ratio.value:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def as_json(summary: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """The rows of every task. Accuracies are shares."""
    return {task: [_plain(row) for row in rows] for task, rows in summary.items()}


def _plain(x: Any) -> Any:
    """Named tuples as dictionaries, all the way down."""
    if isinstance(x, tuple) and hasattr(x, "_asdict"):
        return {name: _plain(value) for name, value in x._asdict().items()}
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    return [_plain(value) for value in x] if isinstance(x, (list, tuple)) else x
