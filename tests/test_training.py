"""Advantages, losses and the update against loops and identities."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.oracles import clipped_oracle, gae_oracle
from tests.trees import scores_of_batch
from tinyzero_astar.config import TrainConfig, ValueConfig
from tinyzero_astar.interfaces import Batch
from tinyzero_astar.model.model import Policy, ValueScores
from tinyzero_astar.training.advantages import generalized_advantage, rms_of, scale_by_rms
from tinyzero_astar.training.astar_po import AStarPO
from tinyzero_astar.training.losses import clipped_surrogate, noise_weight, weighted_brier
from tinyzero_astar.training.optimizer import schedule
from tinyzero_astar.training.trees import grow_trees, micro_batches, stack
from tinyzero_astar.training.update import Updater
from tinyzero_astar.training.value_update import ValueRows, value_losses

LENGTHS = [4, 1, 3]


def ragged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    is_token = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
    x = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    return is_token, x


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_gae_equals_the_double_sum(lam):
    is_token, x = ragged()
    reward = torch.tensor([1.0, 0.1, -0.4], dtype=torch.float64)
    got = generalized_advantage(reward, x[0], is_token, lam=lam)
    for i, n in enumerate(LENGTHS):
        assert got[i, :n].tolist() == pytest.approx(gae_oracle(float(reward[i]), x[0, i, :n].tolist(), lam))
        assert got[i, n:].tolist() == [0.0] * (4 - n)


def test_gae_limits():
    is_token, x = ragged()
    reward = torch.tensor([1.0, 0.1, -0.4], dtype=torch.float64)
    whole = generalized_advantage(reward, x[0], is_token, lam=1.0)
    torch.testing.assert_close(whole, torch.where(is_token, reward[:, None] - x[0], 0.0))
    with pytest.raises(ValueError, match="lam"):
        generalized_advantage(reward, x[0], is_token, lam=1.5)


def test_rms_scale_keeps_direction_and_respects_its_floor():
    is_token, x = ragged()
    weight = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    scaled, rms = scale_by_rms(x[0], weight, is_token, floor=0.2), rms_of(x[0], weight, is_token)
    cells = [(i, t) for i, n in enumerate(LENGTHS) for t in range(n)]
    top = sum(float(weight[i]) * float(x[0, i, t]) ** 2 for i, t in cells)
    bottom = sum(float(weight[i]) for i, _ in cells)
    assert float(rms) == pytest.approx(math.sqrt(top / bottom))
    torch.testing.assert_close(scaled * rms, x[0])
    tiny = scale_by_rms(x[0] * 1e-3, weight, is_token, floor=0.2)
    torch.testing.assert_close(tiny, x[0] * 1e-3 / 0.2)


def test_clipped_surrogate_equals_the_token_loop_and_its_gradient_the_policy_gradient():
    is_token, x = ragged(1)
    weight = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
    options = {"clip_low": 0.2, "clip_high": 0.28}
    got = clipped_surrogate(x[0], x[1], x[2], weight, is_token, **options)
    rows = (x[0].tolist(), x[1].tolist(), x[2].tolist(), weight.tolist(), LENGTHS)
    assert float(got) == pytest.approx(clipped_oracle(*rows, 0.2, 0.28))
    logp = x[0].clone().requires_grad_()
    clipped_surrogate(logp, x[0], x[2], weight, is_token, **options).backward()
    torch.testing.assert_close(logp.grad, torch.where(is_token, -weight[:, None] * x[2], 0.0))


def test_weighted_brier_equals_its_sum():
    is_token, x = ragged(2)
    outcome = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    weight = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
    want = sum(
        float(weight[i]) * (1 / (1 + math.exp(-float(x[0, i, t]))) - float(outcome[i])) ** 2
        for i, n in enumerate(LENGTHS)
        for t in range(n)
    )
    assert float(weighted_brier(x[0], outcome, weight, is_token)) == pytest.approx(want)


def test_schedule_warms_up_and_decays_to_the_end():
    factors = [schedule(i, 10, 2) for i in range(10)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[-1] == pytest.approx(1 / 8)
    assert all(a > b for a, b in itertools.pairwise(factors[2:]))
    assert schedule(0, 1, 5) == pytest.approx(1 / 6)  # a run shorter than its warm-up


# ------------------------------------------------------------------------------------------------ the update


def make_policy(seed=0):
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return Policy(Qwen2ForCausalLM(config), (0,), value_hidden_size=8).double()


def path_of(logp):
    """log pi of the last token, of all, and of the least likely one."""
    return torch.tensor([logp[-1], sum(logp), min(logp)] if logp else [0.0, 0.0, 0.0], dtype=torch.float64)


def shaken(policy):
    """With a value model that says something else of every prefix."""
    for p in policy.value_model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return policy


def make_rows(policy, seed=0, num_problems=4, num_leaves=3, lead=()):
    generator = torch.Generator().manual_seed(seed)
    rows = num_problems * num_leaves
    prompts = [torch.randint(1, 20, (n,), generator=generator).tolist() for n in (2, 4, 3, 5)[:num_problems]]
    prompts = [[*lead, *prompt] for prompt in prompts]
    length = torch.randint(1, 7, (rows,), generator=generator)
    tokens = torch.randint(1, 20, (rows, 6), generator=generator)
    tokens[1::num_leaves, :2] = tokens[::num_leaves, :2]  # the first two leaves of a problem share a prefix
    accuracy = torch.randint(0, 2, (rows,), generator=generator).double()
    form = torch.randint(0, 2, (rows,), generator=generator).double()
    empty = torch.zeros(rows, 6, dtype=torch.float64)
    batch = Batch(
        prompts=prompts,
        problem=torch.arange(num_problems).repeat_interleave(num_leaves),
        tokens=tokens,
        is_token=torch.arange(6) < length[:, None],
        weight=torch.rand(rows, generator=generator).double(),
        accuracy=accuracy,
        reward=accuracy + 0.1 * form,
        logp_old=empty,
        baseline=empty + 0.3,
        advantage=empty,
    )
    with torch.no_grad():
        logp = scores_of_batch(policy, batch).logp
    return dataclasses.replace(batch, logp_old=torch.where(batch.is_token, logp, 0.0))


def make_updater(policy, **changes):
    settings = TrainConfig(
        num_iterations=10,
        warmup_iterations=0,
        learning_rate=1e-2,
        weight_decay=0.0,
        max_grad_norm=1e9,
        batch_size=4,
        num_epochs=1,
        micro_batch_tokens=10_000,
    )
    algorithm = AStarPO(clip_low=0.2, clip_high=0.28, gae_lambda=1.0, advantage_floor=0.2)
    value = ValueConfig(
        learning_rate=changes.pop("value_learning_rate", 1e-2),
        update_frequency=changes.pop("value_update_frequency", 1),
        num_steps=changes.pop("num_steps", 1),
    )
    return Updater(policy, algorithm, dataclasses.replace(settings, **changes), value)


def weights_after(changes, iterations=2):
    policy = make_policy()
    batch = make_rows(policy)
    updater = make_updater(policy, **changes)
    for iteration in range(iterations):
        metrics = updater.update(batch, 4, iteration)
    return torch.cat([p.detach().flatten() for p in policy.parameters()]), metrics


@torch.no_grad()
@pytest.mark.parametrize("lead", [(), (7, 3, 3, 8)])
def test_token_scores_equal_a_forward_per_row(lead):
    policy = shaken(make_policy())
    batch = make_rows(policy, lead=lead)
    scores = scores_of_batch(policy, batch)
    for r in range(12):
        prompt, m = batch.prompts[batch.problem[r]], int(batch.is_token[r].sum())
        ids = torch.tensor([prompt + batch.tokens[r, :m].tolist()])
        hidden = policy.language_model.model(input_ids=ids).last_hidden_state[0]
        logits = hidden @ policy.language_model.get_output_embeddings().weight.T
        logp = torch.log_softmax(logits, -1)
        own = [float(logp[len(prompt) - 1 + t, batch.tokens[r, t]]) for t in range(m)]
        for t in range(m):
            at, token = len(prompt) - 1 + t, int(batch.tokens[r, t])
            assert float(scores.logp[r, t]) == pytest.approx(float(logp[at, token]), abs=1e-5)
            assert float(scores.entropy[r, t]) == pytest.approx(float(-(logp[at].exp() * logp[at]).sum()), abs=1e-5)
            value = policy.value_model(hidden[at], path_of(own[:t]))
            child = policy.value_model.child_logits(value.features[None], value.accuracy[None], logp[at : at + 1])
            child = child[0, token]
            for got, want in ((scores.value_logit, value.accuracy), (scores.child_logit, child)):
                assert float(got[r, t]) == pytest.approx(float(want), abs=1e-5)
            assert float(scores.baseline[r, t]) == pytest.approx(float(value.baseline), abs=1e-5)


def test_a_tree_holds_every_prefix_once():
    batch = make_rows(make_policy())
    trees = grow_trees(batch, range(12), 10**9, 10**9)
    assert len(trees) == 4 and [len(tree.ids) for tree in trees] == sorted(len(tree.ids) for tree in trees)
    for tree in trees:
        (problem,) = set(batch.problem[tree.rows].tolist())
        prompt = batch.prompts[problem]
        leaves = [batch.tokens[r, : int(batch.is_token[r].sum())].tolist() for r in tree.rows]
        inner = {tuple(leaf[:t]) for leaf in leaves for t in range(1, len(leaf))}  # what something follows
        assert len(tree.ids) == len(prompt) + len(inner)
        assert len(tree.numbers) == len({tuple(leaf[:t]) for leaf in leaves for t in range(1, len(leaf) + 1)})
        _, stacked = stack([tree], torch.device("cpu"))
        seen = {
            tuple(stacked.ids[0, stacked.is_seen[0, 0, at]].tolist()): int(stacked.position[0, at])
            for at in range(len(prompt) - 1, len(tree.ids))
        }
        assert seen == {(*prompt, *prefix): len(prompt) + len(prefix) - 1 for prefix in inner | {()}}


def test_problems_whose_prompts_begin_alike_share_a_tree():
    batch = make_rows(make_policy(), lead=(7, 3, 3, 8))
    trees = grow_trees(batch, range(12), 10**9, 10**9)
    assert len(trees) == 1
    tree = trees[0]
    whole = [(*batch.prompts[p], *t[: int(n.sum()) - 1]) for p, t, n in zip(*fields(batch), strict=True)]
    prefixes = {row[:t] for row in whole for t in range(1, len(row) + 1)}
    assert len(tree.ids) == len(prefixes) and tree.rows == list(range(12))
    _, stacked = stack([tree], torch.device("cpu"))
    seen = [tuple(stacked.ids[0, row].tolist()) for row in stacked.is_seen[0, 0]]
    assert sorted(seen) == sorted(prefixes)
    assert stacked.position[0].tolist() == [len(prefix) - 1 for prefix in seen]
    assert len(grow_trees(batch, range(12), 10**9, 1.0)) > 1  # attention that costs more than what is saved
    own = grow_trees(batch, [0, 3, 1, 6, 4], 10**9, 10**9, max_completions=2)
    assert sorted(tree.rows for tree in own) == [[0, 3], [1, 6], [4]]


def fields(batch):
    return batch.problem.tolist(), batch.tokens.tolist(), batch.is_token


def test_a_completion_joins_its_own_problem_first():
    """Both trees have room: its own, which is full but for it, and the newest."""
    batch = make_rows(make_policy(), lead=(7, 3, 3, 8))
    length = torch.tensor([6, 1, 1, 1] + [1] * 8)
    batch = dataclasses.replace(batch, is_token=torch.arange(6) < length[:, None])
    trees = grow_trees(batch, [0, 3, 1], 6 + 5, 10**9)
    assert [tree.rows for tree in trees] == [[3], [0, 1]]


@pytest.mark.parametrize("limit", [1, 9, 14, 20, 33])
def test_trees_stay_within_the_limit_and_lose_no_row(limit):
    batch = make_rows(make_policy())
    rows = [0, 2, 3, 4, 5, 7, 9, 10, 11]
    trees = grow_trees(batch, rows, limit, 10**9)
    assert sorted(row for tree in trees for row in tree.rows) == rows
    assert all(len(tree.ids) <= limit or len(tree.rows) == 1 for tree in trees)
    for tree in trees:
        assert {int(batch.problem[row]) for row in tree.rows} == {int(batch.problem[tree.rows[0]])}


def test_micro_batches_do_not_change_the_update():
    whole, _ = weights_after({})
    for size in (8, 25, 40):
        cut, _ = weights_after({"micro_batch_tokens": size})
        torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("linear_cost", [0.1, 3.0, 10.0, 30.0, 100.0, 1000.0])
def test_a_completion_joins_a_tree_where_that_costs_less(linear_cost):
    """Costs counted by positions and by pairs of positions."""
    batch = make_rows(make_policy())
    batch = dataclasses.replace(batch, is_token=batch.is_token | True, problem=batch.problem * 0)

    def cost(rows):
        positions = grown(batch, rows)
        return linear_cost * positions + positions**2

    trees = grow_trees(batch, range(12), 10**9, linear_cost)
    assert len(trees) == {0.1: 11, 1000.0: 1}.get(linear_cost, len(trees))  # two rows share more than their prompt
    for tree in trees:
        for at in range(1, len(tree.rows)):
            assert cost(tree.rows[: at + 1]) <= cost(tree.rows[:at]) + cost([tree.rows[at]])
        if (first := tree.rows[0]) > 0:
            before = next(other.rows for other in trees if first - 1 in other.rows)
            assert cost([*before, first]) > cost(before) + cost([first])


def grown(batch, rows):
    """Positions of one tree of these rows."""
    (tree,) = grow_trees(batch, rows, 10**9, 10**9)
    return len(tree.ids)


@pytest.mark.parametrize("num_shares", [1, 2, 3])
def test_micro_batches_hold_every_row_once_within_budget(num_shares):
    batch = make_rows(make_policy())
    trees = grow_trees(batch, range(12), 20, 10**9)
    groups = [group for share in range(num_shares) for group in micro_batches(trees, 40, share, num_shares)]
    rows = torch.cat([stack(group, torch.device("cpu"))[0] for group in groups])
    assert sorted(rows.tolist()) == list(range(12))
    for group in groups:
        assert len(group) == 1 or stack(group, torch.device("cpu"))[1].ids.numel() <= 40
    assert any(len(group) > 1 for group in groups)


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8, 12])
def test_every_process_has_a_tree_as_long_as_there_are_rows_enough(num_ranks, monkeypatch):
    """A step of two problems with three rows each, whose trees would be two."""
    policy, seen = make_policy(), []
    updater = make_updater(policy, batch_size=2, micro_batch_tokens=10_000)
    monkeypatch.setattr("tinyzero_astar.training.update.world_size", lambda: num_ranks)
    monkeypatch.setattr(updater, "_own_micro_batches", lambda trees: seen.append(trees) or iter([(trees[:1], 1.0)]))
    updater.update(make_rows(policy, num_problems=2), 2, 0)
    (trees,) = seen
    assert min(num_ranks, 6) <= len(trees) and (len(trees) == 2) == (num_ranks <= 2)
    assert sorted(row for tree in trees for row in tree.rows) == list(range(6))


def test_batch_size_counts_problems_per_optimizer_step():
    _, metrics = weights_after({"batch_size": 2}, iterations=3)
    assert metrics["train/num_updates"] == 3 * 2
    _, metrics = weights_after({"batch_size": 3, "num_epochs": 2}, iterations=1)
    assert metrics["train/num_updates"] == 2 * 2


@pytest.mark.parametrize(("frequency", "trainings"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_the_value_model_is_trained_every_update_frequency_updates_and_after_the_last(frequency, trainings):
    """Of four updates. Each training makes `num_steps` steps, and none moves the policy."""
    policy = make_policy()
    batch = make_rows(policy)
    changes = {"batch_size": 1, "value_update_frequency": frequency, "num_steps": 3}
    updater, steps = make_updater(policy, **changes), []
    step = updater.value.optimizer.step
    updater.value.optimizer.step = lambda: steps.append(step())
    for iteration in range(2):
        updater.update(batch, 4, iteration)
        assert len(steps) == (iteration + 1) * 3 * trainings
    other = make_policy()
    make_updater(other, batch_size=1, value_learning_rate=0.0).update(batch, 4, 0)
    alone = make_policy()
    make_updater(alone, **changes).update(batch, 4, 0)
    for p, q in zip(other.language_model.parameters(), alone.language_model.parameters(), strict=True):
        assert torch.equal(p, q)


def plain_value_steps(policy, batch, groups, num_steps, rate):
    """Adam on equation 13, token by token, on the hidden states of `groups` of rows at unchanged weights."""
    model = copy.deepcopy(policy.value_model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    first = []
    cells = [r for r in groups[0] for _ in range(int(batch.is_token[r].sum()))]
    right, mass = (sum(float(x[r]) for r in cells) for x in (batch.weight * batch.accuracy, batch.weight))
    rate = min(max((right + 1) / (mass + 2), 0.01), 0.99)
    with torch.no_grad():
        model.output.bias[0] = math.log(rate / (1 - rate))
    for rows in groups:
        for number in range(num_steps):
            loss = mass = spread = noise = 0.0
            for r in rows:
                m, prompt = int(batch.is_token[r].sum()), batch.prompts[batch.problem[r]]
                ids = torch.tensor([prompt + batch.tokens[r, :m].tolist()])
                output = policy.language_model(input_ids=ids, output_hidden_states=True)
                hidden, logits = output.hidden_states[-1][0].detach(), output.logits[0].detach()
                own = []
                for t in range(m):
                    at, token = len(prompt) - 1 + t, batch.tokens[r, t]
                    value, logp = model(hidden[at], path_of(own)), torch.log_softmax(logits[at], -1)[token]
                    child = model.child_logit_of(value.features, value.accuracy, token, logp)
                    own.append(float(logp))
                    errors = (torch.sigmoid(value.accuracy) - batch.accuracy[r]) ** 2 + (
                        torch.sigmoid(child) - batch.accuracy[r]
                    ) ** 2
                    loss, mass = loss + batch.weight[r] * errors, mass + batch.weight[r]
                    share = batch.weight[r] * (1 - batch.logp_old[r, t].exp()) ** 2
                    spread, noise = spread + share * (value.baseline - batch.reward[r]) ** 2, noise + share
            whole = loss / mass + spread / noise
            if number == 0:
                first.append(whole.item())
            optimizer.zero_grad()
            whole.backward()
            optimizer.step()
    return model, sum(first) / len(first)


@pytest.mark.parametrize("micro_batch_tokens", [1, 25, 10_000])
@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_the_value_model_learns_from_all_rows_since_the_last_time(frequency, micro_batch_tokens):
    """Against plain loops in float64. The policy stands still, so that its hidden states are known."""
    policy = shaken(make_policy())
    batch = make_rows(policy)
    of_updates = [(batch.problem == n).nonzero()[:, 0].tolist() for n in range(4)]
    groups = [[r for own in of_updates[n : n + frequency] for r in own] for n in range(0, 4, frequency)]
    model, loss = plain_value_steps(policy, batch, groups, num_steps=3, rate=1e-2)
    changes = {"batch_size": 1, "learning_rate": 0.0, "value_update_frequency": frequency, "num_steps": 3}
    updater = make_updater(policy, micro_batch_tokens=micro_batch_tokens, **changes)
    metrics = updater.update(batch, 4, 0)
    assert metrics["train/value_loss"] == pytest.approx(loss, rel=1e-5)
    for p, q in zip(policy.value_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


def test_the_value_model_keeps_its_learning_rate_while_that_of_the_policy_decays():
    policy = make_policy()
    batch, updater = make_rows(policy), make_updater(policy, learning_rate=3e-3, value_learning_rate=1e-2)
    policy.begin_value_at = lambda logit: None  # no step of Adam's
    modules = (policy.language_model, policy.value_model)
    before = [[p.detach().clone() for p in module.parameters()] for module in modules]
    updater.update(batch, 4, 9)  # the last of 10 iterations
    steps = [
        max(float((p - old).detach().abs().max()) for p, old in zip(module.parameters(), own, strict=True))
        for module, own in zip(modules, before, strict=True)
    ]
    assert steps == pytest.approx([3e-3 / 10, 1e-2], rel=1e-3)  # the first step of Adam is the rate itself


@pytest.mark.parametrize("accuracy", [0.0, None, 1.0])
def test_the_value_model_begins_at_the_rate_of_success_once_and_never_near_certainty(accuracy):
    policy = make_policy()
    batch = make_rows(policy)
    right = batch.accuracy if accuracy is None else torch.full_like(batch.accuracy, accuracy)
    batch = dataclasses.replace(batch, accuracy=right, weight=10 * batch.weight)
    updater, bias = make_updater(policy, value_learning_rate=0.0), policy.value_model.output.bias
    mass = batch.weight * batch.is_token.sum(1)
    rate = min(max(float(((mass * right).sum() + 1) / (mass.sum() + 2)), 0.01), 0.99)
    for other in (right, 1 - right):
        updater.update(dataclasses.replace(batch, accuracy=other), 4, 0)
        assert torch.sigmoid(bias).tolist() == pytest.approx([rate, 0.5, 0.5], abs=1e-6)


def test_the_rate_that_the_value_model_begins_at_is_that_of_all_processes(monkeypatch):
    """As if two more had the same successes, and this one's failures were all that there are."""
    monkeypatch.setattr("tinyzero_astar.training.value_update.sum_numbers", lambda values: [3 * x for x in values])
    policy = make_policy()
    batch = make_rows(policy)
    make_updater(policy, value_learning_rate=0.0).update(batch, 4, 0)
    mass = batch.weight * batch.is_token.sum(1)
    rate = min(float((3 * (mass * batch.accuracy).sum() + 1) / (mass.sum() + 2)), 0.99)
    assert float(torch.sigmoid(policy.value_model.output.bias.detach()[0])) == pytest.approx(rate, abs=1e-6)


@torch.no_grad()
def test_logged_entropy_and_value_loss_are_means_over_weighted_tokens():
    policy = make_policy()
    batch = make_rows(policy)
    scores = scores_of_batch(policy, batch)
    cells = [(r, t) for r in range(12) for t in range(int(batch.is_token[r].sum()))]
    mass = sum(float(batch.weight[r]) for r, _ in cells)
    entropy = sum(float(batch.weight[r] * scores.entropy[r, t]) for r, t in cells) / mass
    error = sum(
        float(batch.weight[r] * (torch.sigmoid(logit[r, t]) - outcome[r]) ** 2)
        for logit, outcome in (
            (scores.value_logit, batch.accuracy),
            (scores.child_logit, batch.accuracy),
        )
        for r, t in cells
    )
    shares = {(r, t): float(batch.weight[r] * (1 - batch.logp_old[r, t].exp()) ** 2) for r, t in cells}
    spread = sum(share * float(scores.baseline[r, t] - batch.reward[r]) ** 2 for (r, t), share in shares.items())
    policy.begin_value_at = lambda logit: None
    with torch.enable_grad():
        metrics = make_updater(policy).update(batch, 4, 0)
    assert metrics["policy/entropy"] == pytest.approx(entropy, rel=1e-5)
    assert metrics["train/value_loss"] == pytest.approx(error / mass + spread / sum(shares.values()), rel=1e-5)


def test_ratio_deviation_is_the_mean_over_all_tokens():
    policy = make_policy()
    batch = make_rows(policy)
    make_updater(policy).update(batch, 4, 0)
    with torch.no_grad():
        logp = scores_of_batch(policy, batch).logp
    shift = [float(abs(math.expm1(x))) for x in (logp - batch.logp_old)[batch.is_token].tolist()]
    twice = make_updater(make_policy(), num_epochs=2).update(batch, 4, 0)
    assert twice["train/ratio_deviation"] == pytest.approx((0 + sum(shift) / len(shift)) / 2, rel=1e-4)
    assert sum(shift) > 0.1


def test_a_problem_without_rows_counts_as_one_whose_rows_weigh_nothing():
    """Thinning may leave a problem without a row. Its leaves count 0, and the problem counts."""
    kept = (make_rows(make_policy()).problem != 2).nonzero()[:, 0]
    found = []
    for without_rows in (False, True):
        policy = make_policy()
        batch = make_rows(policy)
        batch = dataclasses.replace(batch, weight=torch.where(batch.problem == 2, 0.0, batch.weight))
        found.append(make_updater(policy).update(batch.rows(kept) if without_rows else batch, 4, 0))
    for name in ("train/policy_loss", "train/value_loss", "train/grad_norm"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-6), name
        assert abs(found[0][name]) > 0.01


def test_ratio_audit_is_zero_when_sampler_and_trainer_agree_and_seen_when_not():
    policy = make_policy()
    batch = make_rows(policy)
    assert make_updater(policy).update(batch, 4, 0)["audit/ratio_error"] < 1e-6
    policy = make_policy()
    batch = make_rows(policy)
    wrong = dataclasses.replace(batch, logp_old=batch.logp_old - 0.1 * batch.is_token)
    assert make_updater(policy).update(wrong, 4, 0)["audit/ratio_error"] == pytest.approx(math.expm1(0.1), abs=1e-5)


def test_the_audit_is_that_of_the_step_at_unchanged_weights():
    policy = make_policy()
    batch = make_rows(policy)
    metrics = make_updater(policy, batch_size=1, learning_rate=0.1).update(batch, 4, 0)
    assert metrics["train/num_updates"] == 4 and metrics["train/ratio_deviation"] > 1e-3
    assert metrics["audit/ratio_error"] < 1e-6


def test_a_small_step_lowers_the_loss_by_what_its_gradient_promises():
    """The first step of Adam moves every weight by the learning rate against the sign of its gradient."""
    rate, policy = 1e-5, make_policy()
    batch, updater = make_rows(policy), make_updater(policy, learning_rate=0.0)
    updater.policy_optimizer.zero_grad = lambda: None  # to look at them
    loss = updater.update(batch, 4, 0)["train/policy_loss"]
    slope = sum(float(p.grad.abs().sum()) for p in policy.language_model.parameters())
    both = make_updater(make_policy(), learning_rate=rate, num_epochs=2).update(batch, 4, 0)["train/policy_loss"]
    assert slope > 1.0
    assert 2 * both - loss == pytest.approx(loss - rate * slope, abs=0.01 * rate * slope)  # the second epoch's


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    policy = make_policy()
    batch = make_rows(policy)
    before = [p.clone() for p in policy.parameters()]
    next(policy.language_model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        FloatingPointError, match=r"the gradient's norm is (nan|inf): stopped before the optimizer step"
    ):
        make_updater(policy).update(batch, 4, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_value_loss_pairs_every_logit_with_its_own_reward():
    batch = make_rows(make_policy())
    value, child, baseline = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scores = ValueScores(value_logit=value, baseline=baseline, child_logit=child)
    noise = torch.rand(12, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * batch.is_token
    rows = ValueRows(None, batch.is_token, batch.weight, batch.accuracy, batch.reward, noise)
    cells = [(r, t) for r in range(12) for t in range(int(batch.is_token[r].sum()))]
    want = sum(
        float(batch.weight[r]) * (1 / (1 + math.exp(-float(logit[r, t]))) - float(outcome[r])) ** 2
        for logit, outcome in ((value, batch.accuracy), (child, batch.accuracy))
        for r, t in cells
    )
    spread = sum(float(noise[r, t]) * (float(baseline[r, t]) - float(batch.reward[r])) ** 2 for r, t in cells)
    assert [float(x) for x in value_losses(rows, scores)] == pytest.approx([want, spread])


def test_the_best_baseline_of_a_prefix_is_the_noise_weighted_mean_reward():
    """It makes the gradient of A log pi with respect to the logits least noisy, of all constants, by enumeration."""
    generator = torch.Generator().manual_seed(6)
    logits = (2 * torch.randn(7, generator=generator, dtype=torch.float64)).requires_grad_()
    reward, pi = torch.rand(7, generator=generator, dtype=torch.float64), torch.softmax(logits, -1).detach()
    slopes = [torch.autograd.grad(torch.log_softmax(logits, -1)[a], logits)[0] for a in range(7)]
    size = torch.stack([slope.square().sum() for slope in slopes])

    def noise(b):
        terms = torch.stack([(r - b) * slope for r, slope in zip(reward, slopes, strict=True)])
        return float((pi * (terms - (pi[:, None] * terms).sum(0)).square().sum(1)).sum())

    best = float((pi * size * reward).sum() / (pi * size).sum())
    assert noise(best) < min(noise(best - 1e-3), noise(best + 1e-3), noise(float((pi * reward).sum())))
    bound = noise_weight(pi.log())
    assert (bound <= size).all() and (size <= 2 * bound + 1e-12).all()


def test_non_finite_loss_stops_before_the_step():
    policy = make_policy()
    batch = make_rows(policy)
    before = [p.clone() for p in policy.parameters()]
    bad = dataclasses.replace(batch, reward=batch.reward * math.inf)
    with pytest.raises(FloatingPointError, match="before the optimizer step"):
        make_updater(policy).update(bad, 4, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
