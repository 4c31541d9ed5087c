"""What all tasks share: the split by keys, streams that end, templates, worked examples, and how a person asks."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinyzero_astar.config import Config, DataConfig
from tinyzero_astar.config_json import with_files_moved
from tinyzero_astar.data import questions as questions_module
from tinyzero_astar.data.answers import Reason
from tinyzero_astar.data.order import batch_indices
from tinyzero_astar.data.questions import TEMPLATES, Question, QuestionTask, is_held_out, overlap
from tinyzero_astar.data.tasks import TASKS, make_task, pinned
from tinyzero_astar.interfaces import END_OF_EXAMPLE, Task, Verdict
from tinyzero_astar.terminal import FailedError

SETTINGS = DataConfig(num_problems=20)


class Capitals(QuestionTask):
    """The capital letter of a small one, asked in two forms. Some letters are drawn again and again."""

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"

    def questions(self, rng: random.Random) -> Iterator[Question]:
        while True:
            letter, form = rng.choice(self.letters), rng.choice(["Capital of", "Write large:"])
            asked = f"{form} {letter}"
            yield Question(asked, letter.upper(), key=letter, worked=f"{letter} is small")


class Once(Capitals):
    """The same, each once."""

    def questions(self, rng: random.Random) -> Iterator[Question]:
        letters = list(self.letters)
        rng.shuffle(letters)
        return (Question(f"Capital of {x}", x.upper(), key=x, worked=f"{x} is small") for x in letters)


def settings(**changes: Any) -> DataConfig:
    return dataclasses.replace(SETTINGS, **changes)


def side(is_held: bool) -> set[str]:
    return {letter for letter in Capitals.letters if is_held_out(letter) == is_held}


# ---- the split


@pytest.mark.parametrize("kind", [Capitals, Once])
def test_a_key_stands_on_one_side_whatever_its_form(kind: type[QuestionTask]) -> None:
    count = 2 * len(side(False)) if kind is Capitals else len(side(False))
    task = kind(settings(num_problems=count), seed=0)
    train, held_out = task.train_problems(0, count), task.held_out_problems(len(side(True)))
    assert {p.key for p in train} == side(False)
    assert {p.key for p in held_out} == side(True)  # each in one form
    assert len({p.text for p in train}) == len({p.id for p in train}) == count
    assert overlap(train, held_out) == 0


def test_about_a_fifth_of_the_keys_is_held_out() -> None:
    share = sum(is_held_out(f"key {i}") for i in range(10_000)) / 10_000
    assert abs(share - 0.2) < 0.016  # four standard deviations


def test_the_sides_never_change() -> None:
    # Recorded once: a run that goes on with a later version must not train on what was held out.
    assert "".join(sorted(side(True))) == "1249gh"


def test_the_held_out_problems_do_not_depend_on_seed_and_training_set() -> None:
    tasks = [Capitals(settings(num_problems=n, num_shots=2), seed) for n, seed in ((5, 0), (5, 1), (9, 0))]
    first, *others = ([(p.id, p.prompt) for p in task.held_out_problems(4)] for task in tasks)
    assert all(other == first for other in others)
    assert len({tuple(p.text for p in task.train_problems(0, 5)) for task in tasks}) == 3


@pytest.mark.parametrize("kind", [Capitals, Once])
def test_a_stream_that_gives_no_more_is_refused_with_what_exists(kind: type[QuestionTask]) -> None:
    """One ends, the other repeats itself for ever."""
    forms = 2 if kind is Capitals else 1
    exist = forms * len(side(False))
    kind(settings(num_problems=exist), 0)
    with pytest.raises(ValueError, match=f"num_problems is {exist + 1}, but only {exist} exist with .*; lower it$"):
        kind(settings(num_problems=exist + 1), 0)
    held = len(side(True))
    with pytest.raises(ValueError, match=f"held-out problems is {held + 1}, but only {held} exist"):
        kind(settings(num_problems=1), 0).held_out_problems(held + 1)


def test_ids_are_below_two_to_the_62_and_a_function_of_the_text() -> None:
    one, other = (Capitals(settings(template=name), seed=3).train_problems(0, 20) for name in sorted(TEMPLATES))
    assert [p.id for p in one] == [p.id for p in other]
    assert all(0 <= p.id < 1 << 62 for p in one)
    assert max(p.id for p in one) > 1 << 58


# ---- prompts


def test_a_question_stands_in_its_template() -> None:
    prompts = {name: Once(settings(template=name), 0).train_problems(0, 1)[0] for name in TEMPLATES}
    question = prompts["compact"].text
    assert prompts["compact"].prompt == f"{question}\n<think>"
    assert prompts["conversation"].prompt == f"{QuestionTask.preface}User: {question}\nAssistant: <think>"


@pytest.mark.parametrize("num_shots", [1, 3])
def test_worked_examples_stand_before_the_question_in_its_form(num_shots: int) -> None:
    task = Once(settings(num_shots=num_shots, template="conversation"), 0)
    for problem in [*task.train_problems(0, 20), *task.held_out_problems(3)]:
        assert problem.prompt.startswith(QuestionTask.preface) and problem.prompt.count(QuestionTask.preface) == 1
        *shots, last = problem.prompt.removeprefix(QuestionTask.preface).split("\n\n")
        assert last == f"User: {problem.text}\nAssistant: <think>"
        assert len(set(shots)) == num_shots
        for shot in shots:
            letter = shot.partition("Capital of ")[2][0]
            assert shot == (
                f"User: Capital of {letter}\nAssistant: <think>{letter} is small</think>"
                f"<answer>{letter.upper()}</answer>{END_OF_EXAMPLE}"
            )
            assert not is_held_out(letter)


@pytest.mark.parametrize("kind", [Capitals, Once])
def test_the_answer_never_stands_in_the_prompt(kind: type[QuestionTask]) -> None:
    """Not even where the question is an example itself, or differs from one in form only."""
    task = kind(settings(num_shots=4), 0)
    for problem in [*task.train_problems(0, 20), *task.held_out_problems(3)]:
        assert problem.prompt.count("</answer>") == 4
        assert f"<answer>{problem.answer}</answer>" not in problem.prompt


def test_no_examples_change_nothing_else() -> None:
    plain, shown = (Once(settings(num_shots=n), 7) for n in (0, 2))
    assert [p.text for p in plain.train_problems(2, 8)] == [p.text for p in shown.train_problems(2, 8)]
    for without, with_examples in zip(plain.train_problems(0, 20), shown.train_problems(0, 20), strict=True):
        assert with_examples.prompt.endswith("\n\n" + without.prompt)


def test_too_many_examples_are_refused() -> None:
    exist = len(side(False))
    Once(settings(num_shots=exist - 1), 0)  # and a spare one
    with pytest.raises(ValueError, match=f"num_shots {exist} needs {exist + 1} training .* keys, and {exist} exist"):
        Once(settings(num_shots=exist), 0)


def test_an_example_that_its_own_task_calls_wrong_is_refused() -> None:
    class Strict(Once):
        def is_right(self, answer: Any, text: str) -> bool:
            return False

    Strict(settings(), 0)
    with pytest.raises(ValueError, match=r"num_shots 1 needs .*Capital of .* is not right .*\(wrong answer\)"):
        Strict(settings(num_shots=1), 0)


# ---- verdicts


def test_the_simplest_judgement_compares_with_the_answer_as_text() -> None:
    task: Task = Once(settings(), 0)
    for problem in task.train_problems(0, 20):
        assert task.verify(problem, task.example(problem), True).accuracy
        wrong = task.verify(problem, "</think> <answer> no </answer>", True)
        assert (wrong.accuracy, wrong.format, wrong.answer, wrong.reason) == (False, True, "no", Reason.WRONG_ANSWER)
        assert task.verify(problem, task.example(problem), False).reason == Reason.CUT_OFF
        assert task.verify(problem, "</think><answer> </answer>", True).reason == Reason.EMPTY_ANSWER


def test_a_judge_that_fails_is_no_wrong_use_of_the_program() -> None:
    class Careless(Once):
        def is_right(self, answer: Any, text: str) -> bool:
            return int(text) == answer

    task = Careless(settings(), 0)
    with pytest.raises(RuntimeError, match=r"Careless failed to judge '.*<answer>b</answer>' \(invalid literal") as e:
        task.verify(task.train_problems(0, 1)[0], "</think><answer>b</answer>", True)
    assert isinstance(e.value.__cause__, ValueError)


@pytest.mark.parametrize("given", [None, "yes", 2, float("nan"), re.match("a", "a")])
def test_what_is_neither_true_nor_false_is_named(given: Any) -> None:
    class Vague(Once):
        def is_right(self, answer: Any, text: str) -> bool:
            return given  # type: ignore[no-any-return]

    class Bare(Once):
        def judge(self, answer: Any, text: str) -> Verdict:
            return given  # type: ignore[no-any-return]

    said = (
        r"(Vague.is_right gave .{1,60}: it must be True or False|Bare.judge gave .{1,60}: it must be a Verdict\(...\))$"
    )
    for task in (Vague(settings(), 0), Bare(settings(), 0)):
        with pytest.raises(FailedError, match=said):
            task.verify(task.train_problems(0, 1)[0], "</think><answer>b</answer>", True)


@pytest.mark.parametrize("is_held", [False, True])
def test_a_stream_without_end_that_never_comes_to_one_side_is_dry(
    is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions_module, "_STRANGERS", 100)
    key = next(letter for letter in Once.letters if is_held_out(letter) == is_held)

    class OneKey(QuestionTask):
        def questions(self, rng: random.Random) -> Iterator[Question]:
            return (Question(f"{i}", i, key=key) for i in itertools.count())

    with pytest.raises(ValueError, match=r"is 20, but only [01] exist"):
        OneKey(settings(), 0).held_out_problems(20)


def test_a_foreign_problem_has_no_example() -> None:
    foreign = Once(settings(), 0).train_problems(0, 1)[0]
    with pytest.raises(ValueError, match=r"'Capital of .' is no problem of this task"):
        Capitals(settings(num_problems=1), 0).example(dataclasses.replace(foreign, id=5))


def test_a_person_asks_any_question_of_either_side() -> None:
    task = Once(settings(), 0)
    for problem in [*task.train_problems(0, 20), *task.held_out_problems(3)]:
        assert task.ask(f" {problem.text}\n") == problem
    with pytest.raises(ValueError, match=r"problem 'Capital of \?' is none .*as in 'Capital of .'"):
        task.ask("Capital of ?")


# ---- the table


def test_a_task_is_made_by_name() -> None:
    for name, kind in TASKS.items():
        assert type(make_task(settings(task=name), seed=0)) is kind
    with pytest.raises(ValueError, match=r"data.task 'sums' is unknown; choose one of: .*multiplication"):
        make_task(settings(task="sums"), seed=0)


def test_a_task_of_the_table_comes_from_no_file() -> None:
    assert all(pinned(settings(task=name)) == settings(task=name) for name in TASKS)


@pytest.mark.parametrize("name", ["own.py:Capitals", "own.jsonl"])
def test_the_files_of_a_task_are_pinned(name: str, tmp_path: Path) -> None:
    path = tmp_path / name.partition(":")[0]
    data = settings(task=str(tmp_path / name))
    with pytest.raises(ValueError, match=re.escape(f"data.task: {path} cannot be read (No such file")):
        pinned(data)
    path.write_text("one")
    once = pinned(data)
    assert len(once.task_sha256) == 64 and pinned(once) == once
    path.write_text("two")
    with pytest.raises(ValueError, match=rf"is not what the run was trained on: {path} has changed.*; restore"):
        pinned(once)
    with pytest.raises(
        ValueError, match=r"data.task 'countdown' comes from no file, but the task .* was trained on does"
    ):
        pinned(dataclasses.replace(once, task="countdown"))
    with pytest.raises(ValueError, match=r"cannot be read \(embedded null byte\); say where it lies with --data.task$"):
        pinned(settings(task=f"\0{name}"))
    again = pinned(data)
    assert again.task_sha256 != once.task_sha256 and again == dataclasses.replace(data, task_sha256=again.task_sha256)


def test_another_name_in_the_same_file_is_another_task(tmp_path: Path) -> None:
    path, table = tmp_path / "own.py", tmp_path / "own.jsonl"
    path.write_text("both")
    table.write_text("lines")
    of_class = pinned(settings(task=f"{path}:Capitals"))
    of_function = pinned(settings(task=str(table), reward_function=f"{path}:strict"))
    said = "has changed, or the name after the colon has; restore it"
    with pytest.raises(ValueError, match=f"is not what the run was trained on: {path} {said}"):
        pinned(dataclasses.replace(of_class, task=f"{path}:Rivers"))
    with pytest.raises(ValueError, match=f"{table}, {path} {said}"):
        pinned(dataclasses.replace(of_function, reward_function=f"{path}:lenient"))


def test_a_reward_function_that_names_nothing_is_told_by_its_own_option(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("lines")
    for name, said in (("f", "'f' names nothing to import"), ("no_such_module:f", "Python finds no module")):
        with pytest.raises(ValueError, match=f"^data.reward_function .*{said}"):
            pinned(settings(task=str(tmp_path / "own.jsonl"), reward_function=name))


def test_only_files_of_a_task_can_have_moved() -> None:
    plain = Config()
    told = dataclasses.replace(plain, data=settings(task="b.jsonl", reward_function="b.py:f", num_problems=7))
    assert with_files_moved(plain, told, ["model.device"]) == plain
    with pytest.raises(ValueError, match=r"data.task cannot be given: .* 'multiplication' comes from no file"):
        with_files_moved(plain, told, ["data.task"])
    own = dataclasses.replace(plain, data=settings(task="a.jsonl", reward_function="a.py:f", task_sha256="1"))
    moved = with_files_moved(own, told, ["data.task", "data.num_problems"])
    assert moved.data == settings(task="b.jsonl", reward_function="a.py:f", task_sha256="1")
    moved = with_files_moved(own, told, ["data.reward_function"])
    assert moved.data == settings(task="a.jsonl", reward_function="b.py:f", task_sha256="1")


def test_an_unknown_template_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'chat' is unknown.*: compact, conversation"):
        Once(settings(template="chat"), 0)


# ---- the order


@pytest.mark.parametrize(("size", "count"), list(itertools.product([1, 5, 12], [1, 2, 5])))
def test_every_epoch_has_every_index_once(size: int, count: int) -> None:
    stream = [i for iteration in range(4 * size) for i in batch_indices(3, iteration, count, size)]
    for start in range(0, len(stream) - size + 1, size):
        assert sorted(stream[start : start + size]) == list(range(size))
