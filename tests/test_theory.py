"""What docs/algorithm.md claims, summed over every leaf of small tables or averaged over many searches.

The laws of the search itself (order, Plackett-Luce, weights, budget) stand in test_search.py. Here are the
propositions about h, the gradient and the value regression that the weights are for, thinning, and the edges.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.oracles import (
    IndexedDecoder,
    Table,
    TableDecoder,
    f_exact,
    h_max,
    policy_gradient,
    twisted_leaf_law,
)
from tinyzero_astar.config import TrainConfig, ValueConfig
from tinyzero_astar.interfaces import Batch, StepOutput
from tinyzero_astar.model.model import TokenScores, ValueScores
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts
from tinyzero_astar.rollout.generator import THINNING_STREAM
from tinyzero_astar.rollout.thinning import thin_weights
from tinyzero_astar.search import gumbel as gumbel_arithmetic
from tinyzero_astar.search import roots
from tinyzero_astar.search.gumbel import hash_with, to_uniform
from tinyzero_astar.search.heuristic import propose, soft_value, tilt_of
from tinyzero_astar.training.astar_po import AStarPO
from tinyzero_astar.training.trees import grow_trees, stack
from tinyzero_astar.training.update import Updater
from tinyzero_astar.training.value_update import ValueRows, value_losses

PLAIN = Guidance(strength=0.0)
TILTED = Guidance(inverse_beta=2.0, cap=None)
MODES = ["sample", "gumbel", "best_first"]
DOCS = Path(__file__).resolve().parents[1] / "docs" / "algorithm.md"


def search(decoder, draws=1, *, depth=None, **kwargs):
    """Table 0 of the decoder, `draws` times with seeds of their own."""
    depth = depth or decoder.tables[0].depth
    return astar_rollouts(decoder, [[0]] * draws, seeds=torch.arange(draws), max_search_depth=depth, **kwargs)


def gumbel(decoder, draws, k, guidance, **kwargs):
    return search(decoder, draws, mode="gumbel", num_rollouts=k, beam_width=k + 1, guidance=guidance, **kwargs)


def leaves_of(rollouts, problem=0):
    pairs = zip(rollouts.tokens[problem].tolist(), rollouts.length[problem].tolist(), strict=True)
    return [tuple(tokens[:n]) for tokens, n in pairs if n > 0]


def nodes_of(decoder, rollouts):
    """[P, K, T + 1] numbers of the prefixes before each token, and of the leaf."""
    return decoder.visited(rollouts.tokens, rollouts.length, decoder.root[:1, None])


def z_score(draws, expected):
    return float((draws.mean() - expected) / (draws.std() / math.sqrt(len(draws))))


def double(x):
    return torch.tensor(x, dtype=torch.float64)


# --------------------------------------------------------------------------------- the heuristic: P2, P3, P5


@pytest.mark.parametrize("inverse_beta", [-2.0, 0.5, 3.0])
def test_h_is_admissible_and_its_gap_is_the_min_entropy(inverse_beta):
    table = Table(3, 4, seed=1, success=0.4)
    decoder = TableDecoder([table])
    for s in [*table.log_prob, *table.reward]:
        h = float(soft_value(double(decoder.success_logit(0, s)), tilt_of(double(inverse_beta))))
        mass = [
            table.log_pi(y, len(s)) + table.reward[y] * inverse_beta for y in table.leaves(s)
        ]  # log of pi(y|s) e^(R/beta)
        total = math.log(sum(math.exp(x) for x in mass))
        min_entropy = -max(x - total for x in mass)  # of pi*(.|s)
        assert h - h_max(table, s, inverse_beta) == pytest.approx(min_entropy, abs=1e-10)
        assert min_entropy >= -1e-12


@pytest.mark.parametrize("inverse_beta", [-2.0, 0.5, 3.0])
def test_h_is_consistent_and_its_proposal_carries_the_mass_of_subtrees(inverse_beta):
    table = Table(3, 4, seed=2, success=0.4)
    decoder = TableDecoder([table])
    log_q = {(): 0.0}
    for s in sorted(table.log_prob, key=len):
        children = [(*s, a) for a in range(table.num_tokens)]
        logp = double(table.log_prob[s])[None]
        h = soft_value(double(decoder.success_logit(0, s)), tilt_of(double(inverse_beta)))
        child_h = soft_value(double([[decoder.success_logit(0, c) for c in children]]), tilt_of(double(inverse_beta)))
        # flow: sum_a pi(a|s) e^h(sa) = e^h(s), which implies log pi(a|s) + h(sa) <= h(s)
        assert float(torch.logsumexp(logp + child_h, -1)) == pytest.approx(float(h), abs=1e-10)
        assert bool((logp + child_h <= h + 1e-12).all())
        one = torch.ones(1, 1, dtype=torch.float64)
        proposal = propose(logp, child_h, 0 * one, one, None)
        for a, c in enumerate(children):
            log_q[c] = log_q[s] + float(proposal.logq[0, a])
            want = f_exact(table, c, inverse_beta) - f_exact(table, (), inverse_beta)
            assert log_q[c] == pytest.approx(want, abs=1e-9)


class BentDecoder(TableDecoder):
    """Exact values bent by bounded noise, up or down or both, inside the tree and at its leaves."""

    def __init__(self, table, low, high, leaf_error=0.0):
        self.low, self.high, self.leaf_error = low, high, leaf_error
        super().__init__([table])

    def success_logit(self, table, prefix):
        exact = super().success_logit(table, prefix)
        share = float(to_uniform(hash_with(torch.tensor(len(prefix)), torch.tensor(hash(prefix)))))
        if not self.tables[table].is_leaf(prefix):
            return exact + self.low + (self.high - self.low) * share
        if not self.leaf_error:
            return exact
        return min(max(exact, -3.0), 3.0) + self.leaf_error * (2 * share - 1)


def first_leaf(table, decoder, inverse_beta):
    rollouts = search(
        decoder,
        mode="best_first",
        num_rollouts=1,
        beam_width=300,
        guidance=Guidance(inverse_beta=inverse_beta),
    )
    assert int(rollouts.stats.num_pruned[0]) == 0
    return leaves_of(rollouts)[0], int(rollouts.stats.num_expanded[0])


def learned_h(decoder, prefix, inverse_beta):
    p = 1 / (1 + math.exp(-decoder.success_logit(0, prefix)))
    return math.log1p(p * math.expm1(inverse_beta))


def best_leaf(table, inverse_beta):
    return max(table.reward, key=lambda y: f_exact(table, y, inverse_beta))


def test_overestimates_cost_expansions_but_never_the_best_leaf():
    inverse_beta, extra = 4.0, 0
    for seed in range(12):
        table = Table(3, 4, seed=seed, success=0.3)
        leaf, exact = first_leaf(table, TableDecoder([table]), inverse_beta)
        assert leaf == best_leaf(table, inverse_beta)
        leaf, expanded = first_leaf(table, BentDecoder(table, 0.0, 6.0), inverse_beta)
        assert leaf == best_leaf(table, inverse_beta)
        extra += expanded - exact
    assert extra > 0


@pytest.mark.parametrize("leaf_error", [0.0, 2.0])
def test_underestimates_cost_at_most_what_they_are_on_the_best_path(leaf_error):
    inverse_beta, num_worse = 4.0, 0
    for seed in range(25):
        table = Table(3, 4, seed=seed, success=0.3)
        decoder = BentDecoder(table, -6.0, 2.0, leaf_error)
        best = best_leaf(table, inverse_beta)
        path = [best[:t] for t in range(1, len(best) + 1)]
        under = max(0.0, *(h_max(table, s, inverse_beta) - learned_h(decoder, s, inverse_beta) for s in path))
        over = max(
            0.0,
            *(learned_h(decoder, y, inverse_beta) - table.reward[y] * inverse_beta for y in table.reward),
        )
        leaf, _ = first_leaf(table, decoder, inverse_beta)
        loss = f_exact(table, best, inverse_beta) - f_exact(table, leaf, inverse_beta)
        assert loss <= under + over + 1e-9
        num_worse += leaf != best
    assert num_worse > 3, "the bound was never put to the test"


# ----------------------------------------------------------------------------------- the weights: eqs. 6, 14

NOISY = 1.5  # of the logits of the value, a model that is far from exact


def sums_of(decoder, rollouts, weight):
    """Sum over leaves of weight * f for f = 1, R, length, [P] each."""
    reward = decoder.reward[nodes_of(decoder, rollouts)[..., -1]]
    values = {"one": torch.ones_like(reward), "reward": reward, "length": rollouts.length.double()}
    return {name: (weight * f).sum(1) for name, f in values.items()}


def expectations(table):
    pi = {y: math.exp(table.log_pi(y)) for y in table.reward}
    return {
        "one": sum(pi.values()),
        "reward": sum(p * table.reward[y] for y, p in pi.items()),
        "length": sum(p * len(y) for y, p in pi.items()),
    }


def test_a_root_without_noise_would_bias_the_weights(monkeypatch):
    table = Table(3, 3, seed=11, success=0.3)
    decoder = IndexedDecoder([table])
    right = gumbel(decoder, 50_000, 3, PLAIN)
    monkeypatch.setattr(roots, "root_gumbel", lambda state: torch.zeros(state.shape, dtype=torch.float64))
    wrong = gumbel(decoder, 50_000, 3, PLAIN)
    assert (right.tokens == wrong.tokens).all(), "the leaves do not depend on the root's number"
    for name, want in expectations(table).items():
        assert abs(z_score(sums_of(decoder, right, right.weight)[name], want)) < 4
    assert abs(z_score(sums_of(decoder, wrong, wrong.weight)["one"], 1.0)) > 10


def test_normalising_within_a_group_and_dropping_duplicates_are_biased():
    table = Table(3, 3, seed=11, success=0.3, peak=2.0)
    decoder = IndexedDecoder([table], NOISY)
    p = table.success_probability(())
    rollouts = gumbel(decoder, 50_000, 4, TILTED)
    assert abs(z_score(sums_of(decoder, rollouts, rollouts.weight)["reward"], p)) < 4
    share = rollouts.weight / rollouts.weight.sum(1, keepdim=True)
    assert abs(z_score(sums_of(decoder, rollouts, share)["reward"], p)) > 10
    drawn = search(decoder, 50_000, mode="sample", num_rollouts=4)
    leaf = nodes_of(decoder, drawn)[..., -1]
    is_repeat = (leaf[:, :, None] == leaf[:, None, :]).tril(-1).any(2)
    assert abs(z_score(sums_of(decoder, drawn, drawn.weight)["reward"], p)) < 4
    share = (~is_repeat).double() / (~is_repeat).sum(1, keepdim=True)
    assert abs(z_score(sums_of(decoder, drawn, share)["reward"], p)) > 10


def test_thinning_keeps_the_mean_and_adds_the_stated_variance():
    count, floor = 1000, 0.05
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # each outcome as often as it is probable
    for w in (0.0, 0.001, 0.02, 0.049, 0.05, 0.3, 2.0):
        thinned = thin_weights(torch.full((count,), w, dtype=torch.float64), uniform, floor=floor)
        assert float(thinned.mean()) == pytest.approx(w, abs=1e-8)
        added = float(thinned.square().mean()) - w * w
        assert added == pytest.approx(w * (floor - w) if w < floor else 0.0, abs=1e-8)
        assert added <= floor * w
    everything = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(thin_weights(everything, torch.rand(50), floor=0.0), everything)
    with pytest.raises(ValueError, match="floor"):
        thin_weights(everything, everything, floor=-0.1)


@pytest.mark.parametrize("guidance", [PLAIN, TILTED], ids=["plain", "guided"])
def test_thinned_weights_are_unbiased(guidance):
    table, draws, k, floor = Table(3, 3, seed=11, success=0.3), 50_000, 4, 0.3
    decoder = IndexedDecoder([table], NOISY)
    rollouts = gumbel(decoder, draws, k, guidance)
    # the generator's own uniform numbers: hashes of the same seeds that the search hashed
    uniform = to_uniform(hash_with(torch.arange(draws)[:, None], torch.arange(k) + THINNING_STREAM))
    thinned = thin_weights(rollouts.weight, uniform, floor=floor)
    dropped = float((thinned == 0).double().mean())
    assert 0.1 < dropped < 0.9, f"{dropped} of the leaves dropped: nothing was tested"
    before, after = (sums_of(decoder, rollouts, w) for w in (rollouts.weight, thinned))
    for name, want in expectations(table).items():
        assert abs(z_score(after[name], want)) < 4
        assert abs(z_score(after[name] - before[name], 0.0)) < 4
    small = torch.where(rollouts.weight < floor, rollouts.weight, 0.0)
    added = (after["one"] - before["one"]).square().mean()
    assert float(added) == pytest.approx(float((small * (floor - small)).sum(1).mean()), rel=0.05)


# ------------------------------------------------------------------------------- the gradient: eqs. 10 to 12


class TabularPolicy(nn.Module):
    """A logit per prefix and token, and a value per prefix, which is what `Updater` needs of a policy."""

    has_adapters, linear_cost = False, 10**9

    def __init__(self, decoder, value_logit):
        super().__init__()
        self.decoder, self.dtype = decoder, torch.float64
        self.language_model, self.value_model = nn.Module(), nn.Module()
        self.language_model.logits = nn.Parameter(decoder.logits.nan_to_num(0.0))
        self.value_model.logits = nn.Parameter(torch.stack([value_logit, value_logit, torch.zeros_like(value_logit)]))

    def token_scores(self, trees):
        before, _ = visited = self.nodes_of(trees)
        logp = torch.log_softmax(self.language_model.logits[before], -1).gather(-1, trees.token[:, None])[:, 0]
        logp, entropy = map(trees.by_completion, (logp, torch.zeros_like(logp)))
        return TokenScores(logp, entropy, [trees.by_completion(nodes) for nodes in visited])

    def begin_value_at(self, logit):
        """Its values are given."""

    def value_scores(self, visited):
        before, after = visited
        accuracy, child, baseline = self.value_model.logits
        return ValueScores(accuracy[before], baseline[before], child[after])

    forward = token_scores

    def nodes_of(self, trees):
        """Numbers of the prefixes before and after every scored token [E], read off the mask."""
        is_seen, position = (
            trees.is_seen.flatten(0, 2)[trees.parent],
            trees.position.repeat_interleave(trees.ids.shape[1], 0)[trees.parent],
        )
        ids = trees.ids.repeat_interleave(trees.ids.shape[1], 0)[trees.parent]
        length = position.gather(1, (trees.parent % trees.ids.shape[1])[:, None])[:, 0]
        by_depth = [(ids * (is_seen & (position == depth))).sum(1) for depth in range(int(length.max()) + 1)]
        root = torch.tensor([self.decoder.number[i, ()] for i in range(len(self.decoder.tables))])[by_depth[0]]
        tokens = torch.stack([*by_depth[1:], torch.zeros_like(root)], -1)
        before = self.decoder.visited(tokens, length, root)[:, -1]
        return before, self.decoder.child[before, trees.token]


@dataclass(frozen=True, kw_only=True)
class WithProposal(Batch):
    """What no batch holds, log q, for the estimators that do not work."""

    logq: torch.Tensor

    def rows(self, rows):
        cut = super().rows(rows)
        return WithProposal(**vars(cut), logq=self.logq[rows][:, : cut.tokens.shape[1]])


def batch_of(decoder, rollouts, baseline=None):
    """As `generator.make_batch`, of rollouts of table 0, in float64, with V = p of other value logits by node."""
    tokens, is_token = rollouts.tokens.flatten(0, 1), rollouts.is_token.flatten(0, 1)
    problems, leaves = rollouts.length.shape
    nodes = nodes_of(decoder, rollouts).flatten(0, 1)
    reward = decoder.reward[nodes[:, -1]]
    value = torch.sigmoid((decoder.value_logit if baseline is None else baseline)[nodes[:, :-1]])
    return WithProposal(
        prompts=[[0]] * problems,
        problem=torch.arange(problems).repeat_interleave(leaves),
        tokens=tokens,
        is_token=is_token,
        weight=rollouts.weight.flatten(),
        accuracy=reward,
        reward=reward,
        logp_old=rollouts.logp.flatten(0, 1),
        baseline=value,
        advantage=torch.zeros_like(value),
        logq=rollouts.logq.flatten(0, 1),
    )


# floor 1 and rewards in [0, 1]: the root mean square never exceeds it, so the scale of eq. 12 is exactly 1
ASTAR_PO = AStarPO(clip_low=0.2, clip_high=0.28, gae_lambda=1.0, advantage_floor=1.0)


@dataclass
class Shortcut:
    """A*PO with another loss, for the estimators that do not work."""

    wrong_loss: object
    has_critic = True

    def prepare(self, batch):
        return ASTAR_PO.prepare(batch)

    def loss(self, batch, logp):
        return self.wrong_loss(batch, logp)

    def count(self, batch, num_problems):
        return ASTAR_PO.count(batch, num_problems)


def q_as_old_policy(batch, logp):
    return ASTAR_PO.loss(replace(batch, logp_old=batch.logq), logp)


def token_level_weights(batch, logp):
    inverse_q = torch.exp(logp - batch.logq)  # at theta = theta_old: (pi / q) grad log pi
    return -(batch.weight[:, None] * torch.where(batch.is_token, inverse_q * batch.advantage, 0.0)).sum()


def summed_by_leaves(decoder, rollouts):
    """One search for all that found the same leaves in the same order, with the sums of their weights.

    The loss is linear in the weights, so this is the whole sum.
    """
    leaves = nodes_of(decoder, rollouts)[..., -1]
    found, which = leaves.unique(dim=0, return_inverse=True)
    first = torch.full((len(found),), len(which)).scatter_reduce_(0, which, torch.arange(len(which)), "amin")
    weight = torch.zeros(found.shape, dtype=torch.float64).index_add_(0, which, rollouts.weight)
    own = {name: x[first] for name, x in vars(rollouts).items() if torch.is_tensor(x)}
    return replace(rollouts, **own | {"weight": weight})


def trained_gradient(policy, algorithm, batch):
    """What one real optimizer step at unchanged weights sees, as a gradient of J, over internal prefixes."""
    settings = TrainConfig(
        num_iterations=1,
        warmup_iterations=0,
        learning_rate=1e-3,
        weight_decay=0.0,
        max_grad_norm=1e9,
        batch_size=10**6,
        num_epochs=1,
        micro_batch_tokens=10**9,
    )
    seen = []
    policy.language_model.logits.register_hook(lambda gradient: seen.append(gradient.clone()))
    Updater(policy, algorithm, settings, ValueConfig(learning_rate=1e-3)).update(batch, GRADIENT_DRAWS, 0)
    assert len(seen) == 1
    return -seen[0]


def compare(decoder, gradient):
    """Cosine and relative distance to the enumerated gradient of J."""
    table = decoder.tables[0]
    exact = torch.zeros_like(gradient)
    for s, row in policy_gradient(table).items():
        exact[decoder.number[0, s]] = double(row)
    cosine = float((gradient * exact).sum() / (gradient.norm() * exact.norm()))
    return cosine, float((gradient - exact).norm() / exact.norm())


GRADIENT_DRAWS, GRADIENT_LEAVES = 40_000, 3
SETTINGS = {  # guidance, noise of the value that guides, noise of the value that is the baseline
    "plain": (PLAIN, 0.0, 0.0),
    "guided, exact h": (TILTED, 0.0, 0.0),
    "guided, noisy h": (TILTED, NOISY, 0.0),
    "guided, noisy h and baseline": (TILTED, NOISY, NOISY),
    "budget, noisy h": (Guidance(inverse_beta="balanced", cap=2.0), 2 * NOISY, 0.0),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_training_loss_has_the_gradient_of_the_expected_reward(setting):
    guidance, noise, baseline_noise = SETTINGS[setting]
    table = Table(3, 3, seed=11, success=0.3)
    decoder = IndexedDecoder([table], noise)
    rollouts = summed_by_leaves(decoder, gumbel(decoder, GRADIENT_DRAWS, GRADIENT_LEAVES, guidance))
    baseline = IndexedDecoder([table], baseline_noise).value_logit
    gradient = trained_gradient(
        TabularPolicy(decoder, baseline), ASTAR_PO, batch_of(decoder, rollouts, baseline=baseline)
    )
    cosine, distance = compare(decoder, gradient)
    assert cosine > 0.999
    assert distance < 0.04


@pytest.mark.parametrize("shortcut", ["no weights", "q as old policy", "token-level weights"])
def test_shortcuts_miss_the_gradient(shortcut):
    table = Table(3, 3, seed=11, success=0.3)
    decoder = IndexedDecoder([table], NOISY)
    found = gumbel(decoder, GRADIENT_DRAWS, GRADIENT_LEAVES, TILTED)
    uniform = torch.full_like(found.weight, 1 / GRADIENT_LEAVES)
    rollouts = summed_by_leaves(decoder, replace(found, weight=uniform))
    exact = IndexedDecoder([table]).value_logit
    algorithm = {
        "no weights": ASTAR_PO,
        "q as old policy": Shortcut(q_as_old_policy),
        "token-level weights": Shortcut(token_level_weights),
    }[shortcut]
    batch = batch_of(decoder, rollouts, baseline=exact)
    cosine, _ = compare(decoder, trained_gradient(TabularPolicy(decoder, exact), algorithm, batch))
    assert cosine < 0.97, f"{shortcut} reaches cosine {cosine:.4f}: no shortcut at all"


# ---------------------------------------------------------------------------------- value regression: eq. 13


def fitted_values(decoder, rollouts, weight):
    """Minimise the real value loss over a table of values. The result is p of every prefix, as such and as a child."""
    leaf = nodes_of(decoder, rollouts)[..., -1].flatten()
    mass = torch.zeros(len(decoder.prefixes), dtype=torch.float64).index_add_(0, leaf, weight.flatten())
    first = [int((leaf == n).nonzero()[0, 0]) for n in mass.nonzero()[:, 0]]  # the loss is linear in weights:
    batch = batch_of(decoder, rollouts)  # one row per leaf with its total weight is the whole sum
    batch = replace(batch.rows(torch.tensor(first)), weight=mass[leaf[first]] / len(rollouts.tokens))
    rows, trees = stack(grow_trees(batch, range(len(first)), 10**9, 10**9), torch.device("cpu"))
    batch = batch.rows(rows)
    policy = TabularPolicy(decoder, torch.zeros(len(decoder.prefixes), dtype=torch.float64))
    visited = policy.token_scores(trees).visited
    value_rows = ValueRows(visited, batch.is_token, batch.weight, batch.accuracy, batch.reward, batch.is_token.double())
    optimizer = torch.optim.LBFGS(
        policy.value_model.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss, _ = value_losses(value_rows, policy.value_scores(value_rows.visited))
        loss.backward()
        return loss

    optimizer.step(closure)
    return torch.sigmoid(policy.value_model.logits.detach())[:2]


def success_under(decoder, log_law):
    """P(R = 1 | s) of every prefix under a law of leaves, and the mass of every prefix."""
    table = decoder.tables[0]
    mass, success = torch.zeros(2, len(decoder.prefixes), dtype=torch.float64)
    for y, log_prob in log_law.items():
        for t in range(len(y) + 1):
            mass[decoder.number[0, y[:t]]] += math.exp(log_prob)
            success[decoder.number[0, y[:t]]] += math.exp(log_prob) * table.reward[y]
    return success / mass, mass


def test_weighted_value_regression_learns_success_under_the_policy_and_unweighted_under_the_proposal():
    table, draws = Table(3, 3, seed=11, success=0.3), 100_000
    decoder = IndexedDecoder([table], NOISY)
    law = twisted_leaf_law(table, decoder, 0, 2.0, None)
    under_pi, mass = success_under(decoder, {y: lp for y, (lp, _) in law.items()})
    under_q, mass_q = success_under(decoder, {y: lq for y, (_, lq) in law.items()})
    root = decoder.number[0, ()]
    assert under_q[root] - under_pi[root] > 0.1

    rollouts = gumbel(decoder, draws, 3, TILTED)
    value, child = fitted_values(decoder, rollouts, rollouts.weight)
    internal = torch.tensor([not table.is_leaf(s) for s in decoder.prefixes])
    # the error of a mean of `draws * mass` outcomes, twice over for the spread of the weights, and 4 sigma
    error = 4 * 2 * (0.5 / (draws * mass).sqrt()) + 1e-3
    assert bool(((value - under_pi).abs() < error)[internal].all())
    has_parent = torch.tensor([len(s) > 0 for s in decoder.prefixes])
    assert bool(((child - under_pi).abs() < error)[has_parent].all())

    one = gumbel(decoder, draws, 1, TILTED)  # K = 1: each leaf is a draw from q
    value, _ = fitted_values(decoder, one, torch.ones_like(one.weight))
    error_q = 4 * (0.5 / (draws * mass_q).sqrt()) + 1e-3
    assert bool(((value - under_q).abs() < error_q)[internal].all())
    value, _ = fitted_values(decoder, one, one.weight)
    assert bool(((value - under_pi).abs() < error)[internal].all())


# ----------------------------------------------------------------------------------------------------- edges


def assert_sound(rollouts):
    """Distinct leaves, and no NaN where a weight is promised."""
    for i in range(len(rollouts.tokens)):
        found = leaves_of(rollouts, i)
        assert len(set(found)) == len(found)
    assert not rollouts.weight.isnan().any()
    assert (rollouts.weight >= 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_end_at_the_root_with_probability_almost_one(mode):
    table = Table(3, 3, seed=0)
    table.log_prob[()] = [math.log1p(-2e-13), math.log(1e-13), math.log(1e-13)]
    rollouts = search(IndexedDecoder([table]), 200, mode=mode, num_rollouts=3, beam_width=4, guidance=PLAIN)
    assert (rollouts.tokens[:, 0, 0] == 0).all() and (rollouts.length[:, 0] == 1).all()
    if mode == "gumbel":
        assert_sound(rollouts)
        assert rollouts.weight.sum(1).tolist() == pytest.approx([1.0] * 200, abs=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_impossible_tokens_never_appear_and_take_no_mass(mode):
    table = Table(3, 3, seed=3)
    table.log_prob[()] = [-math.inf, 0.0, -math.inf]  # all mass on one child
    table.log_prob[(1,)] = [math.log(0.25), -math.inf, math.log(0.75)]
    decoder = IndexedDecoder([table], NOISY)
    possible = {y for y in table.reward if math.isfinite(table.log_pi(y))}
    for guidance in (PLAIN, Guidance(inverse_beta=2.0, cap=2.0)):
        options = {"mode": mode, "num_rollouts": 6, "beam_width": 7, "guidance": guidance}
        rollouts = search(decoder, 20, **options)
        for i in range(20):
            assert set(leaves_of(rollouts, i)) <= possible
        if mode == "gumbel":
            assert_sound(rollouts)
            assert set(leaves_of(rollouts)) == possible
            assert rollouts.weight.sum(1).tolist() == pytest.approx([1.0] * 20, abs=1e-12)
        if mode == "best_first":
            assert set(leaves_of(rollouts)) == possible


def test_weights_stay_unbiased_when_tokens_are_impossible():
    table = Table(3, 3, seed=3)
    table.log_prob[(1,)] = [math.log(0.25), -math.inf, math.log(0.75)]
    decoder = IndexedDecoder([table], NOISY)
    rollouts = gumbel(decoder, 20_000, 2, TILTED)
    for name, want in expectations(table).items():
        assert abs(z_score(sums_of(decoder, rollouts, rollouts.weight)[name], want)) < 4


def test_underflowing_leaves_weigh_nothing_and_are_no_nan():
    table = Table(3, 2, seed=0)
    table.log_prob[()] = [0.0, -800.0, -800.0]
    rollouts = gumbel(IndexedDecoder([table]), 20, 3, PLAIN)
    assert_sound(rollouts)
    assert rollouts.weight.sum(1).tolist() == pytest.approx([1.0] * 20, abs=1e-12)


@pytest.mark.parametrize("guidance", [PLAIN, TILTED], ids=["plain", "guided"])
def test_the_depth_limit_loses_no_mass(guidance):
    table = Table(3, 5, seed=6)
    decoder = IndexedDecoder([table], NOISY)
    everything = gumbel(decoder, 3, 12, guidance, depth=2)
    assert len(leaves_of(everything)) == 1 + 2 * 3  # (0,), and two tokens after 1 or 2
    assert everything.weight.sum(1).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    last = everything.tokens.gather(-1, (everything.length - 1).clamp(min=0)[..., None])[..., 0]
    assert torch.equal(everything.is_finished, (everything.length > 0) & (last == 0))
    some = gumbel(decoder, 30_000, 2, guidance, depth=2)
    assert abs(z_score(some.weight.sum(1), 1.0)) < 4
    finished = sum(math.exp(table.log_pi(y)) for y in [(0,), (1, 0), (2, 0)])
    assert abs(z_score((some.weight * some.is_finished).sum(1), finished)) < 4


@pytest.mark.parametrize("mode", ["gumbel", "best_first"])
def test_ties_neither_crash_nor_duplicate(mode, monkeypatch):
    def flat(state, counter):
        return torch.ones(len(state), len(counter), dtype=torch.float64)

    monkeypatch.setattr(
        gumbel_arithmetic, "token_waiting_times", flat
    )  # all children but the first tie, at every prefix
    table = Table(3, 3, seed=0, peak=0.0, success=0.0)
    decoder = IndexedDecoder([table])
    for k in (1, 4, 20):
        options = {"mode": mode, "num_rollouts": k, "beam_width": 21, "guidance": TILTED}
        once, again = search(decoder, 2, **options), search(decoder, 2, **options)
        found = leaves_of(once)
        assert len(set(found)) == len(found) == min(k, len(table.reward))
        assert found == leaves_of(again)
        if mode == "gumbel":
            assert bool(torch.isfinite(once.weight).all())


@pytest.mark.parametrize("mode", MODES)
def test_more_leaves_wanted_than_there_are(mode):
    table = Table(2, 2, seed=0)  # leaves: end, other-end, other-other
    rollouts = search(IndexedDecoder([table]), 4, mode=mode, num_rollouts=6, beam_width=7, guidance=PLAIN)
    found = leaves_of(rollouts)
    if mode == "sample":
        assert len(found) == 6
        return
    assert set(found) == set(table.reward)
    assert rollouts.length[:, 3:].eq(0).all()
    assert rollouts.weight[:, 3:].eq(0).all()
    assert torch.isneginf(rollouts.priority[:, 3:]).all()
    assert torch.isneginf(rollouts.kappa).all()


class OneToken:
    """A vocabulary of one token."""

    def __init__(self, eos_ids):
        self.eos_ids = eos_ids

    def start(self, prompts, home, *, can_cross=False):
        return self._rows(len(prompts))

    def step(self, tokens, source, length, target, path):
        return self._rows(len(tokens))

    def _rows(self, n):
        return StepOutput(torch.zeros(n, 1), torch.zeros(n), lambda logp: torch.zeros(n, 1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ends", [True, False])
def test_a_vocabulary_of_one_token(mode, ends):
    rollouts = astar_rollouts(
        OneToken((0,) if ends else (9,)),
        [[0], [0]],
        seeds=torch.arange(2),
        num_rollouts=2,
        beam_width=3,
        max_search_depth=4,
        mode=mode,
    )
    length = 1 if ends else 4
    copies = 2 if mode == "sample" else 1
    assert rollouts.length.tolist() == [[length] * copies + [0] * (2 - copies)] * 2
    assert rollouts.is_finished[:, 0].tolist() == [ends] * 2
    if mode == "gumbel":
        assert rollouts.weight.tolist() == [[1.0, 0.0]] * 2


@pytest.mark.parametrize("mode", MODES)
def test_nan_logits_deep_in_the_tree_are_an_error(mode):
    table = Table(3, 3, seed=0)
    table.log_prob[()] = [-9.0, -9.0, math.log1p(-2 * math.exp(-9.0))]
    decoder = IndexedDecoder([table])
    decoder.logits[decoder.number[0, (2,)]] = math.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        search(decoder, 2, mode=mode, num_rollouts=2, beam_width=3)


@pytest.mark.parametrize("mode", ["gumbel", "best_first"])
@pytest.mark.parametrize("prefix", [(), (2,)])
def test_nan_values_are_an_error(mode, prefix):
    decoder = IndexedDecoder([Table(3, 3, seed=0)])
    decoder.value_logit[decoder.number[0, prefix]] = math.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        search(decoder, 2, mode=mode, num_rollouts=2, beam_width=3)


# -------------------------------------------------------------------------------------------------- the page


def test_the_program_of_the_page_runs():
    programs = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(programs) == 1
    scope = {"__name__": "page"}
    exec(compile(programs[0], str(DOCS), "exec"), scope)
    for name, z in scope["z_scores"].items():
        assert abs(z) < 4, f"{name}: z = {z:.1f}"


def test_the_page_numbers_every_equation_once():
    found = re.findall(r"  \((\d+)\)$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(map(int, found)) == list(range(1, 26))
