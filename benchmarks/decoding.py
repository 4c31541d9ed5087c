"""A* at test time against other ways of decoding, by `python -m benchmarks.decoding CHECKPOINT [CHECKPOINT ...]`.

For each checkpoint and each width of A*'s open list, all ways decode the same held-out problems, with about as many
decoded tokens as A* (`eval/decoding.py`). It prints a table and JSON. Accuracies have 95 % Wilson intervals.
Differences from greedy decoding and from A* are paired by problem.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tinyzero_astar.eval.decoding import Arm, compare
from tinyzero_astar.eval.evaluate import Estimate
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run.measure import finite
from tinyzero_astar.run.start import open_evaluation

COLUMNS = ("way of decoding", "accuracy", "over greedy", "A* over it", "tokens")


def compared(checkpoint: Path, widths: Sequence[int], num_problems: int) -> Iterator[dict[str, Any]]:
    """A record for each width, with one for each way of decoding in it.

    Raises:
        ValueError: the checkpoint cannot be evaluated, or its task has fewer problems.
    """
    with redirect_stdout(sys.stderr):  # what is printed is a table and JSON
        session, _ = open_evaluation(PRESETS["tiny"], checkpoint)
    problems = session.task.held_out_problems(num_problems)
    for width in widths:
        arms = compare(
            session.policy,
            session.tokenizer,
            session.task,
            session.generator,
            problems,
            session.search,
            beam_width=width,
            max_rows=session.config.eval.max_rows,
        )
        yield {
            "checkpoint": str(checkpoint),
            "iteration": session.first_iteration,
            "seed": session.config.run.seed,
            "width": width,
            "num_problems": len(problems),
            "arms": [described(arm, *arms[:2]) for arm in arms],
        }


def described(arm: Arm, greedy: Arm, astar: Arm) -> dict[str, Any]:
    """The numbers of one way of decoding. Estimates are the value and the two ends of its interval."""
    counts = finite({"tokens": arm.tokens, "expanded": arm.expanded, "forks": arm.forks})
    return {"name": arm.name, "title": arm.title, "accuracy": listed(arm.accuracy), **counts} | {
        "over_greedy": None if arm is greedy else listed(arm.gain(greedy)),
        "astar_over_it": None if arm is astar else listed(astar.gain(arm)),
    }


def listed(estimate: Estimate) -> list[float]:
    """The value and the two ends of its interval."""
    return [estimate.value, estimate.low, estimate.high]


def table(record: dict[str, Any]) -> str:
    """A record in Markdown, in percent and percentage points."""
    title = f"{record['checkpoint']}, width {record['width']}, {record['num_problems']} held-out problems"
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for arm in record["arms"]:
        differences = (shown(arm[name], "+.1f") for name in ("over_greedy", "astar_over_it"))
        rows.append((arm["title"], shown(arm["accuracy"], ".1f"), *differences, f"{arm['tokens']:.1f}"))
    return "\n".join([title, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def shown(estimate: Sequence[float] | None, form: str) -> str:
    """An estimate in percent, or a dash."""
    if estimate is None:
        return "–"
    value, low, high = (f"{100 * x:{form}}" for x in estimate)
    return f"{value} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the JSON goes, the terminal otherwise")
    args = parser.parse_args()
    if min(args.problems, *args.widths) < 1:
        parser.error(f"--problems {args.problems} and --widths {args.widths} must be at least 1")
    records = []
    try:
        for checkpoint in args.checkpoints:
            for record in compared(checkpoint, args.widths, args.problems):
                records.append(record)
                print(table(record), flush=True)
    except ValueError as error:
        parser.error(str(error))
    text = json.dumps(records, indent=2)
    if args.output is None:
        print(text)
    else:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
