"""The texts of the base models in recipes/bases. They leak no held-out question, and most attempts in them are bad."""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes.embedded_base.corpora import CORPORA
from recipes.embedded_base.corpus import transcript as product_transcript
from recipes.embedded_base.countdown_corpus import (
    MAX_NUMBER,
    MAX_TARGET,
    attempt,
    held_out_leaks,
    train_numbers,
    transcript,
)
from tinyzero_astar.data import questions
from tinyzero_astar.data.countdown import Countdown, Goal, judge_expression
from tinyzero_astar.data.generation import is_held_out
from tinyzero_astar.data.tasks import make_task
from tinyzero_astar.model.loading import load_language_model

BASES = Path(__file__).resolve().parents[1] / "recipes/bases"
NAMES = ("rare", "countdown", "easy", "long", "longer")
COUNTDOWN = CORPORA["countdown"]
EASY = CORPORA["easy"]
LONG = CORPORA["long"]


def is_kept_apart(numbers):
    """Whether questions with these numbers are held out, from the rule as docs/tasks.md has it."""
    return questions.is_held_out(f"countdown {sorted(numbers)}")


def task_of(corpus):
    return make_task(replace(corpus.data, num_problems=1), 0)


def texts(corpus, count, worked_share=0.02):
    return itertools.islice(corpus.documents(0, worked_share), count)


def test_countdown_uses_no_held_out_numbers_together():
    seen, used = set(), 0
    for text in texts(COUNTDOWN, 2000):
        assert not held_out_leaks(text), text
        for line in re.split(r"\n|<answer>", text):  # independent of the corpus's own check: questions and expressions
            written = re.match(r"(\d+ \d+ \d+)=|([\d+*/()-]+)(?:=|<|$)", line)
            numbers = [int(n) for n in re.findall(r"\d+", (written[1] or written[2]) if written else "")]
            seen.update(numbers)
            if len(numbers) == 3:
                used += 1
                assert not is_kept_apart(numbers), text
    assert used > 1000
    assert seen >= set(range(1, MAX_NUMBER + 1))  # every number is known, only triples are held out


def test_no_held_out_question_is_asked_in_countdown():
    held_out = {problem.text for problem in task_of(COUNTDOWN).held_out_problems(150)}
    triples = {tuple(sorted(map(int, text.split(" = ")[0].split()))) for text in held_out}
    assert all(map(is_kept_apart, triples))
    asked = [re.match(r"(\d+) (\d+) (\d+)=", text) for text in texts(COUNTDOWN, 2000)]
    found = {tuple(sorted(map(int, match.groups()))) for match in asked if match}
    assert len(found) > 300
    assert not found & triples


def test_planted_numbers_are_found_in_every_form():
    a, b, c = next(n for n in itertools.combinations(range(2, 20), 3) if is_kept_apart(n))
    for text in (
        f"{a} {b} {c}=9?",
        f"{c} {a} {b}",
        f"({b}-{a})*{c}",
        f"let me see <answer>{c}*{a}+{b}</answer>",
        f"1+1=2\n{a}+{b}={a + b}\n7-6=1\n{a + b}*{c}={(a + b) * c}",
        f"{a}*{c}={a * c}\n{b}+{a * c}={b + a * c}",
    ):
        assert held_out_leaks(text) == [(a, b, c)], text
    assert not held_out_leaks(f"{a}+{b}={a + b}\n{c} {b}={c + b}")  # facts of two numbers are skills


def test_numbers_are_drawn_from_the_training_side():
    rng = random.Random(0)
    assert not any(is_kept_apart(train_numbers(rng)) for _ in range(500))


def test_attempts_use_the_numbers_and_say_their_value():
    rng = random.Random(0)
    for _ in range(300):
        numbers = tuple(rng.choices(range(1, MAX_NUMBER + 1), k=3))
        part = attempt(rng, numbers)
        assert judge_expression(part.text, Goal(numbers, part.value)).accuracy
        assert part.steps[-1].endswith(f"={part.value}")
        for step in part.steps:
            a, symbol, b, result = re.fullmatch(r"(\d+)([+*/-])(\d+)=(\d+)", step).groups()
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[symbol]
            assert value == int(result) <= 99


def shares(worked_share, count=1200):
    """Of transcripts for countdown, how many answer rightly, answer with an expression, and answer at all."""
    rng, right, formed, answered = random.Random(0), 0, 0, 0
    for _ in range(count):
        text = transcript(rng, worked_share)
        asked, target, completion = re.fullmatch(r"(\d+ \d+ \d+)=(\d+)\?\n<think>(.*)", text, re.DOTALL).groups()
        assert 1 <= int(target) <= MAX_TARGET
        answer = re.search(r"</think><answer>(.*)</answer>$", completion)
        answered += answer is not None
        verdict = judge_expression(answer[1], Goal(tuple(map(int, asked.split())), int(target))) if answer else None
        right += verdict is not None and verdict.accuracy
        formed += verdict is not None and verdict.format
    return right / count, formed / count, answered / count


def test_few_transcripts_of_countdown_are_right():
    by_chance, formed, answered = shares(0.0)
    assert 0.01 < by_chance < 0.05
    assert 0.3 < formed < answered < 0.8
    assert 0.07 < shares(0.1)[0] - by_chance * 0.9 < 0.13  # a tenth more are solutions


@pytest.mark.parametrize("corpus", [LONG, CORPORA["longer"]], ids=["long", "longer"])
def test_long_products_are_never_held_out(corpus):
    operands = set()
    for text in texts(corpus, 2000):
        assert not corpus.held_out_leaks(text), text
        numbers = {int(n) for n in re.findall(r"\d+", text)}
        large = {n for n in numbers if 10 <= n <= 999}
        operands |= {n for n in large if n >= 100}
        for a, b in itertools.combinations_with_replacement(sorted(large), 2):
            assert not (is_held_out(a, b) and a * b in numbers), text
    assert len(operands) > 800  # of 900


def test_planted_products_of_three_digits_are_found_in_every_form():
    a, b = next((a, b) for a in range(123, 999) for b in range(23, 99) if is_held_out(a, b))
    for text in (f"{a}*{b}=?", f"{b} times {a}", f"{a}*({b}+0)", f"the product {a * b} comes from {b} and {a}"):
        assert (a, b) in LONG.held_out_leaks(text) or (b, a) in LONG.held_out_leaks(text), text
    assert not LONG.held_out_leaks(f"{a}*7={a * 7}")


def test_few_transcripts_of_long_products_are_right():
    rng, right = random.Random(0), 0
    for _ in range(1500):
        text = product_transcript(rng, 0.05, 3)
        a, b = re.match(r"(\d{3})\*(\d\d)=\?\n<think>", text).groups()
        right += text.endswith(f"<answer>{int(a) * int(b)}</answer>")
    assert 0.035 < right / 1500 < 0.065


def test_easy_products_of_the_task_are_never_held_out():
    held_out = [re.fullmatch(r"(\d\d)\*(\d)=\?\n<think>", p.prompt) for p in task_of(EASY).held_out_problems(144)]
    kept_apart = {(int(match[1]), int(match[2])) for match in held_out}
    assert len(kept_apart) == 144
    operands, asked = set(), set()
    for text in texts(EASY, 3000):
        assert not EASY.held_out_leaks(text), text
        written = {(int(a), int(b)) for a, b in re.findall(r"\b(\d\d)\*(\d)\b", text)}
        written |= {(int(a), int(b)) for b, a in re.findall(r"\b(\d)\*(\d\d)\b", text)}
        numbers = {int(n) for n in re.findall(r"\d+", text)}
        assert not written & kept_apart, text
        assert not [(a, b) for a, b in kept_apart if {a, b, a * b} <= numbers], text
        operands |= {a for a, _ in written}
        asked |= written
    assert operands == set(range(10, 100))
    assert len(asked) > 550  # of 666


def test_planted_easy_products_are_found_in_every_form():
    a, b = next((a, b) for a in range(23, 99) for b in range(3, 9) if is_held_out(a, b))
    for text in (f"{a}*{b}=?", f"{b} times {a}", f"{a}*({b}+0)", f"the product {a * b} comes from {b} and {a}"):
        assert EASY.held_out_leaks(text) in ([(a, b)], [(b, a)]), text
    c, d = next((c, d) for c in range(2, 9) for d in range(2, 9) if is_held_out(c, d))
    assert not EASY.held_out_leaks(f"{c}*{d}={c * d}")  # facts of two digits are skills
    assert not CORPORA["multiplication"].held_out_leaks(f"{a}*{b}={a * b}")


@pytest.mark.parametrize(("digits", "second", "asked"), [(1, 2, (2, 1)), (3, 2, (3, 2)), (3, 3, (3, 3))])
def test_worked_transcripts_answer_the_question(digits, second, asked):
    rng = random.Random(0)
    for _ in range(200):
        text = product_transcript(rng, 1.0, digits, second)
        a, b, thinking, answer = re.fullmatch(
            r"(\d+)\*(\d+)=\?\n<think>(.*)</think><answer>(\d+)</answer>", text, re.DOTALL
        ).groups()
        assert int(answer) == int(a) * int(b)
        lines = [re.fullmatch(r"(\d+)([*+])(\d+)=(\d+)", line).groups() for line in thinking.split("\n")]
        for x, symbol, y, result in lines:
            assert int(result) == (int(x) * int(y) if symbol == "*" else int(x) + int(y))
        assert lines[-1][-1] == answer
        assert (len(a), len(b)) == asked
        assert [symbol for _, symbol, _, _ in lines] == ["*"] * second + ["+"] * (second - 1)


@pytest.mark.parametrize("name", NAMES)
def test_bases_are_small_and_load(name):
    folder = BASES / name
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2 * 2**20
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md", ".log"}
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["corpus"] in CORPORA
    model, tokenizer = load_language_model(str(folder), torch.float32)
    assert model.num_parameters() == 829_568
    assert model.dtype == torch.float32
    prompt = task_of(CORPORA[recipe["corpus"]]).held_out_problems(1)[0].prompt
    assert tokenizer.decode(tokenizer(prompt)["input_ids"]) == prompt


def test_countdown_is_measured_on_what_its_text_is_about():
    data = COUNTDOWN.data
    assert isinstance(task_of(COUNTDOWN), Countdown)
    assert (data.min_numbers, data.max_numbers, data.max_number, data.max_target) == (3, 3, MAX_NUMBER, MAX_TARGET)
