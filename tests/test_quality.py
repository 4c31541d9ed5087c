"""Measures of the heuristic and of the weights against pair loops and literals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.oracles import Table, TableDecoder
from tinyzero_astar.metrics.heuristic import (
    admissibility,
    calibration,
    explained_variance,
    heuristic_quality,
    sibling_ranking,
    weighted_auc,
)
from tinyzero_astar.metrics.rollouts import (
    correlation,
    effective_sample_size,
    shared_prefix_fraction,
    unique_fraction,
)
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts
from tinyzero_astar.search.heuristic import inverse_beta_of


def searched(noise, num_problems=12, k=6, seed=0):
    tables = [Table(3, 4, seed=s, success=0.4) for s in range(num_problems)]
    decoder = TableDecoder(tables, value_noise=noise)
    rollouts = astar_rollouts(
        decoder,
        [[i] for i in range(num_problems)],
        seeds=torch.arange(num_problems) + 100 * seed,
        num_rollouts=k,
        beam_width=k + 1,
        max_search_depth=4,
        guidance=Guidance(strength=0.0),
    )
    accuracy = torch.zeros(rollouts.length.shape, dtype=torch.float64)
    for i, table in enumerate(tables):
        for j in range(k):
            leaf = tuple(rollouts.tokens[i, j, : rollouts.length[i, j]].tolist())
            accuracy[i, j] = table.reward[leaf]
    return tables, rollouts, accuracy


def test_weighted_auc_equals_the_loop_over_pairs():
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(0, 5, (30,), generator=generator).double()  # with ties
    outcome = torch.randint(0, 2, (30,), generator=generator).double()
    weight = torch.rand(30, generator=generator).double()
    top = bottom = 0.0
    for i in range(30):
        for j in range(30):
            if outcome[i] == 1 and outcome[j] == 0:
                pair = float(weight[i] * weight[j])
                bottom += pair
                top += pair * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    assert weighted_auc(score, outcome, weight) == pytest.approx(top / bottom)
    blurred = score * (1 + 1e-15 * torch.randn(30, generator=generator).double())  # a sigmoid's last digit
    assert weighted_auc(blurred, outcome, weight) == pytest.approx(top / bottom)
    assert math.isnan(weighted_auc(score, torch.ones(30).double(), weight))


def test_explained_variance_knows_its_limits():
    outcome = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    assert explained_variance(outcome.clone(), outcome, weight) == pytest.approx(1.0)
    assert explained_variance(torch.full_like(outcome, 0.3), outcome, weight) == pytest.approx(0.0)
    assert explained_variance(1 - outcome, outcome, weight) == pytest.approx(-3.0)  # Var(2R - 1) = 4 Var(R)
    assert math.isnan(explained_variance(outcome, torch.ones_like(outcome), weight))


def test_calibration_by_hand():
    value = torch.tensor([0.15, 0.15, 0.85, 1.0], dtype=torch.float64)
    outcome = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    weight = torch.tensor([3.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    error, bins = calibration(value, outcome, weight)
    # bin 1: V .15, R 1/4, share 1/2. Bin 8: V .85, R 1, share 1/4. Bin 9: V 1, R 0, share 1/4
    assert error == pytest.approx(0.5 * 0.1 + 0.25 * 0.15 + 0.25 * 1.0)
    assert bins == [[0.15, 0.25, 0.5], [0.85, 1.0, 0.25], [1.0, 0.0, 0.25]]


def test_sibling_ranking_equals_the_loop_over_forks_and_is_high_for_an_exact_value():
    tables, rollouts, accuracy = searched(noise=2.0)
    decoder = TableDecoder(tables, value_noise=2.0)
    points = {"first": [], "later": []}
    num_ends = 0
    for i in range(len(tables)):
        leaves = [tuple(rollouts.tokens[i, k, : rollouts.length[i, k]].tolist()) for k in range(6)]
        for a in range(6):
            for b in range(6):
                fork = 0
                while leaves[a][:fork] == leaves[b][:fork] and fork < 5:
                    fork += 1  # the children are the first prefixes that differ
                if accuracy[i, a] == 1 and accuracy[i, b] == 0:
                    num_ends += fork in (len(leaves[a]), len(leaves[b]))
                    x, y = (decoder.success_logit(i, leaf[:fork]) for leaf in (leaves[a], leaves[b]))
                    points["first" if fork == 1 else "later"].append(1.0 if x > y else 0.5 if x == y else 0.0)
    found = sibling_ranking(rollouts, accuracy)
    assert num_ends > 5 and min(len(own) for own in points.values()) > 5
    for name, own in (("", points["first"] + points["later"]), *((f"_{which}", own) for which, own in points.items())):
        assert found.pop(f"value/sibling_pairs{name}") == len(own)
        assert found.pop(f"value/sibling_accuracy{name}") == pytest.approx(sum(own) / len(own))
    assert not found
    exact, blind = (
        sibling_ranking(*searched(noise, num_problems=40)[1:])["value/sibling_accuracy"] for noise in (0.0, 300.0)
    )
    assert exact > 0.7
    assert 0.35 < blind < 0.6


def test_admissibility_sees_an_h_that_is_too_low_and_measures_the_gap_of_one_that_is_not():
    tables, rollouts, accuracy = searched(noise=0.0)
    inverse_beta = torch.full((len(tables),), 1.5, dtype=torch.float64)
    weight = rollouts.weight
    share, over = admissibility(rollouts, accuracy, weight, inverse_beta)
    assert share == 0.0  # an exact h is admissible
    top = mass = 0.0
    for i, table in enumerate(tables):
        for k in range(6):
            leaf = tuple(rollouts.tokens[i, k, : rollouts.length[i, k]].tolist())
            for t in range(len(leaf)):
                found = table.log_pi(leaf, t) + 1.5 * table.reward[leaf]
                top += float(weight[i, k]) * (table.log_partition(leaf[:t], 1.5) - found)
                mass += float(weight[i, k])
    assert over == pytest.approx(top / mass, abs=1e-4)
    low = torch.full_like(rollouts.value, 1e-6)
    pessimist = dataclasses.replace(rollouts, value=torch.where(rollouts.is_token, low, 0.0))
    assert admissibility(pessimist, accuracy, weight, inverse_beta)[0] > 0.2


def test_heuristic_quality_ranks_an_exact_value_above_a_noisy_one():
    def measure(noise):
        _, rollouts, accuracy = searched(noise)
        inverse_beta = inverse_beta_of(Guidance(), torch.logit(rollouts.value[:, 0, 0]))
        return heuristic_quality(rollouts, accuracy, rollouts.weight, inverse_beta)

    exact, noisy = measure(0.0), measure(3.0)
    assert exact["value/brier"] < noisy["value/brier"]
    assert exact["value/explained_variance"] > 0.1 > noisy["value/explained_variance"]
    assert exact["value/auc_depth_4"] > noisy["value/auc_depth_4"]
    assert exact["value/calibration_error"] < noisy["value/calibration_error"]


def test_diversity_and_weights_by_hand():
    _, rollouts, _ = searched(noise=0.0)
    assert unique_fraction(rollouts) == 1.0
    pairs = []
    for i in range(len(rollouts.length)):
        leaves = [tuple(rollouts.tokens[i, k, : rollouts.length[i, k]].tolist()) for k in range(6)]
        for a in range(6):
            for b in range(6):
                if a != b:
                    common = sum(leaves[a][: n + 1] == leaves[b][: n + 1] for n in range(4) if n < len(leaves[a]))
                    pairs.append(common / min(len(leaves[a]), len(leaves[b])))
    assert shared_prefix_fraction(rollouts) == pytest.approx(sum(pairs) / len(pairs))
    weight = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert effective_sample_size(weight).tolist() == [2.0, 1.0]
    assert effective_sample_size(weight, 2).tolist() == pytest.approx([4 / 1.5])
    assert correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])) == pytest.approx(-1.0)
    assert math.isnan(correlation(torch.ones(3), torch.tensor([3.0, 2.0, 1.0])))
