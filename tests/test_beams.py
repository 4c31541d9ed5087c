"""Beam search at test time takes the plain sum of log-probabilities whatever the files say, and costs as others do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.test_end_tokens import edited, load
from tinyzero_astar.config import DataConfig, RewardConfig, SearchConfig
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.eval.beams import beam_search, best_beams
from tinyzero_astar.eval.decoding import compare
from tinyzero_astar.model.loading import load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.training.reward import WeightedReward

NUM_TOKENS, DEPTH = 320, 5
ENDS = [319, *range(0, 300, 7)]  # many, so that beams end at every depth
SETTINGS = SearchConfig(
    mode="gumbel", num_rollouts_per_problem=2, beam_width=3, max_search_depth=12, unguided_fraction=0.0, min_weight=0.0
)
TASK = Multiplication(DataConfig(num_problems=40), seed=0)
HOSTILE = {
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
    "min_new_tokens": 4,
    "return_dict_in_generate": True,
    "output_scores": True,
    "suppress_tokens": list(range(15, 25)),
    "bad_words_ids": [[318]],
    "sequence_bias": [[[317], -9.0]],
    "begin_suppress_tokens": [5, 6],
    "forced_eos_token_id": 3,
    "exponential_decay_length_penalty": [1, 2.0],
    "length_penalty": 3.0,
    "early_stopping": True,
    "num_return_sequences": 1,
    "max_length": 9,
    "temperature": 0.5,
    "do_sample": True,
    "guidance_scale": 1.5,
    "cache_implementation": "static",
    "stop_strings": ["4"],
}


def plain_beams(policy, prompt, depth, num_beams, textless=()):
    """The best completion, as textbooks define it, by sums of log-probabilities by one forward per prefix."""
    running, ended = [(0.0, ())], []
    for _ in range(depth):
        candidates = []
        for total, tokens in running:
            logits = policy.language_model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            logits[list(textless)] = -torch.inf
            logp = torch.log_softmax(logits.double(), -1).tolist()
            candidates += [(total + x, (*tokens, i)) for i, x in enumerate(logp)]
        candidates.sort(reverse=True)
        ended += [c for c in candidates[:num_beams] if c[1][-1] in policy.eos_ids]
        running = [c for c in candidates if c[1][-1] not in policy.eos_ids][:num_beams]
    return list(max(ended + running)[1])


@pytest.fixture(scope="module")
def hostile(tiny_base, tmp_path_factory):
    """The tiny base with every setting of generate that could change what beams find, and many end tokens."""
    folder = tmp_path_factory.mktemp("model") / "m"
    return load(edited(folder, tiny_base, generation={**HOSTILE, "eos_token_id": ENDS}, tokenizer={}))


@pytest.mark.parametrize("num_beams", [1, 2, 7])
@torch.no_grad()
def test_beams_maximise_the_plain_sum_of_log_probabilities_whatever_generation_config_says(num_beams, hostile):
    policy, tokenizer = hostile
    prompts = [tokenizer(f"{n}*{n + 3}=?\n<think>{'x' * n}")["input_ids"] for n in range(8)]
    found = best_beams(policy, prompts, DEPTH, num_beams)
    wanted = [plain_beams(policy, prompt, DEPTH, num_beams) for prompt in prompts]
    assert [row[: len(want)] for row, want in zip(found, wanted, strict=True)] == wanted
    assert all(set(row[len(want) :]) <= {319} for row, want in zip(found, wanted, strict=True))
    assert num_beams == 1 or {len(want) for want in wanted} > {DEPTH}


@torch.no_grad()
def test_beams_never_hold_ids_without_text_and_share_their_mass_among_the_others(hostile):
    """Spare rows of the vocabulary have no effect. The result is that of a head without them."""
    policy, tokenizer = hostile
    prompts = [tokenizer(f"{n}*{n + 3}=?\n<think>{'x' * n}")["input_ids"] for n in range(8)]
    textless = {2, 9, *range(40, NUM_TOKENS)}
    padded = Policy(policy.language_model, (5, 17), 8, textless)
    for num_beams in (1, 3, 7):
        found = best_beams(padded, prompts, DEPTH, num_beams)
        wanted = [plain_beams(padded, prompt, DEPTH, num_beams, textless) for prompt in prompts]
        assert [row[: len(want)] for row, want in zip(found, wanted, strict=True)] == wanted
        assert textless.isdisjoint(token for row in wanted for token in row)


@torch.no_grad()
def test_ids_beyond_the_tokenizers_tokens_are_in_no_beam_of_a_whole_evaluation(tiny_base, tmp_path):
    model = edited(tmp_path / "model", tiny_base)
    grown, _ = load_language_model(str(model), torch.float32)
    grown.resize_token_embeddings(328, mean_resizing=False)
    torch.manual_seed(0)
    head = grown.get_output_embeddings().weight
    head.data[320:] = 3 * head.data[torch.randint(320, (8,))]  # likelier than what has a text
    grown.save_pretrained(model)
    policy, tokenizer = load(model)
    assert policy.textless == [*range(320, 328)]
    prompts = [tokenizer(p.prompt)["input_ids"] for p in TASK.held_out_problems(6)]
    assert max(max(row) for row in best_beams(policy, prompts, DEPTH, 3)) < 320


def test_beam_search_of_one_beam_is_charged_what_greedy_decoding_is():
    policy, tokenizer = load("embedded")
    generator = Generator(partial(SlotDecoder, policy), tokenizer, TASK, WeightedReward(RewardConfig()), 128)
    problems = TASK.held_out_problems(6)
    for depth in (40, 9):  # completions that end, and that are cut
        settings = replace(SETTINGS, max_search_depth=depth)
        greedy = generator.greedy(problems, depth)
        correct, tokens = beam_search(policy, tokenizer, TASK, generator, problems, settings, 1, 4)
        assert greedy.rollouts.is_finished.all() == (depth == 40)
        assert tokens == int(greedy.rollouts.stats.num_decoded_tokens.sum())
        assert correct.tolist() == greedy.accuracy[:, 0].tolist()


def test_all_arms_work_without_a_pad_token(tiny_base, tmp_path):
    policy, tokenizer = load(edited(tmp_path / "model", tiny_base, generation={"pad_token_id": None}))
    tokenizer.pad_token = None  # some classes have one of their own, whatever the files say
    generator = Generator(partial(SlotDecoder, policy), tokenizer, TASK, WeightedReward(RewardConfig()), 128)
    options = {"beam_width": 3, "max_rows": 4}
    arms = compare(policy, tokenizer, TASK, generator, TASK.held_out_problems(3), SETTINGS, **options)
    assert len(arms) == 7 and all(arm.tokens > 0 for arm in arms)
