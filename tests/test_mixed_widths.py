"""The curriculum of benchmarks/studies/mixed_widths.py: narrow products in training, wide ones held out."""

from __future__ import annotations

from pathlib import Path

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.generation import is_held_out
from tinyzero_astar.data.tasks import make_task

FILE = Path(__file__).resolve().parents[1] / "benchmarks/studies/mixed_widths.py"


def factors(problem):
    a, b = problem.text.split("*")
    return int(a), int(b)


def test_training_products_have_every_width_and_held_out_ones_only_the_widest():
    task = make_task(DataConfig(task=f"{FILE}:MixedWidths", min_digits=3, max_digits=3, num_problems=400), 0)
    trained = [factors(problem) for problem in task.train_problems(0, 400)]
    held_out = task.held_out_problems(100)
    assert {(len(str(a)), len(str(b))) for a, b in trained} == {(2, 2), (2, 3), (3, 2), (3, 3)}
    assert {(len(str(a)), len(str(b))) for a, b in map(factors, held_out)} == {(3, 3)}
    assert not any(is_held_out(a, b) for a, b in trained)
    assert all(is_held_out(*factors(problem)) for problem in held_out)
    plain = make_task(DataConfig(min_digits=3, max_digits=3, num_problems=400), 0)
    assert [p.text for p in plain.held_out_problems(100)] == [p.text for p in held_out]  # what arms are compared on


def test_a_held_out_product_is_judged():
    task = make_task(DataConfig(task=f"{FILE}:MixedWidths", min_digits=3, max_digits=3, num_problems=4), 0)
    problem = task.held_out_problems(1)[0]
    a, b = factors(problem)
    right, wrong = (f"</think><answer>{a * b + slip}</answer>" for slip in (0, 1))
    assert task.verify(problem, right, True).accuracy == 1
    assert task.verify(problem, wrong, True).accuracy == 0
