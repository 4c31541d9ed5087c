"""The learning curve of one or several runs as a picture: `python -m tinyzero_astar.report.curve RUN... -o PNG`.

Needs matplotlib (the `plot` extra).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tinyzero_astar.run_folder import METRICS, read_jsonl


def draw(runs: list[Path], output: Path) -> None:
    """Held-out greedy accuracy with its 95 % interval, and the policy's accuracy estimated from its rollouts.

    Raises:
        ValueError: a run has no metrics, or matplotlib is missing.
    """
    records = {run: read_jsonl(run / METRICS) for run in runs}
    for run, rows in records.items():
        if not rows:
            raise ValueError(f"{run}: no {METRICS} there; name the folder of a run")
    try:
        import matplotlib
    except ImportError:
        raise ValueError("matplotlib is not installed: pip install 'tinyzero-astar[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for index, (run, rows) in enumerate(records.items()):
        colour = f"C{index}"
        evaluated = [r for r in rows if "eval/greedy_accuracy" in r]
        steps = [r["iteration"] for r in evaluated]
        value, low, high = (
            [100 * r[f"eval/greedy_accuracy{suffix}"] for r in evaluated] for suffix in ("", "_low", "_high")
        )
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, value, "o-", color=colour, label=f"{run.name}: held-out, greedy")
        trained = [r for r in rows if "rollout/policy_accuracy" in r]
        estimate = [100 * r["rollout/policy_accuracy"] for r in trained]
        axes.plot([r["iteration"] for r in trained], estimate, color=colour, alpha=0.35, linewidth=1)
    axes.set(xlabel="iteration", ylabel="accuracy, %", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.plot([], [], color="grey", alpha=0.5, linewidth=1, label="policy, from weighted searched rollouts")
    axes.legend(loc="lower right", frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)
    plt.close(figure)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw the learning curve of runs.")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("curve.png"))
    args = parser.parse_args()
    try:
        draw(args.runs, args.output)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
