"""What a run tells its loggers, in which order, and what becomes of it when one cannot write."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict, replace
from importlib.machinery import ModuleSpec
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.test_run import OPTIONS, assert_same_run, records
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import Config, TrainConfig
from tinyzero_astar.config_file import read_config_file
from tinyzero_astar.distributed import is_main
from tinyzero_astar.files import WriteFailedError
from tinyzero_astar.interfaces import Logger, Table
from tinyzero_astar.loggers import loggers
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.loggers.loggers import LOGGERS
from tinyzero_astar.loggers.services import COLUMNS, numbers
from tinyzero_astar.run import loop, reporting, writing
from tinyzero_astar.run.reporting import AllLoggers

EVENTS = [name for name in vars(Logger) if not name.startswith("_")]
SAMPLE = {"problem": "6*7", "answer": 42, "completion": "42</think>", "accuracy": 1.0, "format": 1.0, "reason": "right"}
SAMPLE |= {"weight": 0.5, "priority": -0.25}
ROW = ["6*7", "42", "42</think>", 1.0, 1.0, "right", 0.5]


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
    add(monkeypatch, "spy", lambda console: Spy(told))
    return told


def add(monkeypatch, name, make):
    """One more logger for all runs."""
    monkeypatch.setitem(LOGGERS, name, make)
    monkeypatch.setattr(loggers, "ALWAYS", (*loggers.ALWAYS, name))


class Service:
    """What wandb and trackio have in common, as far as it is used. It notes every call."""

    class Error(Exception):
        pass

    class AlertLevel:
        WARN = "warn"

    def __init__(self, name):
        self.told = []
        self.__spec__ = ModuleSpec(name, None)

    def init(self, **options):
        self.told.append(("init", options))
        return self

    def Table(self, *, columns, data):
        return [dict(zip(columns, row, strict=True)) for row in data]

    def Settings(self, **options):
        return options

    def log(self, metrics, *, step):
        self.told.append(("log", step, metrics))

    def alert(self, **options):
        self.told.append(("alert", options))

    def finish(self):
        self.told.append(("finish",))


@pytest.fixture
def services(monkeypatch):
    """Both by name, as the modules that the loggers import."""
    made = {name: Service(name) for name in ("wandb", "trackio")}
    for name, service in made.items():
        monkeypatch.setitem(sys.modules, name, service)
        monkeypatch.delitem(sys.modules, f"tinyzero_astar.loggers.{name}", raising=False)
    yield made
    for name in made:  # they hold the fakes
        sys.modules.pop(f"tinyzero_astar.loggers.{name}", None)


def events_of(folder):
    """What TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def scalars(events):
    """By iteration and name."""
    found = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found.setdefault(event.step, {})[name] = event.value
    return found


def texts(events, name):
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(f"{name}/text_summary")]


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
def test_every_logger_takes_every_event(name, tmp_path, services):
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


# ------------------------------------------------------------------------------------------------- other places


def test_services_get_numbers_by_iteration_a_table_of_completions_and_alerts(services, tmp_path):
    for name, service in services.items():
        logger = LOGGERS[name](ConsoleLogger())
        tell_everything(logger, tmp_path)
        (_, options), *rest = service.told
        assert options["name"] == tmp_path.name and options["config"]["train"]["num_iterations"] == 2
        shown = dict(zip(COLUMNS, ROW, strict=True))
        (_, alert), *others = [call for call in rest if call[0] == "alert"]
        assert others == [] and alert["text"] == "something" and alert["level"] == "warn"
        assert alert["title"] == f"{tmp_path.name}, iteration 1"
        assert [call for call in rest if call[0] != "alert"] == [
            ("log", 0, {"eval/x": 0.5}),
            ("log", 1, {"samples": [shown, shown]}),
            ("log", 1, {}),
            ("finish",),
        ]


def test_numbers_are_what_has_a_value():
    metrics = {"a/b": 1, "c": True, "d": None, "e": "why", "f": [1.0], "alarms": ["ratio"], "g": 0.5}
    assert numbers(metrics) == {"a/b": 1.0, "c": 1.0, "g": 0.5}


def test_a_resumed_run_goes_on_at_each_service(services, tmp_path):
    for done in (0, 3):
        for name in services:
            LOGGERS[name](ConsoleLogger()).begin({}, tmp_path, done, [])
    (_, first), (_, then) = services["wandb"].told
    assert first["id"] == then["id"] == (tmp_path / "wandb-id").read_text() and first["resume"] == "allow"
    assert first["settings"] == {"console": "off"} and first["dir"] == str(tmp_path)
    assert [options["resume"] for _, options in services["trackio"].told] == ["never", "allow"]


def test_a_service_that_refuses_the_run_is_one_sentence(services, tmp_path, monkeypatch):
    def refuse(**_):
        raise Service.Error("no key")

    monkeypatch.setattr(services["wandb"], "init", refuse)
    logger = LOGGERS["wandb"](ConsoleLogger())
    with pytest.raises(WriteFailedError, match=r"W&B does not take the run \(no key\); call `wandb login`, or set"):
        logger.begin({}, tmp_path, 0, [])
    logger.end()  # as every run does


def test_tensorboard_reads_the_events_back_and_those_of_repeated_iterations_once(tmp_path):
    logger = LOGGERS["tensorboard"](ConsoleLogger())
    logger.begin({"run": {"seed": 3}}, tmp_path, 0, [])
    for number in range(5):
        logger.record(number, {"train/x": number / 4, "none": None, "why": "text"})
    logger.alarm(4, "a | <b> *c*")
    logger.samples(4, [[SAMPLE | {"completion": "<script>|*x*\n[y](z)"}]])
    events = events_of(tmp_path)  # it is written before the logger ends
    assert scalars(events) == {number: {"train/x": number / 4} for number in range(5)}
    assert '"seed": 3' in texts(events, "config")[0][1]
    assert texts(events, "alarms") == [(4, "a &#124; &lt;b&gt; &#42;c&#42;")]
    ((_, table),) = texts(events, "samples")
    assert table.splitlines()[0] == f"| {' | '.join(COLUMNS)} |" and len(table.splitlines()) == 3
    assert table.splitlines()[2].count("|") == len(COLUMNS) + 1 and "<script" not in table and "[y]" not in table
    logger.end()
    time.sleep(1.1)  # a file is named after its second
    again = LOGGERS["tensorboard"](ConsoleLogger())
    again.begin({}, tmp_path, 2, [])
    again.record(3, {"train/x": 9.0})
    again.end()
    assert scalars(events_of(tmp_path)) == {
        0: {"train/x": 0},
        1: {"train/x": 0.25},
        2: {"train/x": 0.5},
        3: {"train/x": 9},
    }


def test_a_run_writes_the_numbers_of_its_records_everywhere(services, options, tmp_path, capsys):
    folder = tmp_path / "r"
    names = ["tensorboard", "wandb", "trackio"]
    assert main([*options, "--train.num-iterations", "2", "--run.loggers", *names]) == 0
    assert json.loads((folder / "config.json").read_text())["run"]["loggers"] == names
    wanted = {row["iteration"]: numbers(row) for row in records(folder)}
    for row in wanted.values():
        del row["iteration"]
    assert list(wanted) == [0, 1, 2] and len(wanted[2]) > 60
    for service in services.values():
        logged = [(step, metrics) for event, step, metrics in (c for c in service.told if c[0] == "log")]
        assert {step: metrics for step, metrics in logged if "samples" not in metrics} == wanted
        tables = {step: metrics["samples"] for step, metrics in logged if "samples" in metrics}
        assert {step: len(rows) for step, rows in tables.items()} == {1: 12, 2: 12}
        assert service.told[-1] == ("finish",)
    assert scalars(events_of(folder)) == {step: pytest.approx(row, rel=1e-6) for step, row in wanted.items()}
    capsys.readouterr()
    assert main(["--resume", str(folder), "--train.num-iterations", "3", "--run.loggers", "trackio"]) == 0
    assert [c[1]["resume"] for c in services["trackio"].told if c[0] == "init"] == ["never", "allow"]
    assert len([c for c in services["wandb"].told if c[0] == "init"]) == 1
    for name in names:  # an evaluation tells none of them, and needs none
        services.pop(name, None)
    sys.modules.update(dict.fromkeys(("wandb", "trackio")))
    assert main(["--eval-only", "--checkpoint", str(folder)]) == 0


def test_a_package_that_is_missing_and_a_logger_that_is_unknown_are_one_sentence(
    services, options, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert main([*options, "--run.loggers", "trackio"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "error: run.loggers trackio needs the package trackio, which is not installed: run pip install -e"
        " '.[trackio]', or leave it out\n"
    )
    assert not (tmp_path / "r").exists()
    (tmp_path / "c.toml").write_text('[run]\nloggers = ["tensorboard", "paper"]\n')
    assert main(["--config", str(tmp_path / "c.toml")]) == 2
    assert "which is not a list of tensorboard, wandb, trackio" in capsys.readouterr().err
    (tmp_path / "c.toml").write_text('[run]\nloggers = ["tensorboard"]\n')
    assert read_config_file(tmp_path / "c.toml").run.loggers == ("tensorboard",)


# ---------------------------------------------------------------------------------------------------- all as one


def test_all_loggers_are_told_everything_in_their_order(monkeypatch, tmp_path):
    told, names = [], ("first", "second")
    made = {name: lambda console, name=name: Spy(told, name) for name in names}
    monkeypatch.setattr(loggers, "LOGGERS", made)
    monkeypatch.setattr(loggers, "ALWAYS", ("second",))
    tell_everything(AllLoggers(ConsoleLogger(), ["first"]), tmp_path)
    expected = []
    tell_everything(Spy(expected), tmp_path)
    assert len(expected) == 8 and {event for _, event, *_ in expected} == {*EVENTS} - {"iteration"}
    for name in names:
        assert [("spy", *rest) for who, *rest in told if who == name] == expected
    assert [who for who, event, *_ in told if event != "end"] == ["first", "second"] * 7


def test_a_rank_other_than_0_tells_nobody_and_learns_what_rank_0_could_not_write(monkeypatch, told, tmp_path):
    monkeypatch.setattr(reporting, "is_main", lambda: False)
    everyone = AllLoggers(ConsoleLogger())
    tell_everything(everyone, tmp_path)
    assert told == [] and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(writing, "from_main", lambda mine: "rank 0 could not")
    with pytest.raises(WriteFailedError, match="rank 0 could not"):
        everyone.record(0, {})


def test_all_loggers_end_though_one_cannot(monkeypatch):
    told = []

    class Stuck(Logger):
        def end(self):
            raise WriteFailedError("stuck")

    made = {"a": lambda console: Spy(told, "a"), "b": lambda console: Stuck(), "c": lambda console: Spy(told, "c")}
    monkeypatch.setattr(loggers, "LOGGERS", made)
    monkeypatch.setattr(loggers, "ALWAYS", tuple(made))
    everyone = AllLoggers(ConsoleLogger())
    everyone.begin({}, Path(), 0, [])
    told.clear()
    with pytest.raises(WriteFailedError, match="stuck"):
        everyone.end()
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
        add(patch, "full", lambda console: Full())
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
