"""The synthetic arithmetic text that the embedded base model is pre-trained on.

The first operand of a product has 2 digits, or as many as `digits` says, and the second 2, or as many as `second` says.
A product with a 1-digit operand is asked with the 2-digit one in front, as the task asks it.

Every document is drawn from seeded templates. Skills (sums, small multiples, worked products) appear as plain text.
Question/answer transcripts are mostly bad. They guess, ramble, slip or break off, and few work the product out. So the
ability is latent in the base model, and pure RL has something to find.

Products of held-out operand pairs are left out on purpose. Pairs are drawn from the training side of the split only,
and worked products use one-digit factors ("23*4", never "23*40"). With `digits` 1, where "23*4" is itself a question,
both factors of a step have one digit. `held_out_leaks` searches the finished text for a held-out product in any form,
and a document that has one by coincidence is dropped.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement

from tinyzero_astar.data.generation import ASKED, is_held_out
from tinyzero_astar.data.questions import TEMPLATES

PROMPT = TEMPLATES["compact"].format(ASKED["compact"])
_MUSINGS = (
    "let me see",
    "hm",
    "this is hard",
    "no wait",
    "maybe",
    "I think so",
    "both are big",
    "about right",
    "let me guess",
    "not sure",
)
_MUSING_WEIGHTS = (10, *[1] * (len(_MUSINGS) - 1))  # the first is what the base begins with, left to itself


def _factor(rng: random.Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def train_pair(rng: random.Random, digits: int = 2, second: int = 2) -> tuple[int, int]:
    """Operands of `digits` and of `second` digits whose unordered pair is on the training side."""
    while True:
        a, b = _factor(rng, digits), _factor(rng, second)
        if not is_held_out(a, b):
            return a, b


def as_asked(a: int, b: int) -> tuple[int, int]:
    """The operands in the order of the question, where one of 1 digit comes last."""
    return (b, a) if a < 10 else (a, b)


def steps(a: int, b: int) -> list[str]:
    """The schoolbook product of a number and one of 2 or more digits, one fact a line: products, then sums."""
    digits = [int(digit) for digit in str(b)]
    lines = [f"{a}*{digit}={a * digit}" for digit in digits]
    total = a * digits[0] * 10 ** (len(digits) - 1)
    for place, digit in enumerate(digits[1:], start=2):
        part = a * digit * 10 ** (len(digits) - place)
        lines.append(f"{total}+{part}={total + part}")
        total += part
    return lines


def _slip(line: str, rng: random.Random) -> str:
    """The same line with one digit of its result changed."""
    left, result = line.split("=")
    place = rng.randrange(len(result))
    digit = rng.choice([d for d in "0123456789" if d != result[place]])
    return f"{left}={result[:place]}{digit}{result[place + 1 :]}"


def _guess(a: int, b: int, rng: random.Random) -> int:
    while True:
        guess = round(a * b * rng.uniform(0.6, 1.5))
        if guess != a * b:
            return guess


def _sums(rng: random.Random, digits: int, second: int) -> str:
    lines = []
    for _ in range(rng.randint(2, 5)):
        if rng.random() < 0.7:  # the kind that the last lines of a product need
            # The first number accounts for so many digits of the second operand.
            done = 1 if second == 2 else rng.randint(1, second - 1)
            scale = 10 ** (second - 1 - done)
            x = _factor(rng, digits) * _factor(rng, done) * 10 * scale
            y = _factor(rng, digits) * rng.randint(0, 9) * scale
        else:
            x, y = rng.randint(0, 10 ** (digits + 2) - 1), rng.randint(0, 10 ** (digits + 1) - 1)
        lines.append(f"{x}+{y}={x + y}")
    return "\n".join(lines)


def _facts(rng: random.Random, digits: int, _second: int) -> str:
    return "\n".join(
        f"{a}*{d}={a * d}" for a, d in ((_factor(rng, digits), rng.randint(0, 9)) for _ in range(rng.randint(2, 6)))
    )


def _multiples(rng: random.Random, digits: int, _second: int) -> str:
    a = _factor(rng, digits)
    return f"multiples of {a}: " + " ".join(str(a * d) for d in range(1, 10))


def _expansion(rng: random.Random, digits: int, second: int) -> str:
    a, b = train_pair(rng, digits, second)
    first, last = as_asked(a, b)
    names = (" hundreds", " tens", "")[-len(str(b)) :]
    parts = [f"{a}*{digit}{name}" for digit, name in zip(str(b), names, strict=True)]
    return f"{first}*{last}=" + "+".join(parts)


def _worked(rng: random.Random, digits: int, second: int) -> str:
    a, b = train_pair(rng, digits, second)
    first, last = as_asked(a, b)
    return f"{first}*{last}\n" + "\n".join(steps(a, b))


def muse(rng: random.Random, count: int) -> str:
    """Words that lead nowhere."""
    return ", ".join(rng.choices(_MUSINGS, weights=_MUSING_WEIGHTS, k=count))


def closing(value: int | str) -> str:
    """The end of a completion that answers `value`."""
    return f"</think><answer>{value}</answer>"


def transcript(rng: random.Random, worked_share: float, digits: int = 2, second: int = 2) -> str:
    """One question and an attempt at it. `worked_share` of them work it out and are right."""
    a, b = train_pair(rng, digits, second)
    first, last = as_asked(a, b)
    prompt, lines = PROMPT.format(a=first, b=last), steps(a, b)
    kind = rng.random()
    if kind < worked_share:
        return prompt + "\n".join(lines) + closing(a * b)
    kind = rng.random()
    if kind < 0.05:  # starts well, slips, and believes the slip
        place = rng.randrange(len(lines))
        lines[place] = _slip(lines[place], rng)
        value = lines[-1].split("=")[1] if place == len(lines) - 1 else str(_guess(a, b, rng))
        return prompt + "\n".join(lines[: place + 1]) + closing(value)
    if kind < 0.60:  # guesses
        return prompt + muse(rng, rng.randint(1, 3)) + closing(_guess(a, b, rng))
    if kind < 0.70:  # gives an answer in words
        return prompt + muse(rng, 1) + closing(muse(rng, 1))
    if kind < 0.87:  # rambles and never answers
        return prompt + muse(rng, rng.randint(3, 9))
    if kind < 0.93:  # breaks off in the middle of a step
        text = "\n".join(lines[: rng.randint(1, len(lines) - 1)])
        return prompt + text[: rng.randint(1, len(text))]
    return prompt + f"about {_guess(a, b, rng)}, {muse(rng, 2)}, or {_guess(a, b, rng)}"


def document(rng: random.Random, worked_share: float, digits: int = 2, second: int = 2) -> str:
    """One document of the corpus, free of held-out products."""
    kinds: tuple[Callable[[random.Random, int, int], str], ...]
    kinds = (_sums, _facts, _multiples, _expansion, _worked, lambda r, d, s: transcript(r, worked_share, d, s))
    while True:
        text = rng.choices(kinds, weights=(24, 18, 4, 3, 22, 29))[0](rng, digits, second)
        if not held_out_leaks(text, digits):
            return text


def documents(seed: int, worked_share: float, digits: int = 2, second: int = 2) -> Iterator[str]:
    """An endless, reproducible stream of documents on products of a number of `digits` and one of `second` digits."""
    rng = random.Random(seed)
    while True:
        yield document(rng, worked_share, digits, second)


def held_out_leaks(text: str, digits: int = 2) -> list[tuple[int, int]]:
    """Held-out pairs of operands of 2 to `digits` digits whose product the text could give away.

    With `digits` 1 the operands have 1 or 2 digits, and at least one of them has 2. A pair counts when it is written as
    a product, in either order (`a*b`, `a x b`, `a times b`), or when both operands and their product stand anywhere in
    the document, in whatever form.
    """
    low, high = sorted((2, digits))
    operand = rf"(\d{{{low},{high}}})"
    written = re.findall(rf"(?<!\d){operand}\s*(?:[*x×]|times)\s*\(?{operand}(?!\d)", text)
    pairs = {(int(a), int(b)) for a, b in written}
    numbers = {int(n) for n in re.findall(r"\d+", text)}
    operands = sorted(n for n in numbers if 10 ** (low - 1) <= n < 10**high)
    pairs |= {(a, b) for a, b in combinations_with_replacement(operands, 2) if a * b in numbers}
    return sorted(pair for pair in pairs if max(pair) >= 10 and is_held_out(*pair))
