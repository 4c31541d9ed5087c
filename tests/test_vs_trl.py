"""What benchmarks/vs_trl.py and benchmarks/costs.py make of curves, and how it rewards. Neither needs TRL."""

from __future__ import annotations

import pytest

from benchmarks import costs, vs_trl
from tinyzero_astar.config import DataConfig, RewardConfig
from tinyzero_astar.data.tasks import make_task


def record(*curve):
    return {"curve": [list(row) for row in curve], "arm": "ours", "rate": 1e-4}


def test_both_sides_are_rewarded_alike():
    task, weights = make_task(DataConfig(num_problems=1), 0), RewardConfig()
    texts = ["12*34=408</think><answer>408</answer>", "</think><answer>409</answer>", "408", "</think><answer>4 8"]
    verdicts = [task.verify(task.ask("12*34"), text, True) for text in texts]
    ours = [weights.accuracy * v.accuracy + weights.format * v.format for v in verdicts]
    assert vs_trl.reward(completions=texts, answer=[408] * 4, prompts=[""] * 4) == pytest.approx(ours)
    assert ours == pytest.approx([1.1, 0.1, 0.0, 0.0])


def test_costs_are_interpolated_and_unknown_where_a_target_was_not_reached():
    curve = [[0, 0, 0, 0.0], [100, 10, 4, 0.6], [200, 30, 6, 0.85]]
    assert costs.costs_to(curve, 0.8) == pytest.approx({"tokens": 180, "wall_s": 26, "cpu_s": 5.6})
    assert costs.costs_to(curve, 0.9) == {"tokens": None, "wall_s": None, "cpu_s": None}


def test_the_quickest_run_has_the_least_cpu_time_to_the_lowest_target():
    slow = record((0, 0, 0, 0.0), (10, 1, 9, 0.9))
    quick = record((0, 0, 0, 0.0), (90, 9, 5, 0.9))
    never = record((0, 0, 0, 0.0), (1, 1, 1, 0.7))
    worse = record((0, 0, 0, 0.0), (1, 1, 1, 0.2))
    assert costs.quickest([never, slow, quick]) is quick
    assert costs.quickest([worse, never]) is never


def test_ratios_are_ours_over_theirs_with_a_geometric_mean():
    ours = [record((0, 0, 0, 0.0), (10, 2, 1, 1.0)), record((0, 0, 0, 0.0), (40, 2, 1, 1.0))]
    theirs = [record((0, 0, 0, 0.0), (10, 4, 8, 1.0)), record((0, 0, 0, 0.0), (10, 8, 2, 0.8))]
    found = costs.ratios(ours, theirs)
    assert found["tokens to 0.8"]["each"] == pytest.approx([1.0, 3.2])
    assert found["tokens to 0.8"]["mean"] == pytest.approx(3.2**0.5)
    assert found["cpu_s to 0.8"]["low"] == pytest.approx(0.125)  # the interval of two is their range
    assert found["cpu_s to 0.8"]["high"] == pytest.approx(0.4)
    assert found["cpu_s to 0.9"] == {"each": [0.125, None], "mean": None, "low": None, "high": None}


def test_a_run_ends_at_its_target_or_when_its_cpu_time_is_used_up(capsys):
    accuracy = iter([0.1, 0.9, 0.2])
    progress = vs_trl.Progress(lambda: next(accuracy), target=0.8, most_cpu_s=5.0)
    assert [progress.note(), progress.note()] == [False, True]
    progress.cpu = 5.0
    assert progress.note() and [row[-1] for row in progress.curve] == [0.1, 0.9, 0.2]
