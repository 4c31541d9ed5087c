"""What all tasks have in common, which makes a stream of questions into problems with a split, prompts and verdicts.

A task says what its questions are (`questions`) and when an answer is right (`judge`, or simply `is_right`).
`QuestionTask` does the rest.

- The split is decided by a hash of a question's key that knows neither seed nor preset, so a model trained on one side
  has never seen the other.
- The training set is the first `num_problems` different questions of the training side, in the order of a stream that
  the run's seed shuffles. The held-out stream does not depend on the seed.
- A prompt is the question in the words of a template and ends with `<think>`. Worked examples may stand before it, from
  the training side, the same for every run.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from operator import attrgetter
from typing import Any, ClassVar

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.answers import ANSWER, ANSWER_END, THINK, THINK_END, Reason, verify_answer
from tinyzero_astar.data.order import batch_indices
from tinyzero_astar.interfaces import END_OF_EXAMPLE, Problem, Verdict
from tinyzero_astar.terminal import FailedError

HELD_OUT_PERCENT = 20
_ASKABLE = 50_000  # questions of either side among which `ask` looks
_PATIENCE = (1000, 20)  # repeats after which a stream counts as dry, at least and per question that it has given
_STRANGERS = 100_000  # different questions in a row, all of the other side, after which it counts as dry too
_NO_TEXT = re.compile(f"[\ud800-\udfff{END_OF_EXAMPLE}]")  # halves of characters, and what stands for an end token

TEMPLATES = {  # of one question, after the preface
    "conversation": f"User: {{}}\nAssistant: {THINK}",
    "compact": f"{{}}\n{THINK}",
}


@dataclass(frozen=True)
class Question:
    """One question of a task, before it is put into a prompt."""

    asked: str  # as put to the model
    answer: Any  # of the task's own type, which `judge` is given
    text: str = ""  # for people, unique within the task, as asked if it is ""
    key: str = ""  # equal for questions that differ only in form, on one side of the split, the text if ""
    worked: str = ""  # what an example has between <think> and </think>
    shown: str = ""  # what an example has between <answer> and </answer>, str(answer) if it is ""

    def __post_init__(self) -> None:
        """Fill in what was left empty, and check the texts.

        Raises:
            ValueError: names the question and the text that is none.
        """
        text = self.text or self.asked
        filled = {"text": text, "key": self.key or text, "shown": self.shown or str(self.answer)}
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        for name in ("asked", "text", "key", "worked", "shown"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"question {str(self.asked)[:60]!r} has {name} {str(value)[:60]}, which is no string")
            if _NO_TEXT.search(value):
                raise ValueError(f"question {self.asked[:60]!r} has a character that is no text: {value[:60]!r}")

    @property
    def example(self) -> str:
        """A right completion."""
        return f"{self.worked}{THINK_END}{ANSWER}{self.shown}{ANSWER_END}"


def is_held_out(key: str) -> bool:
    """Whether the questions of a key belong to the held-out side (20 % of all keys do)."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def overlap(train: Iterable[Problem], held_out: Iterable[Problem]) -> int:
    """How many keys stand on both sides. It is 0 unless the split is broken.

    It looks at the keys alone, not at the hash that decides the split.
    """
    sides = ({problem.key or problem.text for problem in side} for side in (train, held_out))
    return len(set.intersection(*sides))


class QuestionTask:
    """A task made of questions (implements `interfaces.Task`). A subclass gives `questions` and says what is right.

    Args:
        data: the settings of section `data`.
        seed: chooses the training set and its order. The held-out problems do not depend on it.

    Raises:
        ValueError: an argument is out of range, or fewer than `data.num_problems` questions exist.
    """

    preface: ClassVar[str] = (
        "The user asks a question and the assistant works it out. The assistant first writes down its reasoning, step"
        " by step, between <think> and </think>, then states nothing but the final answer between <answer> and"
        " </answer>, and stops.\n"
    )
    """What template "conversation" begins with."""
    more: ClassVar[str] = ""
    """What allows more questions where there are too few, after "lower it", as in " or raise data.max_digits"."""

    def __init__(self, data: DataConfig, seed: int) -> None:
        if data.template not in TEMPLATES:
            names = ", ".join(sorted(TEMPLATES))
            raise ValueError(f"template {data.template!r} is unknown; choose one of: {names}")
        self.data, self.seed = data, seed
        self._asked: dict[int, Question] = {}  # of every problem that was made
        _ = self._training_set, self._examples  # a wrong size fails at once

    # ---- what a task says

    def questions(self, rng: random.Random) -> Iterator[Question]:
        """The questions in an order that `rng` decides. They may be finite or endless, and one may come again."""
        raise NotImplementedError

    def judge(self, answer: Any, text: str) -> Verdict:
        """The verdict on an answer. The completion around it has the right format.

        Args:
            answer: that of the question.
            text: what stands between the answer tags, without space around it, not empty. Untrusted.
        """
        is_right = self.is_right(answer, text)
        if is_right not in (True, False):
            raise FailedError(f"{type(self).__name__}.is_right gave {str(is_right)[:60]}: it must be True or False")
        return Verdict(bool(is_right), True, text, Reason.CORRECT if is_right else Reason.WRONG_ANSWER)

    def is_right(self, answer: Any, text: str) -> bool:
        """Whether a text answers a question. This is the simplest form of `judge`."""
        return text == str(answer)

    def held_out_form(self, question: Question) -> Question:
        """The one form in which a held-out question is asked, of all that share its key."""
        return question

    def held_out_name(self) -> str:
        """What seeds the order of the held-out questions, which is their kind and never the run's seed."""
        return "held out"

    def id_of(self, question: Question) -> int:
        """The id of its problem, below 2**62."""
        digest = hashlib.blake2b(question.text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 2

    # ---- interfaces.Task

    def train_problems(self, iteration: int, count: int) -> list[Problem]:
        """The training problems of an iteration, a pure function of seed, iteration and count.

        The training set is consumed epoch by epoch, each in a fresh order, and no problem comes twice within an epoch.
        A batch may end one epoch and begin the next. Nor does a problem come twice within a batch as long as count <=
        num_problems. The search noise depends on iteration and problem alone, so a second copy would have the same
        rollouts. `train_problems(0, num_problems)` is the whole training set.

        Args:
            iteration: 0 for the first.
            count: problems per iteration, at least 1, the same in every iteration of a run.

        Raises:
            ValueError: `iteration` or `count` is out of range.
        """
        if iteration < 0:
            raise ValueError(f"iteration must be at least 0, got {iteration}")
        _check_count("count", count)
        indices = batch_indices(self.seed, iteration, count, self.data.num_problems)
        return [self.problem(self._training_set[index]) for index in indices]

    def held_out_problems(self, count: int) -> list[Problem]:
        """The first `count` held-out problems, the same for every seed, run and training-set size, each key once.

        Raises:
            ValueError: `count` is out of range, or fewer than `count` exist.
        """
        _check_count("count of held-out problems", count)
        found = list(islice(self._held_out(), count))
        if len(found) < count:
            raise self._too_few("count of held-out problems", count, len(found))
        return [self.problem(question) for question in found]

    def verify(self, problem: Problem, completion: str, is_finished: bool) -> Verdict:
        """Judge the text after the prompt. It is cheap and safe on any string.

        Raises:
            FailedError: `judge` gave no verdict, or `is_right` neither True nor False.
            RuntimeError: `judge` raised a ValueError, which is the cause.
        """
        try:
            verdict = verify_answer(completion, is_finished, lambda text: self.judge(problem.answer, text))
        except ValueError as error:  # which the command line would take for wrong use, and hide where it arose
            raise RuntimeError(f"{type(self).__name__} failed to judge {completion[-80:]!r} ({error})") from error
        if not isinstance(verdict, Verdict):
            raise FailedError(f"{type(self).__name__}.judge gave {str(verdict)[:60]}: it must be a Verdict(...)")
        return verdict

    def example(self, problem: Problem) -> str:
        """A right completion, worked out briefly, as few-shot prompts show it.

        Raises:
            ValueError: the problem is not of this task.
        """
        if problem.id not in self._asked:
            raise ValueError(f"{problem.text!r} is no problem of this task")
        return self._asked[problem.id].example

    def ask(self, text: str) -> Problem:
        """The problem that a person typed, one of the task's own.

        Raises:
            ValueError: it is none of them. The message says how one is written.
        """
        sides = (self._training_side(), self._held_out())
        for question in chain.from_iterable(islice(side, _ASKABLE) for side in sides):
            if question.text == text.strip():
                return self.problem(question)
        raise ValueError(
            f"problem {text[:80]!r} is none of this task's; write one of them, as in {self._training_set[0].text!r}"
        )

    # ---- how

    def problem(self, question: Question) -> Problem:
        """A question with its id and its prompt."""
        number = self.id_of(question)
        self._asked[number] = question
        return Problem(number, self._prompt(question), question.text, question.answer, question.key)

    @cached_property
    def _training_set(self) -> tuple[Question, ...]:
        wanted = self.data.num_problems
        _check_count("num_problems", wanted)
        found = tuple(islice(self._training_side(), wanted))
        if len(found) < wanted:
            raise self._too_few("num_problems", wanted, len(found))
        return found

    @cached_property
    def _examples(self) -> tuple[Question, ...]:
        """The worked examples, and a spare one for the prompts of a question that is among them, each key once."""
        if self.data.num_shots == 0:
            return ()
        wanted = self.data.num_shots + 1
        found = tuple(islice(self._side(f"{self.held_out_name()} examples", False, _KEY), wanted))
        if len(found) < wanted:
            raise ValueError(
                f"num_shots {self.data.num_shots} needs {wanted} training questions of different keys, and {len(found)}"
                " exist with these settings of section data; lower it"
            )
        for question in found:
            verdict = self.verify(replace(_NO_PROBLEM, answer=question.answer), question.example, True)
            if not verdict.accuracy:
                raise ValueError(
                    f"num_shots {self.data.num_shots} needs worked examples, but that of {question.text[:80]!r} is not"
                    f" right by the task's own verifier ({verdict.reason}): {question.example[:80]!r}"
                )
        return found

    def _training_side(self) -> Iterator[Question]:
        return self._side(f"{self.seed} training set", False, _TEXT)

    def _held_out(self) -> Iterator[Question]:
        return map(self.held_out_form, self._side(self.held_out_name(), True, _KEY))

    def _side(self, name: str, is_held: bool, identity: Callable[[Question], str]) -> Iterator[Question]:
        """The questions of one side in the order that `name` seeds. Of those with one identity, only the first."""
        fresh = _without_repeats(self._questions_in(name), identity)
        return _of_side(fresh, is_held)

    def _questions_in(self, name: str) -> Iterable[Question]:
        """The stream that `name` seeds.

        Raises:
            ValueError: `questions` gives none.
        """
        found = self.questions(random.Random(name))
        if not isinstance(found, Iterable):
            raise ValueError(f"{type(self).__name__}.questions gave {str(found)[:60]}; it must yield Question(...)")
        return map(self._checked, found)

    def _checked(self, question: Question) -> Question:
        if not isinstance(question, Question):
            raise ValueError(f"{type(self).__name__}.questions gave {str(question)[:60]}; it must yield Question(...)")
        return question

    def _prompt(self, question: Question) -> str:
        preface = self.preface if self.data.template == "conversation" else ""
        template = TEMPLATES[self.data.template]
        others = [example for example in self._examples if example.key != question.key][: self.data.num_shots]
        shots = "".join(f"{template.format(q.asked)}{q.example}{END_OF_EXAMPLE}\n\n" for q in others)
        return preface + shots + template.format(question.asked)

    def _too_few(self, name: str, wanted: int, existing: int) -> ValueError:
        return ValueError(
            f"{name} is {wanted}, but only {existing} exist with these settings of section data; lower it{self.more}"
        )


_TEXT, _KEY = attrgetter("text"), attrgetter("key")
_NO_PROBLEM = Problem(id=0, prompt="", text="", answer=None)


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")


def _of_side(questions: Iterable[Question], is_held: bool) -> Iterator[Question]:
    """Those of one side. It ends where none of it has come for long, as when all questions share a few keys."""
    strangers = 0
    for question in questions:
        if is_held_out(question.key) == is_held:
            strangers = 0
            yield question
        elif (strangers := strangers + 1) > _STRANGERS:
            return


def _without_repeats(questions: Iterable[Question], identity: Callable[[Question], str]) -> Iterator[Question]:
    """The first of each identity. It ends where the questions end, or where they only repeat themselves.

    With n equally likely identities, one of which has not come yet, 20 n repeats in a row have the chance exp(-20).
    """
    seen: set[str] = set()
    repeats = 0
    for question in questions:
        if identity(question) not in seen:
            seen.add(identity(question))
            repeats = 0
            yield question
        elif (repeats := repeats + 1) > _PATIENCE[0] + _PATIENCE[1] * len(seen):
            return
