"""What other libraries take from here: a reward function for TRL, A* for `generate`, and a card with checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import tinyzero_astar as tz
from tests.test_run import OPTIONS
from tinyzero_astar.cli.options import config_of, parse
from tinyzero_astar.cli.train import main
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run.model_card import model_card, options_of


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


# --------------------------------------------------------------------------------------------- TRL's reward function

RIGHT, WRONG, BAD = "3*4</think><answer>12</answer>", "</think><answer>13</answer>", "<answer>12</answer>"


def test_the_reward_is_that_of_the_verifier_called_as_trl_calls_it():
    told = {}
    given = {
        "prompts": ["3*4=?\n<think>"] * 5,
        "completions": [RIGHT, WRONG, BAD, RIGHT, [{"role": "assistant", "content": RIGHT}]],
        "completion_ids": [[1]] * 5,
        "answer": [12, "12", 12, None, 12],
        "trainer_state": None,
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: told.update({name: value}),
    }
    assert tz.multiplication_reward(**given) == [1.0, 0.1, 0.0, None, 1.0]
    assert told == {"accuracy": 0.5, "format": 0.75}
    with pytest.raises(ValueError, match="invalid literal"):
        tz.multiplication_reward(completions=[RIGHT], answer=["twelve"])


def test_the_reward_serves_a_table_of_ones_own(tiny_base, elsewhere):
    rows = [{"prompt": f"{i}*7=?\n<think>", "answer": 7 * i} for i in range(40)]
    (elsewhere / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = "--data.task t.jsonl --data.reward-function tinyzero_astar:multiplication_reward --train.num-iterations 1"
    assert main(["--model.model-name", str(tiny_base), *OPTIONS.split(), *own.split(), "--eval.num-problems", "2"]) == 0


# --------------------------------------------------------------------------------------------- generate


@pytest.fixture(scope="module")
def base(tiny_base):
    """A small model whose probabilities are far from even, and its tokenizer with padding on the left."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_base, padding_side="left")


def generate(base, prompts, **options):
    model, tokenizer = base
    given = tokenizer(prompts, return_tensors="pt", padding=True)
    found = model.generate(**given, custom_generate=tz.astar_generate, **options)
    return found, given["input_ids"].shape[1]


@torch.no_grad()
def all_of_two_tokens(model, ids, end):
    """log pi of every completion of at most two tokens, {(end,): ..., (a, b): ...}."""
    first = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
    others = [a for a in range(len(first)) if a != end]
    rows = torch.tensor([[*ids, a] for a in others])
    second = torch.log_softmax(model(rows).logits[:, -1].double(), -1)
    both = {(a, b): float(first[a] + second[i, b]) for i, a in enumerate(others) for b in range(len(first))}
    return {(end,): float(first[end]), **both}


def test_the_best_completions_of_all_there_are_come_back_in_their_order(base):
    model, tokenizer = base
    prompt, end = "12*3=", tokenizer.eos_token_id
    found, length = generate(base, [prompt], max_new_tokens=2, num_leaves=5, beam_width=4096)
    known = all_of_two_tokens(model, tokenizer(prompt)["input_ids"], end)
    best = sorted(known, key=known.get, reverse=True)[:5]
    rows = [tuple(row) for row in found[:, length:].tolist()]
    assert rows == [tuple([*y, end][:2]) for y in best]
    assert all(math.isfinite(known[y]) for y in best)


def test_rows_of_a_batch_are_searched_each_for_itself(base):
    prompts = ["12*3=", "7*8=?\n<think>", "5"]
    options = {"max_new_tokens": 4, "num_leaves": 2, "beam_width": 6}
    together, length = generate(base, prompts, **options)
    for i, prompt in enumerate(prompts):
        alone, own_length = generate(base, [prompt], **options)
        own, other = alone[:, own_length:], together[2 * i : 2 * i + 2, length:]
        assert torch.equal(own, other[:, : own.shape[1]])
        assert bool((other[:, own.shape[1] :] == base[1].eos_token_id).all())
    given = base[1](prompts, return_tensors="pt", padding=True)["input_ids"]
    assert torch.equal(together[:, :length], given.repeat_interleave(2, 0))


def test_a_policy_brings_its_heuristic(tiny_base):
    model = tz.load(str(tiny_base), options={"value.hidden_size": 8, "search.max_search_depth": 6}, is_quiet=True)
    torch.manual_seed(1)
    for p in model.policy.value_model.parameters():
        torch.nn.init.normal_(p, std=2.0)
    base = model.policy.language_model, model.tokenizer
    options = {"max_new_tokens": 6, "beam_width": 12, "num_leaves": 4}
    plain, length = generate(base, ["3*4="], **options)
    guided, _ = generate(base, ["3*4="], policy=model.policy, inverse_beta=20.0, **options)
    search = dataclasses.replace(model.config.search, inverse_beta=20.0, weight_cap=None)
    model.config = dataclasses.replace(model.config, search=search)
    for found, is_guided in ((plain, False), (guided, True)):
        leaves = model.search("3*4=", 4, mode="best_first", is_guided=is_guided).leaves
        rows = zip(found[:, length:].tolist(), leaves, strict=True)
        assert all(row[: len(leaf.tokens)] == leaf.tokens for row, leaf in rows)
    assert guided.tolist() != plain.tolist()
    other = AutoModelForCausalLM.from_pretrained(tiny_base)
    with pytest.raises(ValueError, match="policy has another language model inside"):
        generate((other, model.tokenizer), ["3*4="], policy=model.policy, **options)


def test_what_a_search_cannot_do_is_refused(base):
    for options, sentence in (
        ({"do_sample": True, "temperature": 0.7}, "cannot use TemperatureLogitsWarper"),
        ({"repetition_penalty": 1.3}, "cannot use RepetitionPenaltyLogitsProcessor"),
        ({"max_time": 3.0}, "cannot use MaxTimeCriteria"),
        ({"num_beams": 2}, "num_beams 2 is for other ways of decoding; astar_generate takes beam_width"),
        ({"do_sample": True, "num_return_sequences": 2, "top_k": 0}, "num_return_sequences 2 .* takes num_leaves"),
    ):
        with pytest.raises(ValueError, match=sentence):
            generate(base, ["3*4="], max_new_tokens=3, **options)
    endless = GenerationConfig(max_new_tokens=3, eos_token_id=None, pad_token_id=0)
    base[0].generation_config, kept = GenerationConfig(), base[0].generation_config
    with pytest.raises(ValueError, match="needs an end token: give eos_token_id"):
        generate(base, ["3*4="], generation_config=endless)
    base[0].generation_config = kept
    found, _ = generate(base, ["3*4="], max_new_tokens=3, return_dict_in_generate=True)
    assert found.sequences.shape[0] == 1


# --------------------------------------------------------------------------------------------- model card

EVALUATED = {"eval/greedy_accuracy": 0.5, "eval/greedy_accuracy_low": 0.25, "eval/greedy_accuracy_high": 0.75}


def card(config, iteration=4, evaluations=()):
    return ModelCard(model_card(config, iteration, evaluations, '3*4=?\n"<think>'))


def with_model(config, name):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, model_name=name))


def test_a_card_tells_hub_and_reader_what_was_trained_on_what():
    tiny = PRESETS["tiny"]
    found = card(with_model(tiny, "Qwen/Qwen2.5-1.5B"))
    assert found.data.library_name == "transformers" and found.data.base_model == "Qwen/Qwen2.5-1.5B"
    assert found.data.tags == ["reinforcement-learning", "tinyzero-astar", "multiplication"]
    assert "| iteration | 4 of 50 |" in found.text and "No evaluation of this run is recorded." in found.text
    assert r'tokenizer("3*4=?\n\"<think>", return_tensors' in found.text
    for name in ("embedded", "/home/someone/models/mine", "x.gguf"):
        found = card(with_model(tiny, name))
        assert found.data.base_model is None and "someone" not in str(found)
    own = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, task="/home/someone/sums.jsonl"))
    assert " on the task sums.jsonl. " in card(own).text and "someone" not in str(card(own))


def test_a_card_says_what_its_command_leaves_out():
    tiny, merged, hidden = PRESETS["tiny"], "They are merged into `model.safetensors`", "is left out of"
    plain = card(tiny).text
    assert merged not in plain and hidden not in plain and "had other learning rates before that" in plain
    own = with_model(tiny, "/home/someone/models/mine")
    own = dataclasses.replace(own, model=dataclasses.replace(own.model, lora_rank=4))
    assert "trained it is left out of `--model.model-name`." in card(own).text
    own = dataclasses.replace(own, data=dataclasses.replace(own.data, task="/home/someone/sums.jsonl"))
    assert "left out of `--model.model-name` and `--data.task`." in card(own).text
    assert f"Adapters of rank 4 (LoRA) were trained. {merged}" in card(own).text


def test_a_card_tells_from_where_to_where():
    rows = [{"iteration": i, "eval/num_problems": 100 + i, **EVALUATED} for i in (0, 2, 4, 6)]
    rows[3]["eval/greedy_accuracy"] = 0.9  # later than the checkpoint
    text = card(PRESETS["tiny"], 5, [*rows, {"iteration": 5}]).text
    lines = [line for line in text.splitlines() if "[25.0, 75.0]" in line]
    assert lines == ["| 0 | 50.0 % [25.0, 75.0] | 100 |", "| 4 | 50.0 % [25.0, 75.0] | 104 |"]
    assert text.count("[25.0, 75.0]") == 2 and "90.0 %" not in text


def test_the_command_of_a_card_gives_its_configuration():
    for preset in PRESETS:
        assert options_of(PRESETS[preset]) == ([] if preset == "tiny" else ["--config", preset])
    options = (
        "--search.mode sample --search.weight-cap None --data.second-max-digits 3 --run.seed 7 --data.task countdown"
    )
    options += " --train.gradient-checkpointing --search.inverse-beta 2.5 --train.learning-rate 2e-05"
    for more in ("--model.model-name a/b", "--config local --train.no-gradient-checkpointing --run.num-threads 0"):
        config = config_of(parse([*options.split(), *more.split()]))
        assert config_of(parse(options_of(config))) == config
    machine = config_of(parse(["--model.device", "cpu", "--run.num-threads", "3"]))
    assert options_of(machine) == []


def test_every_checkpoint_has_a_card_with_the_evaluation_that_follows_it(tiny_base, elsewhere):
    argv = ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--output-dir", "r"]
    assert main([*argv, "--eval.num-problems", "2", "--eval.eval-frequency", "4"]) == 0
    texts = [(elsewhere / f"r/checkpoints/checkpoint_iter_{n}/README.md").read_text() for n in (2, 4)]
    rows = [[line.split(" | ")[0] for line in text.splitlines() if " % [" in line] for text in texts]
    assert rows == [["| 0"], ["| 0", "| 4"]]
    assert str(elsewhere) not in texts[0] and "--train.num-iterations 4" in texts[0]
    model = tz.load("r", is_quiet=True)
    assert "No evaluation" in (model.save("mine") / "README.md").read_text()
