"""The variance of searched estimates, by integration over the threshold, over many searches, and as it is logged."""

from __future__ import annotations

import math

import pytest
import torch

from tests.oracles import IndexedDecoder, Table, twisted_leaf_law
from tinyzero_astar.metrics.rollouts import variance_ratio
from tinyzero_astar.rollout.astar_search import Forest, Guidance, astar_rollouts

PLAIN = Guidance(strength=0.0)
TILTED = Guidance(inverse_beta=2.0, cap=None)
CAPPED = Guidance(inverse_beta=2.0, cap=2.0)
LOG_TILT = [math.log(3 * q) for q in (0.5, 0.3, 0.2)]
NOISY = 0.7  # of the logits of the value: what guides is not exact, nor is what is taken off the reward


def tables_of(size, seed=3):
    return [Table(3, 3, seed=seed + i, success=0.4, peak=peak) for i, peak in enumerate((1.5, 0.5, 4.0)[:size])]


def inverse_inclusion(rates, own, num_leaves):
    """Mean of 1 / q_kappa of one leaf. Leaves arrive at the times of exponential clocks of these rates.

    The threshold e^-kappa of leaf `own` is the `num_leaves`-th arrival of the others, and q_kappa is the chance that
    its own clock has rung by then. By parts, E[1/q(t) - 1] is the integral of -(1/q)' P(that arrival is before t).
    """
    time = torch.linspace(-16, 14, 4000, dtype=torch.float64).exp()
    count = [torch.ones_like(time)] + [torch.zeros_like(time)] * num_leaves  # P(so many others have arrived), < K
    for rate in (r for z, r in enumerate(rates) if z != own):
        late = (-rate * time).exp()
        count = [
            late * count[n] + (1 - late) * (count[n - 1] if n else torch.zeros_like(time)) for n in range(num_leaves)
        ]
    is_over = 1 - sum(count[:num_leaves])
    q = -torch.expm1(-rates[own] * time)
    slope = rates[own] * (1 - q) / q**2
    return 1 + float(torch.trapezoid(slope * is_over, time))


def exact(decoder, num_leaves, guidance, log_tilt, functions):
    """Variance of sum w F of one search for all tables, and of as many samples of each. `functions` are F by leaf."""
    leaves, rates, sampled = [], [], 0.0
    for i, table in enumerate(decoder.tables):
        law = twisted_leaf_law(table, decoder, i, 2.0, guidance.cap, float(guidance.strength))
        leaves += [(i, y, math.exp(log_pi)) for y, (log_pi, _) in law.items()]
        rates += [math.exp(log_q + log_tilt[i]) for _, log_q in law.values()]
        own = [(math.exp(log_pi), functions[i, y]) for y, (log_pi, _) in law.items()]
        mean = sum(p * f for p, f in own)
        sampled += sum(p * (f - mean) ** 2 for p, f in own) * len(decoder.tables) / num_leaves
    searched = sum(
        (p * functions[i, y]) ** 2 * (inverse_inclusion(rates, own, num_leaves) - 1)
        for own, (i, y, p) in enumerate(leaves)
        if functions[i, y]
    )
    return searched, sampled


def searched(size, num_leaves, guidance, is_tilted, draws):
    """The decoder, so many searches for all of its tables, the reward of every leaf, and the tilt of the tables."""
    decoder = IndexedDecoder(tables_of(size), NOISY)
    log_tilt = LOG_TILT if is_tilted else [0.0] * size
    rollouts = astar_rollouts(
        decoder,
        [[i] for _ in range(draws) for i in range(size)],
        seeds=torch.arange(draws * size),
        num_rollouts=num_leaves / size,
        beam_width=num_leaves + 1,
        max_search_depth=3,
        guidance=guidance,
        forest=Forest(size, torch.tensor(log_tilt, dtype=torch.float64).repeat(draws) if is_tilted else None),
    )
    root = torch.tensor([decoder.number[i, ()] for i in range(size)]).repeat(draws)
    leaf = decoder.visited(rollouts.tokens, rollouts.length, root[:, None])[..., -1]
    return decoder, rollouts, decoder.reward[leaf].nan_to_num(0.0), log_tilt


SEARCHES = {  # problems of a search, its leaves, guidance, is the root tilted
    "one problem": (1, 4, PLAIN, False),
    "one problem, guided": (1, 5, CAPPED, False),
    "forest": (3, 6, PLAIN, False),
    "forest, guided": (3, 6, CAPPED, False),
    "forest, tilted": (3, 6, PLAIN, True),
    "forest, both": (3, 8, TILTED, True),
    "forest of few leaves": (3, 5, TILTED, True),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_the_logged_ratio_is_that_of_the_variances(name):
    size, num_leaves, guidance, is_tilted = SEARCHES[name]
    draws = 12_000 // size
    decoder, rollouts, reward, log_tilt = searched(size, num_leaves, guidance, is_tilted, draws)
    p = [1 / (1 + math.exp(-decoder.success_logit(i, ()))) for i in range(size)]
    functions = {(i, y): r - p[i] for i, table in enumerate(decoder.tables) for y, r in table.reward.items()}
    of_search, of_samples = exact(decoder, num_leaves, guidance, log_tilt, functions)
    error = reward - torch.tensor(p, dtype=torch.float64).repeat(draws)[:, None]
    estimate = (rollouts.weight * error).sum(1).view(draws, size).sum(1)
    square = (estimate - estimate.mean()).square()
    assert abs(float(square.mean()) - of_search) < 4 * float(square.std()) / math.sqrt(draws)
    assert variance_ratio(rollouts, rollouts.weight, reward, size) == pytest.approx(of_search / of_samples, rel=0.06)


def test_with_one_leaf_a_search_the_variance_is_infinite_and_not_told():
    for size in (1, 3):
        _, rollouts, reward, _ = searched(size, 1, PLAIN, False, 100)
        assert math.isnan(variance_ratio(rollouts, rollouts.weight, reward, size))


def test_where_every_leaf_is_found_nothing_varies():
    _, rollouts, reward, _ = searched(3, 50, PLAIN, False, 2)
    assert variance_ratio(rollouts, rollouts.weight, reward, 3) == pytest.approx(0, abs=1e-12)
