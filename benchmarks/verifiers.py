"""What a verdict costs, for every task: `python -m benchmarks.verifiers`; prints JSON.

Typical completions are right and wrong answers of ordinary length. Hostile ones are made to be slow to judge, up to ten
million characters. CPU time of one verdict, the best of several repetitions of each text: the typical median in
microseconds, and the worst of the hostile ones in milliseconds with what it was.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.tasks import make_task
from tinyzero_astar.interfaces import Problem, Task

LIMITS = {"typical_us": 10.0, "worst_ms": 1.0}
SIZES = (200, 4_000, 19_900, 20_001, 10_000_000)
LINES = {
    "integer": '{"prompt": "p", "answer": -407}',
    "number": '{"prompt": "p", "answer": 2.50}',
    "string": '{"prompt": "p", "answer": "Bern"}',
    "choice": '{"prompt": "p", "answer": "B", "choices": ["x", "y", "z"]}',
}
RIGHT = {
    "multiplication": "3108",
    "countdown": "3*5+7",
    "integer": "-407",
    "number": "5/2",
    "string": "Bern",
    "choice": "B",
}
PIECES = ("9", "-", "(", "1/", "1+", "(1/7-", " ", "<", "<answer>", "</think>", "</THINK>", "\u0130", "\U0001f600", "x")


def tasks(folder: Path) -> dict[str, tuple[Task, Problem]]:
    """Every task and verifier, each with one problem."""
    found = {}
    for name, question in (("multiplication", "37*84"), ("countdown", "3 5 7 = 22")):
        task = make_task(DataConfig(task=name, num_problems=1), 0)
        found[name] = task, task.ask(question)
    for name, line in LINES.items():
        path = folder / f"{name}.jsonl"
        path.write_text(line + "\n" + "".join(line.replace('"p"', f'"{n}"') + "\n" for n in range(40)))
        task = make_task(DataConfig(task=str(path), verifier=name, num_problems=1), 0)
        found[name] = task, task.ask("p")
    return found


def seconds(task: Task, problem: Problem, completion: str, repeats: int) -> float:
    """CPU seconds of one verdict, the least of `repeats`."""
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time_ns()
        task.verify(problem, completion, True)
        best = min(best, (time.process_time_ns() - began) / 1e9)
    return best


def hostile() -> dict[str, str]:
    """Completions by what they are made of."""
    rng = random.Random(0)
    found = {}
    for size in SIZES:
        for piece in PIECES:
            text = (piece * (size // len(piece) + 1))[:size]
            found[f"{size} x {piece!a} as thinking"] = f"{text}</think><answer>1</answer>"
            found[f"{size} x {piece!a} as answer"] = f"</think><answer>{text}</answer>"
        found[f"{size} random characters"] = "".join(rng.choices("<>/thinkaswer01+-*() \n", k=size))
    for shape in ("1/{}+", "{}*", "1/{}-", "{}/", "(1/{}+"):  # expressions of 200 characters with the largest fractions
        terms = [shape.format(n) for n in (97, 89, 83, 79, 73, 71, 67, 61, 59, 53, 47, 43, 41, 37, 31, 29, 23) * 4]
        text = ""
        while len(text) + len(terms[0]) + text.count("(") + 2 < 199 and text.count("(") < 16:
            text += terms.pop(0)
        found[f"expression {shape!a}"] = f"</think><answer>{text}7{')' * text.count('(')}</answer>"
    nines = ["9" * 96] * 2
    for sign in "*/":
        found[f"long numbers and {sign}"] = f"</think><answer>{sign.join(nines)}</answer>"
    return found


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (task, problem) in tasks(Path(folder)).items():
            right = RIGHT[name]
            typical = [
                f"37*84={n}</think> <answer>{a}</answer>" for n in range(20) for a in (right, "1", f"x{n}", "22")
            ]
            median = statistics.median(seconds(task, problem, text, 50) for text in typical)
            worst, kind = max((seconds(task, problem, text, 5), kind) for kind, text in hostile().items())
            found[name] = {"typical_us": round(1e6 * median, 2), "worst_ms": round(1e3 * worst, 3), "worst": kind}
    over = [f"{name} {key}" for name, row in found.items() for key, limit in LIMITS.items() if row[key] > limit]
    print(json.dumps({"limits": LIMITS, "verifiers": found, "over_limit": over}, indent=1))


if __name__ == "__main__":
    main()
