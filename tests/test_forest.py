"""One search for several problems, with laws by enumeration, forks across problems, and what a problem alone would get.

The forests are made of unlike tables, with other probabilities, other leaves, other depths of their leaves. Sums run
over all leaves of all tables, written from equation 21.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.decoding import ATOL, PROMPTS, shake_value_model
from tests.oracles import IndexedDecoder, Table, TableDecoder, plackett_luce_pairs, twisted_leaf_law
from tests.trees import scores_of, trees_of
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import Forest, Guidance, astar_rollouts
from tinyzero_astar.search.heuristic import log_root_tilt, soft_value, tilt_of

PLAIN = Guidance(strength=0.0)
TILTED = Guidance(inverse_beta=2.0, cap=None)
CAPPED = Guidance(inverse_beta=2.0, cap=2.0)
PEAKS = (0.5, 1.5, 4.0)  # of three tables: many likely leaves, some, hardly more than one


def tables_of(seed=3, success=0.4):
    return [Table(3, 3, seed=seed + i, success=success, peak=peak) for i, peak in enumerate(PEAKS)]


def search(decoder, draws, num_leaves, *, seed=0, order=None, log_tilt=None, **options):
    """`draws` forests of the decoder's tables, with so many leaves each."""
    size = len(decoder.tables)
    order = list(range(size)) if order is None else order
    seeds = (torch.arange(draws)[:, None] * size + torch.tensor(order)).flatten() + 1_000_003 * seed
    prompts = [[i] for _ in range(draws) for i in order]
    tilt = None if log_tilt is None else torch.tensor([log_tilt[i] for i in order], dtype=torch.float64).repeat(draws)
    options = {"guidance": PLAIN, "mode": "gumbel", "beam_width": num_leaves + 1, "max_search_depth": 3} | options
    rate = num_leaves / size
    return astar_rollouts(decoder, prompts, seeds=seeds, num_rollouts=rate, forest=Forest(size, tilt), **options)


def leaves_of(rollouts, problem):
    pairs = zip(rollouts.tokens[problem].tolist(), rollouts.length[problem].tolist(), strict=True)
    return [tuple(tokens[:n]) for tokens, n in pairs if n > 0]


def sums(decoder, rollouts, draws):
    """[draws] of the weighted sums over a forest's leaves of several functions, and what they should be on average."""
    tables, size = decoder.tables, len(decoder.tables)
    rng = torch.Generator().manual_seed(5)
    functions = {
        "one": {(i, y): 1.0 for i, t in enumerate(tables) for y in t.reward},
        "reward": {(i, y): t.reward[y] for i, t in enumerate(tables) for y in t.reward},
        "length": {(i, y): float(len(y)) for i, t in enumerate(tables) for y in t.reward},
        "random": {(i, y): float(torch.rand((), generator=rng)) for i, t in enumerate(tables) for y in t.reward},
        "first problem": {(i, y): float(i == 0) for i, t in enumerate(tables) for y in t.reward},
    }
    found = {name: torch.zeros(draws, dtype=torch.float64) for name in functions}
    lengths, tokens = rollouts.length.tolist(), rollouts.tokens.tolist()
    weights = rollouts.weight.tolist()
    for p, (own, rows, w) in enumerate(zip(lengths, tokens, weights, strict=True)):
        for n, row, weight in zip(own, rows, w, strict=True):
            if n:
                for name, f in functions.items():
                    found[name][p // size] += weight * f[p % size, tuple(row[:n])]
    exact = {
        name: sum(math.exp(t.log_pi(y)) * f[i, y] for i, t in enumerate(tables) for y in t.reward)
        for name, f in functions.items()
    }
    return {name: (found[name], exact[name]) for name in functions}


LOG_TILT = [math.log(3 * q) for q in (0.5, 0.3, 0.2)]


@pytest.mark.parametrize("num_leaves", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("guidance", "log_tilt"),
    [(PLAIN, None), (PLAIN, LOG_TILT), (TILTED, None), (CAPPED, LOG_TILT)],
    ids=["plain", "problems", "tokens", "both"],
)
def test_the_weights_of_a_forest_are_unbiased(num_leaves, guidance, log_tilt):
    assert_weights_are_unbiased(IndexedDecoder(tables_of(), 0.7), num_leaves, guidance, log_tilt)


def assert_weights_are_unbiased(decoder, num_leaves, guidance, log_tilt, draws=2000):
    rollouts = search(decoder, draws, num_leaves, guidance=guidance, log_tilt=log_tilt)
    assert int((rollouts.length > 0).sum()) == draws * num_leaves
    for name, (values, exact) in sums(decoder, rollouts, draws).items():
        z = float((values.mean() - exact) / (values.std() / math.sqrt(draws)))
        assert abs(z) < 4, f"{name}: {float(values.mean()):.4f}, exact {exact:.4f}"


@pytest.mark.parametrize("is_tilted", [False, True])
def test_ordered_pairs_of_leaves_follow_plackett_luce_across_problems(is_tilted):
    assert_pairs_follow_plackett_luce(IndexedDecoder(pair_of_tables()), is_tilted)


def pair_of_tables():
    return [Table(2, 2, seed=5 + i, peak=1.0 + i) for i in range(2)]


def assert_pairs_follow_plackett_luce(decoder, is_tilted):
    tables, draws = decoder.tables, 10_000
    log_tilt = [math.log(2 * 0.7), math.log(2 * 0.3)] if is_tilted else [0.0, 0.0]
    rollouts = search(decoder, draws, 2, guidance=TILTED, log_tilt=log_tilt, max_search_depth=2)
    law = {}
    for i in range(2):
        for y, (_, log_q) in twisted_leaf_law(tables[i], decoder, i, 2.0, None, 1.0).items():
            law[i, y] = math.exp(log_q + log_tilt[i]) / 2
    assert sum(law.values()) == pytest.approx(1)
    expected = plackett_luce_pairs(law)
    counts = Counter()
    for d in range(draws):
        ranked = [
            (float(rollouts.priority[p, k]), (p % 2, y))
            for p in (2 * d, 2 * d + 1)
            for k, y in enumerate(leaves_of(rollouts, p))
        ]
        counts[tuple(leaf for _, leaf in sorted(ranked, reverse=True))] += 1
    assert set(counts) <= set(expected), "a duplicate or an impossible leaf"
    common = {pair: p for pair, p in expected.items() if draws * p > 10}
    cells = [(counts[pair], draws * p) for pair, p in common.items()]
    cells.append((draws - sum(found for found, _ in cells), draws * (1 - sum(common.values()))))  # the rare ones as one
    chi2 = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    degrees = len(cells) - 1
    assert chi2 < degrees + 4 * math.sqrt(2 * degrees), f"chi2 {chi2:.1f} at {degrees} degrees of freedom"


def test_with_room_for_every_leaf_of_a_forest_each_has_its_own_probability_as_weight():
    assert_every_leaf_has_its_own_probability_as_weight(TableDecoder(tables_of()))


def assert_every_leaf_has_its_own_probability_as_weight(decoder):
    tables = decoder.tables
    count = sum(len(t.reward) for t in tables)
    rollouts = search(decoder, 1, count + 2, log_tilt=LOG_TILT)
    for i, table in enumerate(tables):
        found = leaves_of(rollouts, i)
        assert sorted(found) == sorted(table.reward)
        weights = rollouts.weight[i, : len(found)].tolist()
        assert weights == pytest.approx([math.exp(table.log_pi(y)) for y in found], abs=1e-12)
    assert (rollouts.kappa == -math.inf).all()


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_a_forest_of_one_problem_is_the_search_of_that_problem(mode):
    tables = tables_of()
    decoder, options = TableDecoder(tables), {"num_rollouts": 4, "beam_width": 5, "max_search_depth": 3, "mode": mode}
    alone = astar_rollouts(decoder, [[0], [1], [2]], seeds=torch.arange(3), guidance=TILTED, **options)
    forest = astar_rollouts(
        decoder, [[0], [1], [2]], seeds=torch.arange(3), guidance=TILTED, forest=Forest(1), **options
    )
    for name, x in vars(alone).items():
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(x, getattr(forest, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
@pytest.mark.parametrize("num_leaves", [2, 6, 8])
def test_the_order_of_the_problems_of_a_forest_does_not_matter(mode, num_leaves):
    tables = tables_of()
    wanted = search(TableDecoder(tables), 4, num_leaves, mode=mode, beam_width=20)
    order = [2, 0, 1]
    found = search(TableDecoder(tables), 4, num_leaves, mode=mode, beam_width=20, order=order)
    for draw, i in itertools.product(range(4), range(3)):
        here, there = 3 * draw + i, 3 * draw + order.index(i)
        assert leaves_of(found, there) == leaves_of(wanted, here)
        n = len(leaves_of(wanted, here))
        torch.testing.assert_close(found.weight[there, :n], wanted.weight[here, :n], equal_nan=True)


@pytest.mark.parametrize("num_leaves", [3, 6])
def test_sampling_gives_every_problem_its_share(num_leaves):
    rollouts = search(TableDecoder(tables_of()), 50, num_leaves, mode="sample")
    assert (rollouts.length > 0).sum(1).tolist() == [num_leaves // 3] * 150
    assert rollouts.weight.unique().tolist() == [3 / num_leaves]


@pytest.mark.parametrize("num_leaves", [1, 2, 5])
def test_sampling_draws_the_problems_that_get_one_more(num_leaves):
    assert_samples_draw_the_problems_that_get_one_more(IndexedDecoder(tables_of()), num_leaves)


def assert_samples_draw_the_problems_that_get_one_more(decoder, num_leaves, draws=3000):
    rollouts = search(decoder, draws, num_leaves, mode="sample")
    count = (rollouts.length > 0).sum(1).view(draws, 3)
    assert (count.sum(1) == num_leaves).all() and set(count.flatten().tolist()) == {
        num_leaves // 3,
        num_leaves // 3 + 1,
    }
    share = count.double().mean(0)
    assert (share - num_leaves / 3).abs().max() < 4 * 0.5 / math.sqrt(draws)
    for name, (values, exact) in sums(decoder, rollouts, draws).items():
        spread = float(values.std() / math.sqrt(draws))
        assert abs(float(values.mean()) - exact) < 4 * spread + 1e-9, name


def test_best_first_returns_the_best_leaves_of_all_problems():
    assert_best_first_returns_the_best_leaves(TableDecoder(tables_of()))


def assert_best_first_returns_the_best_leaves(decoder):
    tables, guidance = decoder.tables, Guidance(inverse_beta=2.0)
    found = search(decoder, 1, 6, mode="best_first", beam_width=200, guidance=guidance)
    tilt = tilt_of(torch.tensor(2.0, dtype=torch.float64))
    scores = {}
    for i, table in enumerate(tables):
        for y in table.reward:
            value = torch.tensor(decoder.success_logit(i, y), dtype=torch.float64)
            scores[i, y] = table.log_pi(y) + float(soft_value(value, tilt))
    best = sorted(scores, key=scores.get, reverse=True)[:6]
    got = {(i, y) for i in range(3) for y in leaves_of(found, i)}
    assert got == set(best) and len({i for i, _ in best}) > 1
    for i in range(3):
        own = leaves_of(found, i)
        assert found.priority[i, : len(own)].tolist() == pytest.approx([scores[i, y] for y in own])
        assert found.logp[i].sum(-1)[: len(own)].tolist() == pytest.approx([tables[i].log_pi(y) for y in own])


@pytest.mark.parametrize("mode", ["gumbel", "best_first"])
@torch.no_grad()
def test_forks_across_problems_equal_full_recomputation(mode):
    """Prompts of unequal length on a real model. Slots change from one problem to another."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    policy = shake_value_model(Policy(Qwen2ForCausalLM(config).eval(), (0,), value_hidden_size=16))
    decoder = SlotDecoder(policy, 10)
    rollouts = astar_rollouts(
        decoder,
        PROMPTS,
        seeds=torch.arange(4),
        num_rollouts=3,
        beam_width=5,
        max_search_depth=10,
        mode=mode,
        guidance=Guidance(inverse_beta=1.0, cap=None),
        forest=Forest(4),
    )
    count = (rollouts.length > 0).sum(1)
    assert int(count.sum()) == 12 and len(set(count.tolist())) > 1
    for i, prompt in enumerate(PROMPTS):
        for k in range(int(count[i])):
            n = int(rollouts.length[i, k])
            ids = torch.tensor([[*prompt, *rollouts.tokens[i, k, :n].tolist()]])
            logits = policy.language_model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            logp = torch.log_softmax(logits.double(), -1).gather(1, rollouts.tokens[i, k, :n, None])[:, 0]
            torch.testing.assert_close(rollouts.logp[i, k, :n], logp, atol=ATOL, rtol=1e-4)
            scores = scores_of(policy, trees_of([prompt], [[rollouts.tokens[i, k, :n].tolist()]]))
            for got, logit in ((rollouts.value, scores.value_logit), (rollouts.child_value, scores.child_logit)):
                torch.testing.assert_close(got[i, k, :n].float(), torch.sigmoid(logit[0]), atol=ATOL, rtol=1e-4)


def test_the_root_prefers_half_solved_problems_by_equation_22():
    p, bound = [0.5, 0.1, 0.999, 0.02], 1.7
    u = [x * (1 - x) for x in p]
    wanted = [1 / bound + (1 - 1 / bound) * x / (sum(u) / 4) for x in u]
    found = log_root_tilt(torch.logit(torch.tensor([p], dtype=torch.float64)), bound)
    assert found.exp()[0].tolist() == pytest.approx(wanted, rel=1e-9)
    assert sum(wanted) == pytest.approx(4) and min(wanted) >= 1 / bound


def test_a_tilt_of_nothing_is_exactly_uniform():
    said = torch.tensor([[3.0, -700.0, 0.1]])
    assert not log_root_tilt(said, 1.0).any()
    assert not log_root_tilt(torch.full((1, 3), -1e4), 2.0).any()  # no problem can be solved, as far as is known
    assert log_root_tilt(said, 2.0).min() >= -math.log(2)
