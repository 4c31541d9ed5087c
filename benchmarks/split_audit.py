"""Do held-out questions stand in the training set? `python -m benchmarks.split_audit` counts them and prints JSON.

Two questions count as the same if the same numbers are given, in whatever order. 12*34 and 34*12 are the same, and so
are two countdown questions with equal numbers, whatever their targets. The audit reads the numbers from the texts of
the questions. It knows nothing of the keys and the hash by which the package splits them.

Beside this package's tasks it measures the split of SkyRL's recipe `examples/train/multiply`, from its description
alone. 10,000 training and 200 test questions are drawn independently, with both factors uniform among the numbers of
two digits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.tasks import make_task
from tinyzero_astar.report.intervals import mean_of

SETTINGS = {
    "multiplication 2x2 digits": DataConfig(),
    "multiplication 2x1 digits": DataConfig(second_min_digits=1, second_max_digits=1),
    "multiplication 3x2 digits": DataConfig(min_digits=3, max_digits=3, second_min_digits=2, second_max_digits=2),
    "countdown 3 to 4 numbers": DataConfig(task="countdown"),
}
SIZES = {  # of training sets, and of the held-out set. The largest are all that exist, or 10,000 and 2,000
    "multiplication 2x2 digits": ((500, 2000, 6436), 844),
    "multiplication 2x1 digits": ((100, 300, 666), 144),
    "multiplication 3x2 digits": ((500, 2000, 10_000), 2000),
    "countdown 3 to 4 numbers": ((500, 2000, 10_000), 2000),
}
SKYRL = {"digits": 2, "train": 10_000, "test": 200}

Given = tuple[int, ...]


def given_of(text: str) -> Given:
    """The numbers of a question such as "34*12" or "7 3 5 = 22", in ascending order, without the target."""
    return tuple(sorted(int(number) for number in re.findall(r"\d+", text.partition("=")[0])))


def num_leaking(train: Iterable[str], held_out: Iterable[str]) -> int:
    """How many held-out questions have the numbers of a training question."""
    known = {given_of(text) for text in train}
    return sum(given_of(text) in known for text in held_out)


def audit(data: DataConfig, seed: int, num_held_out: int) -> dict[str, int]:
    """The count for one of this package's training sets."""
    task = make_task(data, seed)
    train = [problem.text for problem in task.train_problems(0, data.num_problems)]
    held_out = [problem.text for problem in task.held_out_problems(num_held_out)]
    return {"seed": seed, "train": len(train), "held_out": len(held_out), "leaking": num_leaking(train, held_out)}


def audits(num_seeds: int) -> Iterator[dict[str, Any]]:
    """All settings, sizes and seeds."""
    for name, data in SETTINGS.items():
        sizes, num_held_out = SIZES[name]
        for size, seed in itertools.product(sizes, range(num_seeds)):
            yield {"task": name, **audit(replace(data, num_problems=size), seed, num_held_out)}


def drawn(rng: random.Random, digits: int, count: int) -> list[tuple[int, int]]:
    """Independent ordered pairs of factors, each uniform among the numbers of so many digits."""
    numbers = range(10 ** (digits - 1), 10**digits)
    return [(rng.choice(numbers), rng.choice(numbers)) for _ in range(count)]


def independent_draws(seed: int, digits: int, train: int, test: int) -> dict[str, float]:
    """Shares of the test questions that stand in the training set, as they are, or as a pair in either order."""
    rng = random.Random(seed)
    known, asked = set(drawn(rng, digits, train)), drawn(rng, digits, test)
    return {
        "same": sum(pair in known for pair in asked) / test,
        "either_order": sum((a, b) in known or (b, a) in known for a, b in asked) / test,
    }


def expected(digits: int, train: int) -> dict[str, float]:
    """The expectation of both shares, by counting.

    With n numbers of so many digits, a pair is drawn with the chance 1/n², or 2/n² in either order unless it is a
    square, which one test question in n is:

        same          1 - (1 - 1/n²)^train
        either order  (1 - 1/n) (1 - (1 - 2/n²)^train) + 1/n (1 - (1 - 1/n²)^train)
    """
    n = 9 * 10 ** (digits - 1)
    same, turned = (1 - (1 - ways / n**2) ** train for ways in (1, 2))
    return {"same": same, "either_order": (1 - 1 / n) * turned + same / n}


def skyrl(num_draws: int) -> dict[str, Any]:
    """Shares over several data sets, with 95 % intervals of their means, and the expectations."""
    found: Sequence[dict[str, float]] = [independent_draws(seed, **SKYRL) for seed in range(num_draws)]
    measured = {name: mean_of([shares[name] for shares in found])._asdict() for name in found[0]}
    return {**SKYRL, "data_sets": num_draws, "leaking": measured, "expected": expected(SKYRL["digits"], SKYRL["train"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="training sets of each size")
    parser.add_argument("--draws", type=int, default=20, help="data sets drawn as SkyRL's recipe does")
    args = parser.parse_args()
    print(json.dumps({"ours": list(audits(args.seeds)), "skyrl": skyrl(args.draws)}, indent=2))


if __name__ == "__main__":
    main()
