"""Learning curves of a study as a picture, with the spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from tinyzero_astar.report.compare import accuracy_at
from tinyzero_astar.study.outcomes import BUDGETS, Budget, Outcome
from tinyzero_astar.study.summary import least_budget

_STEPS = 40  # of a curve
_LABELS: dict[Budget, tuple[str, float]] = {
    "tokens": ("tokens read and decoded, thousands", 1e3),
    "flops": ("floating-point operations, 10¹²", 1e12),
    "seconds": ("core seconds of search and update", 1.0),
}


def draw_curves(outcomes: Sequence[Outcome], baseline: str, path: Path) -> None:
    """Mean held-out accuracy of each arm over each budget, shaded where the middle half of seeds lies.

    Args:
        outcomes: of one task.
        baseline: whose cheapest run ends the axes. A run that spent less keeps its last accuracy.
        path: of the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    by_arm: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.trial.arm, []).append(outcome)
    figure, axes = plt.subplots(1, len(BUDGETS), figsize=(15, 4.8), sharey=True, layout="constrained")
    colours = plt.get_cmap("tab10" if len(by_arm) <= 10 else "tab20")
    for place, (axis, budget) in enumerate(zip(axes, BUDGETS, strict=True)):
        label, scale = _LABELS[budget]
        last = least_budget(outcomes, baseline, budget)
        grid = [last * i / _STEPS for i in range(_STEPS + 1)]
        for colour, (arm, own) in enumerate(by_arm.items()):
            curves = [[*outcome.spent(budget), (math.inf, outcome.accuracy)] for outcome in own]
            heights = [[100 * accuracy_at(curve, x) for curve in curves] for x in grid]
            x = [value / scale for value in grid]
            shown = colours(colour % 20)
            means = [statistics.fmean(found) for found in heights]
            axis.plot(x, means, color=shown, label=arm.replace("_", " "), linewidth=1.8)
            if len(own) > 1:
                low, _, high = zip(
                    *(statistics.quantiles(found, n=4, method="inclusive") for found in heights), strict=True
                )
                axis.fill_between(x, low, high, color=shown, alpha=0.1, linewidth=0)
        axis.set(xlabel=label, ylim=(0, 100))
        axis.grid(alpha=0.3)
        if place == 0:
            axis.set(ylabel=f"held-out greedy accuracy, %, mean of {len(next(iter(by_arm.values())))} seeds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
