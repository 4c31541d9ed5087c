"""What a run tells its loggers, in which order, and what becomes of it when one cannot write."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.test_run import OPTIONS, assert_same_run, records
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import Config, TrainConfig
from tinyzero_astar.distributed import is_main
from tinyzero_astar.files import WriteFailedError
from tinyzero_astar.interfaces import Logger, Table
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.loggers.loggers import LOGGERS
from tinyzero_astar.run import loop, reporting, writing
from tinyzero_astar.run.reporting import AllLoggers

EVENTS = [name for name in vars(Logger) if not name.startswith("_")]
SAMPLE = {"problem": "6*7", "completion": "42</think>", "reason": "right", "weight": 0.5}


class Spy(Logger):
    """Notes every event in a list of all."""

    def __init__(self, told, name="spy"):
        self.told, self.name = told, name

    def __getattribute__(self, event):
        if event not in EVENTS:
            return super().__getattribute__(event)
        return lambda *args: self.told.append((self.name, event, *args))


@pytest.fixture
def told(monkeypatch):
    """Events of the runs of a test, as one more logger sees them."""
    told = []
    monkeypatch.setitem(LOGGERS, "spy", lambda console: Spy(told))
    return told


@pytest.fixture
def options(tiny_base, tmp_path):
    return ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--output-dir", str(tmp_path / "r")]


def tell_everything(logger, folder):
    logger.begin(asdict(Config(train=replace(TrainConfig(), num_iterations=2))), folder, 0, [])
    logger.evaluation(0, {"eval/x": 0.5}, [Table("title", [("x", "0.5")])])
    logger.record(0, {"eval/x": 0.5})
    logger.alarm(1, "something")
    logger.samples(1, [[SAMPLE, SAMPLE], []])
    logger.trace(1, {"version": 2, "nodes": {}})
    logger.record(1, {"train/x": None})
    logger.end()


# ---------------------------------------------------------------------------------------------------- each logger


@pytest.mark.parametrize("name", LOGGERS)
def test_every_logger_takes_every_event(name, tmp_path):
    tell_everything(LOGGERS[name](ConsoleLogger()), tmp_path)


def test_json_lines_hold_each_record_once_and_each_sample_with_its_iteration(tmp_path):
    tell_everything(LOGGERS["jsonl"](ConsoleLogger()), tmp_path)
    assert records(tmp_path) == [{"iteration": 0, "eval/x": 0.5}, {"iteration": 1, "train/x": None}]
    assert records(tmp_path, "samples.jsonl") == [{"iteration": 1} | SAMPLE] * 2
    assert records(tmp_path, "trace.jsonl") == [{"iteration": 1, "version": 2, "nodes": {}}]


def test_the_console_shows_the_best_completion_of_the_first_problems_that_have_one():
    shown = StringIO()
    samples = [[SAMPLE | {"problem": f"{i}*7", "completion": f"{k}"} for k in range(i % 2, 2)] for i in range(6)]
    ConsoleLogger(Console(file=shown, width=100)).samples(1, [[], *samples])
    assert [line.split() for line in shown.getvalue().splitlines()[1:]] == [
        *(["0*7", "(right)"], ["0"], ["1*7", "(right)"], ["1"], ["2*7", "(right)"], ["0"])
    ]


# ---------------------------------------------------------------------------------------------------- all as one


def test_all_loggers_are_told_everything_in_their_order(monkeypatch, tmp_path):
    told, names = [], ("first", "second")
    made = {name: lambda console, name=name: Spy(told, name) for name in names}
    monkeypatch.setattr(reporting, "LOGGERS", made)
    tell_everything(AllLoggers(ConsoleLogger()), tmp_path)
    expected = []
    tell_everything(Spy(expected), tmp_path)
    assert len(expected) == 8 and {event for _, event, *_ in expected} == {*EVENTS} - {"iteration"}
    for name in names:
        assert [("spy", *rest) for who, *rest in told if who == name] == expected
    assert [who for who, event, *_ in told if event != "end"] == ["first", "second"] * 7


def test_a_rank_other_than_0_tells_nobody_and_learns_what_rank_0_could_not_write(monkeypatch, told, tmp_path):
    monkeypatch.setattr(reporting, "is_main", lambda: False)
    loggers = AllLoggers(ConsoleLogger())
    tell_everything(loggers, tmp_path)
    assert told == [] and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(writing, "from_main", lambda mine: "rank 0 could not")
    with pytest.raises(WriteFailedError, match="rank 0 could not"):
        loggers.record(0, {})


def test_all_loggers_end_though_one_cannot(monkeypatch):
    told = []

    class Stuck(Logger):
        def end(self):
            raise WriteFailedError("stuck")

    made = {"a": lambda console: Spy(told, "a"), "b": lambda console: Stuck(), "c": lambda console: Spy(told, "c")}
    monkeypatch.setattr(reporting, "LOGGERS", made)
    with pytest.raises(WriteFailedError, match="stuck"):
        AllLoggers(ConsoleLogger()).end()
    assert sorted(told) == [("a", "end"), ("c", "end")]


# ---------------------------------------------------------------------------------------------------- of a run


def numbered(told):
    """The name of each event and the iteration that it is of."""
    return [(event, *(args[:1] if args and isinstance(args[0], int) else ())) for _, event, *args in told]


def test_a_run_tells_what_has_happened_and_a_resumed_one_goes_on(told, options, tmp_path, monkeypatch):
    iterate, folder = loop.iterate, tmp_path / "r"

    def stopping(session, i, *trace):
        if i == 2:
            signal.raise_signal(signal.SIGTERM)
        return iterate(session, i, *trace)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "iterate", stopping)
        assert main(options) == 143
    (_, _, config, where, done, known), *_ = told
    assert known == [] and (config["train"]["num_iterations"], where, done) == (4, folder, 0)
    first = [("begin",), ("evaluation", 0), ("record", 0)]
    trained = [[(event, i) for event in ("iteration", "samples", "trace", "record")] for i in (1, 2, 3, 4)]
    assert [x for x in numbered(told) if x[0] != "alarm"] == [*first, *trained[0], *trained[1], *trained[2], ("end",)]
    told.clear()
    assert main(["--resume", str(folder)]) == 0
    (_, _, _, _, done, known), *_ = told
    assert known == records(folder)[:4]
    wanted = [("begin",), *trained[3][:3], ("evaluation", 4), ("record", 4), ("end",)]
    assert done == 3 and [x for x in numbered(told) if x[0] != "alarm"] == wanted
    _, _, number, metrics = told[-2]
    assert json.loads(json.dumps({"iteration": number} | metrics)) == records(folder)[-1]
    assert {"eval/greedy_accuracy", "train/policy_loss"} <= metrics.keys()


def test_the_loggers_end_however_the_run_does(told, options, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(options)
    assert [event for _, event, *_ in told] == ["begin", "end"]


@pytest.mark.parametrize("event", [e for e in EVENTS if e != "alarm"])
def test_a_logger_that_cannot_write_ends_the_run_in_one_sentence_and_nothing_is_lost(
    event, options, tmp_path, capsys, monkeypatch
):
    class Full(Logger):
        pass

    def full(self, *args):
        if event in ("begin", "end") or args[0] >= 4:
            raise WriteFailedError("the cloud cannot be written (it is full)")

    setattr(Full, event, full)
    folder = tmp_path / "r"
    with monkeypatch.context() as patch:
        patch.setitem(LOGGERS, "full", lambda console: Full())
        assert main(options) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the cloud cannot be written (it is full); what was saved before is kept: make room or raise the"
        f" limit, then continue with: python train.py --resume {folder}"
    )
    assert main(["--resume", str(folder)]) == 0
    assert main([*options[:-1], str(tmp_path / "whole")]) == 0
    assert_same_run(folder, tmp_path / "whole")


def test_an_evaluation_alone_is_told_to_the_console_only(told, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert is_main()
    assert main([*options[:-2], "--eval-only"]) == 0
    assert told == [] and "held-out problems, value and 95 % interval" in " ".join(capsys.readouterr().out.split())
    assert [p.name for p in Path("runs").rglob("*.json*")] == ["evaluation.json"]
