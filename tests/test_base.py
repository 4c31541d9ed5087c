"""The embedded base model. Its corpus leaks no held-out product, and it is what its card says."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from recipes.embedded_base.corpus import PROMPT, documents, held_out_leaks, steps, transcript
from recipes.embedded_base.make_base import TAGS
from recipes.embedded_base.measure import measure
from tinyzero_astar.data.generation import is_held_out
from tinyzero_astar.model.loading import load_language_model
from tinyzero_astar.model.model_folder import resolve_model

BASE = Path(resolve_model("embedded"))


def held_out_pair():
    rng = random.Random(0)
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if a != b and is_held_out(a, b):
            return a, b


def test_corpus_holds_no_held_out_product_in_any_form():
    recipe = json.loads((BASE / "recipe.json").read_text())
    texts = itertools.islice(documents(recipe["seed"], recipe["worked_share"]), 20_000)
    operands = set()
    for text in texts:
        assert not held_out_leaks(text), text
        numbers = [int(n) for n in "".join(c if c.isdigit() else " " for c in text).split()]
        two_digits = {n for n in numbers if 10 <= n <= 99}
        for a in two_digits:  # independent of the corpus's own check: operands and product, wherever they stand
            for b in two_digits:
                assert not (is_held_out(a, b) and a * b in numbers), text
        operands |= two_digits
    assert operands == set(range(10, 100))  # every operand is known, only pairs are held out


def test_leaks_are_found_in_every_form():
    a, b = held_out_pair()
    for text in (
        f"{a}*{b}=?",
        f"{b}*{a}",
        f"{a} x {b}",
        f"{a} × {b}",
        f"{b} times {a}",
        f"{a}*({b}+0)",
        f"the product {a * b} comes from {b} and {a}",
        "\n".join(steps(a, b)) + f" {b}",
    ):
        assert held_out_leaks(text), text
    assert not held_out_leaks(f"{a}*7={a * 7}\n{b}*3={b * 3}")  # one-digit facts are skills, not held-out products


def test_steps_are_right():
    assert steps(23, 45) == ["23*4=92", "23*5=115", "920+115=1035"]
    rng = random.Random(1)
    for _ in range(300):
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        for line in steps(a, b):
            left, right = line.split("=")
            x, y = (int(n) for n in left.replace("+", "*").split("*"))
            assert int(right) == (x + y if "+" in left else x * y)


def test_most_transcripts_do_not_work_the_product_out():
    rng = random.Random(0)
    recipe = json.loads((BASE / "recipe.json").read_text())
    texts = [transcript(rng, recipe["worked_share"]) for _ in range(4000)]
    assert 0.02 < sum("</answer>" in t and t.count("=") >= 4 for t in texts) / len(texts) < 0.10


def test_tokenizer_survives_autotokenizer_with_single_digits_and_whole_tags():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = PROMPT.format(a=23, b=45) + "23*4=92\n</think><answer>1035</answer> é 中 \n\n x"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    pieces = [tokenizer.decode([i]) for i in ids]
    assert all(len(p) == 1 for p in pieces if any(c.isdigit() for c in p))
    assert [p for p in pieces if p.startswith("<")] == ["<think>", "</think>", "<answer>", "</answer>"]
    assert set(TAGS) <= set(pieces)
    _, loaded = load_language_model("embedded", torch.float32)
    assert loaded(text)["input_ids"] == ids
    assert loaded.eos_token_id == tokenizer.eos_token_id == AutoConfig.from_pretrained(BASE).eos_token_id


def test_base_is_small_and_safetensors_only():
    files = [f for f in BASE.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 8 * 2**20
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".md", ".jinja", ".log"}
    assert AutoConfig.from_pretrained(BASE).architectures == ["Qwen2ForCausalLM"]


def test_base_cannot_multiply_yet():
    result = measure("embedded", num_problems=100, num_samples=4)
    assert result["greedy_accuracy"][0] <= 0.05
    assert result["pass_at_1"][0] <= 0.06  # 400 samples. The card has the exact numbers
    assert result["sampled_format"][0] > 0.3


@pytest.mark.slow
def test_base_has_the_ability_latent():
    result = measure("embedded", num_problems=500, num_samples=64)
    assert 0.005 <= result["pass_at_1"][0] <= 0.03
    assert result["greedy_accuracy"][0] <= 0.05
    assert result["pass_at_64"][0] >= 0.6
