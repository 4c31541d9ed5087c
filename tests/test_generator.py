"""What the update is handed of a search, leaf by leaf."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch

from tests.decoding import shake_value_model
from tests.oracles import Table, TableDecoder
from tinyzero_astar.config import DataConfig, RewardConfig, SearchConfig
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.model.loading import load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts
from tinyzero_astar.rollout.generator import Generator, problem_seeds
from tinyzero_astar.rollout.records import NO_LEAF, RewardedRollouts, concatenate, on_device
from tinyzero_astar.rollout.thinning import thin_weights
from tinyzero_astar.training.batch import make_batch
from tinyzero_astar.training.reward import WeightedReward


def test_batch_rows_are_the_leaves_that_thinning_left_with_their_thinned_weights():
    prompts = [[0, 7, 8], [1], [2, 9]]
    decoder = TableDecoder([Table(3, 4, seed=s, peak=0.7) for s in range(3)], value_noise=1.5)
    rollouts = astar_rollouts(
        decoder,
        prompts,
        seeds=torch.arange(3),
        num_rollouts=6,
        beam_width=7,
        max_search_depth=4,
        guidance=Guidance(inverse_beta=2.0, cap=None),
    )
    generator = torch.Generator().manual_seed(0)
    accuracy, form, uniform = torch.rand(3, 3, 6, generator=generator, dtype=torch.float64)
    baseline = torch.rand(rollouts.tokens.shape, generator=generator, dtype=torch.float64)
    rollouts = dataclasses.replace(rollouts, baseline=baseline)
    thinned = thin_weights(rollouts.weight, uniform, floor=0.2)
    batch = make_batch(
        RewardedRollouts(
            problems=[],
            prompts=prompts,
            rollouts=rollouts,
            texts=[],
            verdicts=[],
            accuracy=accuracy.round(),
            grade=accuracy,
            format=form,
            reward=2 * accuracy - form,
            weight=rollouts.weight,
            update_weight=thinned,
        )
    )
    rows = [(i, k) for i in range(3) for k in range(6) if thinned[i, k] > 0]
    assert 3 < len(rows) < 18, "thinning kept or dropped everything: nothing was tested"
    assert not torch.equal(thinned[thinned > 0], rollouts.weight[thinned > 0])
    assert batch.problem.tolist() == [i for i, _ in rows] and batch.prompts == prompts
    for row, (i, k) in enumerate(rows):
        m = int(rollouts.length[i, k])
        leaf = rollouts.tokens[i, k, :m].tolist()
        assert batch.is_token[row].tolist() == [t < m for t in range(batch.tokens.shape[1])]
        assert batch.tokens[row, :m].tolist() == leaf
        logp = [decoder.tables[i].log_prob[tuple(leaf[:t])][leaf[t]] for t in range(m)]  # of pi, not of q
        assert batch.logp_old[row, :m].tolist() == pytest.approx(logp, abs=1e-6)
        assert batch.baseline[row, :m].tolist() == pytest.approx(baseline[i, k, :m].tolist(), abs=1e-6)
        for name, table in (("weight", thinned), ("accuracy", accuracy)):
            assert float(getattr(batch, name)[row]) == pytest.approx(float(table[i, k]), abs=1e-6)
        assert float(batch.reward[row]) == pytest.approx(float(2 * accuracy[i, k] - form[i, k]), abs=1e-6)


class Verifier(Multiplication):
    """Notes what it is asked to judge."""

    def verify(self, problem, completion, is_finished):
        self.asked.append((problem.text, completion, is_finished))
        return super().verify(problem, completion, is_finished)


PAD = 99


@pytest.fixture
def generator(tiny_base):
    """Of a tiny model whose value model has opinions."""
    model, tokenizer = load_language_model(str(tiny_base), torch.float32)
    torch.manual_seed(0)
    policy = shake_value_model(Policy(model.eval(), (tokenizer.eos_token_id,), 8))
    task = Verifier(DataConfig(num_problems=80), seed=0)
    task.asked = []
    generator = Generator(partial(SlotDecoder, policy), tokenizer, task, WeightedReward(RewardConfig()), 128)
    generator.policy, generator.tokenizer, generator.task = policy, tokenizer, task
    return generator


def settings_of(mode="gumbel", num_rollouts=3, depth=4, **changes):
    plain = SearchConfig(
        mode=mode,
        num_rollouts_per_problem=num_rollouts,
        beam_width=num_rollouts + 1,
        max_search_depth=depth,
        inverse_beta=2.0,
        weight_cap=None,
        unguided_fraction=0.0,
        min_weight=0.0,
    )
    return dataclasses.replace(plain, **changes)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["gumbel", "best_first"])
def test_the_baseline_is_the_value_models_at_every_prefix(generator, mode):
    problems = generator.task.train_problems(0, 3)
    found = generator.generate(problems, settings_of(mode), seed=0, iteration=0)
    for i, prompt in enumerate(found.prompts):
        for k in range(3):
            tokens = found.rollouts.tokens[i, k, : found.rollouts.length[i, k]].tolist()
            ids = torch.tensor([prompt + tokens])
            hidden = generator.policy.language_model.model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
            logp = generator.policy.language_model(ids).logits[0].log_softmax(-1)
            own = logp[:-1].gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0].tolist()
            before = [(own[t - 1], sum(own[:t]), min(own[:t])) if t else (0.0, 0.0, 0.0) for t in range(len(own))]
            value = generator.policy.value_model(hidden, torch.tensor(before))
            got = found.rollouts.baseline[i, k]
            assert value.baseline.abs().max() > 1e-3
            assert got[: len(tokens)].tolist() == pytest.approx(value.baseline.tolist(), abs=1e-4)
            assert not got[len(tokens) :].any()


def test_a_share_of_the_problems_is_searched_without_guidance_anew_in_every_iteration(generator):
    problems = generator.task.train_problems(0, 80)
    unguided = []
    for iteration in range(3):
        settings = settings_of(num_rollouts=1, depth=2, unguided_fraction=0.3)
        found = generator.generate(problems, settings, seed=0, iteration=iteration).rollouts
        unguided.append(((found.logq - found.logp).abs() < 1e-5).flatten(1).all(1))
    for own in unguided:
        assert abs(int(own.sum()) - 24) < 4 * math.sqrt(80 * 0.3 * 0.7)
    assert not torch.equal(unguided[0], unguided[1]) and not torch.equal(unguided[1], unguided[2])


def test_every_leaf_is_thinned_by_a_draw_of_its_own(generator):
    """Samples weigh 1/8. Of those below 1/2 a quarter survives, each on its own account."""
    problems = generator.task.train_problems(0, 80)
    settings = settings_of("sample", 8, 1, min_weight=0.5)
    kept = []
    for iteration in range(2):
        found = generator.generate(problems, settings, seed=0, iteration=iteration)
        assert found.weight.unique().tolist() == [1 / 8] and found.update_weight.unique().tolist() == [0.0, 0.5]
        kept.append(found.update_weight > 0)
    assert not torch.equal(kept[0], kept[1])
    counts = torch.stack(kept).sum(-1).flatten()
    law = [160 * math.comb(8, n) * 0.25**n * 0.75 ** (8 - n) for n in range(9)]
    wanted = [*law[:4], sum(law[4:])]
    seen = [int((counts == n).sum()) for n in range(4)]
    chi2 = sum((x - e) ** 2 / e for x, e in zip([*seen, 160 - sum(seen)], wanted, strict=True))
    assert chi2 < 4 + 4 * math.sqrt(2 * 4)


@torch.no_grad()
def test_greedy_takes_the_likeliest_token_up_to_the_depth_limit(generator):
    problems = generator.task.held_out_problems(12)
    found = generator.greedy(problems, 5).rollouts
    for i, problem in enumerate(problems):
        prompt, leaf = generator.tokenizer(problem.prompt)["input_ids"], []
        while len(leaf) < 5 and generator.policy.eos_ids[0] not in leaf:
            ids = torch.tensor([[*prompt, *leaf]])
            leaf.append(int(generator.policy.language_model(input_ids=ids).logits[0, -1].argmax()))
        assert found.tokens[i, 0, : found.length[i, 0]].tolist() == leaf
    assert 5 in found.length.tolist()[0], "no completion reaches the limit: nothing was tested"


def test_the_verifier_reads_the_completion_without_its_end_token(generator):
    problems = generator.task.train_problems(0, 20)
    often = generator.greedy(problems, 4).rollouts.tokens.flatten().mode().values
    with torch.no_grad():  # end tokens become as likely as that one
        weight = generator.policy.language_model.get_output_embeddings().weight
        weight[generator.policy.eos_ids[0]] = weight[often]
    generator.task.asked.clear()
    found = generator.generate(problems, settings_of("sample"), seed=0, iteration=0)
    wanted = []
    for i, problem in enumerate(problems):
        for k in range(3):
            tokens = found.rollouts.tokens[i, k, : found.rollouts.length[i, k]].tolist()
            is_finished = tokens[-1] in generator.policy.eos_ids
            wanted.append((problem.text, generator.tokenizer.decode(tokens[: len(tokens) - is_finished]), is_finished))
    assert generator.task.asked == wanted
    assert [[text for _, text, _ in wanted[3 * i : 3 * i + 3]] for i in range(20)] == found.texts
    assert {is_finished for *_, is_finished in wanted} == {True, False}


def test_missing_leaves_of_best_first_do_not_take_weight_from_the_others(generator):
    settings = settings_of("best_first", 400, 1, beam_width=2)  # 320 tokens: no more leaves than that
    found = generator.generate(generator.task.train_problems(0, 2), settings, seed=0, iteration=0)
    has_leaf = found.rollouts.length > 0
    assert has_leaf.sum(1).tolist() == [320, 320]
    assert found.weight.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert found.weight[has_leaf].unique().tolist() == pytest.approx([1 / 320])
    assert not found.weight[~has_leaf].any()


def test_groups_of_problems_put_together_are_as_if_searched_together(generator):
    """What several ranks searched. Leaves of 7 and of 3 tokens at most."""
    problems = generator.task.train_problems(0, 5)
    parts = [
        generator.generate(problems[:2], settings_of(depth=3), seed=0, iteration=0),
        generator.generate(problems[2:], settings_of(depth=7), seed=0, iteration=0),
    ]
    assert parts[0].rollouts.tokens.shape[-1] < parts[1].rollouts.tokens.shape[-1]
    found = concatenate(parts, PAD)
    rollouts, num_before = found.rollouts, 0
    for part in parts:
        own, count = part.rollouts, len(part.problems)
        here, width = slice(num_before, num_before + count), own.tokens.shape[-1]
        for name in ("tokens", "logp", "logq", "value", "baseline", "child_value"):
            table, padding = getattr(rollouts, name)[here], PAD if name == "tokens" else 0
            assert torch.equal(table[..., :width], getattr(own, name)), name
            assert (table[..., width:] == padding).all(), name
        for name in ("length", "is_finished", "priority", "kappa", "weight"):
            assert torch.equal(getattr(rollouts, name)[here], getattr(own, name)), name
        assert torch.equal(rollouts.stats.num_expanded[here], own.stats.num_expanded)
        for name in ("accuracy", "format", "reward", "weight", "update_weight"):
            assert torch.equal(getattr(found, name)[here], getattr(part, name)), name
        for name in ("problems", "prompts", "texts", "verdicts"):
            assert getattr(found, name)[here] == getattr(part, name), name
        num_before += count
    assert num_before == len(found.problems) == 5


def test_problems_with_fewer_leaves_than_others_are_padded_with_none(generator):
    """Searches that share their leaves give as many to a problem as they like. Ranks must still agree on a shape."""
    problems = generator.task.train_problems(0, 6)
    settings = settings_of(num_rollouts=2, problems_per_search=3)
    parts = [generator.generate(own, settings, seed=0, iteration=0) for own in (problems[:3], problems[3:])]
    together = generator.generate(problems, settings, seed=0, iteration=0)
    found = concatenate(parts, PAD)
    counts = (together.rollouts.length > 0).sum(1)
    assert counts.sum() == 12 and len(set(counts.tolist())) > 1
    assert [int((part.rollouts.length > 0).sum()) for part in parts] == [6, 6]
    assert parts[0].weight.shape[1] != parts[1].weight.shape[1]
    for name in ("length", "is_finished", "priority", "weight", "logp", "value"):
        torch.testing.assert_close(
            getattr(found.rollouts, name), getattr(together.rollouts, name), rtol=1e-4, atol=1e-4
        )
    is_token = together.rollouts.is_token
    assert torch.equal(found.rollouts.tokens[is_token], together.rollouts.tokens[is_token])
    for name in ("accuracy", "grade", "format", "reward", "weight", "update_weight"):
        torch.testing.assert_close(getattr(found, name), getattr(together, name), rtol=1e-4, atol=1e-4)
    assert (found.texts, found.verdicts) == (together.texts, together.verdicts)
    missing = [
        verdict for verdicts, count in zip(found.verdicts, counts.tolist(), strict=True) for verdict in verdicts[count:]
    ]
    assert missing and all(verdict is NO_LEAF for verdict in missing)


def test_a_single_part_is_passed_on(generator):
    problems = generator.task.train_problems(0, 5)
    parts = [generator.generate(problems, settings_of(depth=3), seed=0, iteration=0)]
    found = concatenate([*parts, *parts], PAD)
    assert concatenate(parts[:1], PAD) is parts[0]
    assert_on(on_device(found, torch.device("meta")), "meta")


def assert_on(record, device):
    """All of a record's tensors, and those of the records in it."""
    for x in vars(record).values():
        assert not isinstance(x, torch.Tensor) or x.device.type == device
        if dataclasses.is_dataclass(x):
            assert_on(x, device)


@pytest.mark.parametrize(("mode", "strength"), [("gumbel", 1.0), ("gumbel", 0.0), ("sample", 1.0), ("best_first", 1.0)])
def test_a_guided_search_reads_the_values_of_children(mode, strength, generator):
    """The rollouts are those of the search itself, and q differs from pi where they are guided."""
    problems = generator.task.train_problems(0, 4)
    guidance = Guidance(inverse_beta=2.0, cap=None, strength=strength)
    settings = settings_of(mode, 3, 6, beam_width=5, guidance_strength=strength)
    found = generator.generate(problems, settings, seed=0, iteration=0).rollouts
    wanted = astar_rollouts(
        SlotDecoder(generator.policy, 6),
        generator.encode(problems, 6)[0],
        seeds=problem_seeds(problems, 0, 0),
        num_rollouts=3,
        beam_width=5,
        max_search_depth=6,
        mode=mode,
        guidance=guidance,
    )
    assert found.tokens.tolist() == wanted.tokens.tolist()
    torch.testing.assert_close(found.logq, wanted.logq)
    torch.testing.assert_close(found.priority, wanted.priority)
    if mode == "gumbel":
        assert bool(((found.logq - found.logp).abs() > 0.01).any()) == (strength > 0)
