"""The learning curve of one or several runs as a picture: `tinyzero report RUN... -o PNG`.

Needs matplotlib (the `plot` extra).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyzero_astar.files import METRICS
from tinyzero_astar.run.records import read_jsonl
from tinyzero_astar.terminal import complain, printable, run_command

_GREEDY, _POLICY = "eval/greedy_accuracy", "rollout/policy_accuracy"
_EVALUATED = (_GREEDY, f"{_GREEDY}_low", f"{_GREEDY}_high")


def draw(runs: list[Path], output: Path) -> None:
    """Held-out greedy accuracy with its 95 % interval, and the policy's accuracy estimated from its rollouts.

    Raises:
        ValueError: a run has no metrics or damaged ones, matplotlib is missing, or the picture cannot be written.
    """
    records = {run: _records(run) for run in runs}
    try:
        import matplotlib
    except ImportError:
        raise ValueError("matplotlib is not installed: pip install -e '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for index, (run, rows) in enumerate(records.items()):
        colour, name = f"C{index}", run.resolve().name.replace("$", r"\$")  # no formula
        steps, (value, low, high) = _series(rows, _EVALUATED)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, value, "o-", color=colour, label=f"{name}: held-out, greedy")
        steps, (estimate,) = _series(rows, (_POLICY,))
        axes.plot(steps, estimate, color=colour, alpha=0.35, linewidth=1)
    axes.set(xlabel="iteration", ylabel="accuracy, %", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.plot([], [], color="grey", alpha=0.5, linewidth=1, label="policy, from weighted searched rollouts")
    axes.legend(loc="lower right", frameon=False)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=130)
    except OSError as error:
        raise ValueError(f"--output {output} cannot be written ({error.strerror}); name another file") from None
    finally:
        plt.close(figure)


def _records(run: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(run / METRICS)
    if not rows:
        raise ValueError(f"{run}: no {METRICS} there; name the folder of a run")
    for row in rows:
        for name in (*_EVALUATED, _POLICY):
            if not isinstance(row.get(name), (int, float, type(None))):
                raise ValueError(f"{run / METRICS}: {name} of iteration {row['iteration']} is no number")
    return rows


def _series(rows: list[dict[str, Any]], names: Sequence[str]) -> tuple[list[int], list[list[float]]]:
    """Iterations, and the values in per cent; null is what could not be measured, and is left out."""
    measured = [row for row in rows if all(row.get(name) is not None for name in names)]
    return [row["iteration"] for row in measured], [[100 * row[name] for row in measured] for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tinyzero report", description="Draw the learning curve of runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("curve.png"), help="the picture to write")
    args = parser.parse_args(argv)
    try:
        draw(args.runs, args.output)
    except ValueError as error:
        return complain(error)
    print(printable(str(args.output)))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
