"""The dive schedule of `benchmarks.dive` on tables that can be enumerated. It has the same law as mode "gumbel"."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.dive import dive_rollouts
from tests.oracles import IndexedDecoder, Table, TableDecoder, plackett_luce_pairs, twisted_leaf_law
from tests.trees import scores_of, trees_of
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts

PLAIN = Guidance(strength=0.0)
CASES = {  # (guidance, value noise)
    "plain": (PLAIN, 0.0),
    "noisy value, budget": (Guidance(inverse_beta="balanced", cap=2.0), 3.0),
}


def leaves_of(rollouts, problem):
    pairs = zip(rollouts.tokens[problem].tolist(), rollouts.length[problem].tolist(), strict=True)
    return [tuple(tokens[:n]) for tokens, n in pairs if n > 0]


def dives(decoder, num_draws=1, *, seed=0, num_rollouts, guidance=PLAIN):
    """Each of the decoder's tables `num_draws` times, with seeds of their own."""
    prompts = [[i] for i in range(len(decoder.tables)) for _ in range(num_draws)]
    seeds = torch.arange(len(prompts)) + 1_000_003 * seed
    depth = max(t.depth for t in decoder.tables)
    return dive_rollouts(
        decoder, prompts, seeds=seeds, num_rollouts=num_rollouts, max_search_depth=depth, guidance=guidance
    )


def leaf_index(decoder, rollouts, leaves):
    """[P, K] place of every leaf of table 0 in `leaves`."""
    place = torch.full((len(decoder.prefixes),), -1)
    for i, y in enumerate(leaves):
        place[decoder.number[0, y]] = i
    root = torch.full_like(rollouts.length, decoder.number[0, ()])
    return place[decoder.visited(rollouts.tokens, rollouts.length, root)[..., -1]]


@pytest.mark.parametrize("is_guided", [False, True])
def test_ordered_pairs_follow_plackett_luce(is_guided):
    table, draws = Table(2, 3, seed=5, success=0.4), 20_000
    decoder = IndexedDecoder([table])
    guidance = Guidance(inverse_beta=2.0, cap=None, strength=float(is_guided))
    rollouts = dives(decoder, draws, num_rollouts=2, guidance=guidance)
    law = twisted_leaf_law(table, decoder, 0, 2.0, None, float(is_guided))
    leaves = list(law)
    pair_law = plackett_luce_pairs({y: math.exp(lq) for y, (_, lq) in law.items()})
    expected = torch.zeros(len(leaves), len(leaves), dtype=torch.float64)
    for (y, z), p in pair_law.items():
        expected[leaves.index(y), leaves.index(z)] = draws * p
    place = leaf_index(decoder, rollouts, leaves)
    counts = torch.bincount(place @ torch.tensor([len(leaves), 1]), minlength=len(leaves) ** 2).view_as(expected)
    assert (counts.diagonal() == 0).all(), "a duplicate"
    is_pair = expected > 0
    chi2 = float(((counts - expected) ** 2)[is_pair].div(expected[is_pair]).sum())
    degrees = len(pair_law) - 1
    assert chi2 < degrees + 4 * math.sqrt(2 * degrees), f"chi2 {chi2:.1f} at {degrees} degrees of freedom"


@pytest.mark.parametrize("case", CASES)
def test_weights_are_unbiased(case):
    guidance, noise = CASES[case]
    table, draws, k = Table(3, 3, seed=11, success=0.3), 50_000, 3
    decoder = IndexedDecoder([table], value_noise=noise)
    rollouts = dives(decoder, draws, num_rollouts=k, guidance=guidance)
    leaves = list(table.reward)
    place = leaf_index(decoder, rollouts, leaves)
    functions = {
        "one": [1.0 for _ in leaves],
        "reward": [table.reward[y] for y in leaves],
        "length": [float(len(y)) for y in leaves],
        "random": torch.randn(len(leaves), generator=torch.Generator().manual_seed(0)).tolist(),
    }
    for name, values in functions.items():
        exact = sum(math.exp(table.log_pi(y)) * v for y, v in zip(leaves, values, strict=True))
        estimate = (rollouts.weight * torch.tensor(values, dtype=torch.float64)[place]).sum(1)
        z = float((estimate.mean() - exact) / (estimate.std() / math.sqrt(draws)))
        assert abs(z) < 4, f"{name}: {float(estimate.mean()):.5f}, exact {exact:.5f}, z = {z:.1f}"


def test_priorities_and_threshold_have_the_law_of_lock_step():
    table, draws, k = Table(3, 3, seed=11), 20_000, 3
    decoder = IndexedDecoder([table])
    dived = dives(decoder, draws, num_rollouts=k)
    prompts, seeds = [[0]] * draws, torch.arange(draws) + 10**9
    stepped = astar_rollouts(
        decoder, prompts, seeds=seeds, num_rollouts=k, beam_width=k + 1, max_search_depth=3, guidance=PLAIN
    )
    ours, theirs = (torch.cat([r.priority, r.kappa[:, None]], 1) for r in (dived, stepped))
    assert (ours.diff(dim=1) <= 0).all(), "dives end in order of G"
    for i in range(k + 1):
        spread = math.sqrt((float(ours[:, i].var()) + float(theirs[:, i].var())) / draws)
        assert abs(float(ours[:, i].mean() - theirs[:, i].mean())) < 4 * spread
    for n in range(1, k + 1):  # the law of E[length of the n-th leaf] as well
        a, b = (r.length[:, n - 1].double() for r in (dived, stepped))
        assert abs(float(a.mean() - b.mean())) < 4 * math.sqrt((float(a.var()) + float(b.var())) / draws)


def test_room_for_every_leaf_returns_them_all_with_weight_pi():
    table = Table(3, 3, seed=2)
    k = len(table.reward) + 2
    for num_rollouts in (k, len(table.reward)):
        rollouts = dives(TableDecoder([table]), num_rollouts=num_rollouts)
        found = leaves_of(rollouts, 0)
        assert sorted(found) == sorted(table.reward)
        assert rollouts.kappa[0] == -math.inf
        weights = rollouts.weight[0, : len(found)].tolist()
        assert weights == pytest.approx([math.exp(table.log_pi(y)) for y in found], abs=1e-12)
        assert rollouts.weight[0, len(found) :].tolist() == [0.0] * (num_rollouts - len(found))
        assert rollouts.stats.num_decoded_tokens[0] == len(table.log_prob) - 1


@pytest.mark.parametrize("seed", range(10))
def test_leaves_are_distinct_and_every_prefix_of_their_trie_is_decoded_once(seed):
    tables = [Table(4, 4, seed=10 * seed + i, peak=2.0) for i in range(3)]
    decoder = TableDecoder(tables, value_noise=1.0)  # it also checks that slots hold what is asked of them
    together = dives(decoder, seed=seed, num_rollouts=6, guidance=Guidance(inverse_beta=2.0))
    for i, table in enumerate(tables):
        found = leaves_of(together, i)
        assert len(set(found)) == len(found) == 6
        internal = {y[:t] for y in found for t in range(1, len(y))}
        assert int(together.stats.num_decoded_tokens[i]) == len(internal)
        assert int(together.stats.num_forks[i]) <= 5
        for k, leaf in enumerate(found):
            assert table.is_leaf(leaf)
            assert bool(together.is_finished[i, k]) == (leaf[-1] == 0)
            assert float(together.logp[i, k].sum()) == pytest.approx(table.log_pi(leaf))
            for t in range(len(leaf)):
                p = torch.sigmoid(torch.tensor(decoder.success_logit(i, leaf[:t]), dtype=torch.float64))
                assert float(together.value[i, k, t]) == pytest.approx(float(p))
        alone = dive_rollouts(
            decoder, [[i]], seeds=torch.tensor([i + 1_000_003 * seed]), num_rollouts=6, max_search_depth=4,
            guidance=Guidance(inverse_beta=2.0),
        )  # fmt: skip
        assert leaves_of(alone, 0) == found
        assert alone.weight[0].tolist() == pytest.approx(together.weight[i].tolist(), rel=1e-13)


def test_recorded_scores_equal_one_full_forward_of_a_real_model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=24, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    policy = Policy(Qwen2ForCausalLM(config).eval(), (0,), value_hidden_size=16)
    for p in policy.value_model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    prompts = [[3, 4, 5], [7, 8, 9, 10, 11, 12], [5]]
    for guidance, k in itertools.product((PLAIN, Guidance(inverse_beta=1.0)), (1, 4)):
        rollouts = dive_rollouts(
            SlotDecoder(policy, 10), prompts, seeds=torch.arange(3), num_rollouts=k, max_search_depth=10,
            guidance=guidance,
        )  # fmt: skip
        for i, prompt in enumerate(prompts):
            for leaf, logp, value in zip(leaves_of(rollouts, i), rollouts.logp[i], rollouts.value[i], strict=True):
                n = len(leaf)
                scores = scores_of(policy, trees_of([prompt], [[leaf]]))
                torch.testing.assert_close(logp[:n].float(), scores.logp[0], atol=1e-5, rtol=1e-4)
                p = torch.sigmoid(scores.value_logit[0])
                torch.testing.assert_close(value[:n].float(), p, atol=1e-5, rtol=1e-4)
