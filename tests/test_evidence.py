"""The numbers behind the answers of a run's page, compared with enumeration and plain loops."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from tests.pages import sample
from tinyzero_astar.metrics.alarms import guidance_gate
from tinyzero_astar.report.evidence import (
    GATE_AUC,
    GATE_SIBLINGS,
    examples,
    found_by_search,
    half_way,
    ranking,
    right_shares,
    with_gate,
    worked_out,
)


def test_half_way_is_where_the_mean_of_three_estimates_passes_the_middle():
    estimates = [0.0, 0.0, 0.0, 0.3, 0.6, 0.9, 0.9, 0.9]
    rows = [{"iteration": i, "rollout/policy_accuracy": p} for i, p in enumerate(estimates, 1)]
    assert half_way(rows) == 5  # 0.6; at 4 it is 0.3, and half is 0.45
    assert half_way(rows[::-1]) is None and half_way(rows[:3]) is None


# ------------------------------------------------------------------------------------------------------ worked out


def completions(iteration, told):
    """Completions by length, whether they are right, and their weight."""
    return [sample(iteration, k, "x" * n, right) | {"weight": w} for k, (n, right, w) in enumerate(told)]


def test_answers_are_worked_out_from_the_first_iteration_on_in_which_most_are_right_and_longer_than_a_guess():
    guesses = [(3, False, 1.0), (5, True, 1.0), (9, False, 1.0)]  # the median is 5
    short = [(5, True, 1.0), (5, True, 1.0), (6, True, 0.9)]  # right, but no longer
    wrong = [(8, False, 1.0), (8, False, 1.0), (8, True, 0.9)]  # longer, but wrong
    light = [(8, True, 0.2), (8, True, 0.2), (2, False, 2.0)]  # most of them, but not of the policy's
    heavy = [(8, True, 1.6), (2, False, 0.3), (2, False, 0.3)]
    samples = [s for i, told in enumerate((guesses, short, wrong, light, heavy), 1) for s in completions(5 * i, told)]
    found = worked_out(samples, 3)
    assert (found.guess, found.first, found.begins) == (5, 5, 4)
    assert [iteration for iteration, _ in found.shares] == [5, 10, 15, 20, 25]
    assert [share for _, share in found.shares] == pytest.approx([0, 0.3, 0.3, 0.4 / 3, 1.6 / 3])
    assert worked_out(samples, None).shares[3][1] == pytest.approx(0.4 / 2.4)  # of the weights
    assert worked_out(samples[:-3], 3).begins is None and worked_out(samples[:3], 3) is None


def test_weights_that_are_no_numbers_count_nothing():
    samples = completions(1, [(3, False, 1.0)]) + completions(2, [(9, True, None), (9, True, math.nan)])
    assert worked_out(samples, None).shares == [(1, 0), (2, 0)]


def test_examples_are_of_median_length_wrong_at_first_and_right_at_last():
    first = completions(1, [(4, False, 1), (9, False, 1), (5, False, 1), (7, True, 1), (1, False, 1)])
    first[-1]["format"] = False
    last = completions(8, [(3, False, 1), (20, True, 1), (30, True, 1), (40, True, 1)])
    wrong, right = examples(first + last)
    assert (len(wrong["completion"]), len(right["completion"])) == (5, 30)
    assert examples(first) is None and examples([]) is None and examples(first + last[:1]) is None


# --------------------------------------------------------------------------------------------- search and sampling


def trace_of(problems):
    """A record with the leaves of each problem, as probability and whether it is right."""
    told = [(i, pi, right) for i, leaves in enumerate(problems) for pi, right in leaves]
    nodes = {"problem": [i for i, *_ in told], "g": [math.log(pi) for _, pi, _ in told]}
    return {"nodes": nodes, "leaves": [{"node": n, "accuracy": right} for n, (*_, right) in enumerate(told)]}


def by_enumeration(leaves, count):
    """Of so many samples, the expected number of different right leaves, and of repeats, over all that can be drawn."""
    right = repeats = 0.0
    for drawn in itertools.product(range(len(leaves)), repeat=count):
        probability = math.prod(leaves[y][0] for y in drawn)
        right += probability * sum(leaves[y][1] for y in set(drawn))
        repeats += probability * (count - len(set(drawn)))
    return right, repeats


def test_samples_are_expected_to_show_and_to_repeat_what_enumeration_says():
    first, second = [(0.6, True), (0.3, False), (0.08, True), (0.02, True)], [(0.9, False), (0.1, True)]
    found = found_by_search([trace_of([first]), trace_of([second])])
    sums = [sum(pair) for pair in zip(by_enumeration(first, 4), by_enumeration(second, 2), strict=True)]
    assert [found.expected, found.repeats] == pytest.approx(sums)
    assert (found.count, found.right, found.rare) == (6, 4, 1)


def test_where_not_all_is_found_the_repeats_are_a_lower_bound():
    leaves = [(0.4, True), (0.3, False), (0.2, False), (0.1, True)]
    right, repeats = by_enumeration(leaves, 2)
    found = found_by_search([trace_of([leaves[:2]])])
    assert 0 < found.repeats < repeats and found.repeats == pytest.approx(0.4**2 + 0.3**2)
    assert found.expected == pytest.approx(1 - 0.6**2) and found.expected < right


def test_a_certain_completion_is_expected_once():
    found = found_by_search([trace_of([[(1.0, True)]])])
    assert (found.expected, found.repeats) == (1, 0) and found_by_search([]).count == 0


def test_right_ones_are_compared_over_the_iterations_that_measured_both():
    values = [(0.5, 0.3), (0.7, 0.3), (None, 0.9), (0.6, 0.3), (0.9, None)]
    rows = [{"rollout/accuracy": a, "rollout/policy_accuracy": b} for a, b in values]
    found = right_shares(rows)
    assert (found.found, found.sampled, found.difference.value) == pytest.approx((0.6, 0.3, 0.3))
    assert 0 < found.difference.low < 0.3 < found.difference.high
    assert right_shares(rows[2:4]) is None


# ---------------------------------------------------------------------------------------------------- the heuristic


def test_a_ranking_is_known_from_three_iterations_on():
    rows = [{"value/sibling_accuracy_later": x} for x in (1.0, None, 0.7, 0.7)]
    assert ranking(rows).value == pytest.approx(0.8) and ranking(rows[:3]) is None


def test_what_the_gate_saw_is_what_it_said():
    rng = random.Random(0)
    names = [*(f"value/auc_depth_{k}" for k in (1, 2, 3, 4)), "value/sibling_accuracy_later"]
    rows = [{"iteration": i, **{n: rng.choice([None, rng.random()]) for n in names}} for i in range(1, 31)]
    waited = 0
    for i, row in enumerate(with_gate([{"iteration": 0}, *rows])[1:]):
        _, reason = guidance_gate(rows[:i])
        auc, siblings = row[GATE_AUC], row[GATE_SIBLINGS]
        if reason.startswith("fewer"):
            waited += 1
            assert auc is None or siblings is None
        else:
            assert reason == f"AUC {auc:.2f} (bound 0.6), sibling ranking {siblings:.2f} (bound 0.55)"
    assert 3 <= waited < 20
    assert with_gate([{"iteration": 0}]) == [{"iteration": 0}]
