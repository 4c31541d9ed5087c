"""Tasks that users bring, which are tables, reward functions and classes, whole and damaged."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tinyzero_astar import files
from tinyzero_astar.cli.doctor import doctor_main
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import DataConfig
from tinyzero_astar.data import own as own_module
from tinyzero_astar.data.questions import is_held_out, overlap
from tinyzero_astar.data.tasks import make_problems, make_task, pinned
from tinyzero_astar.interfaces import END_OF_EXAMPLE
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.terminal import FailedError, run_command

SUMS = [{"prompt": f"{a}+{b}=?", "answer": a + b} for a in range(1, 11) for b in range(1, 11)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _write(name: str, lines: list[Any]) -> str:
    Path(name).write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return name


def _data(lines: list[Any] | None = None, **settings: Any) -> DataConfig:
    task = "own.jsonl" if lines is None else _write("own.jsonl", lines)
    return DataConfig(**{"task": task, "num_problems": 40} | settings)


def _answered(text: str) -> str:
    return f"hm</think><answer>{text}</answer>"


# ---- tables


def test_a_table_is_split_once_and_asked_in_an_order_of_the_seed() -> None:
    sizes = [sum(is_held_out(line["prompt"]) == side for line in SUMS) for side in (False, True)]
    assert sum(sizes) == 100 and 70 < sizes[0] < 90
    data = _data(SUMS, num_problems=sizes[0])
    first, second = make_task(data, 0), make_task(data, 1)
    train, held_out = first.train_problems(0, sizes[0]), first.held_out_problems(sizes[1])
    assert {p.text for p in [*train, *held_out]} == {line["prompt"] for line in SUMS}
    assert overlap(train, held_out) == 0
    assert [p.text for p in train] != [p.text for p in second.train_problems(0, sizes[0])]
    assert held_out == second.held_out_problems(sizes[1])
    assert len({p.id for p in [*train, *held_out]}) == 100
    assert train == make_task(data, 0).train_problems(0, sizes[0])


def test_prompts_stand_in_the_template_and_answers_are_judged() -> None:
    task = make_task(_data(SUMS), 0)
    problem = task.ask("3+4=?")
    assert (problem.prompt, problem.answer) == ("3+4=?\n<think>", 7)
    assert task.verify(problem, _answered("7"), True).accuracy
    assert not task.verify(problem, _answered("8"), True).accuracy
    assert not task.verify(problem, _answered("7"), False).format
    assert task.example(problem) == "</think><answer>7</answer>"
    with pytest.raises(ValueError, match=r"problem '3\+44=\?' is none of this task's"):
        task.ask("3+44=?")


@pytest.mark.parametrize(
    ("verifier", "columns", "answer", "right", "wrong"),
    [
        ("integer", {"answer": "-7"}, -7, "-7", "7"),
        ("number", {"answer": "5/2"}, Fraction(5, 2), "2.50", "5/3"),
        ("string", {"answer": "S\u00e3o Paulo"}, "S\u00e3o Paulo", "S\u00e3o Paulo", "Sao Paulo"),
        ("choice", {"answer": "B", "choices": ["x", "y"]}, None, "B", "A"),
    ],
)
def test_the_verifier_is_that_of_the_settings(
    verifier: str, columns: dict[str, Any], answer: Any, right: str, wrong: str
) -> None:
    task = make_task(_data([{"prompt": str(i), **columns} for i in range(10)], verifier=verifier, num_problems=1), 0)
    problem = task.ask("3")
    assert answer is None or problem.answer == answer
    assert task.verify(problem, _answered(right), True).accuracy
    assert not task.verify(problem, _answered(wrong), True).accuracy
    assert task.verify(problem, task.example(problem), True).accuracy


def test_decimals_are_read_as_they_are_written() -> None:
    lines = [f'{{"prompt": "{i}", "answer": 0.1000000000000000055}}' for i in range(10)]
    task = make_task(_data(lines, verifier="number", num_problems=1), 0)
    assert task.ask("3").answer == Fraction(1000000000000000055, 10**19)  # as a float it would be 0.1
    assert not task.verify(task.ask("3"), _answered("0.1"), True).accuracy


def test_worked_examples_show_the_column_worked() -> None:
    task = make_task(_data([{**line, "worked": "count on"} for line in SUMS], num_shots=2), 0)
    shot = rf"\d+\+\d+=\?\n<think>count on</think><answer>\d+</answer>{END_OF_EXAMPLE}\n\n"
    assert re.fullmatch(rf"({shot}){{2}}3\+4=\?\n<think>", task.ask("3+4=?").prompt)


def test_lines_of_one_key_stay_on_one_side() -> None:
    lines = [{**line, "key": str(line["answer"])} for line in SUMS]
    task = make_task(_data(lines), 0)
    train, held_out = task.train_problems(0, 40), task.held_out_problems(2)
    assert {p.answer for p in train}.isdisjoint(p.answer for p in held_out)
    assert len({p.answer for p in held_out}) == 2


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_no_damage() -> None:
    text = "\r\n".join(["", *map(json.dumps, SUMS), "", " \t", ""])
    Path("own.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(make_task(_data(), 0).train_problems(0, 40)) == 40
    odd = [{"prompt": f"{i}\u2028\x85\n", "answer": 1} for i in range(50)]
    Path("own.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in odd), "utf-8")
    assert len(make_task(_data(num_problems=30), 0).train_problems(0, 30)) == 30


GOOD = json.dumps(SUMS[0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", r"is not JSON .Expecting value at column 1.; write it as in {\"prompt\": \"2\+3=\?\","),
        ('{"prompt": "a", "answer": 1', "is not JSON"),
        ('{"prompt": "a", "answer": 1} {}', "is not JSON .Extra data at column 30"),
        ('{"prompt": "a\tb", "answer": 1}', "is not JSON .Invalid control character"),
        ("[" * 100_000, "is nested too deeply"),
        ('["a", 1]', "is no JSON object"),
        ("null", "is no JSON object"),
        ('{"answer": 1}', "has no prompt, only answer"),
        ("{}", "has no prompt, only nothing"),
        ('{"prompt": 3, "answer": 1}', "has prompt 3, which is no string"),
        ('{"prompt": [{"role": "user", "content": "a"}], "answer": 1}', "has prompt .*, which is no string"),
        ('{"prompt": "", "answer": 1}', "has an empty prompt"),
        ('{"prompt": " \\n", "answer": 1}', "has an empty prompt"),
        ('{"prompt": "\\ud800", "answer": 1}', r"question '.ud800' has a character that is no text: '.ud800'"),
        ('{"prompt": "a", "answer": 1, "key": "\\ud800"}', r"question 'a' has a character that is no text: '.ud800'"),
        ('{"prompt": "a", "answer": 1, "worked": "\\u0003"}', r"question 'a' has a character .* no text: '.x03'"),
        ('{"prompt": "a\\u0003", "answer": 1}', r"question 'a.x03' has a character that is no text: 'a.x03'"),
        ('{"prompt": "a"}', "has no answer"),
        ('{"prompt": "a", "answer": null}', "answer None is neither a string nor a number"),
        ('{"prompt": "a", "answer": NaN}', "holds NaN, which is not JSON"),
        ('{"prompt": "a", "answer": 1e999}', r"answer '1E\+999' is not accepted by verifier integer"),
        ('{"prompt": "a", "answer": "x"}', "answer 'x' is not accepted by verifier integer .answer is not an integer"),
        ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "holds a number of 5,000 digits; at most 4,000"),
        ('{"prompt": "a", "prompt": "b", "answer": 1}', "has prompt more than once"),
        ('{"prompt": "a", "answer": 1, "worked": 3}', "has worked 3, which is no string"),
        ('{"prompt": "a", "answer": 1, "key": null}', "has key None, which is no string"),
        (GOOD, "has the same prompt as line 1: keep one of them"),
        (GOOD.replace(": 2", ": 3"), "has the same prompt as line 1"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(line: str, said: str) -> None:
    data = _data([GOOD, "", line, *SUMS[1:]])
    with pytest.raises(ValueError, match=f"^own.jsonl line 3 .*{said}") as refusal:
        make_task(data, 0)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_text_that_is_not_utf8_is_named() -> None:
    data = _data(SUMS)
    Path("own.jsonl").write_bytes(GOOD.encode() + b'\n{"prompt": "\xe9", "answer": 1}')
    with pytest.raises(ValueError, match=r"own.jsonl line 2 is not UTF-8 at byte 13; save the file as UTF-8"):
        make_task(data, 0)


def test_files_that_are_no_table_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ("", "\n \n"):
        with pytest.raises(ValueError, match=r"own.jsonl has no question in it; write one a line"):
            make_task(_data([content]), 0)
    with pytest.raises(ValueError, match=r"gone.jsonl cannot be read \(No such file or directory\); say where it lies"):
        make_task(_data(task="gone.jsonl"), 0)
    Path("folder.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"folder.jsonl cannot be read \(folder.jsonl is no regular file\)"):
        make_task(_data(task="folder.jsonl"), 0)
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"own.jsonl has [\d,]+ bytes, more than the 100 that are read"):
        make_task(_data(SUMS), 0)


def test_too_few_lines_are_told_with_what_uses_all() -> None:
    said = r"own.jsonl has (\d+) questions to train on and (\d+) held out: .* --data.num-problems \1 --eval.num-\w+ \2$"
    with pytest.raises(ValueError, match=f"^num_problems is 2000, but {said}") as refusal:
        make_task(_data(SUMS, num_problems=2000), 0)
    train, held_out = map(int, re.findall(r"num-problems (\d+)", str(refusal.value)))
    task = make_task(_data(SUMS, num_problems=train), 0)
    assert len(task.held_out_problems(held_out)) == held_out
    with pytest.raises(ValueError, match=f"^count of held-out problems is {held_out + 1}, but {said}"):
        task.held_out_problems(held_out + 1)
    one_key = make_task(_data([line | {"key": "sum"} for line in SUMS]), 0)  # 0 is no number of problems
    with pytest.raises(ValueError, match=r"has 100 questions .* 0 held out: neither side may be empty, so add lines"):
        one_key.held_out_problems(1)


# ---- reward functions


FUNCTIONS = '''
import re
import numpy

def boxed(completions, ground_truth, **kwargs):
    # from TRL's documentation
    matches = [re.search(r"\\\\boxed\\{(.*?)\\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]

def some(prompts, completions, log_extra=None, log_metric=None, **kwargs):
    # as there: None where the function does not apply
    log_extra("prompt", list(prompts))
    log_metric("mean", 0.5)
    return [None if "7" in prompt else 1.0 for prompt in prompts]

def score(completions, **kwargs):
    return [{"true": True, "one": 1, "half": 0.5, "zero": 0, "none": None, "nan": float("nan"), "two": 2.0,
             "minus": -0.1, "text": "1", "inf": float("inf"), "array": numpy.ones(2),
             "huge": 10**400}[c] for c in completions]

def remembered(prompts, completions, **kwargs):
    remembered.calls.append((prompts, completions, kwargs))
    return [0.25]

remembered.calls = []

def no_list(completions, **kwargs):
    return 1.0

def two(completions, **kwargs):
    return [1.0, 1.0]

def ids(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def needs_more(completions, solution, **kwargs):
    return [1.0]

def takes_less(completions):
    return [1.0]

async def later(completions, **kwargs):
    return [1.0]

def broken(completions, **kwargs):
    return [int("x")]

value = 3
'''  # fmt: skip
TABLE = [{"prompt": f"{n}?", "ground_truth": str(n), "share": n / 7} for n in range(50)]


def _rewarded(name: str, lines: list[Any] | None = None, **settings: Any) -> Any:
    Path("rewards.py").write_text(FUNCTIONS)
    data = _data(TABLE if lines is None else lines, num_problems=10, reward_function=f"rewards.py:{name}")
    return make_task(replace(data, **settings), 0)


def _judged(task: Any, prompt: str, completion: str, is_finished: bool = True) -> tuple[Any, ...]:
    verdict = task.verify(task.ask(prompt), completion, is_finished)
    return verdict.accuracy, verdict.format, verdict.score, str(verdict.reason)


def test_functions_of_trls_documentation_score_completions() -> None:
    task = _rewarded("boxed")
    assert task.ask("12?").prompt == "12?"  # as it stands
    assert _judged(task, "12?", "so \\boxed{12}") == (True, True, 1.0, "correct")
    assert _judged(task, "12?", "so \\boxed{13}") == (False, True, 0.0, "wrong answer")
    assert _judged(task, "12?", "so \\boxed{12}", False) == (True, False, 1.0, "correct")
    assert _judged(task, "12?", "", False) == (False, False, 0.0, "cut off before the end")
    task = _rewarded("some")
    assert _judged(task, "12?", "x") == (True, True, 1.0, "correct")
    assert _judged(task, "17?", "x") == (False, True, 0.0, "wrong answer")


def test_a_function_is_called_as_trl_calls_it() -> None:
    task = _rewarded("remembered")
    assert _judged(task, "3?", "hm") == (False, True, 0.25, "wrong answer")
    (prompts, completions, rest), = sys.modules["own_task_rewards"].remembered.calls  # fmt: skip
    assert (prompts, completions) == (["3?"], ["hm"])
    assert {"ground_truth", "share", "trainer_state", "log_extra", "log_metric"} == set(rest)
    assert rest["ground_truth"] == ["3"] and rest["trainer_state"] is None
    assert rest["share"] == [3 / 7] and isinstance(rest["share"][0], float)
    assert rest["log_extra"]("name", ["x"]) is None and rest["log_metric"]("name", 0.5) is None


@pytest.mark.parametrize(("said", "score"), [("true", 1.0), ("one", 1.0), ("half", 0.5), ("zero", 0.0), ("none", 0.0)])
def test_scores_are_numbers_from_0_to_1(said: str, score: float) -> None:
    accuracy, _, found, _ = _judged(_rewarded("score"), "3?", said)
    assert (accuracy, found) == (score == 1, score) and isinstance(found, float)


@pytest.mark.parametrize(
    ("name", "completion", "said"),
    [
        ("score", "nan", "rewards.py:score gave nan for 'nan': a score must lie in .0, 1."),
        ("score", "two", "rewards.py:score gave 2.0 for 'two'"),
        ("score", "minus", "rewards.py:score gave -0.1 for 'minus'"),
        ("score", "text", "rewards.py:score gave '1' for 'text'"),
        ("score", "inf", "rewards.py:score gave inf"),
        ("score", "array", r"rewards.py:score gave array\(\[1., 1.\]\)"),
        ("score", "huge", "rewards.py:score gave a number of 1,329 bits"),
        ("no_list", "x", "rewards.py:no_list must return a list of one score per completion, got 1.0"),
        ("two", "x", r"rewards.py:two must return a list of one score per completion, got \[1.0, 1.0\]"),
    ],
)
def test_other_scores_are_refused_by_the_functions_name(name: str, completion: str, said: str) -> None:
    with pytest.raises(FailedError, match=said):
        _judged(_rewarded(name), "3?", completion)


def test_such_a_score_ends_a_run_with_one_sentence(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rewards.py").write_text("def big(completions, **kwargs):\n    return [7.5]\n")
    argv = ["--data.task", _write("own.jsonl", TABLE), "--data.reward-function", "rewards.py:big", "--output-dir", "r"]
    argv += ["--data.num-problems", "4", "--eval.num-problems", "2", "--train.problems-per-iteration", "2"]
    argv += ["--train.batch-size", "2", "--model.model-name", str(tiny_base), "--search.max-search-depth", "4"]
    assert run_command(lambda: main(argv)) == 1
    said = r"error: .*rewards.py:big gave 7.5 for '.*': a score must lie in \[0, 1\]\n"
    assert re.fullmatch(said, capsys.readouterr().err)


def test_a_functions_own_error_is_no_wrong_use_of_the_program() -> None:
    with pytest.raises(RuntimeError, match=r"rewards.py:broken failed .invalid literal") as failure:
        _judged(_rewarded("broken"), "3?", "x")
    assert isinstance(failure.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ids", "rewards.py:ids asks for completion_ids: here rewards depend on the text alone"),
        ("needs_more", "needs_more cannot be called with the columns of the table .missing a req.*: 'solution'"),
        ("takes_less", r"takes_less cannot be called .*unexpected keyword.*end their parameters with \*\*kwargs"),
        ("later", "rewards.py:later is asynchronous"),
        ("value", "data.reward_function rewards.py:value: 3 is no function"),
        ("missing", "rewards.py has no missing; it has boxed, some, score"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_called_is_refused_at_once(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _rewarded(name)


def test_columns_are_those_of_the_first_line_and_none_of_the_functions_own() -> None:
    with pytest.raises(ValueError, match=r"own.jsonl line 2 has other columns than the first: ground_truth, more"):
        _rewarded("score", [TABLE[0], {"prompt": "1?", "more": 1, "share": 1}])
    with pytest.raises(ValueError, match=r"own.jsonl line 1 has the column completions, .* rename it"):
        _rewarded("score", [{"prompt": "1?", "completions": 1}])


def test_what_goes_with_a_reward_function_and_what_does_not() -> None:
    with pytest.raises(ValueError, match="num_shots 2 needs right answers, and a reward function has none"):
        _rewarded("boxed", num_shots=2)
    with pytest.raises(ValueError, match=r"reward_function f.py:g judges tables, and data.task .* is none"):
        make_task(DataConfig(reward_function="f.py:g"), 0)


# ---- classes

CLASS = '''
from dataclasses import dataclass
from tinyzero_astar.data.questions import Question, QuestionTask

@dataclass
class Pair:
    a: int
    b: int

class Sums(QuestionTask):
    def questions(self, rng):
        while True:
            pair = Pair(rng.randint(1, 30), rng.randint(1, 30))
            yield Question(f"{pair.a}+{pair.b}=?", pair.a + pair.b)

class Whole:
    def __init__(self, data, seed):
        self.size = data.num_problems
    def train_problems(self, iteration, count): return []
    def held_out_problems(self, count): return []
    def verify(self, problem, completion, is_finished): return None
    def example(self, problem): return ""
    def ask(self, text): raise ValueError("write nothing")

class Silent(QuestionTask):
    pass

class Half:
    def verify(self, problem, completion, is_finished): return None

class Other(Whole):
    def __init__(self, data): pass

def function(data, seed): return Sums(data, seed)

class Picky(Sums):
    def __init__(self, data, seed):
        raise ValueError(f"num_problems {data.num_problems} is odd")

class Alone(Sums):
    def __init__(self, data, seed): self.data = data

class Listing(QuestionTask):
    def questions(self, rng): return None

class Pairs(QuestionTask):
    def questions(self, rng): yield "1+1", 2

class Numbered(QuestionTask):
    def questions(self, rng): yield Question("1+1", 2, key=7)

class Ended(QuestionTask):
    def questions(self, rng): yield Question("1+1", 2, worked="a" + chr(3))

class Cut(QuestionTask):
    def questions(self, rng): yield Question("1+1", chr(0xD800))
'''  # fmt: skip


def _class(name: str, file: str = "my_task.py") -> Any:
    Path(file).write_text(CLASS)
    return make_task(DataConfig(task=f"{file}:{name}", num_problems=10), 0)


def test_a_class_of_ones_own_is_a_task() -> None:
    task = _class("Sums")
    for problem in [*task.train_problems(0, 10), *task.held_out_problems(5)]:
        assert task.verify(problem, task.example(problem), True).accuracy
    assert _class("Whole", "other-name.py").size == 10


def test_a_class_in_a_module_that_python_finds_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    Path("my_package").mkdir()
    Path("my_package/__init__.py").touch()
    Path("my_package/tasks.py").write_text(CLASS)
    data = DataConfig(task="my_package.tasks:Sums", num_problems=10)
    assert len(make_task(data, 0).train_problems(0, 10)) == 10
    once = pinned(data)
    assert once.task == data.task and pinned(once) == once
    Path("my_package/tasks.py").write_text(CLASS + "#")
    with pytest.raises(ValueError, match=r"tasks:Sums' is not what the run was trained on: .*tasks.py has changed"):
        pinned(once)
    for name in ("no_such_module:Sums", "my_package.nothing:Sums"):
        with pytest.raises(ValueError, match=r"Python finds no module .*; give its file, as in .*.py:NAME"):
            pinned(DataConfig(task=name))
        with pytest.raises(ValueError, match=r"cannot be imported \(No module named"):
            make_task(DataConfig(task=name), 0)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    for name in ("no_such.module", "__main__"):
        with pytest.raises(ValueError, match=f"{name} is not found"):
            pinned(DataConfig(task=f"{name}:Sums"))
    for name in ("sys", "os.path", "itertools"):
        with pytest.raises(ValueError, match=f"Python finds no module {name}; give its file"):
            pinned(DataConfig(task=f"{name}:Sums"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Nothing", "data.task my_task.py:Nothing: my_task.py has no Nothing; it has Pair, Sums, Whole, Silent, Half"),
        ("function", "my_task.py:function: <function function .* is no class; name the class of the task"),
        ("Half", "class Half lacks train_problems, held_out_problems, example, ask; derive it from tinyzero_astar"),
        ("Silent", "class Silent has no questions; write its method questions"),
        ("Other", "class Other does not take the two arguments data and seed .too many positional arguments"),
        ("", "data.task 'my_task.py:' names nothing to import; write it as FILE.py:NAME or module:NAME"),
        ("a b", "names nothing to import"),
        ("Picky", "data.task my_task.py:Picky: num_problems 10 is odd"),
        ("Alone", r"data.task my_task.py:Alone: its __init__ must call super\(\).__init__\(data, seed\)"),
        ("Listing", r"Listing.questions gave None; it must yield Question\(...\)"),
        ("Pairs", r"Pairs.questions gave \('1\+1', 2\); it must yield Question\(...\)"),
        ("Numbered", r"Numbered: question '1\+1' has key 7, which is no string"),
        ("Ended", r"Ended: question '1\+1' has a character that is no text: 'a.x03'"),
        ("Cut", r"Cut: question '1\+1' has a character that is no text: '.ud800'"),
    ],
)
def test_a_class_that_is_no_task_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _class(name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import no_such_package", "broken.py cannot be imported .No module named 'no_such_package'"),
        ("class Sums(:", r"broken.py cannot be imported \(invalid syntax \(broken.py, line 1\)\)"),
        ("from tinyzero_astar.data.questions import Nothing", "broken.py cannot be .* .cannot import name 'Nothing'"),
        (None, r"gone.py cannot be imported \(No such file or directory\)"),
        ("\nstart", r"broken.py cannot be imported \(NameError: name 'start' is not defined, at broken.py line 2\)"),
        ("raise RuntimeError('no')", r"\(RuntimeError: no, at broken.py line 1\)"),
        ("int('x')", r"\(ValueError: invalid literal .*, at broken.py line 1\)"),
        ("import sys; sys.exit(0)", r"\(SystemExit: 0, at broken.py line 1\)"),
        ("open('numbers.txt')", r"No such file or directory: 'numbers.txt', at broken.py line 1\)"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_refused(content: str | None, said: str) -> None:
    name = "gone.py" if content is None else "broken.py"
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(ValueError, match=said):
        make_task(DataConfig(task=f"{name}:Sums"), 0)


def test_what_a_task_prints_does_not_stand_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    Path("loud.py").write_text(CLASS + "\nprint('loud')\n")
    sizes = ["--data.num-problems", "64", "--eval.num-problems", "5"]
    assert doctor_main(["--data.task", "loud.py:Sums", *sizes, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["fits"] and "loud\n" in err
    Path("loud_reward.py").write_text("def reward(completions, **kwargs):\n    print('loud')\n    return [0.5]\n")
    table = _write("loud.jsonl", SUMS)
    argv = ["1+2=?", "--data.task", table, "--data.reward-function", "loud_reward.py:reward", "--json"]
    assert solve_main(argv) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["problem"] == "1+2=?" and err == "loud\n"


def test_a_class_that_gives_other_than_it_was_asked_for_is_refused() -> None:
    Path("my_task.py").write_text(CLASS)
    config = replace(PRESETS["tiny"], data=DataConfig(task="my_task.py:Whole", num_problems=10))
    with pytest.raises(ValueError, match=r"data\.task gave 0 training problems where 10 were asked for"):
        make_problems(config)


def test_an_unknown_task_is_told_all_ways_to_bring_one() -> None:
    for name in ("multiplicaton", "", "sums.py", "sums.json"):
        with pytest.raises(
            ValueError, match=r"is unknown; .* multiplication.*FILE.jsonl, FILE.py:Class, module:Class or"
        ):
            make_task(DataConfig(task=name), 0)


# ---- what is recorded


def test_files_are_recorded_with_their_full_path_and_known_again() -> None:
    Path("rewards.py").write_text(FUNCTIONS)
    data = _data(TABLE, reward_function="rewards.py:boxed")
    once = pinned(data)
    assert once.task == str(Path("own.jsonl").resolve())
    assert once.reward_function == f"{Path('rewards.py').resolve()}:boxed"
    assert len(once.task_sha256) == 64 and pinned(once) == once
    Path("rewards.py").write_text(FUNCTIONS + "#")
    with pytest.raises(ValueError, match=r"is not what the run was trained on: .*own.jsonl, .*rewards.py has changed"):
        pinned(once)
    Path("my_task.py").write_text(CLASS)
    assert pinned(DataConfig(task="my_task.py:Sums")).task == f"{Path('my_task.py').resolve()}:Sums"
    assert pinned(DataConfig()) == DataConfig()


def test_without_reasoning_gym_its_tasks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise own_module.PackageNotFoundError(name)

    monkeypatch.setattr(own_module, "distribution", missing)
    said = r"reasoning_gym:chain_sum needs the package reasoning-gym, .*: pip install -e '.\[reasoning-gym\]'"
    with pytest.raises(ValueError, match=said):
        pinned(DataConfig(task="reasoning_gym:chain_sum"))


def test_a_run_knows_its_files_again_and_where_they_have_moved(
    tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rewards.py").write_text(FUNCTIONS)
    task = ["--data.task", _write("own.jsonl", TABLE), "--data.reward-function", "rewards.py:boxed"]
    sizes = ["--data.num-problems", "4", "--eval.num-problems", "2", "--train.num-iterations", "1"]
    sizes += ["--train.problems-per-iteration", "2", "--train.batch-size", "2", "--search.max-search-depth", "4"]
    base = ["--model.model-name", str(tiny_base), "--model.max-seq-length", "60", "--value.hidden-size", "8"]
    assert main([*task, *sizes, *base, "--output-dir", "r"]) == 0
    commands: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (main, ["--resume", "r"]),
        (main, ["--eval-only", "--checkpoint", "r"]),
        (solve_main, ["3?", "--checkpoint", "r"]),
    ]
    Path("rewards.py").write_text(FUNCTIONS.replace("1.0", "0.9"))
    for command, argv in commands:
        assert command(argv) == 2
        err = capsys.readouterr().err
        assert re.search(
            r"own.jsonl, .*rewards.py has changed, .*; restore it, or say where it lies now with --data", err
        )
        assert err.count("\n") == 1
    Path("elsewhere").mkdir()
    Path("own.jsonl").rename("elsewhere/own.jsonl")
    Path("elsewhere/rewards.py").write_text(FUNCTIONS)
    moved = ["--data.task", "elsewhere/own.jsonl", "--data.reward-function", "elsewhere/rewards.py:boxed"]
    for command, argv in commands:
        assert command(argv) == 2 and "own.jsonl cannot be read (No such file" in capsys.readouterr().err
        assert command([*argv, *moved]) == 0


def test_prompts_that_the_tokenizer_loses_are_refused_with_their_characters(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "m")
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["model"]["vocab"] = {"\u03a9" if key == "Z" else key: i for key, i in tokens["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    task = [
        "--data.task",
        _write("own.jsonl", [*SUMS, {"prompt": "Zebras?", "answer": 1}]),
        "--data.num-problems",
        "70",
    ]
    assert main([*task, "--eval.num-problems", "9", "--model.model-name", str(folder), "--output-dir", "r"]) == 2
    err = capsys.readouterr().err
    said = r"does not give texts back as they were: 'Zebras\?\\n<think>' becomes 'ebras\?\\n<think>' \(it has no 'Z'\);"
    assert re.search(said, err) and err.count("\n") == 1
    assert not Path("r").exists()
