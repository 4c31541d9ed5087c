"""What is logged of a batch of rollouts, recomputed leaf by leaf. One problem has a leaf less than the others."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from tinyzero_astar.interfaces import Rollouts, SearchStats
from tinyzero_astar.metrics.heuristic import heuristic_quality
from tinyzero_astar.metrics.rollouts import common_prefixes, rollout_metrics

LEAVES = [  # of each problem: tokens (0 ends a leaf), weight, accuracy, reward, values before the tokens
    [
        ((3, 4, 0), 0.7, 1, 1.1, (0.3, 0.6, 0.8)),
        ((3, 5, 6, 7), 0.2, 0, 0.0, (0.3, 0.6, 0.5, 0.1)),
        ((2, 0), 0.4, 0, 0.1, (0.3, 0.2)),
    ],
    [((5, 0), 0.5, 1, 1.1, (0.9, 0.95)), ((5, 5, 0), 0.3, 1, 1.1, (0.9, 0.95, 0.7)), None],
    [
        ((1, 0), 0.6, 0, 0.1, (0.5, 0.1)),
        ((2, 2, 2, 0), 0.4, 0, 0.1, (0.5, 0.4, 0.3, 0.2)),
        ((4, 0), 0.1, 0, 0.0, (0.5, 0.7)),
    ],
]  # fmt: skip
FOUND = [[leaf for leaf in own if leaf] for own in LEAVES]
EVERY = [leaf for own in FOUND for leaf in own]
INVERSE_BETA = (1.5, -0.5, 2.0)


def table(column, missing=0.0):
    rows = [[missing if leaf is None else leaf[column] for leaf in own] for own in LEAVES]
    return torch.tensor(rows, dtype=torch.float64)


def padded(column, dtype=torch.float64):
    rows = [[[*((leaf or ((),) * 5)[column]), *[0] * 4][:4] for leaf in own] for own in LEAVES]
    return torch.tensor(rows, dtype=dtype)


def make_rollouts():
    tokens, length = padded(0, torch.int64), torch.tensor([[len(leaf[0]) if leaf else 0 for leaf in o] for o in LEAVES])
    logp = torch.where(torch.arange(4) < length[..., None], -0.1 * (1 + tokens), 0.0).double()
    counts = [torch.tensor(x) for x in ([5, 3, 9], [1, 0, 2], [4, 2, 8], [3, 2, 3], [0, 1, 0], [0, 0, 6], [2, 0, 1])]
    return Rollouts(
        tokens=tokens,
        length=length,
        is_finished=torch.tensor([[True, False, True], [True, True, False], [True, True, True]]),
        logp=logp,
        logq=logp,
        value=padded(4),
        baseline=torch.zeros_like(logp),
        child_value=torch.zeros_like(logp),
        priority=torch.zeros(3, 3),
        kappa=torch.zeros(3),
        weight=table(1),
        stats=SearchStats(*counts),
    )


def weighted_mean(pairs):
    return sum(w * x for w, x in pairs) / sum(w for w, _ in pairs)


def of_searches(found, group_size):
    """The leaves of each search, and its problems' leaves apart."""
    groups = [found[i : i + group_size] for i in range(0, len(found), group_size)]
    return [([leaf for own in group for leaf in own], group) for group in groups]


def ratio_of_variances(found, group_size):
    """Equation 23 leaf by leaf, of all searches, divided by what as many samples of each problem would have."""
    searched = sampled = 0.0
    for leaves, problems in of_searches(found, group_size):
        for tokens, w, right, _, values in leaves:
            pi = math.exp(sum(-0.1 * (1 + token) for token in tokens))
            searched += w**2 * (1 - pi / w) * (right - values[0]) ** 2
        for own in problems:  # pairs of unlike leaves
            pairs = [(one, other) for i, one in enumerate(own) for other in own[:i]]
            sampled += sum(x[1] * y[1] * (x[2] - y[2]) ** 2 for x, y in pairs) / (len(leaves) / group_size)
    return searched / sampled


@pytest.mark.parametrize("group_size", [1, 3])
def test_rollout_metrics_equal_their_definitions(group_size):
    found = rollout_metrics(make_rollouts(), table(1), table(2), table(2), table(3), group_size=group_size)
    estimates = [sum(w * a for _, w, a, _, _ in own) for own in FOUND]
    lengths, accuracies, rewards = (
        [f(leaf) for leaf in EVERY] for f in (lambda x: len(x[0]), lambda x: x[2], lambda x: x[3])
    )
    searches = [leaves for leaves, _ in of_searches(FOUND, group_size)]
    sizes = [sum(w for _, w, *_ in own) ** 2 / sum(w * w for _, w, *_ in own) for own in searches]
    assert found == pytest.approx(
        {
            "rollout/accuracy": 3 / 8,
            "rollout/policy_accuracy": sum(estimates) / 3,
            "rollout/policy_accuracy_stderr": statistics.stdev(estimates) / math.sqrt(3),
            "rollout/mixed_fraction": 1 / 3,  # the missing leaf of the second problem is no failure
            "rollout/length": sum(lengths) / 8,
            "rollout/finished_fraction": 7 / 8,
            "rollout/unique_fraction": 1.0,
            # of two leaves each way: 3 4 0 and 3 5 6 7 share one of three, 5 0 and 5 5 0 one of two
            "rollout/shared_prefix_fraction": (2 / 3 + 2 / 2) / 14,
            "weight/sum": sum(w for _, w, *_ in EVERY) / 3,
            "weight/max": 0.7,
            "weight/variance_ratio": ratio_of_variances(FOUND, group_size),
            "weight/capped_fraction": 2 / 3,
            "reward/length_correlation": statistics.correlation(rewards, lengths),
            "reward/accuracy_correlation": statistics.correlation(rewards, accuracies),
            "weight/effective_sample_size": sum(sizes) / len(sizes),
            "search/num_expanded": 17,
            "search/num_forks": 3,
            "search/num_decoded_tokens": 14,
            "search/max_open": 3,
            "search/num_open_final": 1,
            "search/num_pruned": 6,
            "search/tokens_per_leaf": 14 / 8,
        }
    )


def test_without_weights_nothing_is_known_of_the_policys_accuracy():
    found = rollout_metrics(make_rollouts(), table(1), table(2), table(2), table(3), mode="best_first")
    weighted = rollout_metrics(make_rollouts(), table(1), table(2), table(2), table(3))
    unknown = {name for name, x in found.items() if math.isnan(x)}
    assert unknown == {"rollout/policy_accuracy", "rollout/policy_accuracy_stderr", "weight/variance_ratio"}
    assert {name: x for name, x in weighted.items() if name not in unknown}.items() <= found.items()


def test_samples_are_their_own_measure_of_variance():
    found = rollout_metrics(make_rollouts(), table(1), table(2), table(2), table(3), mode="sample")
    assert found["weight/variance_ratio"] == 1


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_problem_without_a_leaf_counts_where_weights_are_summed_and_nowhere_else(missing):
    rollouts, weight, right, reward = make_rollouts(), table(1), table(2), table(3)
    for x in (rollouts.length, rollouts.logp, rollouts.value, rollouts.is_finished, weight, right, reward):
        x[missing] = 0
    found = rollout_metrics(rollouts, weight, right, right, reward, group_size=3)
    left = [own for i, own in enumerate(FOUND) if i != missing]
    leaves = [leaf for own in left for leaf in own]
    wanted = {
        "rollout/accuracy": sum(leaf[2] for leaf in leaves) / len(leaves),
        "rollout/mixed_fraction": 0.0 if missing == 0 else 1 / 2,
        "rollout/unique_fraction": 1.0,
        "rollout/policy_accuracy": sum(leaf[1] * leaf[2] for leaf in leaves) / 3,
        "weight/sum": sum(leaf[1] for leaf in leaves) / 3,
        "weight/effective_sample_size": sum(x[1] for x in leaves) ** 2 / sum(x[1] ** 2 for x in leaves),
        "weight/variance_ratio": math.nan if missing == 0 else ratio_of_variances([*left, []], 3),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, nan_ok=True)
    alone = rollout_metrics(rollouts, weight, right, right, reward)["weight/effective_sample_size"]
    sizes = [sum(x[1] for x in own) ** 2 / sum(x[1] ** 2 for x in own) for own in left]
    assert alone == pytest.approx(sum(sizes) / 3)


def test_leaves_found_twice_are_one_of_the_unique_ones():
    rollouts = make_rollouts()
    rollouts.tokens[1, 1], rollouts.length[1, 1] = rollouts.tokens[1, 0], 2
    rollouts.tokens[2, 2], rollouts.tokens[2, 0] = rollouts.tokens[2, 0], rollouts.tokens[2, 0]
    found = rollout_metrics(rollouts, table(1), table(2), table(2), table(3))
    assert found["rollout/unique_fraction"] == pytest.approx((3 / 3 + 1 / 2 + 2 / 3) / 3)


def auc(rows):
    """For (weight, value, outcome), P(a success has the larger value), ties half."""
    pairs = [
        (w * v, 1.0 if x > y else 0.5 if x == y else 0.0)
        for w, x, one in rows
        for v, y, other in rows
        if one > other
    ]  # fmt: skip
    return weighted_mean(pairs)


def test_heuristic_quality_equals_its_definitions():
    rollouts = make_rollouts()
    # the second problem's successes all fall into the same quarters as failures of others: no measure is nan
    found = heuristic_quality(rollouts, table(2), table(1), torch.tensor(INVERSE_BETA, dtype=torch.float64))
    rows = [(w, v, a, t / len(tokens)) for tokens, w, a, _, values in EVERY for t, v in enumerate(values)]
    assert found["value/brier"] == pytest.approx(weighted_mean([(w, (v - a) ** 2) for w, v, a, _ in rows]))

    def variance(pairs):
        mean = weighted_mean(pairs)
        return weighted_mean([(w, (x - mean) ** 2) for w, x in pairs])

    unexplained = variance([(w, a - v) for w, v, a, _ in rows]) / variance([(w, a) for w, _, a, _ in rows])
    assert found["value/explained_variance"] == pytest.approx(1 - unexplained)
    assert found["value/auc_root"] == pytest.approx(auc([(w, values[0], a) for _, w, a, _, values in EVERY]))
    for quarter in range(4):
        inside = [(w, v, a) for w, v, a, place in rows if quarter / 4 <= place < (quarter + 1) / 4]
        wanted = auc(inside) if {a for *_, a in inside} == {0, 1} else math.nan
        assert found[f"value/auc_depth_{quarter + 1}"] == pytest.approx(wanted, nan_ok=True), quarter
    total = sum(w for w, *_ in rows)
    error = 0.0
    for tenth in range(10):
        inside = [(w, v, a) for w, v, a, _ in rows if int(v * 10) == tenth]
        if inside:
            gap = weighted_mean([(w, v) for w, v, _ in inside]) - weighted_mean([(w, a) for w, _, a in inside])
            error += sum(w for w, *_ in inside) / total * abs(gap)
    assert found["value/calibration_error"] == pytest.approx(error)
    gaps = []
    for i, own in enumerate(FOUND):
        for tokens, w, a, _, values in own:
            for t, v in enumerate(values):
                to_go = sum(-0.1 * (1 + token) for token in tokens[t:]) + a * INVERSE_BETA[i]
                gaps.append((w, math.log1p(v * math.expm1(INVERSE_BETA[i])) - to_go))
    below = weighted_mean([(w, float(gap < -1e-3)) for w, gap in gaps])
    assert 0 < below < 1 and found["heuristic/inadmissible_fraction"] == pytest.approx(below)
    above = weighted_mean([(w, max(gap, 0.0)) for w, gap in gaps])
    assert found["heuristic/overestimate_nats"] == pytest.approx(above)


@pytest.mark.parametrize("at_once", [1, 72, 1 << 22])
def test_leaves_of_a_problem_are_compared_a_few_problems_at_a_time(monkeypatch, at_once):
    monkeypatch.setattr("tinyzero_astar.metrics.rollouts._MOST_PAIRS", at_once)
    wanted = torch.zeros(3, 3, 3, dtype=torch.int64)
    for p, own in enumerate(FOUND):
        for (i, one), (j, other) in itertools.product(enumerate(own), repeat=2):
            pairs = zip(one[0], other[0], strict=False)
            wanted[p, i, j] = sum(1 for _ in itertools.takewhile(lambda ab: ab[0] == ab[1], pairs))
    assert torch.equal(common_prefixes(make_rollouts()), wanted)
