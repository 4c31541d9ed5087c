"""What every algorithm promises, on whatever stands in `ALGORITHMS`, and each one's formula in plain loops.

A new algorithm is covered by the contract as soon as it stands in the dict. It also needs an entry in `VARIANTS`
and one in `GRADIENTS`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from tests.oracles import Table
from tinyzero_astar.interfaces import Batch, Reference
from tinyzero_astar.training.advantages import (
    MEASURES,
    best_shares,
    describe,
    group_centred,
    group_normalised,
    leave_one_out,
    optimal_value,
)
from tinyzero_astar.training.algorithms import ALGORITHMS
from tinyzero_astar.training.grpo import GRPO

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
BETA = 0.3  # of the regression: large enough for its log-ratio to be seen
MAX_LENGTH = 7
GROUPS = {name: {**CLIP, "max_length": MAX_LENGTH, "group_loss": name} for name in ("grpo", "dapo", "dr_grpo")}
VARIANTS = {
    "astar_po": [("astar_po", {**CLIP, "gae_lambda": 0.9, "advantage_floor": 0.2})],
    "grpo": list(GROUPS.items()),
    "rloo": [("rloo", CLIP)],
    "optimal_advantage": [("optimal_advantage", {"beta": BETA})],
    "rejection": [("rejection", {})],
}
NAMED = [(kind, name, options) for kind, variants in VARIANTS.items() for name, options in variants]
every_variant = pytest.mark.parametrize(("kind", "name", "options"), NAMED, ids=[name for _, name, _ in NAMED])

PROBLEMS, LEAVES, WIDTH = 4, 3, 6


def make(kind, options):
    return ALGORITHMS[kind](**options)


def make_batch(seed=0):
    """Rows as independent draws give them. The policy has moved since, and its reference is yet another one."""
    generator = torch.Generator().manual_seed(seed)
    rows = PROBLEMS * LEAVES
    length = torch.randint(1, WIDTH + 1, (rows,), generator=generator)
    logp, shift, ref, value = torch.randn(4, rows, WIDTH, generator=generator, dtype=torch.float64)
    accuracy = torch.randint(0, 2, (rows,), generator=generator).double()
    accuracy[:LEAVES] = 0  # a problem without a right rollout
    form = torch.maximum(accuracy, torch.randint(0, 2, (rows,), generator=generator).double())
    is_token = torch.arange(WIDTH) < length[:, None]
    batch = Batch(
        prompts=[[1]] * PROBLEMS,
        problem=torch.arange(PROBLEMS).repeat_interleave(LEAVES),
        tokens=torch.randint(1, 20, (rows, WIDTH), generator=generator),
        is_token=is_token,
        weight=torch.full((rows,), 1 / LEAVES, dtype=torch.float64),
        accuracy=accuracy,
        reward=accuracy + 0.1 * form,
        logp_old=torch.where(is_token, logp - 1, 0.0),
        baseline=value.sigmoid(),
        advantage=torch.zeros(rows, WIDTH, dtype=torch.float64),
        reference=Reference(logp=ref - 1, value=torch.rand(PROBLEMS, generator=generator).repeat_interleave(LEAVES)),
    )
    return batch, torch.where(is_token, batch.logp_old + 0.15 * shift, 0.0)


def mean_loss(algorithm, batch, logp):
    """As one optimizer step over all rows sees it."""
    batch, _ = algorithm.prepare(batch)
    return algorithm.loss(batch, logp) / algorithm.count(batch, PROBLEMS)


def gradient(algorithm, batch, logp):
    leaf = logp.clone().requires_grad_()
    mean_loss(algorithm, batch, leaf).backward()
    return leaf.grad


def test_every_algorithm_is_tested():
    assert VARIANTS.keys() == ALGORITHMS.keys()
    assert {name for _, name, _ in NAMED} == GRADIENTS.keys()


# --------------------------------------------------------------------------------- the contract


@every_variant
def test_the_sum_of_losses_does_not_depend_on_the_cut(kind, name, options):
    algorithm = make(kind, options)
    batch, logp = make_batch()
    batch, _ = algorithm.prepare(batch)
    whole = algorithm.loss(batch, logp)
    for cuts in ([1, 11], [5, 3, 4], [1] * 12):
        parts = torch.arange(12).split(cuts)
        widths = [int(batch.is_token[part].sum(1).max()) for part in parts]
        cut = sum(
            algorithm.loss(batch.rows(part), logp[part, :width]) for part, width in zip(parts, widths, strict=True)
        )
        torch.testing.assert_close(cut, whole)
    assert float(whole) != 0


@every_variant
def test_the_order_of_rows_does_not_matter(kind, name, options):
    algorithm = make(kind, options)
    batch, logp = make_batch()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    want = gradient(algorithm, batch, logp)[order]
    torch.testing.assert_close(gradient(algorithm, batch.rows(order), logp[order]), want)


@every_variant
def test_padding_is_ignored(kind, name, options):
    algorithm = make(kind, options)
    batch, logp = make_batch()
    want = gradient(algorithm, batch, logp)
    assert (want[~batch.is_token] == 0).all() and (want != 0).any()

    def spoilt(x):
        return torch.where(batch.is_token, x, 77.0)

    reference = Reference(spoilt(batch.reference.logp), batch.reference.value)
    other = dataclasses.replace(
        batch, logp_old=spoilt(batch.logp_old), baseline=spoilt(batch.baseline), advantage=spoilt(batch.advantage),
        tokens=torch.where(batch.is_token, batch.tokens, 0), reference=reference,
    )  # fmt: skip
    torch.testing.assert_close(gradient(algorithm, other, spoilt(logp)), want)


@every_variant
def test_preparing_carries_no_gradient_and_changes_only_what_it_may(kind, name, options):
    algorithm = make(kind, options)
    batch, _ = make_batch()
    prepared, measured = algorithm.prepare(batch)
    assert tuple(measured) == algorithm.measures
    assert all(isinstance(x, float) and math.isfinite(x) for x in measured.values())
    assert not prepared.advantage.requires_grad
    for field in dataclasses.fields(batch):
        if field.name not in ("advantage", "weight"):
            assert getattr(prepared, field.name) is getattr(batch, field.name), field.name


@every_variant
def test_a_batch_without_a_row_has_no_loss(kind, name, options):
    algorithm = make(kind, options)
    batch, logp = make_batch()
    batch, _ = algorithm.prepare(batch)
    none = {f.name: getattr(batch, f.name)[:0] for f in dataclasses.fields(batch) if f.name != "reference"}
    empty = Batch(**none, reference=Reference(batch.reference.logp[:0], batch.reference.value[:0]))
    assert float(algorithm.loss(empty, logp[:0])) == 0
    assert algorithm.count(empty, PROBLEMS) >= 0


@every_variant
def test_the_algorithm_says_what_it_needs(kind, name, options):
    algorithm = make(kind, options)
    assert set(algorithm.modes) <= {"sample", "gumbel", "best_first"} and "sample" in algorithm.modes
    assert bool(algorithm.reason) == (len(algorithm.modes) < 3)
    assert algorithm.min_rollouts >= 1
    if algorithm.needs_reference:
        with pytest.raises(ValueError, match="reference"):
            algorithm.prepare(dataclasses.replace(make_batch()[0], reference=None))


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.1])
@every_variant
def test_a_problem_whose_rollouts_are_equally_good_teaches_nothing_but_what_the_formula_says(
    kind, name, options, reward
):
    algorithm = make(kind, options)
    batch, _ = make_batch()
    accuracy = torch.full_like(batch.accuracy, float(reward > 1))
    reward = torch.full_like(batch.reward, reward, dtype=torch.float32)
    reference = Reference(batch.logp_old, optimal_value(reward.view(PROBLEMS, LEAVES), 0.5).repeat_interleave(LEAVES))
    batch = dataclasses.replace(batch, reward=reward, accuracy=accuracy, reference=reference)
    got = gradient(algorithm, batch, batch.logp_old)  # at the old weights, which are the reference's too
    learns = {"astar_po": True, "rejection": bool(accuracy.any())}.get(kind, False)
    assert bool((got.abs() > 1e-6).any()) == learns


# ------------------------------------------------------------- formulas, one plain loop each


def rows_of(batch, logp):
    """Per row its problem, reward, accuracy, tokens' logp, old logp, reference's logp and values, V*."""
    for i in range(len(batch.tokens)):
        n = int(batch.is_token[i].sum())
        yield {
            "problem": int(batch.problem[i]),
            "reward": float(batch.reward[i]),
            "right": float(batch.accuracy[i]) > 0,
            "logp": logp[i, :n].tolist(),
            "old": batch.logp_old[i, :n].tolist(),
            "ref": batch.reference.logp[i, :n].tolist(),
            "value": batch.baseline[i, :n].tolist(),
            "v_star": float(batch.reference.value[i]),
        }


def others(rows, row):
    return [r["reward"] for r in rows if r["problem"] == row["problem"]]


def clipped(ratio, advantage):
    """min(r A, clip(r) A) and its derivative by r."""
    bounded = min(max(ratio, 0.8), 1.28)
    if ratio * advantage <= bounded * advantage:
        return advantage  # the slope
    return 0.0


def group_gradient(normalise, divisor):
    def of(rows):
        total = []
        for row in rows:
            own = others(rows, row)
            mean = sum(own) / len(own)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in own) / (len(own) - 1))
            advantage = (row["reward"] - mean) / ((deviation + 1e-4) if normalise else 1)
            ratios = [math.exp(a - b) for a, b in zip(row["logp"], row["old"], strict=True)]
            total.append([-clipped(r, advantage) * r / divisor(rows, row) for r in ratios])
        return total

    return of


def rloo_gradient(rows):
    total = []
    for row in rows:
        own = others(rows, row)
        advantage = row["reward"] - (sum(own) - row["reward"]) / (len(own) - 1)
        ratio = math.exp(sum(row["logp"]) - sum(row["old"]))
        total.append([-clipped(ratio, advantage) * ratio / len(rows)] * len(row["logp"]))
    return total


def regression_gradient(rows):
    """By each log-probability, 2 (beta log pi/pi_ref + V* - r) beta."""
    total = []
    for row in rows:
        error = BETA * (sum(row["logp"]) - sum(row["ref"])) + row["v_star"] - row["reward"]
        total.append([2 * error * BETA / len(rows)] * len(row["logp"]))
    return total


def rejection_gradient(rows):
    shares = []
    for row in rows:
        own = [r for r in rows if r["problem"] == row["problem"] and r["right"]]
        best = [r for r in own if r["reward"] == max(o["reward"] for o in own)]
        shares.append(1 / len(best) if any(r is row for r in best) else 0.0)
    tokens = sum(share * len(row["logp"]) for share, row in zip(shares, rows, strict=True))
    return [[-share / tokens] * len(row["logp"]) for share, row in zip(shares, rows, strict=True)]


def astar_gradient(rows):
    """GAE with lambda 0.9, one root mean square, clipped token by token. Every row weighs 1 / K."""
    raw = []
    for row in rows:
        after = [*row["value"][1:], row["reward"]]
        delta = [b - a for a, b in zip(row["value"], after, strict=True)]
        raw.append([sum(0.9 ** (s - t) * delta[s] for s in range(t, len(delta))) for t in range(len(delta))])
    flat = [x for own in raw for x in own]
    scale = max(math.sqrt(sum(x * x for x in flat) / len(flat)), 0.2)
    total = []
    for row, own in zip(rows, raw, strict=True):
        ratios = [math.exp(a - b) for a, b in zip(row["logp"], row["old"], strict=True)]
        total.append([-clipped(r, a / scale) * r / len(rows) for r, a in zip(ratios, own, strict=True)])
    return total


GRADIENTS = {
    "astar_po": astar_gradient,
    "grpo": group_gradient(True, lambda rows, row: len(rows) * len(row["logp"])),
    "dapo": group_gradient(True, lambda rows, row: sum(len(r["logp"]) for r in rows)),
    "dr_grpo": group_gradient(False, lambda rows, row: len(rows) * MAX_LENGTH),
    "rloo": rloo_gradient,
    "optimal_advantage": regression_gradient,
    "rejection": rejection_gradient,
}


@pytest.mark.parametrize("is_moved", [False, True], ids=["unchanged weights", "moved weights"])
@every_variant
def test_the_gradient_is_that_of_the_formula(kind, name, options, is_moved):
    batch, moved = make_batch()
    logp = moved if is_moved else batch.logp_old
    got = gradient(make(kind, options), batch, logp)
    for i, want in enumerate(GRADIENTS[name](list(rows_of(batch, logp)))):
        assert got[i, : len(want)].tolist() == pytest.approx(want, rel=1e-9, abs=1e-12), i


def test_the_regression_weighs_searched_rollouts():
    batch, logp = make_batch()
    batch = dataclasses.replace(batch, weight=torch.rand(12, dtype=torch.float64))
    got = gradient(make("optimal_advantage", {"beta": BETA}), batch, logp)
    plain = regression_gradient(list(rows_of(batch, logp)))
    for i, want in enumerate(plain):  # mean over problems of weighted sums, not over rows
        scale = float(batch.weight[i]) * LEAVES
        assert got[i, : len(want)].tolist() == pytest.approx([scale * x for x in want]), i


def test_some_ratios_of_the_moved_policy_are_clipped():
    """Otherwise the test above would not see the clip."""
    batch, moved = make_batch()
    ratio = (moved - batch.logp_old)[batch.is_token].exp()
    whole = torch.where(batch.is_token, moved - batch.logp_old, 0.0).sum(1).exp()
    for x in (ratio, whole):
        assert (x > 1.28).any() and (x < 0.8).any()


# ------------------------------------------------------------------------- expectation, exactly


def enumerated_gradient(algorithm, num_leaves, batch_of):
    """Expected gradient of the loss by the logits of a table, over every set of independent draws, and that of E[R]."""
    table = Table(num_tokens=2, depth=2, seed=5)
    leaves = table.leaves()
    table.reward = {leaf: float(i % 2) for i, leaf in enumerate(leaves)}
    theta = {s: torch.tensor(x, dtype=torch.float64, requires_grad=True) for s, x in table.log_prob.items()}

    def log_probs(leaf):
        return torch.stack([torch.log_softmax(theta[leaf[:t]], -1)[leaf[t]] for t in range(len(leaf))])

    def by_theta(x):
        found = torch.autograd.grad(x, list(theta.values()), retain_graph=True, materialize_grads=True)
        return torch.cat(found)

    mean = sum(log_probs(leaf).sum().exp() * table.reward[leaf] for leaf in leaves)
    expected = torch.zeros_like(by_theta(mean))
    for drawn in itertools.product(leaves, repeat=num_leaves):
        batch, logp = batch_of(table, drawn, [log_probs(leaf) for leaf in drawn])
        probability = math.exp(sum(table.log_pi(leaf) for leaf in drawn))
        batch, _ = algorithm.prepare(batch)
        expected += probability * by_theta(algorithm.loss(batch, logp) / algorithm.count(batch, 1))
    return expected, by_theta(mean)


def draws_as_batch(table, drawn, log_probs):
    width = max(map(len, drawn))
    logp = torch.stack([torch.cat([x, x.new_zeros(width - len(x))]) for x in log_probs])
    is_token = torch.arange(width) < torch.tensor([len(leaf) for leaf in drawn])[:, None]
    reward = torch.tensor([table.reward[leaf] for leaf in drawn], dtype=torch.float64)
    batch = Batch(
        prompts=[[0]],
        problem=torch.zeros(len(drawn), dtype=torch.int64),
        tokens=torch.zeros_like(is_token, dtype=torch.int64),
        is_token=is_token,
        weight=torch.full_like(reward, 1 / len(drawn)),
        accuracy=reward,
        reward=reward,
        logp_old=logp.detach(),
        baseline=torch.zeros_like(logp),
        advantage=torch.zeros_like(logp),
        reference=Reference(logp.detach(), torch.full_like(reward, 0.37)),
    )
    return batch, logp


@pytest.mark.parametrize(
    ("kind", "options", "num_leaves", "factor"),
    [
        ("rloo", CLIP, 2, 1.0),
        ("rloo", CLIP, 3, 1.0),
        ("grpo", GROUPS["dr_grpo"], 3, 2 / 3 / MAX_LENGTH),  # the mean it subtracts has its own reward in it
        ("optimal_advantage", {"beta": BETA}, 1, 2 * BETA),
        ("optimal_advantage", {"beta": BETA}, 2, 2 * BETA),
    ],
)
def test_the_first_step_is_unbiased(kind, options, num_leaves, factor):
    got, want = enumerated_gradient(make(kind, options), num_leaves, draws_as_batch)
    torch.testing.assert_close(got, -factor * want, rtol=1e-10, atol=1e-12)


def test_grpo_is_biased():
    """Its means over lengths and its deviation change the direction. So the test above is able to fail."""
    got, want = enumerated_gradient(make("grpo", GROUPS["grpo"]), 3, draws_as_batch)
    factor = -got / want
    assert float(factor.max() / factor.min()) > 1.1


# ------------------------------------------------------------------------------ pure functions


def groups(seed=0):
    generator = torch.Generator().manual_seed(seed)
    group = torch.tensor([3, 0, 3, 3, 0, 9, 9, 0, 0])
    return torch.randn(9, generator=generator, dtype=torch.float64), group


def test_group_advantages_equal_their_loops():
    reward, group = groups()
    for i in range(9):
        own = [float(reward[j]) for j in range(9) if group[j] == group[i]]
        rest = [float(reward[j]) for j in range(9) if group[j] == group[i] and j != i]
        mean = sum(own) / len(own)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in own) / (len(own) - 1))
        r = float(reward[i])
        assert float(group_centred(reward, group)[i]) == pytest.approx(r - mean)
        assert float(group_normalised(reward, group)[i]) == pytest.approx((r - mean) / (deviation + 1e-4))
        assert float(leave_one_out(reward, group)[i]) == pytest.approx(r - sum(rest) / len(rest))


@pytest.mark.parametrize("compare", [group_centred, group_normalised, leave_one_out])
def test_a_single_rollout_cannot_be_compared(compare):
    with pytest.raises(ValueError, match="draw at least two"):
        compare(torch.ones(3), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("compare", [group_centred, group_normalised, leave_one_out])
@pytest.mark.parametrize("size", [2, 3, 7, 64])
def test_equal_rewards_have_no_advantage_at_all(compare, size):
    reward = torch.full((size,), 0.1)
    assert compare(reward, torch.zeros(size, dtype=torch.int64)).tolist() == [0.0] * size


def test_optimal_value_lies_between_mean_and_best():
    reward = torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, got in zip(reward.tolist(), optimal_value(reward, 0.5).tolist(), strict=True):
        assert got == pytest.approx(0.5 * math.log(sum(math.exp(r / 0.5) for r in row) / len(row)))
    torch.testing.assert_close(optimal_value(reward, 1e7), reward.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(optimal_value(reward, 1e-4), reward.amax(1), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="beta must be positive"):
        optimal_value(reward, 0.0)


def test_the_regression_rests_at_the_tilted_policy():
    """With one beta, exact V* and pi = pi_ref e^(r / beta) / Z, the loss and its gradient are 0 on any rollouts."""
    batch, _ = make_batch()
    z = torch.rand(PROBLEMS, dtype=torch.float64) + 0.5
    reference = Reference(batch.reference.logp, BETA * z.log().repeat_interleave(LEAVES))
    per_token = (batch.reward / BETA - reference.value / BETA) / batch.is_token.sum(1)
    logp = (reference.logp + per_token[:, None]).requires_grad_()
    loss = mean_loss(make("optimal_advantage", {"beta": BETA}), dataclasses.replace(batch, reference=reference), logp)
    loss.backward()
    assert float(loss.detach()) < 1e-24 and float(logp.grad.abs().max()) < 1e-12


def test_shares_of_the_best_are_in_proportion_to_weights():
    reward = torch.tensor([1.1, 1.0, 1.1, 0.1, 0.0, 1.0, 1.1])
    right = torch.tensor([True, True, True, False, False, True, False])
    group = torch.tensor([4, 4, 4, 2, 2, 0, 0])
    weight = torch.tensor([0.1, 9.0, 0.3, 1.0, 1.0, 0.5, 7.0])
    got = best_shares(reward, weight, right, group).tolist()
    assert got == pytest.approx([0.25, 0.0, 0.75, 0.0, 0.0, 1.0, 0.0])


def test_advantages_are_described_by_weighted_tokens():
    generator = torch.Generator().manual_seed(0)
    advantage, weight = torch.randn(3, 4, generator=generator), torch.tensor([0.5, 2.0, 0.1])
    lengths = [4, 1, 2]
    cells = [(float(weight[i]), float(advantage[i, t])) for i, n in enumerate(lengths) for t in range(n)]
    total = sum(w for w, _ in cells)
    got = describe(advantage, weight, torch.arange(4) < torch.tensor(lengths)[:, None])
    assert tuple(got) == MEASURES
    assert list(got.values()) == pytest.approx(
        [
            sum(w * x for w, x in cells) / total,
            math.sqrt(sum(w * x * x for w, x in cells) / total),
            max(x for _, x in cells),
            min(x for _, x in cells),
        ]
    )


def test_lengths_weigh_as_each_loss_says():
    """Of a short and a long completion, the token of which counts more."""
    batch, _ = make_batch()
    rows = torch.tensor([3, 4, 5])
    batch = dataclasses.replace(batch.rows(rows), reward=torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64))
    is_token = torch.arange(6) < torch.tensor([6, 1, 2])[:, None]
    zeros = torch.zeros(3, 6, dtype=torch.float64)
    batch = dataclasses.replace(batch, is_token=is_token, logp_old=zeros, advantage=zeros)
    shares = {}
    for name, options in GROUPS.items():
        slope = gradient(GRPO(**options), batch, zeros)
        shares[name] = float(-slope[0, 0] / slope[1, 0])
    assert shares == pytest.approx({"grpo": 1 / 6, "dapo": 1.0, "dr_grpo": 1.0})
