"""Countdown, with answers against a table and against an enumeration, questions against the rules that they promise."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from tests.test_expression import CASES as NO_EXPRESSIONS
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import DataConfig
from tinyzero_astar.data import countdown
from tinyzero_astar.data.answers import Reason
from tinyzero_astar.data.countdown import Countdown, Goal, Miss, judge_expression
from tinyzero_astar.data.questions import is_held_out, overlap
from tinyzero_astar.data.tasks import make_task
from tinyzero_astar.interfaces import Problem

GOAL = Goal((3, 5, 7), 22)  # 3*5+7 = 22
M, RIGHT = Miss, Reason.CORRECT
SMALL = DataConfig(task="countdown", num_problems=300, max_number=9, max_target=50)

# id, an expression between the answer tags, expected reason. One case a line
CASES: list[tuple[str, str, Miss | Reason]] = [
    ("plain", "3*5+7", RIGHT),
    ("other order", "7+5*3", RIGHT),
    ("parentheses", "(3*5)+7", RIGHT),
    ("all in parentheses", "((3)*(5)+(7))", RIGHT),
    ("blanks", "3 *  5 + ( 7 )", RIGHT),
    ("wrong sum", "3+5+7", M.WRONG_VALUE),
    ("wrong precedence", "3*(5+7)", M.WRONG_VALUE),
    ("negative", "3-5-7", M.WRONG_VALUE),
    ("fraction", "3/5/7", M.WRONG_VALUE),
    ("negated target", "3-5*5", M.TOO_OFTEN),
    ("floor would be right", "7*3+5/3", M.TOO_OFTEN),
    ("division by zero with a number twice", "7/(3-3)", M.TOO_OFTEN),
    ("only the target", "22", M.NOT_GIVEN),
    ("target in parentheses", "(22)", M.NOT_GIVEN),
    ("target times one", "22*1", M.NOT_GIVEN),
    ("target and zero times the numbers", "22+0*(3+5+7)", M.NOT_GIVEN),
    ("target, then the numbers cancelled", "22+3*5*7-3*5*7", M.NOT_GIVEN),
    ("zero", "0", M.NOT_GIVEN),
    ("zero added", "3*5+7+0", M.NOT_GIVEN),
    ("times one", "3*5+7*1", M.NOT_GIVEN),
    ("one number", "7", M.LEFT_OUT),
    ("one left out", "3*5", M.LEFT_OUT),
    ("twice", "3+5+7+7", M.TOO_OFTEN),
    ("twice instead of another", "5*3+5", M.TOO_OFTEN),
    ("all twice", "3*5+7-(3*5+7)+3*5+7", M.TOO_OFTEN),
    ("digits glued", "35-7-6", M.NOT_GIVEN),
    ("digits glued, all", "357", M.NOT_GIVEN),
    ("a number in its digits", "1+7*3", M.NOT_GIVEN),
    ("huge number", "9" * 200, M.NOT_GIVEN),
    ("huge product", "*".join(["99999"] * 33), M.NOT_GIVEN),
    ("huge denominator", "/".join(["99999"] * 33), M.NOT_GIVEN),
]  # fmt: skip


def answered(text: str) -> str:
    return f"hm</think><answer>{text}</answer>"


@pytest.fixture(scope="module")
def task() -> Countdown:
    return Countdown(SMALL, seed=0)


# ---- answers


@pytest.mark.parametrize(("text", "reason"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_expressions_are_judged(task: Countdown, text: str, reason: Miss | Reason) -> None:
    verdict = task.verify(task.ask("3 5 7 = 22"), answered(text), True)
    assert verdict.reason == reason
    assert (verdict.accuracy, verdict.format) == (reason is RIGHT, True)
    assert verdict.answer == text.replace(" ", "")


def test_what_is_no_expression_has_no_format(task: Countdown) -> None:
    problem = task.ask("3 5 7 = 22")
    for name, text, fault in NO_EXPRESSIONS:
        verdict = judge_expression(text, GOAL)
        assert (verdict.accuracy, verdict.format, verdict.answer, verdict.reason) == (False, False, None, fault), name
        if text == text.strip():  # space around an answer is dropped before
            assert not task.verify(problem, answered(text), True).format, name


def test_completions_around_the_answer_are_as_strict_as_everywhere(task: Countdown) -> None:
    problem = task.ask("3 5 7 = 22")
    assert task.verify(problem, answered(" \n3*5+7\t\r\n"), True).accuracy
    assert task.verify(problem, answered("3*5+7"), False).reason == Reason.CUT_OFF
    assert task.verify(problem, answered(""), True).reason == Reason.EMPTY_ANSWER
    assert task.verify(problem, answered("3*5+7") * 2, True).reason == Reason.THINK_CLOSED_TWICE
    assert task.verify(problem, "3*5+7", True).reason == Reason.THINK_NOT_CLOSED
    assert task.verify(problem, answered("3*5+7") + " = 22", True).reason == Reason.TEXT_AFTER_ANSWER


@pytest.mark.parametrize(
    ("text", "numbers", "target"),
    [
        ("8/(3-8/3)", (3, 3, 8, 8), 24),  # by way of a fraction
        ("(2-5)*(1-9)", (1, 2, 5, 9), 24),  # by way of negative numbers
        ("7-6", (6, 7), 1),
        ("1/3+1/3+1/3", (1, 1, 1, 3, 3, 3), 1),  # exact, where floats need luck
    ],
)
def test_values_are_exact(text: str, numbers: tuple[int, ...], target: int) -> None:
    assert judge_expression(text, Goal(numbers, target)).reason == Reason.CORRECT
    assert judge_expression(text, Goal(numbers, target + 1)).reason == Miss.WRONG_VALUE


@pytest.mark.parametrize("text", ["3/(5-5)", "5+3*5/0-0", "(3-3)/(5-5)", "5-5*(3/0)"])
def test_division_by_zero_is_a_wrong_answer(text: str) -> None:
    numbers = tuple(int(digit) for digit in text if digit.isdigit())
    verdict = judge_expression(text, Goal(numbers, 5))
    assert (verdict.accuracy, verdict.format, verdict.reason) == (False, True, Miss.BY_ZERO)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3*(8-3)+8", Miss.WRONG_VALUE),
        ("8*3", Miss.LEFT_OUT),
        ("3*3+8", Miss.LEFT_OUT),
        ("3+3+3+8+8", Miss.TOO_OFTEN),
    ],
)
def test_a_number_given_twice_is_used_twice(text: str, reason: Miss) -> None:
    assert judge_expression(text, Goal((3, 8, 3, 8), 24)).reason == reason


def test_reasons_are_different_phrases() -> None:
    phrases = [str(reason) for kind in (Miss, Reason) for reason in kind] + [str(x) for *_, x in NO_EXPRESSIONS]
    assert len(set(phrases)) == len(Miss) + len(Reason) + len({x for *_, x in NO_EXPRESSIONS})
    assert {reason for *_, reason in CASES} == {*Miss, RIGHT} - {Miss.BY_ZERO}


# ---- all expressions of few numbers, listed independently


@cache
def every_expression(numbers: tuple[int, ...]) -> dict[str, Fraction | None]:
    """Every way to join the numbers, in this order, with its value (None is undefined) by Python's own fractions."""
    if len(numbers) == 1:
        return {str(numbers[0]): Fraction(numbers[0])}
    found: dict[str, Fraction | None] = {}
    for cut in range(1, len(numbers)):
        sides = every_expression(numbers[:cut]).items(), every_expression(numbers[cut:]).items()
        for (left, a), (right, b) in itertools.product(*sides):
            values: dict[str, Fraction | None] = dict.fromkeys("+-*/")
            if a is not None and b is not None:
                values = {"+": a + b, "-": a - b, "*": a * b, "/": None if b == 0 else a / b}
            found |= {f"({left}{sign}{right})": value for sign, value in values.items()}
    return found


def reachable(numbers: tuple[int, ...]) -> set[Fraction | None]:
    return {value for order in itertools.permutations(numbers) for value in every_expression(order).values()}


@pytest.mark.parametrize(
    ("numbers", "targets"), [((3, 5, 7), (1, 22)), ((1, 2, 2), (1, 8)), ((4, 4, 4), (4, 12)), ((6, 2, 3, 1), (8,))]
)
def test_the_verifier_agrees_with_every_expression(numbers: tuple[int, ...], targets: tuple[int, ...]) -> None:
    num_right = 0
    for order in set(itertools.permutations(numbers)):
        for text, value in every_expression(order).items():
            for target in targets:
                verdict = judge_expression(text, Goal(numbers, target))
                assert verdict.format and verdict.accuracy == (value == target), text
                num_right += verdict.accuracy
    assert num_right > 3


@pytest.mark.parametrize("numbers", [(3, 5), (3, 5, 7, 7), (3, 5, 5), (3, 5, 8)])
def test_expressions_of_other_numbers_are_never_right(numbers: tuple[int, ...]) -> None:
    for order in set(itertools.permutations(numbers)):
        for text in every_expression(order):
            assert judge_expression(text, GOAL).reason in (Miss.NOT_GIVEN, Miss.TOO_OFTEN, Miss.LEFT_OUT), text


# ---- questions


def both_sides(task: Countdown, num_held_out: int = 30) -> list[Problem]:
    return [*task.train_problems(0, task.data.num_problems), *task.held_out_problems(num_held_out)]


WIDE = [
    SMALL,
    replace(SMALL, max_number=99, max_target=100),
    replace(SMALL, num_problems=60, min_numbers=2, max_numbers=6, max_number=999, max_target=999),
    replace(SMALL, num_problems=60, min_numbers=6, max_numbers=6, max_number=20, max_target=10),
    replace(SMALL, template="conversation"),
]


@pytest.mark.parametrize("data", WIDE)
def test_every_question_has_a_solution_that_is_right(data: DataConfig) -> None:
    task = Countdown(data, seed=1)
    for problem in both_sides(task):
        goal, example = problem.answer, task.example(problem)
        assert task.verify(problem, example, True).reason == Reason.CORRECT, example
        assert data.min_numbers <= len(goal.numbers) <= data.max_numbers
        assert all(1 <= number <= data.max_number for number in goal.numbers) and 1 <= goal.target <= data.max_target
        assert problem.text == f"{' '.join(map(str, goal.numbers))} = {goal.target}"


def test_solutions_are_worked_out_in_whole_steps_that_are_true(task: Countdown) -> None:
    for problem in both_sides(task):
        *steps, last = task.example(problem).partition("</think>")[0].split("\n")
        for step in (*steps, last):
            sides = step.split("=")
            left = judge_expression(sides[0], Goal(tuple(map(int, _numbers_in(sides[0]))), int(sides[1])))
            assert left.accuracy, step
        assert len(steps) + 2 == len(problem.answer.numbers)
        assert last.endswith(f"={problem.answer.target}")


def _numbers_in(text: str) -> list[str]:
    for sign in "+-*/":
        text = text.replace(sign, " ")
    return text.split()


def test_targets_are_among_what_can_be_reached(task: Countdown) -> None:
    few = [problem for problem in both_sides(task) if len(problem.answer.numbers) == 3]
    assert len(few) > 100
    for problem in few:
        assert problem.answer.target in reachable(problem.answer.numbers)


def test_the_sides_share_no_numbers_in_any_order_with_any_target() -> None:
    task = Countdown(replace(SMALL, num_problems=1000, max_number=12), seed=2)
    train, held_out = task.train_problems(0, 1000), task.held_out_problems(150)
    multisets = [{tuple(sorted(problem.answer.numbers)) for problem in side} for side in (train, held_out)]
    assert not multisets[0] & multisets[1]
    assert overlap(train, held_out) == 0
    assert len(multisets[1]) == 150  # each once
    assert len(multisets[0]) < len(train) - 200  # the same numbers came again, with other targets or in other orders


def test_the_key_is_the_numbers_alone(task: Countdown) -> None:
    keys = {task.ask(text).key for text in ("3 5 7 = 22", "7 3 5 = 22", "5 7 3 = 1", " 3  5 7=105 ")}
    assert len(keys) == 1
    others = {task.ask(text).key for text in ("3 5 5 7 = 22", "3 5 = 22", "3 57 = 22", "35 7 = 22", "3 5 8 = 22")}
    assert len(others) == 5 and not keys & others


def test_the_sides_never_change(task: Countdown) -> None:
    # Recorded once: a run that goes on with a later version must not train on what was held out.
    sides = "".join(str(int(is_held_out(task.ask(f"{n} 5 7 = 22").key))) for n in range(1, 31))
    assert sides == "100000000000010000001011000000"


def test_the_same_seed_draws_the_same_questions() -> None:
    one, same, other = (Countdown(SMALL, seed) for seed in (3, 3, 4))
    assert one.train_problems(5, 20) == same.train_problems(5, 20)
    assert one.train_problems(5, 20) != other.train_problems(5, 20)
    assert one.held_out_problems(30) == other.held_out_problems(30)


def test_operators_and_sizes_are_mixed() -> None:
    """Quotients of numbers below 100 are rarely whole. With numbers drawn first, 4 % of the operators are products."""
    task = Countdown(DataConfig(task="countdown", num_problems=1200), seed=0)
    problems = task.train_problems(0, 1200)
    solutions = [task.example(problem).partition("<answer>")[2].partition("<")[0] for problem in problems]
    counts = Counter(sign for solution in solutions for sign in solution if sign in "+-*/")
    assert all(0.15 < count / counts.total() < 0.36 for count in counts.values()) and len(counts) == 4
    sizes = Counter(len(problem.answer.numbers) for problem in problems)
    assert sizes.keys() == {3, 4} and min(sizes.values()) > 400
    targets = sorted(problem.answer.target for problem in problems)
    assert targets[120] < 15 and 35 < targets[600] < 60 and targets[1080] > 80
    assert len(set(solutions)) > 1150
    places = Counter(next(i for i, n in enumerate(p.answer.numbers) if n == max(p.answer.numbers)) for p in problems)
    assert min(places[i] for i in range(3)) > 270  # the order in which numbers are given tells nothing


def test_small_worlds_run_dry() -> None:
    with pytest.raises(ValueError, match=r"num_problems is 300, but only \d+ exist .*or raise max_number"):
        Countdown(replace(SMALL, min_numbers=2, max_numbers=2, max_number=3), seed=0)
    # few sets of numbers, each in thousands of forms
    with pytest.raises(ValueError, match=r"held-out problems is 50, but only \d+ exist .*or raise max_number"):
        Countdown(replace(SMALL, max_number=4), seed=0).held_out_problems(50)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"min_numbers": 5}, "min_numbers 5 must not exceed max_numbers 4"),
        ({"min_numbers": 1}, "data.min_numbers 1 is out of range: it must lie between 2 and 6"),
        ({"max_numbers": 7}, "data.max_numbers 7 is out of range: it must lie between 2 and 6"),
        ({"max_number": 0}, "data.max_number 0 is out of range: it must lie between 1 and 999"),
        ({"max_number": 1000}, "data.max_number 1000 is out of range: it must lie between 1 and 999"),
        ({"max_target": 9}, "data.max_target 9 is out of range: it must lie between 10 and 999"),
    ],
)
def test_sizes_out_of_range_are_refused(changes: dict[str, int], refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        make_task(replace(SMALL, **changes), seed=0)  # type: ignore[arg-type]


# ---- prompts, and what a person asks


def test_questions_are_worded_by_the_template() -> None:
    compact, words = (
        Countdown(replace(SMALL, template=name), 0).ask("3 5 5 = 22").prompt for name in ("compact", "conversation")
    )
    assert compact == "3 5 5=22?\n<think>"
    assert words.startswith(Countdown.preface)
    assert words.endswith(
        "User: Make 22 out of the numbers 3 5 5. Use every one of them exactly once, with +, -, *, / and parentheses.\n"
        "Assistant: <think>"
    )


def test_worked_examples_show_solutions_of_the_training_side() -> None:
    task = Countdown(replace(SMALL, num_shots=2), seed=0)
    for problem in [*task.train_problems(0, 5), *task.held_out_problems(5)]:
        *shots, _ = problem.prompt.split("\n\n")
        assert len(shots) == 2
        for shot in shots:
            question, _, completion = shot[:-1].partition("\n<think>")
            example = task.ask(question.removesuffix("?").replace("=", " = "))
            assert task.verify(example, completion, True).accuracy
            assert not is_held_out(example.key) and example.key != problem.key


def test_a_person_asks_for_any_numbers_and_target(task: Countdown) -> None:
    for problem in both_sides(task):
        assert task.ask(f" {problem.text}\n") == problem
    assert task.ask("999 1 2 3 4 5=999").answer == Goal((999, 1, 2, 3, 4, 5), 999)
    assert task.ask("1 1 = 999").text == "1 1 = 999"  # out of reach, which nobody looks up


def test_a_question_typed_keeps_the_solution_that_is_known(task: Countdown) -> None:
    problem = task.train_problems(0, 1)[0]
    assert task.verify(problem, task.example(task.ask(problem.text)), True).accuracy
    with pytest.raises(ValueError, match="'1 1 = 999'"):
        task.example(task.ask("1 1 = 999"))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "22",
            "3 5 7",
            "3 5 7 =",
            "= 22",
            "3 = 3",
            "1 2 3 4 5 6 7 = 22",
            "3 5 7 = 0",
            "0 5 7 = 22",
            "03 5 7 = 22",
        ),
        *("3 5 7 = 1000", "3 5 1000 = 22", "3, 5, 7 = 22", "3 5 7 = 22 = 22", "3 5 -7 = 22", "3*5+7 = 22", "37*84"),
        *("3 5 \u0667 = 22", "3.0 5 7 = 22", "3 5 7 == 22", "9" * 5000 + " 1 = 2", "3 5 7 = 22?"),
    ],
)
def test_what_is_no_question_is_refused_with_how_to_write_one(task: Countdown, text: str) -> None:
    with pytest.raises(ValueError, match=r'write it as "3 5 7 = 22"$') as caught:
        task.ask(text)
    assert len(str(caught.value)) < 220


def test_goals_and_answers_can_be_written_as_json(task: Countdown) -> None:
    problem = task.train_problems(0, 1)[0]
    verdict = task.verify(problem, task.example(problem), True)
    record = json.loads(json.dumps({"answer": problem.answer, "given": verdict.answer}))
    assert record["answer"] == [list(problem.answer.numbers), problem.answer.target]
    assert verdict.answer in task.example(problem)


def test_operators_are_drawn_again_where_numbers_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(countdown, "_TRIES", 1)  # the stream goes on, whatever is hopeless
    assert len(Countdown(replace(SMALL, num_problems=50), seed=0).train_problems(0, 50)) == 50


# ---- whole runs


def test_a_run_of_countdown_trains_resumes_evaluates_and_solves(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    data = ["--data.task", "countdown", "--data.max-number", "9", "--data.num-problems", "12"]
    small = ["--train.problems-per-iteration", "2", "--train.batch-size", "2", "--search.num-rollouts-per-problem", "2"]
    short = ["--search.max-search-depth", "6", "--search.beam-width", "4", "--value.hidden-size", "8"]
    rest = ["--eval.num-problems", "4", "--run.num-threads", "1", "--run.checkpoint-frequency", "1"]
    length = ["--train.num-iterations", "2", "--model.model-name", str(tiny_base), "--output-dir", str(run)]
    assert main([*data, *small, *short, *rest, *length]) == 0
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert samples and all(" = " in sample["problem"] for sample in samples)
    newest = run / "checkpoints" / "checkpoint_iter_2"
    weights = (newest / "model.safetensors").read_bytes()
    shutil.rmtree(newest)
    assert main(["--resume", str(run)]) == 0
    assert (newest / "model.safetensors").read_bytes() == weights
    assert main(["--eval-only", "--checkpoint", str(run)]) == 0
    capsys.readouterr()
    assert solve_main(["3 5 7 = 22", "--checkpoint", str(run), "--json"]) == 0
    trace = json.loads(capsys.readouterr().out)
    assert (trace["problem"], trace["prompt"]) == ("3 5 7 = 22", "3 5 7=22?\n<think>")
    assert solve_main(["37*84", "--checkpoint", str(run)]) == 2
    assert 'write it as "3 5 7 = 22"' in capsys.readouterr().err


def test_a_tokenizer_that_loses_a_letter_of_right_answers_is_refused_before_the_run(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "m")
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"] = {"Ω" if piece == "(" else piece: id for piece, id in data["model"]["vocab"].items()}
    path.write_text(json.dumps(data))
    argv = ["--model.model-name", str(folder), "--run.num-threads", "1", "--output-dir", str(tmp_path / "r")]
    argv += ["--data.num-problems", "64", "--eval.num-problems", "50"]
    assert main([*argv, "--data.task", "countdown"]) == 2
    error = capsys.readouterr().err
    assert "tokenizer does not give texts back as they were" in error and "</answer>" in error
    assert not (tmp_path / "r").exists()
