"""Evaluation, with intervals and pass@k against known values and enumeration, and what is counted."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.eval.evaluate import evaluate, paired_difference, pass_at_k, wilson
from tinyzero_astar.interfaces import Problem

Z = 1.959964  # 97.5 % quantile of the normal distribution


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # with z^2 = 3.841459
        (0, 10, 0.0, 0.277533),  # z^2 / (n + z^2) = 3.841459 / 13.841459
        (10, 10, 0.722467, 1.0),  # n / (n + z^2)
        (5, 10, 0.236593, 0.763407),  # 1/2 -+ z / (2 sqrt(n + z^2)) = 0.5 -+ 0.263407
        (1, 10, 0.017876, 0.404150),  # (0.292073 -+ 1.959964 sqrt(0.009 + 0.009604)) / 1.384146
        (450, 500, 0.870578, 0.923322),  # (0.903841 -+ 1.959964 sqrt(0.00018 + 0.00000384146)) / 1.00768292
    ],
)
def test_wilson_equals_known_intervals(right, count, low, high):
    estimate = wilson(right / count, count)
    assert estimate.value == right / count
    assert estimate.low == pytest.approx(low, abs=2e-6)
    assert estimate.high == pytest.approx(high, abs=2e-6)


def test_wilson_ends_are_where_the_score_test_just_rejects():
    for count, share in itertools.product((1, 7, 500), (0.0, 0.03, 0.5, 0.77, 1.0)):
        estimate = wilson(share, count)
        assert 0.0 <= estimate.low <= share <= estimate.high <= 1.0
        for p in (estimate.low, estimate.high):
            assert (share - p) ** 2 == pytest.approx(Z**2 * p * (1 - p) / count, abs=1e-6)


def test_wilson_narrows_with_more_problems_and_mirrors():
    widths = [wilson(0.3, n).high - wilson(0.3, n).low for n in (5, 50, 500, 5000)]
    assert widths == sorted(widths, reverse=True)
    one, other = wilson(0.3, 40), wilson(0.7, 40)
    assert (1 - other.high, 1 - other.low) == pytest.approx((one.low, one.high))


def test_estimate_reads_as_percentages():
    assert str(wilson(0.5, 10)) == " 50.0 %  [23.7, 76.3]"


@pytest.mark.parametrize(("gained", "lost", "count"), [(7, 2, 30), (0, 0, 25), (0, 9, 9), (1, 0, 1), (40, 60, 500)])
def test_the_paired_difference_is_that_of_the_problems_with_half_a_problem_of_each_kind(gained, lost, count):
    pairs = [((1, 0), gained), ((0, 1), lost), ((1, 1), count - gained - lost), ((0, 0), 0)]
    mass = {pair: n + 0.5 for pair, n in pairs}
    total = sum(mass.values())
    mean = sum(m * (x - y) for (x, y), m in mass.items()) / total
    variance = sum(m * (x - y - mean) ** 2 for (x, y), m in mass.items()) / total
    half = Z * math.sqrt(variance / total)
    found = paired_difference(gained, lost, count)
    assert found.value == pytest.approx(sum(n * (x - y) for (x, y), n in pairs) / count)
    assert (found.low, found.high) == pytest.approx((max(-1, mean - half), min(1, mean + half)), abs=1e-6)
    assert -1 <= found.low <= found.value <= found.high <= 1 and found.low < found.high


@pytest.mark.parametrize(("p", "q"), [(0.2, 0.1), (0.05, 0.05), (0.3, 0.02)])
def test_the_interval_of_the_paired_difference_covers_it_as_often_as_it_should(p, q):
    """Summed over all outcomes of 60 problems, each won with probability p and lost with probability q."""
    count, covered = 60, 0.0
    for gained, lost in itertools.product(range(count + 1), repeat=2):
        if gained + lost <= count:
            ways = math.comb(count, gained) * math.comb(count - gained, lost)
            found = paired_difference(gained, lost, count)
            chance = ways * p**gained * q**lost * (1 - p - q) ** (count - gained - lost)
            covered += chance * (found.low <= p - q <= found.high)
    assert 0.94 < covered < 0.975


def test_a_difference_reads_as_points_with_a_sign():
    # 1/3 -+ 1.959964 sqrt((7/12 - 1/9) / 12) = 0.333333 -+ 0.388799
    assert paired_difference(5, 1, 10).in_points() == "+40.0  [-5.5, +72.2]"


def by_enumeration(num_correct, num_samples, k):
    samples = [i < num_correct for i in range(num_samples)]
    draws = list(itertools.combinations(samples, k))
    return sum(any(draw) for draw in draws) / len(draws)


@pytest.mark.parametrize("num_samples", [1, 4, 7])
def test_pass_at_k_equals_the_share_of_all_subsets_with_a_success(num_samples):
    correct = torch.arange(num_samples + 1)
    for k in range(1, num_samples + 1):
        want = [by_enumeration(c, num_samples, k) for c in correct.tolist()]
        assert pass_at_k(correct, num_samples, k).tolist() == pytest.approx(want, abs=1e-12)


def test_pass_at_k_grows_with_k_and_with_successes():
    table = torch.stack([pass_at_k(torch.arange(9), 8, k) for k in range(1, 9)])  # [k, c]
    assert (table[0] - torch.arange(9) / 8).abs().max() < 1e-12  # pass@1 is the share
    assert (table.diff(dim=0) >= 0).all() and (table.diff(dim=0)[:, 1:5] > 0).any(1).all()
    assert (table.diff(dim=1) >= 0).all()
    assert table[-1].tolist() == [0.0] + [1.0] * 8  # all samples: one success is enough


# -------------------------------------------------------------------------------------------- what is counted

GREEDY_RIGHT = [1, 0, 0, 1, 0]  # by problem
SAMPLED_RIGHT = [4, 0, 1, 2, 0]  # of 4 samples
SETTINGS = SearchConfig(mode="gumbel", num_rollouts_per_problem=8, max_search_depth=80)


class Recorded:
    """A generator that answers from the tables above and notes what it was asked."""

    def __init__(self):
        self.greedy_calls, self.sampled_calls = [], []

    def greedy(self, problems, max_search_depth):
        self.greedy_calls.append((len(problems), max_search_depth))
        return self._answer([[GREEDY_RIGHT[p.id]] for p in problems])

    def generate(self, problems, settings, *, seed, iteration):
        self.sampled_calls.append((len(problems), settings, seed, iteration))
        n = settings.num_rollouts_per_problem
        return self._answer([[1] * SAMPLED_RIGHT[p.id] + [0] * (n - SAMPLED_RIGHT[p.id]) for p in problems])

    def _answer(self, right):
        accuracy = torch.tensor(right, dtype=torch.float64)
        length = 10 + 2 * accuracy.long()
        form = torch.ones_like(accuracy)
        form[accuracy.sum(1) == 0] = 0.5  # told apart from accuracy
        return SimpleNamespace(accuracy=accuracy, format=form, rollouts=SimpleNamespace(length=length))


def measured(num_samples=4, max_rows=512):
    generator = Recorded()
    problems = [Problem(i, "", "", 0) for i in range(5)]
    evaluation = evaluate(generator, problems, SETTINGS, num_samples=num_samples, max_rows=max_rows)
    return evaluation.metrics(), generator


def test_evaluation_counts_problems_and_samples():
    metrics, _ = measured()
    assert metrics["eval/num_problems"] == 5
    assert metrics["eval/greedy_accuracy"] == pytest.approx(2 / 5)
    assert metrics["eval/greedy_format"] == pytest.approx((2 * 1 + 3 * 0.5) / 5)
    assert metrics["eval/sampled_format"] == pytest.approx((3 * 1 + 2 * 0.5) / 5)
    assert metrics["eval/pass_at_1"] == pytest.approx((4 + 0 + 1 + 2 + 0) / 20)
    # C(4, 2) = 6 pairs: 4 right 6/6, 1 right 3/6, 2 right 5/6
    assert metrics["eval/pass_at_2"] == pytest.approx((1 + 0 + 3 / 6 + 5 / 6 + 0) / 5)
    assert metrics["eval/pass_at_4"] == pytest.approx(3 / 5)
    assert metrics["eval/mean_length"] == pytest.approx(10 + 2 * 7 / 20)
    shares = [name.removesuffix("_low") for name in metrics if name.endswith("_low")]
    assert len(shares) == 6
    for name in shares:  # samples of one problem are not independent: 5 problems, not 20 samples
        interval = wilson(metrics[name], 5)
        assert (metrics[f"{name}_low"], metrics[f"{name}_high"]) == (interval.low, interval.high), name


def test_evaluation_reports_powers_of_two_up_to_the_samples():
    metrics, _ = measured(num_samples=6)
    reported = {name for name in metrics if name.startswith("eval/pass_at_") and name[-1].isdigit()}
    assert reported == {"eval/pass_at_1", "eval/pass_at_2", "eval/pass_at_4"}


def test_an_evaluation_without_samples_says_what_is_greedy_and_nothing_else():
    whole, _ = measured()
    metrics, generator = measured(num_samples=0)
    assert generator.sampled_calls == [] and generator.greedy_calls == [(5, 80)]
    names = [f"eval/greedy_{x}{end}" for x in ("accuracy", "format") for end in ("", "_low", "_high")]
    assert metrics == {name: whole[name] for name in ("eval/num_problems", *names)}


def test_evaluation_samples_independently_whatever_the_training_mode():
    _, generator = measured()
    [(_, settings, seed, iteration)] = generator.sampled_calls
    assert (settings.mode, settings.num_rollouts_per_problem, settings.max_search_depth) == ("sample", 4, 80)
    assert (seed, iteration > 10**7) == (
        0,
        True,
    )  # the same noise in every run, that of no training iteration
    assert generator.greedy_calls == [(5, 80)]


def test_evaluation_decodes_at_most_max_rows_at_once_and_finds_the_same():
    whole, _ = measured()
    for max_rows, greedy, sampled in ((3, [3, 2], [1] * 5), (8, [5], [2, 2, 1]), (1, [1] * 5, [1] * 5)):
        metrics, generator = measured(max_rows=max_rows)
        assert [n for n, _ in generator.greedy_calls] == greedy
        assert [call[0] for call in generator.sampled_calls] == sampled
        assert metrics == pytest.approx(whole)
    assert not any(math.isnan(x) for x in whole.values())
