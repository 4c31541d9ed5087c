"""The slot decoder on a real Hugging Face model. Every way of reaching a prefix gives one full forward's scores."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.decoding import (
    LED,
    PROMPTS,
    Tape,
    assert_equals_full_forward,
    assert_forks_swaps_and_uneven_lengths_equal_recomputation,
    assert_recorded_scores_equal_one_full_forward,
    full_forward,
    shake_value_model,
    step,
)
from tests.oracles import homes
from tests.trees import scores_of, trees_of
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.engine.shared_prompt import shared_length
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import astar_rollouts

VOCAB, EOS = 24, 0


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return shake_value_model(Policy(Qwen2ForCausalLM(config).eval(), (EOS,), value_hidden_size=16))


def test_prompts_of_different_lengths_start_right(policy):
    output = SlotDecoder(policy, 8).start(PROMPTS, homes(len(PROMPTS), 2))
    assert_equals_full_forward(policy, output, [(prompt, ()) for prompt in PROMPTS])


@pytest.fixture
def read_once(monkeypatch):
    """What all prompts begin with is read once, however little it is."""
    monkeypatch.setattr("tinyzero_astar.engine.shared_prompt.MIN_SAVED", 1)


@pytest.mark.parametrize("is_fast", [True, False])
def test_what_all_prompts_begin_with_is_read_once(policy, read_once, monkeypatch, is_fast):
    monkeypatch.setattr("tinyzero_astar.model.model.is_supported", lambda model: is_fast)
    read = []

    def noted(self, num_positions, made=Policy.decoding_fn):
        hidden = made(self, num_positions)
        return lambda ids, *rest: (read.append(tuple(ids.shape)), hidden(ids, *rest))[1]

    monkeypatch.setattr(Policy, "decoding_fn", noted)
    assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy, LED)
    assert read[:2] == [(1, 4), (4, 6)] and all(queries == 1 for _, queries in read[2:])
    for mode in ("sample", "gumbel", "best_first"):
        assert_recorded_scores_equal_one_full_forward(policy, mode, LED)


def test_recorded_steps_with_what_all_prompts_begin_with_equal_recomputation(policy, read_once, tape):
    assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy, LED)


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2]], 1),  # one token is left to read, at least
        ([[1, 2], [1, 2, 3, 4], [1, 2, 3]], 1),
        ([[4, 2], [1, 2]], 0),
        ([[1]], 0),
        ([[1, 2, 3]] * 3, 2),
        ([[1, 2, 5], [1, 2, 9], [1, 3, 0]], 1),
    ],
)
def test_shared_length_is_that_of_what_every_prompt_begins_with(prompts, length):
    assert shared_length(prompts) == length
    assert shared_length(prompts[::-1]) == length


def test_forks_to_other_prompts_keep_what_they_were_forked_from(policy, read_once):
    decoder, content = SlotDecoder(policy, 6), {0: (), 1: ()}
    of_slot = dict(enumerate([LED[1], LED[2], LED[2]]))
    decoder.start(LED[1:3], torch.tensor([0, 1, 1]), can_cross=True)
    for rows in ([(5, 0, 0, 0), (6, 1, 0, 1)], [(7, 0, 1, 2), (8, 1, 1, 1)], [(9, 2, 2, 2), (3, 1, 1, 0)]):
        before = dict(of_slot)
        of_slot |= {target: before[source] for _, source, _, target in rows}
        output, prefixes = step(policy, decoder, content, rows, of_slot.__getitem__)
        assert_equals_full_forward(policy, output, prefixes)


def test_forks_swaps_and_uneven_lengths_equal_recomputation(policy):
    assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy)


@pytest.mark.parametrize(("is_recorded", "at_once"), [(False, 1), (False, 64), (True, 1)])
def test_memory_that_the_cache_was_given_is_not_read_before_it_is_written(
    policy, is_recorded, at_once, request, monkeypatch
):
    """Memory may hold anything, NaN as well, of which 0 times is NaN."""
    if is_recorded:
        request.getfixturevalue("tape")
    monkeypatch.setattr("tinyzero_astar.engine.slot_cache.CLEARED_AT_ONCE", at_once)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # fills it with NaN
    try:
        assert torch.empty(3).new_empty(2).isnan().all()
        assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy)
        for mode in ("sample", "best_first"):
            assert_recorded_scores_equal_one_full_forward(policy, mode)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def tape(policy, monkeypatch):
    """Decode steps of `policy` are recorded, in blocks of 4 columns."""
    monkeypatch.setattr("tinyzero_astar.engine.decoder.BLOCK", 4)
    monkeypatch.setattr(policy, "recorder", Tape())
    return policy.recorder


@pytest.mark.parametrize("is_fast", [True, False])
def test_recorded_steps_equal_recomputation(policy, tape, monkeypatch, is_fast):
    monkeypatch.setattr("tinyzero_astar.model.model.is_supported", lambda model: is_fast)
    assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy)
    assert 1 < tape.num_recorded < tape.num_replayed


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_recorded_steps_find_the_same_rollouts(policy, tape, mode):
    options = {"num_rollouts": 3, "beam_width": 5, "max_search_depth": 10, "mode": mode, "seeds": torch.arange(4)}
    recorded = astar_rollouts(SlotDecoder(policy, 10), PROMPTS, **options)
    assert tape.num_replayed > 5
    policy.recorder = None
    run = astar_rollouts(SlotDecoder(policy, 10), PROMPTS, **options)
    assert recorded.tokens.tolist() == run.tokens.tolist()
    torch.testing.assert_close(recorded.logp, run.logp, atol=1e-5, rtol=1e-4)


def test_recorded_steps_leave_out_ids_without_text(policy, tape):
    textless = (5, 17, VOCAB - 1)
    shorter = Policy(policy.language_model, (EOS,), value_hidden_size=16, textless=textless)
    shorter.recorder = tape
    options = {"num_rollouts": 4, "beam_width": 5, "max_search_depth": 10, "mode": "sample", "seeds": torch.arange(4)}
    rollouts = astar_rollouts(SlotDecoder(shorter, 10), PROMPTS, **options)
    assert tape.num_replayed > 5
    assert not set(textless) & set(rollouts.tokens[rollouts.is_token].tolist())


def test_a_fork_to_the_last_slot_moves_to_the_front_with_all_it_holds(policy):
    decoder, content = SlotDecoder(policy, 12), {0: ()}
    decoder.start([PROMPTS[0]], homes(1, 12))
    for n in range(4):
        step(policy, decoder, content, [(5 + n, 0, n, 0)], lambda slot: PROMPTS[0])
    for rows in ([(9, 0, 4, 11)], [(10, 11, 5, 11), (11, 0, 4, 0)], [(12, 11, 3, 7)], [(13, 7, 4, 7), (14, 11, 6, 11)]):
        output, prefixes = step(policy, decoder, content, rows, lambda slot: PROMPTS[0])
        assert_equals_full_forward(policy, output, prefixes)


FORKED_TO_THE_BACK = {  # token, source, length, target. The fork is longer than what rows to swap with held before
    "alone": [
        *([(5 + n, 0, n, 0)] for n in range(5)),
        [(10, 0, 3, 1)],
        [(11, 0, 5, 2)],
    ],
    "beside others": [
        [(1, 0, 0, 0), (2, 0, 0, 1), (3, 0, 0, 3)],
        [(1, 0, 1, 0), (2, 1, 1, 1), (3, 3, 1, 3)],
        *([(1, 0, n, 0), (3, 3, n, 3)] for n in (2, 3, 4)),
        [(1, 0, 5, 0), (9, 0, 5, 2), (3, 3, 5, 3)],
    ],
}


@pytest.mark.parametrize("plan", FORKED_TO_THE_BACK.values(), ids=FORKED_TO_THE_BACK)
def test_a_fork_to_a_row_at_the_back_keeps_all_its_tokens(policy, plan):
    decoder, content = SlotDecoder(policy, 8), {0: ()}
    decoder.start([PROMPTS[0]], homes(1, 6))
    for rows in plan:
        output, prefixes = step(policy, decoder, content, rows, lambda slot: PROMPTS[0])
        assert_equals_full_forward(policy, output, prefixes)


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_recorded_scores_equal_one_full_forward(policy, mode):
    rollouts = assert_recorded_scores_equal_one_full_forward(policy, mode)
    assert len(rollouts.length.unique()) > 1


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_batch_composition_and_order_do_not_matter(policy, mode):
    seeds = torch.tensor([11, 12, 13, 14])
    options = {"num_rollouts": 3, "beam_width": 4, "max_search_depth": 8, "mode": mode}
    together = astar_rollouts(SlotDecoder(policy, 8), PROMPTS, seeds=seeds, **options)
    order = [2, 0, 3, 1]
    shuffled = astar_rollouts(SlotDecoder(policy, 8), [PROMPTS[i] for i in order], seeds=seeds[order], **options)
    for place, i in enumerate(order):
        alone = astar_rollouts(SlotDecoder(policy, 8), [PROMPTS[i]], seeds=seeds[i : i + 1], **options)
        for other, row in ((alone, 0), (shuffled, place)):
            width = min(other.tokens.shape[-1], together.tokens.shape[-1])
            assert other.length[row].tolist() == together.length[i].tolist()
            assert other.tokens[row, :, :width].tolist() == together.tokens[i, :, :width].tolist()
            torch.testing.assert_close(other.weight[row], together.weight[i], atol=1e-4, rtol=1e-3, equal_nan=True)


def test_child_logit_of_one_token_is_that_of_the_whole_vocabulary(policy):
    hidden, path, tokens = torch.randn(6, 32), -torch.rand(6, 3), torch.arange(6)
    value = policy.value_model(hidden, path)
    logp = (3 * torch.randn(6, policy.vocab_size)).log_softmax(-1)
    logp[2, 2] = -torch.inf  # a token that cannot be
    with torch.no_grad():
        every = policy.value_model.child_logits(value.features, value.accuracy, logp)
        one = policy.value_model.child_logit_of(value.features, value.accuracy, tokens, logp[tokens, tokens])
    torch.testing.assert_close(one, every[tokens, tokens])
    assert torch.isfinite(one).all() and len(set(value.features[:, -1].tolist())) == 6


def test_value_loss_does_not_reach_the_policy(policy):
    scores = scores_of(policy, trees_of([[3, 4]], [[[5, 6]]]))
    (scores.value_logit.sum() + scores.baseline.sum() + scores.child_logit.sum()).backward()
    assert all(p.grad is None for p in policy.language_model.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.value_model.parameters())
    policy.zero_grad()


@torch.no_grad()
def test_bellman_residuals_telescope_to_the_weight(policy):
    """log w(y) = sum_t [delta_t + h(s_t) - h(s_t a_t)] for the untempered twist, whatever h is (docs eq. 5)."""
    prompt, completion = [3, 4, 5], [7, 9, 2, 11]
    inverse_beta = torch.tensor(1.7)
    ids = torch.tensor([[*prompt, *completion]])
    delta = policy.bellman_residual(ids, len(prompt), len(completion), inverse_beta)
    log_weight = expected = 0.0
    for t, token in enumerate(completion):
        output = full_forward(policy, [*prompt, *completion[:t]], len(prompt))
        logp = torch.log_softmax(output.logits[0], -1)
        child_h = torch.log1p(torch.sigmoid(output.child_logit(logp[None])[0]) * torch.expm1(inverse_beta))
        own_h = torch.log1p(torch.sigmoid(output.value_logit[0]) * torch.expm1(inverse_beta))
        log_weight += float(logp[token] - torch.log_softmax(logp + child_h, -1)[token])
        expected += float(delta[t] + own_h - child_h[token])
    assert expected == pytest.approx(log_weight, abs=1e-4)
    assert float(delta.abs().sum()) > 0.01
