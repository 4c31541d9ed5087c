"""Tasks from a table, `--data.task FILE.jsonl`, with one question a line, as a JSON object in UTF-8.

    {"prompt": "How many legs have 3 spiders?", "answer": 24}

`prompt` and `answer` are needed. `data.verifier` says how answers are written and compared, see `verifiers`. `choices`
belongs to its verifier choice. Two columns more mean something. `worked` is what a worked example (`data.num_shots`)
shows before the answer, and lines of one `key` stay on one side of the split. Other columns are ignored.

20 % of the lines are held out, decided by a hash of the key, which is the prompt where there is none. So the sizes of
both sides are those of a draw, about 80 and 20 of 100 lines.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.questions import Question, QuestionTask, is_held_out
from tinyzero_astar.data.verifiers import VERIFIERS, read_answer
from tinyzero_astar.files import read_bytes
from tinyzero_astar.interfaces import Verdict
from tinyzero_astar.terminal import shortened

_MAX_DIGITS = 4000  # of a whole number, while Python reads 4,300
_EXAMPLE = '{"prompt": "2+3=?", "answer": 5}'
Line = Mapping[str, Any]
Read = TypeVar("Read")


class Table(QuestionTask):
    """The questions of a file.

    Raises:
        ValueError: names the file, the line and what is wrong with it, or says how many lines there are.
    """

    reads_decimals: type = Decimal
    """What JSON's decimals become, so that numbers are compared as they were written."""

    def __init__(self, data: DataConfig, seed: int) -> None:
        self.path = Path(data.task)
        self._lines = read_table(self.path, lambda line: self.question(line, data), self.reads_decimals)
        super().__init__(data, seed)

    def question(self, line: Line, data: DataConfig) -> Question:
        """The question of a line whose prompt is in order.

        Raises:
            ValueError: what is wrong with the line.
        """
        answer = read_answer(data.verifier, line)
        key, worked = text_in(line, "key"), text_in(line, "worked")
        return Question(line["prompt"], answer, text=line["prompt"].strip(), key=key, worked=worked)

    def questions(self, rng: random.Random) -> Iterator[Question]:
        """The lines, shuffled."""
        return iter(rng.sample(self._lines, len(self._lines)))

    def judge(self, answer: Any, text: str) -> Verdict:
        """By the verifier of the settings."""
        return VERIFIERS[self.data.verifier].judge(answer, text)

    def _too_few(self, name: str, wanted: int, existing: int) -> ValueError:
        """Says the sizes of both sides, so that one more try is enough."""
        held_out = len({question.key for question in self._lines if is_held_out(question.key)})
        train = sum(not is_held_out(question.key) for question in self._lines)
        remedy = f"all of them are --data.num-problems {train} --eval.num-problems {held_out}"
        if not (train and held_out):
            remedy = "neither side may be empty, so add lines of other keys"
        return ValueError(
            f"{name} is {wanted}, but {self.path} has {train} questions to train on and {held_out} held out: {remedy}"
        )


def read_table(path: Path, read: Callable[[Line], Read], decimals: Callable[[str], Any] = float) -> list[Read]:
    """What `read` makes of every line that is not blank.

    Args:
        path: the file.
        read: is given a line whose prompt is in order. It may raise a ValueError.
        decimals: reads JSON's decimals from how they are written.

    Raises:
        ValueError: the file cannot be read, or is too large or empty, or says which line is damaged, and how.
    """
    found: list[Read] = []
    places: dict[str, int] = {}
    for number, text in enumerate(_content(path).split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            line = _object(text, decimals)
            _check_prompt(line)
            before = places.setdefault(line["prompt"].strip(), number)
            if before != number:
                raise ValueError(f"has the same prompt as line {before}: keep one of them")
            found.append(read(line))
        except ValueError as error:
            raise ValueError(f"{path} line {number} {error}") from None
    if not found:
        raise ValueError(f"{path} has no question in it; write one a line, as in {_EXAMPLE}")
    return found


def text_in(line: Line, name: str) -> str:
    """An optional column that holds text, "" where it is missing.

    Raises:
        ValueError: it holds something else.
    """
    value = line.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"has {name} {shortened(value)}, which is no string")
    return value


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path).removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
    except OSError as error:
        raise ValueError(f"data.task {path} cannot be read ({error.strerror or error}); say where it lies") from None


def _object(text: bytes, decimals: Callable[[str], Any]) -> Line:
    try:
        line = json.loads(
            text.decode(),
            parse_float=decimals,
            parse_int=_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_repeats,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno}); write it as in {_EXAMPLE}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(line, dict):
        raise ValueError(f"is no JSON object; write it as in {_EXAMPLE}")
    return line


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"holds a number of {len(digits):,} digits; at most {_MAX_DIGITS:,} are read")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which is not JSON")


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    line = dict(pairs)
    if len(line) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"has {next(name for name in names if names.count(name) > 1)} more than once")
    return line


def _check_prompt(line: Line) -> None:
    if "prompt" not in line:
        raise ValueError(f"has no prompt, only {', '.join(line) or 'nothing'}; write it as in {_EXAMPLE}")
    prompt = line["prompt"]
    if not isinstance(prompt, str):
        raise ValueError(f"has prompt {shortened(prompt)}, which is no string")
    if not prompt.strip():
        raise ValueError("has an empty prompt")
