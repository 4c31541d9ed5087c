"""benchmarks/split_audit.py finds what leaks, and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.split_audit import SETTINGS, audit, drawn, expected, independent_draws, num_leaking
from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.generation import Multiplication


def test_a_planted_leak_is_found_in_whatever_order_its_numbers_stand():
    assert num_leaking(["12*34", "56*78"], ["34*12", "12*35", "56*78"]) == 2
    assert num_leaking(["7 3 5 = 22"], ["3 5 7 = 21", "3 5 8 = 22", "3 5 = 7", "3 5 7 7 = 22"]) == 1


def test_a_copy_of_a_training_problem_in_the_held_out_set_is_counted(monkeypatch):
    data = DataConfig(num_problems=30)
    assert audit(data, 0, 20)["leaking"] == 0
    held_out = Multiplication.held_out_problems

    def with_a_leak(task, count):
        a, b = task.train_problems(0, 30)[7].text.split("*")
        return [*held_out(task, count - 1), task.ask(f"{b}*{a}")]

    monkeypatch.setattr(Multiplication, "held_out_problems", with_a_leak)
    assert audit(data, 0, 20) == {"seed": 0, "train": 30, "held_out": 20, "leaking": 1}


@pytest.mark.parametrize("data", SETTINGS.values(), ids=list(SETTINGS))
def test_no_held_out_question_has_the_numbers_of_a_training_question(data):
    assert audit(replace(data, num_problems=300), 1, 140)["leaking"] == 0


def test_independent_draws_leak_as_often_as_counting_says():
    one = independent_draws(0, 1, 60, 5000)
    many = [independent_draws(seed, 1, 60, 500) for seed in range(100)]
    for name, share in expected(1, 60).items():
        assert sum(shares[name] for shares in many) / 100 == pytest.approx(share, abs=0.02)
        assert one[name] == pytest.approx(share, abs=0.2)  # one training set is not their mean


def test_factors_have_as_many_digits_as_asked():
    numbers = {n for pair in drawn(random.Random(0), 2, 2000) for n in pair}
    assert numbers == set(range(10, 100))
