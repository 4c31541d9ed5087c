"""The search on tables that can be enumerated. What is claimed is summed over all leaves."""

from __future__ import annotations

import decimal
import itertools
import math
from collections import Counter

import pytest
import torch

from tests.oracles import (
    IndexedDecoder,
    Table,
    TableDecoder,
    astar_order,
    f_exact,
    plackett_luce_pairs,
    twisted_leaf_law,
)
from tinyzero_astar.interfaces import StepOutput
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts, greedy_rollouts
from tinyzero_astar.search.gumbel import gumbel_after, log_inclusion
from tinyzero_astar.search.heuristic import f_score, propose, soft_value, tilt_of

PLAIN = Guidance(strength=0.0)


def leaves_of(rollouts, problem):
    pairs = zip(rollouts.tokens[problem].tolist(), rollouts.length[problem].tolist(), strict=True)
    return [tuple(tokens[:n]) for tokens, n in pairs if n > 0]


def search(tables, num_draws=1, *, seed=0, decoder=None, **kwargs):
    """Each table `num_draws` times, with seeds of their own."""
    decoder = decoder or TableDecoder(tables)
    prompts = [[i] for i in range(len(tables)) for _ in range(num_draws)]
    seeds = torch.arange(len(prompts)) + 1_000_003 * seed
    depth = max(t.depth for t in tables)
    return astar_rollouts(decoder, prompts, seeds=seeds, max_search_depth=depth, **kwargs)


@pytest.mark.parametrize("inverse_beta", [-2.0, 0.5, 3.0])
def test_g_plus_h_is_the_log_mass_of_the_subtree(inverse_beta):
    table = Table(3, 4, seed=1)
    decoder = TableDecoder([table])
    for prefix in [*table.log_prob, *table.reward]:
        x = torch.tensor(decoder.success_logit(0, prefix), dtype=torch.float64)
        h = soft_value(x, tilt_of(torch.tensor(inverse_beta, dtype=torch.float64)))
        f = f_score(torch.tensor(table.log_pi(prefix), dtype=torch.float64), h)
        assert abs(float(f) - f_exact(table, prefix, inverse_beta)) < 1e-10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("inverse_beta", [-1.5, 2.0])
def test_best_first_returns_leaves_in_order_of_f_and_expands_no_more_than_it_must(seed, inverse_beta):
    table = Table(3, 4, seed=seed)
    guidance = Guidance(inverse_beta=inverse_beta)
    for k in (1, 3, 7):
        rollouts = search([table], mode="best_first", num_rollouts=k, beam_width=200, guidance=guidance)
        expected, scores = astar_order(table, inverse_beta)
        assert leaves_of(rollouts, 0) == expected[:k]
        torch.testing.assert_close(rollouts.priority[0].tolist(), scores[:k])
        must = sum(f_exact(table, s, inverse_beta) > scores[k - 1] for s in table.log_prob)
        assert int(rollouts.stats.num_expanded[0]) == must
        assert int(rollouts.stats.num_pruned[0]) == 0


def test_best_first_width_one_without_value_is_greedy():
    tables = [Table(4, 5, seed=s) for s in range(8)]
    greedy = greedy_rollouts(TableDecoder(tables), [[i] for i in range(8)], 5)
    for i, table in enumerate(tables):
        prefix = ()
        while not table.is_leaf(prefix):
            row = table.log_prob[prefix]
            prefix = (*prefix, row.index(max(row)))
        assert leaves_of(greedy, i) == [prefix]


def test_best_first_prunes_to_its_width_and_still_ends_with_leaves():
    tables = [Table(4, 6, seed=s) for s in range(6)]
    rollouts = search(tables, mode="best_first", num_rollouts=2, beam_width=3)
    assert (rollouts.length > 0).all()
    assert (rollouts.stats.num_pruned > 0).all()
    assert (rollouts.stats.max_open <= 3).all()
    assert (rollouts.stats.num_expanded <= 1 + 3 * 6).all()
    assert (rollouts.priority[:, 0] >= rollouts.priority[:, 1]).all()


@pytest.mark.parametrize("is_guided", [False, True])
def test_gumbel_ordered_pairs_follow_plackett_luce(is_guided):
    table, draws = Table(2, 3, seed=5, success=0.4), 20_000
    decoder = IndexedDecoder([table])
    guidance = Guidance(inverse_beta=2.0, cap=None, strength=float(is_guided))
    rollouts = search([table], draws, decoder=decoder, mode="gumbel", num_rollouts=2, beam_width=3, guidance=guidance)
    law = twisted_leaf_law(table, decoder, 0, 2.0, None, float(is_guided))
    expected = plackett_luce_pairs({y: math.exp(lq) for y, (_, lq) in law.items()})
    counts = Counter(tuple(leaves_of(rollouts, i)) for i in range(draws))
    assert set(counts) <= set(expected), "a duplicate or an impossible leaf"
    chi2 = sum((counts[pair] - draws * p) ** 2 / (draws * p) for pair, p in expected.items())
    degrees = len(expected) - 1
    assert chi2 < degrees + 4 * math.sqrt(2 * degrees), f"chi2 {chi2:.1f} at {degrees} degrees of freedom"


def test_gumbel_with_room_for_every_leaf_returns_them_all_with_weight_pi():
    table = Table(3, 3, seed=2)
    k = len(table.reward) + 2
    rollouts = search([table], mode="gumbel", num_rollouts=k, beam_width=k + 1)
    found = leaves_of(rollouts, 0)
    assert sorted(found) == sorted(table.reward)
    assert rollouts.kappa[0] == -math.inf
    weights = rollouts.weight[0, : len(found)].tolist()
    assert weights == pytest.approx([math.exp(table.log_pi(y)) for y in found], abs=1e-12)
    assert rollouts.weight[0, len(found) :].tolist() == [0.0, 0.0]


def test_lock_step_finds_the_leaves_of_best_first_order_under_the_same_noise():
    from tinyzero_astar.search.gumbel import (
        prefix_hashes,
        root_gumbel,
        to_uniform,
        token_bits,
        token_counters,
        token_waiting_times,
        waiting_time,
    )

    table, k = Table(3, 4, seed=7), 4
    decoder = TableDecoder([table])
    for seed in range(50):
        rollouts = search([table], seed=seed, mode="gumbel", num_rollouts=k, beam_width=k + 1, guidance=PLAIN)
        state = prefix_hashes(torch.tensor([1_000_003 * seed]))
        open_list = [(float(root_gumbel(state[0])[0]), (), 0.0, state)]
        closed: list[tuple[float, tuple[int, ...]]] = []
        while len(closed) < k + 1:  # pop the largest G, whatever its depth
            open_list.sort(key=lambda entry: -entry[0])
            gumbel, prefix, phi, state = open_list.pop(0)
            if table.is_leaf(prefix):
                closed.append((gumbel, prefix))
                continue
            prob = [math.exp(x) for x in table.log_prob[prefix]]
            left, first = float(to_uniform(state[1])[0]), -1
            while left > 0:  # the first child by inverting the distribution function
                first += 1
                left -= prob[first] / sum(prob)
            unit = math.exp(-phi)  # clocks of the children tick e^phi as fast as those of probabilities
            time = math.exp(-gumbel)
            arrival = {first: time}
            others = [a for a in range(table.num_tokens) if a != first]
            time += unit * float(waiting_time(state[2])[0]) / sum(prob[a] for a in others)
            rings = {
                a: float(token_waiting_times(state[0], token_counters(table.num_tokens, torch.device("cpu")))[0, a])
                / prob[a]
                for a in others
            }
            arrival |= {a: time + unit * (rings[a] - min(rings.values())) for a in others}
            for a, t in arrival.items():
                child_phi = phi + table.log_prob[prefix][a]
                child_state = prefix_hashes(state[0] ^ token_bits(torch.tensor(a)))
                open_list.append((-math.log(t), (*prefix, a), child_phi, child_state))
        assert leaves_of(rollouts, 0) == [y for _, y in closed[:k]]
        assert rollouts.priority[0].tolist() == pytest.approx([g for g, _ in closed[:k]], abs=1e-9)
        assert float(rollouts.kappa[0]) == pytest.approx(closed[k][0], abs=1e-9)
    assert decoder is not None


CASES = {  # (guidance, value noise)
    "plain": (PLAIN, 0.0),
    "exact value": (Guidance(inverse_beta="balanced", cap=None), 0.0),
    "noisy value": (Guidance(inverse_beta=2.0, cap=None), 1.5),
    "noisy value, budget": (Guidance(inverse_beta="balanced", cap=2.0), 3.0),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_unbiased(case):
    guidance, noise = CASES[case]
    table, draws, k = Table(3, 3, seed=11, success=0.3), 50_000, 3
    decoder = IndexedDecoder([table], value_noise=noise)
    rollouts = search(
        [table], draws, decoder=decoder, mode="gumbel", num_rollouts=k, beam_width=k + 1, guidance=guidance
    )
    leaves = list(table.reward)
    index = {y: i for i, y in enumerate(leaves)}
    columns = torch.tensor([[index[y] for y in leaves_of(rollouts, i)] for i in range(draws)])
    generator = torch.Generator().manual_seed(0)
    functions = {
        "one": [1.0 for _ in leaves],
        "reward": [table.reward[y] for y in leaves],
        "length": [float(len(y)) for y in leaves],
        "random": torch.randn(len(leaves), generator=generator).tolist(),
    }
    for name, values in functions.items():
        expected = sum(math.exp(table.log_pi(y)) * v for y, v in zip(leaves, values, strict=True))
        estimate = (rollouts.weight * torch.tensor(values, dtype=torch.float64)[columns]).sum(1)
        z = (estimate.mean() - expected) / (estimate.std() / math.sqrt(draws))
        assert abs(float(z)) < 4, f"{name}: {float(estimate.mean()):.5f}, exact {expected:.5f}, z = {z:.1f}"


def test_balanced_tilt_with_exact_value_succeeds_half_the_time():
    table = Table(3, 4, seed=3, success=0.15)
    decoder = TableDecoder([table])
    p = table.success_probability(())
    assert 0.05 < p < 0.4
    law = twisted_leaf_law(table, decoder, 0, math.log((1 - p) / p), None)
    assert sum(math.exp(lq) * table.reward[y] for y, (_, lq) in law.items()) == pytest.approx(0.5)
    rollouts = search(
        [table], 400, decoder=decoder, mode="gumbel", num_rollouts=1, beam_width=2, guidance=Guidance(cap=None)
    )
    log_weight = (rollouts.logp - rollouts.logq).sum(-1)[:, 0]
    reward = torch.tensor([table.reward[leaves_of(rollouts, i)[0]] for i in range(400)])
    exact = [2 * p if r else 2 * (1 - p) for r in reward.tolist()]
    assert log_weight.exp().tolist() == pytest.approx(exact, abs=1e-9)
    assert abs(float(reward.mean()) - 0.5) < 0.1
    moment_q = sum(math.exp(2 * lp - lq) * (table.reward[y] - p) ** 2 for y, (lp, lq) in law.items())
    moment_pi = sum(math.exp(lp) * (table.reward[y] - p) ** 2 for y, (lp, _) in law.items())
    assert moment_q / moment_pi == pytest.approx(4 * p * (1 - p), abs=1e-12)


@pytest.mark.parametrize(("inverse_beta", "cap"), [(3.0, 2.0), (-3.0, 2.0), (0.3, 1.05)])  # at once, or by small steps
@pytest.mark.parametrize("noise", [0.0, 1.0, 4.0])
def test_budget_bounds_the_weight_of_every_leaf(noise, inverse_beta, cap):
    table = Table(3, 5, seed=13, success=0.1)
    decoder = TableDecoder([table], value_noise=noise)
    k = len(table.reward)
    rollouts = search(
        [table],
        decoder=decoder,
        mode="gumbel",
        num_rollouts=k,
        beam_width=k + 1,
        guidance=Guidance(inverse_beta=inverse_beta, cap=cap),
    )
    found = leaves_of(rollouts, 0)
    assert len(found) == k
    log_weight = (rollouts.logp - rollouts.logq).sum(-1)[0]
    assert float(log_weight.max()) <= math.log(cap) + 1e-9
    promised = math.log1p(table.success_probability(()) * math.expm1(inverse_beta)) - min(inverse_beta, 0.0)
    is_held_back = noise > 0 or promised > math.log(cap)  # an exact h needs no more than it promises at the root
    assert (int(rollouts.stats.num_capped[0]) > 0) == is_held_back
    law = twisted_leaf_law(table, decoder, 0, inverse_beta, cap)
    expected = [law[y][0] - law[y][1] for y in found]
    assert log_weight.tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_impossible_tokens_leave_the_law_of_the_others_as_it_is(cap):
    table = Table(4, 3, seed=13, success=0.3)
    for prefix in [(), (2,), (2, 3)]:
        table.log_prob[prefix][1] = -math.inf
        total = math.log(sum(math.exp(x) for x in table.log_prob[prefix]))
        table.log_prob[prefix] = [x - total for x in table.log_prob[prefix]]
    decoder = TableDecoder([table], value_noise=1.5)
    possible = [y for y in table.reward if math.isfinite(table.log_pi(y))]
    k = len(possible) + 1
    guidance = Guidance(inverse_beta=2.0, cap=cap)
    rollouts = search([table], decoder=decoder, mode="gumbel", num_rollouts=k, beam_width=k + 1, guidance=guidance)
    found = leaves_of(rollouts, 0)
    assert sorted(found) == sorted(possible)
    law = twisted_leaf_law(table, decoder, 0, 2.0, cap)
    assert rollouts.logq.sum(-1)[0, :-1].tolist() == pytest.approx([law[y][1] for y in found], abs=1e-9)


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_problems_together_equal_one_by_one(mode):
    tables = [Table(3, 4, seed=s, peak=0.7) for s in range(5)]
    decoder = TableDecoder(tables, value_noise=1.0)
    options = {"mode": mode, "num_rollouts": 3, "beam_width": 4, "max_search_depth": 4}
    seeds = torch.arange(5) * 17 + 3
    together = astar_rollouts(decoder, [[i] for i in range(5)], seeds=seeds, **options)
    for i in range(5):
        alone = astar_rollouts(decoder, [[i]], seeds=seeds[i : i + 1], **options)
        assert leaves_of(alone, 0) == leaves_of(together, i)
        width = alone.tokens.shape[-1]
        for one, other in (
            (alone.priority[0], together.priority[i]),
            (alone.kappa[0], together.kappa[i]),
            (alone.logq[0], together.logq[i, :, :width]),
        ):  # but for the last digit, which depends on the shapes
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
        assert alone.stats.num_decoded_tokens[0] == together.stats.num_decoded_tokens[i]


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_recorded_scores_belong_to_the_recorded_tokens(mode):
    tables = [Table(4, 4, seed=s) for s in range(3)]
    decoder = TableDecoder(tables, value_noise=0.5)
    rollouts = search(tables, decoder=decoder, mode=mode, num_rollouts=5, beam_width=8)
    for i, table in enumerate(tables):
        for k, leaf in enumerate(leaves_of(rollouts, i)):
            assert bool(rollouts.is_finished[i, k]) == (leaf[-1] == 0)
            for t, token in enumerate(leaf):
                assert float(rollouts.logp[i, k, t]) == pytest.approx(table.log_prob[leaf[:t]][token])
                p = torch.sigmoid(torch.tensor(decoder.success_logit(i, leaf[:t]), dtype=torch.float64))
                assert float(rollouts.value[i, k, t]) == pytest.approx(float(p))
            assert (rollouts.logp[i, k, len(leaf) :] == 0).all()
            assert (rollouts.tokens[i, k, len(leaf) :] == 0).all()


def test_sample_draws_independently_from_the_policy():
    table, draws = Table(2, 3, seed=4), 10_000
    rollouts = search([table], draws, decoder=IndexedDecoder([table]), mode="sample", num_rollouts=2)
    pairs = Counter(tuple(sorted(leaves_of(rollouts, i))) for i in range(draws))
    p = {y: math.exp(table.log_pi(y)) for y in table.reward}
    expected = {
        (y, z): draws * p[y] * p[z] * (1 if y == z else 2)
        for y, z in itertools.combinations_with_replacement(sorted(p), 2)
    }
    chi2 = sum((pairs[pair] - e) ** 2 / e for pair, e in expected.items())
    degrees = len(expected) - 1
    assert chi2 < degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_nan_and_impossible_rows_are_named(mode):
    table = Table(3, 2, seed=0)
    decoder = TableDecoder([table])
    table.log_prob[()] = [math.nan, -1.0, -1.0]
    with pytest.raises(FloatingPointError, match="NaN"):
        search([table], decoder=decoder, mode=mode, num_rollouts=1, beam_width=2)


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named(mode, wrong):
    """Also where nothing is guided by it, since it would be logged, and be the baseline."""

    class WrongValue(TableDecoder):
        def _output(self, rows):
            output = super()._output(rows)
            is_late = torch.tensor([len(prefix) == 1 for _, prefix in rows])
            return output._replace(value_logit=torch.where(is_late, wrong, output.value_logit))

    decoder = WrongValue([Table(3, 4, seed=s) for s in range(4)])
    with pytest.raises(FloatingPointError, match="returned a value that is NaN or infinite"):
        search(decoder.tables, decoder=decoder, mode=mode, num_rollouts=6, beam_width=7, guidance=PLAIN)


@pytest.mark.parametrize("mode", ["gumbel", "best_first"])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_a_childs_value_that_is_nan_is_named(mode, cap):
    class NanChild(TableDecoder):
        def success_logit(self, table, prefix):
            return math.nan if prefix == (1, 2) else super().success_logit(table, prefix)

    decoder = NanChild([Table(3, 3, seed=0)])
    options = {"decoder": decoder, "num_rollouts": 4, "beam_width": 5}
    with pytest.raises(FloatingPointError, match="a child's value that is NaN"):
        search(decoder.tables, mode=mode, guidance=Guidance(inverse_beta=2.0, cap=cap), **options)
    search(decoder.tables, mode="sample", **options)  # looks at no child


def test_only_guided_searches_ask_for_the_values_of_children():
    class Counting(TableDecoder):
        num_asked = 0

        def _output(self, rows):
            output = super()._output(rows)

            def child_logit(logp):
                self.num_asked += 1
                return output.child_logit(logp)

            return output._replace(child_logit=child_logit)

    asked = []
    for mode, guidance in (("sample", Guidance()), ("gumbel", PLAIN), ("gumbel", Guidance()), ("best_first", PLAIN)):
        decoder = Counting([Table(3, 3, seed=0)])
        search(decoder.tables, decoder=decoder, mode=mode, num_rollouts=3, beam_width=4, guidance=guidance)
        asked.append(decoder.num_asked)
    assert asked[:2] == [0, 0] and min(asked[2:]) > 1


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_forks_are_counted(mode):
    class Counting(TableDecoder):
        def step(self, tokens, source, length, target, path):
            source = target if source is None else source
            for one, other in zip(source.tolist(), target.tolist(), strict=True):
                forks[other // (len(self.content) // 6)] += one != other
            return super().step(tokens, source, length, target, path)

    forks = Counter()
    decoder = Counting([Table(3, 4, seed=s) for s in range(6)])
    found = search(decoder.tables, decoder=decoder, mode=mode, num_rollouts=4, beam_width=5, guidance=PLAIN)
    assert found.stats.num_forks.tolist() == [forks[i] for i in range(6)]
    assert sum(forks.values()) > 6


@pytest.mark.parametrize("log_rate", [0.0, -30.0, -900.0])
@pytest.mark.parametrize("lucky", [0.0, 30.0, 900.0])
def test_later_arrivals_equal_their_plain_formula_in_many_digits(log_rate, lucky):
    """-log(e^-T + wait e^-phi), with a bound as far above phi as improbable prefixes of lucky ones have it."""
    with decimal.localcontext() as context:
        context.prec, context.Emin = 900, -(10**6)
        wait = torch.tensor([0.0, 1e-300, 1e-9, 0.3, 1.0, 50.0, 1e40], dtype=torch.float64)
        bound = torch.tensor(log_rate + lucky + 0.3, dtype=torch.float64)
        time = (-decimal.Decimal(bound.item())).exp()
        unit = (-decimal.Decimal(log_rate)).exp()
        wanted = [-float((time + decimal.Decimal(x) * unit).ln()) for x in wait.tolist()]
    found = gumbel_after(bound, wait, torch.tensor(log_rate, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    assert found[0] == bound
    assert gumbel_after(bound, torch.tensor(math.inf), torch.tensor(log_rate)) == -math.inf


def test_arguments_are_checked():
    table = Table(2, 2, seed=0)
    with pytest.raises(ValueError, match=r"beam_width 4 must be at least num_rollouts \+ 1 = 5"):
        search([table], mode="gumbel", num_rollouts=4, beam_width=4)
    with pytest.raises(ValueError, match="seeds must be int64"):
        astar_rollouts(TableDecoder([table]), [[0]], seeds=torch.zeros(1))
    for prompts in ([], [[0], []]):
        with pytest.raises(ValueError, match="prompts must be non-empty token lists"):
            astar_rollouts(TableDecoder([table]), prompts, seeds=torch.arange(len(prompts)))
    for name in ("num_rollouts", "beam_width", "max_search_depth"):
        with pytest.raises(ValueError, match=f"{name} 0.* must be at least 1"):
            astar_rollouts(TableDecoder([table]), [[0]], seeds=torch.arange(1), **{name: 0})
    with pytest.raises(ValueError, match="mode 'astar' is not one of"):
        search([table], mode="astar")
    with pytest.raises(ValueError, match=r"cap 0\.5"):
        Guidance(cap=0.5)
    for inverse_beta in (51.0, -51.0, math.nan):
        with pytest.raises(ValueError, match=r"^inverse_beta .* must lie in \+-50"):
            Guidance(inverse_beta=inverse_beta)
    for bound in (-1.0, 51.0, math.nan):
        with pytest.raises(ValueError, match=r"^max_inverse_beta .* must lie in \[0, 50"):
            Guidance(max_inverse_beta=bound)
    for strength in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"^guidance strength .* must lie in \[0, 1\]"):
            Guidance(strength=strength)


def test_a_proposal_says_at_which_prefixes_the_budget_lowered_the_guidance():
    logp = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]))
    child_rise = torch.tensor([[0.0, 3.0], [0.0, 0.0], [0.0, 3.0]])
    strength, zero = torch.tensor([[1.0], [1.0], [0.0]]), torch.zeros(3, 1)
    held = propose(logp, child_rise, zero, strength, 1.5)  # 0.9 + 0.1 e^3 = 2.9 > 1.5 at the first alone
    assert held.is_held_back.tolist() == [[True], [False], [False]]
    assert propose(logp, child_rise, zero, strength, 3.0).is_held_back is None


def test_leaves_too_improbable_for_a_double_have_finite_weights():
    """120 tokens of a uniform policy over 1,000, where log pi = -828.9, and exp of that is 0."""

    class Uniform:
        eos_ids = (0,)

        def start(self, prompts, home, *, can_cross=False):
            return self.step(torch.zeros(len(prompts)), None, None, None, None)

        def step(self, tokens, source, length, target, path):
            logits = torch.zeros((len(tokens), 1000), dtype=torch.float64)
            return StepOutput(logits, logits[:, 0], lambda logp: logits)

    guidance = Guidance(strength=0.0)
    options = {"num_rollouts": 3, "beam_width": 4, "max_search_depth": 120, "guidance": guidance}
    found = astar_rollouts(Uniform(), [[5]] * 80, seeds=torch.arange(80), **options)
    assert float(found.logp.sum(-1).min()) < -800
    assert torch.isfinite(found.weight).all()
    # q_kappa is pi e^-kappa there, so a weight is e^kappa
    long = found.length == 120
    torch.testing.assert_close(found.weight[long], torch.exp(found.kappa)[:, None].expand_as(long)[long])
    total = found.weight.sum(1)
    assert abs(total.mean() - 1) < 4 * total.std() / 80**0.5


def test_inclusion_probability_is_continuous_where_its_series_takes_over():
    gap = torch.tensor([-30.0, -39.999999, -40.000001, -700.0, -5000.0], dtype=torch.float64)
    exact = [math.log(-math.expm1(-math.exp(x))) for x in gap[:4].tolist()]
    found = log_inclusion(gap, torch.zeros(()))
    torch.testing.assert_close(found, torch.tensor([*exact, -5000.0], dtype=torch.float64), rtol=1e-14, atol=0)


class ManyTokens:
    """A policy of 200 tokens whose logits are drawn from each prefix."""

    eos_ids = (0,)

    def __init__(self, scale):
        self.scale = scale

    def start(self, prompts, home, *, can_cross=False):
        self.held = {slot: tuple(prompts[i]) for slot, i in enumerate(home.tolist())}
        return self.scores([tuple(p) for p in prompts])

    def step(self, tokens, source, length, target, path):
        source = target if source is None else source
        rows = zip(tokens.tolist(), source.tolist(), length.tolist(), target.tolist(), strict=True)
        new = {t: (*self.held[s][: 1 + n], token) for token, s, n, t in rows}
        self.held |= new
        return self.scores(list(new.values()))

    def scores(self, prefixes):
        drawn = [torch.randn(200, generator=torch.Generator().manual_seed(hash(s) % 2**31)) for s in prefixes]
        logits = self.scale * torch.stack(drawn)
        return StepOutput(logits, torch.zeros(len(prefixes)), lambda logp: torch.zeros_like(logits))


@pytest.mark.parametrize("num_rollouts", [1, 3, 8])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_fewer_leaves_are_the_first_of_more(num_rollouts, scale):
    """And kappa is the G of the next. Of a vocabulary of 200 only the children that can matter are looked at."""

    def found(k):
        options = {"num_rollouts": k, "beam_width": k + 1, "max_search_depth": 6, "guidance": PLAIN}
        return astar_rollouts(ManyTokens(scale), [[i] for i in range(12)], seeds=torch.arange(12), **options)

    few, many = found(num_rollouts), found(200)
    width = few.tokens.shape[-1]
    assert few.tokens.tolist() == many.tokens[:, :num_rollouts, :width].tolist()
    for name, wanted in (("priority", many.priority[:, :num_rollouts]), ("kappa", many.priority[:, num_rollouts])):
        # but for the last digit, which depends on the shapes
        torch.testing.assert_close(getattr(few, name), wanted, rtol=1e-12, atol=1e-12)
