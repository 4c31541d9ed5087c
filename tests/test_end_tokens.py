"""Several end tokens. Every one that a model's files declare ends a completion, wherever completions are made."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.oracles import Table, TableDecoder
from tinyzero_astar.config import DataConfig, RewardConfig, SearchConfig
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.eval.beams import best_beams
from tinyzero_astar.interfaces import Trace
from tinyzero_astar.model.loading import end_tokens, load_language_model
from tinyzero_astar.model.model_folder import resolve_model
from tinyzero_astar.model.policy_loading import load_policy
from tinyzero_astar.rollout.astar_search import astar_rollouts, greedy_rollouts
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.run.checkpoint import save_checkpoint
from tinyzero_astar.training.batch import make_batch
from tinyzero_astar.training.reward import WeightedReward

END, TILDE = 319, 93  # of the embedded base: its end token, and "~", which it never writes
ENDS = (2, 0)  # of the tables
FILES = ("config.json", "generation_config.json", "tokenizer_config.json")


def edited(folder, source, **changes):
    """A copy of a model's folder with values of its JSON files changed. None takes a value away."""
    shutil.copytree(source, folder)
    for name, change in zip(FILES, (changes.get(x, {}) for x in ("config", "generation", "tokenizer")), strict=True):
        path = folder / name
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({k: v for k, v in {**old, **change}.items() if v is not None}))
    return folder


def load(folder, said=None):
    say = (lambda text: None) if said is None else said.append
    return load_policy(
        str(folder), dtype=torch.float32, device=torch.device("cpu"), value_hidden_size=8, max_length=128, say=say
    )


# ------------------------------------------------------------------------------------------------ the search


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_a_leaf_ends_at_every_end_token_and_at_nothing_else(mode):
    table = Table(4, 3, seed=3, peak=0.5, ends=ENDS)
    trace = Trace(1)
    count = 200 if mode == "sample" else len(table.reward)
    options = {"num_rollouts": count, "beam_width": count + 1, "max_search_depth": 3, "mode": mode}
    found = astar_rollouts(
        TableDecoder([table]), [[0]], seeds=torch.zeros(1, dtype=torch.int64), trace=trace, **options
    )
    leaves = set()
    rows = (x[0].tolist() for x in (found.tokens, found.length, found.is_finished))
    for tokens, length, is_finished in zip(*rows, strict=True):
        leaf = tuple(tokens[:length])
        leaves.add(leaf)
        assert leaf in table.reward
        assert is_finished == (leaf[-1] in ENDS)
        assert set(tokens[length:]) <= {ENDS[0]}
    assert {leaf[-1] for leaf in leaves} == {0, 1, 2, 3}
    if mode != "sample":
        assert leaves == set(table.reward)
    for node in trace.nodes[1:]:
        assert (node.status == "leaf") == (node.token in ENDS or node.depth == 3), node


def test_greedy_decoding_ends_at_the_second_end_token():
    table = Table(3, 4, seed=0, ends=(2, 0))
    table.log_prob[()] = [-0.1, -3.0, -4.0]
    found = greedy_rollouts(TableDecoder([table]), [[0]], 4)
    assert found.tokens.tolist() == [[[0]]] and found.is_finished.tolist() == [[True]]


# ---------------------------------------------------------------------------------------- what the files declare


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, (END,)),
        ({"tokenizer": {"eos_token": "~"}}, (TILDE, END)),
        ({"tokenizer": {"eos_token": "~"}, "config": {"eos_token_id": None}}, (TILDE, END)),
        ({"tokenizer": {"eos_token": "~"}, "generation": {"eos_token_id": None}}, (TILDE, END)),
        ({"config": {"eos_token_id": [7, END]}, "generation": {"eos_token_id": [5, 7]}}, (END, 7, 5)),
        # without a word in any file there is no end token but the tokenizer's: not the default of the class
        ({"config": {"eos_token_id": None, "model_type": "llama"}, "generation": {"eos_token_id": None}}, (END,)),
    ],
)
def test_every_declared_end_token_counts_and_several_are_named(changes, wanted, tiny_base, tmp_path):
    said: list[str] = []
    folder = edited(tmp_path / "model", tiny_base, **changes)
    model, _ = load_language_model(str(folder), torch.float32, say=said.append)
    assert end_tokens(model) == wanted
    assert len(said) == (len(wanted) > 1)
    if said:
        assert f"{len(wanted)} end tokens" in said[0] and all(f"({i})" in said[0] for i in wanted)


@pytest.mark.parametrize("declared", [320, -1, "end", True, [END, 320], [[END]], 1.5])
@pytest.mark.parametrize("file", FILES[:2])
def test_an_end_token_that_does_not_exist_is_one_sentence(declared, file, tiny_base, tmp_path):
    folder = edited(tmp_path / "model", tiny_base, **{file.split("_")[0].split(".")[0]: {"eos_token_id": declared}})
    with pytest.raises(ValueError) as refused:
        load(folder)
    sentence = str(refused.value)
    assert sentence.startswith(f"model_name '{folder}': ") and "eos_token_id" in sentence and "\n" not in sentence
    assert file in sentence or "a file in that folder" in sentence


# ------------------------------------------------------------------------------- completions of the embedded base


@pytest.fixture(scope="module")
def base():
    return load("embedded")


@pytest.fixture(scope="module")
def other_eos(tmp_path_factory):
    """The embedded base with a tokenizer whose end token it never writes."""
    folder = tmp_path_factory.mktemp("model") / "m"
    return load(edited(folder, resolve_model("embedded"), tokenizer={"eos_token": "~", "pad_token": None}))


def completions(policy, tokenizer, mode):
    task = Multiplication(DataConfig(num_problems=40), seed=0)
    generator = Generator(partial(SlotDecoder, policy), tokenizer, task, WeightedReward(RewardConfig()), 128)
    problems = task.train_problems(0, 4)
    if mode == "greedy":
        return generator.greedy(problems, 40)
    settings = SearchConfig(
        mode=mode,
        num_rollouts_per_problem=3,
        beam_width=5,
        max_search_depth=40,
        guidance_strength=0.0,
        unguided_fraction=0.0,
        min_weight=0.0,
    )
    return generator.generate(problems, settings, seed=0, iteration=0)


@pytest.mark.parametrize("mode", ["greedy", "sample", "gumbel", "best_first"])
def test_completions_end_where_the_base_ends_them_whatever_the_tokenizer_calls_its_end(mode, base, other_eos):
    wanted, found = (completions(*x, mode) for x in (base, other_eos))
    assert found.texts == wanted.texts and found.verdicts == wanted.verdicts
    assert any(v.format for row in found.verdicts for v in row)
    assert not any("<|endoftext|>" in text for row in found.texts for text in row)
    batch = make_batch(found)
    for row, length in zip(batch.tokens.tolist(), batch.is_token.sum(1).tolist(), strict=True):
        assert END not in row[: length - 1] and (row[length - 1] == END or length == 40)  # and is trained
        assert set(row[length:]) <= {TILDE}


@pytest.mark.parametrize("num_beams", [1, 3])
def test_beams_end_there_too(num_beams, base, other_eos):
    prompts = [base[1](text)["input_ids"] for text in ("23*45=?\n<think>", "7*8=?\n<think>")]
    wanted, found = (best_beams(policy, prompts, 40, num_beams) for policy, _ in (base, other_eos))
    assert [row[: row.index(END) + 1] for row in found] == [row[: row.index(END) + 1] for row in wanted]


# ------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_declares_all_end_tokens_and_comes_back_with_them(other_eos, tmp_path):
    policy, tokenizer = other_eos
    save_checkpoint(tmp_path / "c", policy, tokenizer, {}, {})
    for name in FILES[:2]:
        assert json.loads((tmp_path / "c" / name).read_text())["eos_token_id"] == [TILDE, END]
    assert GenerationConfig.from_pretrained(tmp_path / "c").eos_token_id == [TILDE, END]
    assert load(tmp_path / "c")[0].eos_ids == (TILDE, END)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    ids = torch.tensor([tokenizer("23*45=?\n<think>")["input_ids"]])
    assert plain.generate(ids, max_new_tokens=60)[0, -1] == END


def test_a_checkpoint_of_one_end_token_declares_it_as_a_number(base, tmp_path):
    save_checkpoint(tmp_path / "c", *base, {}, {})
    assert [json.loads((tmp_path / "c" / name).read_text())["eos_token_id"] for name in FILES[:2]] == [END, END]
