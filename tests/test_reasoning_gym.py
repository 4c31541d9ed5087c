"""Scorers of others in a process of their own, with stand-ins that misbehave in every way, and reasoning-gym itself."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data import reasoning_gym as task_module
from tinyzero_astar.data import scoring_process
from tinyzero_astar.data.answers import Reason
from tinyzero_astar.data.reasoning_gym import RUNS_ITS_QUESTION, RUNS_THE_ANSWER, ReasoningGym
from tinyzero_astar.data.scoring_process import LostError, ScoringProcess

NEEDS_LIBRARY = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None,
    reason="reasoning-gym is not installed: pip install -e '.[reasoning-gym]'",
)
# A package of the same name: data set "sums" asks for the sum of two numbers. A wrong answer says how to misbehave.
STAND_IN = """
import os, sys, time
import random as _random

class _Sums:
    def __init__(self, size, seed):
        self.size, self.seed = size, seed
    def __getitem__(self, index):
        rng = _random.Random(f"{self.seed} {index}")
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        return {"question": f"{a} + {b}?", "answer": str(a + b), "metadata": {"pair": (a, b)}}
    def score_answer(self, answer, entry):
        assert isinstance(entry["metadata"]["pair"], tuple)  # the entry has never been JSON
        if answer == entry["answer"]:
            return 1.0
        if answer == "hang":
            time.sleep(1000)
        if answer == "crash":
            os._exit(3)
        if answer == "flood":
            for stream in (1, 2):
                os.write(stream, b"x" * 10_000_000)
            print("x" * 10_000_000)
            return 0.25
        if answer == "raise":
            raise KeyError(answer)
        if answer == "run":
            return float(eval("0.5"))
        if answer == "caught":
            try:
                exec("open('caught', 'w')")
            except RuntimeError:
                return 0.5
        if answer == "parse":
            import ast
            return float(ast.literal_eval("0.5"))
        return {"text": "1.0", "none": None, "true": True, "list": [1], "nan": float("nan"), "inf": float("inf"),
                "above": 1.5, "below": -0.5, "zero": 0, "one": 1, "half": 0.5}.get(answer, 0.0)

class _Picky:
    def __init__(self, size, seed):
        raise AssertionError("must be told more")

DATASETS = {"sums": _Sums, "picky": _Picky, "countdown": _Sums}

def create_dataset(name, **settings):
    return DATASETS[name](**settings)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package `reasoning_gym`, in front of any other."""
    monkeypatch.setenv("PYTHONPATH", str(_library(tmp_path)))
    monkeypatch.setattr(task_module, "LIMIT_S", 0.5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _library(folder: Path) -> Path:
    package = folder / "reasoning_gym"
    package.mkdir()
    (package / "__init__.py").write_text("from .factory import create_dataset")
    (package / "factory.py").write_text(STAND_IN)
    return folder


@pytest.fixture(scope="module")
def gym(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReasoningGym]:
    """A task that tests share, so that few of them wait for the start of a process, for use beside `stand_in`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(_library(tmp_path_factory.mktemp("library"))))
        task = _task()
    yield task
    _end(task)


def _task(name: str = "sums", num_problems: int = 20) -> ReasoningGym:
    return ReasoningGym(DataConfig(task=f"reasoning_gym:{name}", num_problems=num_problems), seed=0)


def _end(task: ReasoningGym) -> None:
    task._process.close()


# ---- the task


def test_questions_come_from_the_library_and_right_answers_score_one(stand_in: Path) -> None:
    task = _task()
    problems = task.train_problems(0, 20) + task.held_out_problems(10)
    assert len({p.text for p in problems}) == 30
    for problem in problems:
        a, b = problem.text.removesuffix("?").split(" + ")
        assert str(problem.answer) == str(int(a) + int(b))
        verdict = task.verify(problem, f"hm</think><answer>{int(a) + int(b)}</answer>", True)
        assert (verdict.accuracy, verdict.format, verdict.score, verdict.reason) == (True, True, 1.0, "correct")
        assert task.verify(problem, task.example(problem), True).accuracy
    _end(task)


def test_every_process_asks_the_same_and_the_held_out_side_knows_no_seed(stand_in: Path) -> None:
    task, again = _task(), _task()
    other = ReasoningGym(DataConfig(task="reasoning_gym:sums", num_problems=20), seed=1)
    texts = [[p.text for p in t.train_problems(0, 20)] for t in (task, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert [p.text for p in task.held_out_problems(9)] == [p.text for p in other.held_out_problems(9)]
    for each in (task, again, other):
        _end(each)


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("half", 0.5, "wrong answer"),
        ("zero", 0.0, "wrong answer"),
        ("one", 1.0, "correct"),
        ("parse", 0.5, "wrong answer"),
        ("flood", 0.25, "wrong answer"),
        ("text", 0.0, "its scorer gave no number but a str"),
        ("none", 0.0, "its scorer gave no number but a NoneType"),
        ("true", 0.0, "its scorer gave no number but a bool"),
        ("list", 0.0, "its scorer gave no number but a list"),
        ("nan", 0.0, "its scorer gave nan, which is not in [0, 1]"),
        ("inf", 0.0, "its scorer gave inf, which is not in [0, 1]"),
        ("above", 0.0, "its scorer gave 1.5, which is not in [0, 1]"),
        ("below", 0.0, "its scorer gave -0.5, which is not in [0, 1]"),
        ("raise", 0.0, "its scorer failed on it (KeyError)"),
        ("run", 0.0, "its scorer failed on it (RuntimeError)"),
        ("caught", 0.0, "its scorer tried to run it as code"),
        ("hang", 0.0, "its scorer gave no reply in 0.5 s"),
        ("crash", 0.0, "its scorer ended"),
        ("x" * 4001, None, Reason.TOO_LONG),
        ("\U0001f600" * 4000, 0.0, "wrong answer"),
        ("\ud800\x00\n\u2028", 0.0, "wrong answer"),
    ],
)
def test_whatever_a_scorer_does_ends_in_a_verdict(
    stand_in: Path, gym: ReasoningGym, text: str, score: float | None, reason: str
) -> None:
    first = gym.train_problems(0, 1)[0]
    verdict = gym.judge(first.answer, text)
    assert (verdict.score, verdict.reason) == (score, reason)
    assert verdict.accuracy == (score == 1)
    assert verdict.format == (score is not None)
    assert gym.judge(first.answer, str(first.answer)).score == 1  # and the next answer finds all in order
    assert not (stand_in / "caught").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("countdown", "reasoning_gym:countdown is refused: its scorer in reasoning-gym runs the answer as Python"),
        ("number_sorting", "number_sorting is refused: its scorer in reasoning-gym runs text as Python"),
        ("sum", "reasoning-gym has no data set 'sum'; it has sums"),
        ("zzz", "it has countdown, picky, sums"),
        ("", "has no data set ''"),
        ("picky", r"makes no data set 'picky' without further settings \(must be told more\)"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_refused_in_one_sentence(stand_in: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        _task(name)
    assert "\n" not in str(refusal.value)


def test_a_missing_package_is_named_with_what_installs_it(stand_in: Path) -> None:
    (stand_in / "reasoning_gym" / "factory.py").write_text("import no_such_package")
    with pytest.raises(ValueError, match=r"needs the package no_such_package, .* pip install -e '.\[reasoning-gym\]'"):
        _task()


def test_a_library_that_makes_no_question_is_no_wrong_answer(stand_in: Path) -> None:
    (stand_in / "reasoning_gym" / "factory.py").write_text(STAND_IN.replace("a, b = rng", "os._exit(1), rng"))
    with pytest.raises(ValueError, match="reasoning-gym made no question"):
        _task()


# ---- the process


def _program(code: str) -> ScoringProcess:
    return ScoringProcess([sys.executable, "-c", f"import os, sys, time\n{code}"])


ECHO = "print('{}', flush=True)\nfor line in sys.stdin: print(line, end='', flush=True)"


def test_replies_belong_to_their_requests() -> None:
    process = _program(ECHO)
    for number in range(50):
        assert process.ask({"number": number, "text": "\ud800\n"}, 5) == {"number": number, "text": "\ud800\n"}
    process.close()
    assert process.ask({"again": 1}, 5) == {"again": 1}  # a new one
    process.close()
    process.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("time.sleep(100)", "gave no reply in 0.3 s"),
        ("sys.stdout.write('{'); sys.stdout.flush(); time.sleep(100)", "gave no reply in 0.3 s"),
        ("os._exit(0)", "ended"),
        ("os.abort()", "ended"),
        ("os.write(1, b'{')", "ended"),
        ("os.write(1, b'x' * 3_000_000)", "wrote without end"),
        ("print('nan?')", "gave a reply that is no JSON"),
        ("print('{}\\n{}')", "gave a reply that is no JSON"),
        ("print('[' * 100_000)", "gave a reply that is no JSON"),
        ("os.write(1, b'\\xff\\xfe{\\n')", "gave a reply that is no JSON"),
        ("print('[1]')", "gave a reply that is no JSON object"),
    ],
)
def test_a_process_that_misbehaves_is_ended_and_started_anew(code: str, said: str, tmp_path: Path) -> None:
    once = tmp_path / "once"
    process = _program(
        "print('{}', flush=True)\n"
        "for line in sys.stdin:\n"
        f"    if os.path.exists({str(once)!r}): print('{{\"fine\": 1}}', flush=True); continue\n"
        f"    open({str(once)!r}, 'w').write(str(os.getpid()))\n"
        f"    {code}; sys.stdout.flush(); time.sleep(0.2 if {code!r}.startswith('print') else 0); break"
    )
    with pytest.raises(LostError) as lost:
        process.ask({}, 0.3)
    assert str(lost.value) == said
    assert not _lives(int(once.read_text()))
    assert process.ask({}, 5) == {"fine": 1}
    process.close()


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupted_request_leaves_no_reply_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    process = _program(ECHO)
    assert process.ask({"n": 1}, 5) == {"n": 1}

    def interrupt(pipe: int, limit_s: float) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring_process, "_line", interrupt)
        process.ask({"n": 2}, 5)
    assert process.ask({"n": 3}, 5) == {"n": 3}
    process.close()


WHO = "import os, sys\nprint('{}', flush=True)\nfor line in sys.stdin: print('{\"pid\": %d}' % os.getpid(), flush=True)"


def test_the_process_ends_with_what_asks_it() -> None:
    process = _program(WHO)
    number = process.ask({}, 5)["pid"]
    assert isinstance(number, int) and _lives(number)
    del process
    assert not _lives(number)


def test_a_process_whose_parent_was_killed_ends() -> None:
    code = (
        "import os, sys\n"
        "from tinyzero_astar.data.scoring_process import ScoringProcess\n"
        f"process = ScoringProcess([sys.executable, '-c', {WHO!r}])\n"
        "print(process.ask({}, 5)['pid'], flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    number = int(done.stdout)
    for _ in range(100):
        if not _lives(number) or _is_zombie(number):
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")


def _is_zombie(number: int) -> bool:
    stat = Path(f"/proc/{number}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


# ---- reasoning-gym itself


@NEEDS_LIBRARY
def test_the_real_library_asks_and_scores() -> None:
    task = _task("chain_sum")
    for problem in task.train_problems(0, 5) + task.held_out_problems(5):
        assert task.verify(problem, task.example(problem), True).accuracy
        assert not task.verify(problem, "</think><answer>x</answer>", True).accuracy
    _end(task)


EVERY_DATA_SET = """
import json, sys
from reasoning_gym.factory import DATASETS
from tinyzero_astar.data.reasoning_gym_process import _MISHAPS, Gym, Watch
watch, found = Watch(), {}
texts = ["", "1", "abc", "[1,2]", "{'a': 1}", "(1+2)*3", "x**2", "[['a']]", "__import__('os').getpid()"]
for name in DATASETS:
    gym = Gym(name, watch)
    try:
        own = gym.reply({"seed": 3, "index": 0})["answer"]
    except _MISHAPS as error:
        continue
    replies = [gym.reply({"seed": 3, "index": 0, "text": text}) for text in [*texts, *([own] * (own is not None))]]
    found[name] = [reply.get("fault", "") for reply in replies]
json.dump(found, sys.stdout)
"""


@NEEDS_LIBRARY
def test_the_names_of_those_that_run_text_are_those_that_the_watch_finds() -> None:
    done = subprocess.run([sys.executable, "-c", EVERY_DATA_SET], capture_output=True, text=True, timeout=600)
    found = json.loads(done.stdout[done.stdout.index("{") :])  # the library prints, too
    runs = {name for name, faults in found.items() if any("code" in f or "RuntimeError" in f for f in faults)}
    assert runs == RUNS_THE_ANSWER | RUNS_ITS_QUESTION
    assert len(found) > 100
    gave_wrong = {name: f for name, faults in found.items() for f in faults if "gave" in f}
    assert gave_wrong == {}


@NEEDS_LIBRARY
def test_questions_of_the_real_library_are_the_same_in_every_process() -> None:
    for name in ("ransom_note", "isomorphic_strings"):  # theirs depend on the order of sets
        texts = []
        for _ in range(2):
            task = _task(name, num_problems=5)
            texts.append([q.text for q in islice(task.questions(random.Random(3)), 5)])
            _end(task)
        assert texts[0] == texts[1]
