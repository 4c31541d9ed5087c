"""The slot decoder on a real Hugging Face model: every way of reaching a prefix gives one full forward's scores."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tinyzero_astar.model.decoder import SlotDecoder
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts

VOCAB, EOS = 24, 0
PROMPTS = [[3, 4, 5], [7, 8, 9, 10, 11, 12], [5], [9, 9, 2, 1]]
ATOL = 1e-5


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
    policy = Policy(Qwen2ForCausalLM(config).eval(), EOS, value_hidden_size=16)
    for p in policy.value_model.parameters():  # zero-initialised outputs would hide a mix-up of rows
        torch.nn.init.normal_(p, std=0.5)
    return policy


@torch.no_grad()
def full_forward(policy, prefix):
    """Scores after a prefix, without any cache."""
    ids = torch.tensor([prefix])
    hidden = policy.language_model.model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
    return policy.score(hidden)


def assert_equals_full_forward(policy, output, prefixes):
    for row, prefix in enumerate(prefixes):
        for name, got, want in zip(output._fields, output, full_forward(policy, prefix), strict=True):
            torch.testing.assert_close(got[row], want[0], atol=ATOL, rtol=1e-4, msg=f"{name} of {prefix}")


def step(decoder, content, rows):
    """Rows (token, source, length, target); `content` tracks generated tokens of every slot."""
    output = decoder.step(*(torch.tensor(x) for x in zip(*rows, strict=True)))
    held = {target: (*content[source][:length], token) for token, source, length, target in rows}
    content.update(held)
    return output, [held[target] for _, _, _, target in rows]


def test_prompts_of_different_lengths_start_right(policy):
    output = SlotDecoder(policy, 8).start(PROMPTS, 2)
    assert_equals_full_forward(policy, output, PROMPTS)


def test_forks_swaps_and_uneven_lengths_equal_recomputation(policy):
    decoder = SlotDecoder(policy, 12)
    decoder.start(PROMPTS, 3)
    content = {3 * i: () for i in range(4)}
    plan = [
        [(5, 0, 0, 0), (6, 0, 0, 1), (7, 3, 0, 3), (8, 9, 0, 11)],  # a fork beside an extension
        [(9, 0, 1, 1), (10, 1, 1, 0)],  # two slots swap their prefixes
        [(11, 3, 1, 3)],  # one problem runs ahead
        [(12, 3, 2, 3)],
        [(13, 3, 1, 4), (14, 3, 3, 3), (15, 11, 1, 11)],  # fork from the middle, uneven lengths
        [(16, 4, 2, 4), (17, 1, 2, 2), (18, 3, 4, 3), (19, 11, 2, 9)],
        [(20, 3, 1, 3)],  # a slot goes back to an earlier prefix and on from there
        [(21, 4, 3, 4), (22, 3, 2, 3), (1, 9, 3, 10)],
    ]
    for rows in plan:
        output, prefixes = step(decoder, content, rows)
        full = [[*PROMPTS[target // 3], *prefix] for (_, _, _, target), prefix in zip(rows, prefixes, strict=True)]
        assert_equals_full_forward(policy, output, full)


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_recorded_scores_equal_one_full_forward(policy, mode):
    rollouts = astar_rollouts(
        SlotDecoder(policy, 10),
        PROMPTS,
        seeds=torch.arange(4),
        num_rollouts=3,
        beam_width=5,
        max_search_depth=10,
        mode=mode,
        guidance=Guidance(inverse_beta=1.0, cap=None),
    )
    assert (rollouts.length > 0).all() and len(rollouts.length.unique()) > 1
    for i, prompt in enumerate(PROMPTS):
        for k in range(3):
            n = int(rollouts.length[i, k])
            tokens = rollouts.tokens[i, k, :n]
            ids = torch.tensor([[*prompt, *tokens.tolist()]])
            scores = policy.token_scores(ids, torch.tensor([len(prompt)]), tokens[None])
            torch.testing.assert_close(rollouts.logp[i, k, :n].float(), scores.logp[0], atol=ATOL, rtol=1e-4)
            value = torch.sigmoid(scores.value_logit[0])
            torch.testing.assert_close(rollouts.value[i, k, :n].float(), value, atol=ATOL, rtol=1e-4)


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
    hidden = torch.randn(6, 32)
    accuracy = policy.value_model(hidden).accuracy
    tokens = torch.arange(6)
    every = policy.value_model.child_logits(hidden, accuracy)
    one = policy.value_model.child_logit_of(hidden, accuracy, tokens)
    torch.testing.assert_close(one, every[tokens, tokens])


def test_value_loss_does_not_reach_the_policy(policy):
    ids = torch.tensor([[3, 4, 5, 6]])
    scores = policy.token_scores(ids, torch.tensor([2]), torch.tensor([[5, 6]]))
    (scores.value_logit.sum() + scores.format_logit.sum() + scores.child_logit.sum()).backward()
    assert all(p.grad is None for p in policy.language_model.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.value_model.parameters())
    policy.zero_grad()
