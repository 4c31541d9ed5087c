"""The view that a terminal shows of a run, as a terminal shows it (pyte), and line by line."""

from __future__ import annotations

import io
import logging
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pyte
import pytest
from rich.console import Console

from tests.test_console import METRICS, changed
from tests.test_run import OPTIONS, records
from tinyzero_astar.cli.train import main
from tinyzero_astar.loggers import live
from tinyzero_astar.loggers.console import ConsoleLogger, Terminal
from tinyzero_astar.loggers.live import LiveView
from tinyzero_astar.loggers.text import percent, sparkline

HOSTILE = "[red]a[/]\x1b[2J\x9b31m\x07\x00\r\u202eb\nc " + "long " * 60
SAMPLE = {"problem": "23*41", "completion": "20*41=820</think>943", "reason": "correct", "accuracy": 1.0, "format": 1.0}
WRONG = SAMPLE | {"problem": "6*7", "completion": "43", "reason": "wrong integer", "accuracy": 0.0}
FULL = METRICS | {
    "rollout/policy_accuracy": 0.64,
    "guidance/is_open": 1.0,
    "guidance/reason": "AUC 0.91 (bound 0.6), sibling ranking 0.94 (bound 0.55)",
    "train/num_tokens": 9000,
    "time/search_s": 2.0,
    "time/update_s": 3.0,
    "alarms": [],
}
EVALUATION = {"eval/greedy_accuracy": 0.845, "eval/greedy_accuracy_low": 0.788, "eval/greedy_accuracy_high": 0.889}


class Clock:
    """Seconds that stand still."""

    now = 0.0

    def __call__(self):
        return self.now


class Shown(io.StringIO):
    """A terminal of so many columns and lines, and what stands on it."""

    encoding = "utf-8"

    def __init__(self, width=80, height=24):
        super().__init__()
        self.width, self.height = width, height

    def isatty(self):
        return True

    def screen(self):
        screen = pyte.HistoryScreen(self.width, self.height, history=1000)
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        above = ["".join(line[x].data for x in range(self.width)).rstrip() for line in screen.history.top]
        return [*above, *(line.rstrip() for line in screen.display)]


def viewed(total=50, clock=None, width=80, height=24, **options):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    return LiveView(console, total, options.pop("has_guidance", True), 256, clock=clock or Clock(), **options)


def filled(**options):
    """In iteration 12, after evaluations at 0, 5 and 10."""
    view = viewed(**options)
    for number in range(13):
        if number:
            view._clock.now += 6.0
            view.iteration(number, FULL | {"rollout/policy_accuracy": number / 15}, 1000 * number)
        if number % 5 == 0:
            view.evaluation(number, EVALUATION | {"eval/greedy_accuracy": number / 12})
    view.samples(10, [SAMPLE, WRONG, SAMPLE | {"problem": "third"}])
    return view


def text_of(view, width=80, height=24):
    return [line.plain.rstrip() for line in view.lines(width, height)]


# ------------------------------------------------------------------------------------------------ line by line


def test_the_view_says_how_far_how_right_how_fast_whether_guided_and_why():
    assert text_of(filled()) == [
        "iteration  12/50 ━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ 72 s, 3.8 min left",
        "accuracy   ▁▂▂▃▃▄▄▅▅▆▆▇ 80 % in training",
        "held out   ▁▄▇ 83 % [78.8, 88.9] at iteration 10",
        "found      25 % of 256 completions right",
        "guidance   on: AUC 0.91 (bound 0.6), sibling ranking 0.94 (bound 0.55)",
        "speed      search 617/s, update 3.0 k/s, 12 k tokens decoded",
        "alarms     none",
        "completions that iteration 10 ranked first, 1 and 2 of 3",
        "question   23*41",
        "right      20*41=820</think>943  (correct)",
        "question   6*7",
        "wrong      43  (wrong integer)",
    ]


def test_before_the_first_iteration_and_without_guidance_or_speed_it_says_less():
    view = viewed(has_guidance=False)
    bar = "╌" * 32
    assert text_of(view) == [f"iteration  0/50 {bar} 0 s", "accuracy   – in training", f"{'':11s}{live._WAITING}"]
    view.iteration(1, METRICS | {"rollout/policy_accuracy": None}, 7)
    told = text_of(view)
    assert told[1] == "accuracy   – in training" and "speed      search –, update –, 7 tokens decoded" in told
    assert not any(line.startswith("guidance") for line in told)


def test_alarms_are_shown_while_they_hold_with_when_they_began():
    view = viewed()
    for number, names in ((1, []), (2, ["ratio"]), (3, ["no_gradient", "ratio"]), (4, ["ratio"])):
        view.iteration(number, FULL | {"alarms": names}, 0)
    (line,) = (line for line in view.lines(80, 24) if "alarms" in line.plain)
    assert line.plain == "alarms     ratio since iteration 2" and "red" in str(line.spans)


def test_the_time_left_is_that_of_the_last_iterations_and_runs_down():
    clock = Clock()
    view = viewed(total=30, clock=clock)
    assert view.seconds_left(0.0) is None
    for number, end in enumerate([40.0, *range(42, 62, 2)], 1):  # the first one took longer
        clock.now = float(end)
        view.iteration(number, FULL, 0)
    assert view.seconds_left(60.0) == pytest.approx(19 * 2.0) and view.seconds_left(61.5) == pytest.approx(36.5)
    assert view.seconds_left(600.0) == 0.0
    view.stop()
    assert view.seconds_left(60.0) is None


def test_bars_have_eight_heights_and_means_of_neighbours():
    assert sparkline([0.0, 0.124, 0.126, 0.99, 1.0, 1.3, -0.1, None], 20) == "▁▁▂███▁ "
    assert sparkline([0.0, 0.5, 1.0, 1.0, None, 0.25], 3) == "▃█▃"
    assert sparkline([], 5) == "" == sparkline([0.5], 0)


@pytest.mark.parametrize("width", [20, 40, 80, 120])
@pytest.mark.parametrize("height", [2, 6, 14, 24, 50])
def test_the_view_fits_into_every_terminal(width, height):
    view = filled()
    view.samples(12, [SAMPLE | {"completion": HOSTILE, "problem": HOSTILE, "reason": HOSTILE}, SAMPLE])
    lines = view.lines(width, height)
    assert 0 < len(lines) < height and max(line.cell_len for line in lines) <= width
    assert all(c.isprintable() for line in lines for c in line.plain)


def test_every_sample_has_its_turn_coloured_by_its_verdict_and_the_view_does_not_jump():
    view, seen = filled(), set()
    view.samples(10, [SAMPLE, WRONG, SAMPLE | {"problem": "third", "completion": "x" * 130}])
    heights = set()
    for _ in range(3):
        lines = view.lines(80, 24)
        heights.add(len(lines))
        seen |= {line.plain.split()[1] for line in lines if line.plain.startswith("question")}
        for line in lines:
            if line.plain.startswith(("right", "wrong")):
                assert ("green" if line.plain.startswith("right") else "red") in str(line.spans)
        view._clock.now += live._ROTATION_S
    assert seen == {"23*41", "6*7", "third"} and len(heights) == 1


def test_of_a_long_completion_the_middle_goes_as_it_ends_with_its_answer():
    view = filled()
    view.samples(10, [SAMPLE | {"completion": "begin " + "and so on " * 100 + "<answer>943</answer>"}])
    told = " ".join(text_of(view))
    assert "right      begin" in told and "<answer>943</answer>  (correct)" in told and " … " in told


def test_a_resumed_run_begins_with_what_is_known():
    view = viewed()
    view.earlier(2, [{"iteration": 0, **EVALUATION}, *({"iteration": i} | FULL for i in (1, 2))])
    view.tokens(5000)
    told = text_of(view)
    assert told[0].startswith("iteration  2/50") and told[1] == "accuracy   ▆▆ 64 % in training"
    assert told[2].startswith("held out   ▇ 84 % [78.8, 88.9] at iteration 0") and "5.0 k tokens decoded" in told[5]


# ------------------------------------------------------------------------------------------------- on a terminal


@pytest.fixture
def open_terminal(monkeypatch):
    """Makes a terminal of 80 columns and 24 lines the standard output and error of a test."""
    for name in ("NO_COLOR", "COLUMNS", "LINES", "TERM", "TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")

    def make():  # in the test itself, as pytest has streams of its own for each phase
        shown = Shown()
        monkeypatch.setattr(sys, "stdout", shown)
        monkeypatch.setattr(sys, "stderr", shown)
        return shown

    return make


def begun(total=7):
    console = ConsoleLogger()
    console.begin(asdict(changed(train__num_iterations=total)), Path(), 0, [])
    return console


def place_of(screen, word):
    """The one line that starts so."""
    places = starts(screen, word)
    assert len(places) == 1, screen
    return places[0]


def starts(screen, word):
    return [i for i, line in enumerate(screen) if line.startswith(word)]


def test_whatever_is_written_goes_above_the_view_and_the_view_stays_one(open_terminal):
    terminal = open_terminal()
    handler = logging.StreamHandler()
    logger = logging.getLogger("tests.live")
    logger.addHandler(handler)
    console = begun()
    for number in (1, 2, 3):
        console.iteration(number, FULL, None)
        print(f"printed {number}")
        print(f"noted {number}", file=sys.stderr)
        logger.error("logged %d", number)
        console.warn(f"warned {number}")
    console.samples(3, [[SAMPLE | {"completion": HOSTILE}]])
    console._view._live.refresh()
    console.end()
    console.end()  # it has ended already
    assert handler.stream is terminal and sys.stderr is terminal
    logger.removeHandler(handler)
    console.say("good bye")
    screen = terminal.screen()
    place = place_of(screen, "iteration")
    assert screen[place].startswith("iteration  3/7 ")
    for word in ("printed", "noted", "logged", "warning: warned"):
        assert [screen[i] for i in starts(screen, word)] == [f"{word} {n}" for n in (1, 2, 3)]
        assert max(starts(screen, word)) < place < starts(screen, "good bye")[0]
    assert screen[-1] == ""
    assert "[red]a[/]" in " ".join(screen[place:]) and terminal.getvalue().count("\x1b[2J") == 0
    assert terminal.getvalue().endswith("good bye\n") and "\x1b[?25h" in terminal.getvalue()  # the cursor is back


def test_errors_that_go_to_a_file_stay_there(open_terminal, monkeypatch):
    terminal = open_terminal()
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    console = begun()
    console.warn("warned")
    print("noted", file=sys.stderr)
    console.end()
    assert errors.getvalue() == "warning: warned\nnoted\n" and "warned" not in terminal.getvalue()


@pytest.mark.parametrize(("term", "encoding"), [("dumb", "utf-8"), ("xterm", "ascii")])
def test_a_terminal_that_cannot_show_it_gets_plain_lines(term, encoding, open_terminal, monkeypatch):
    terminal = open_terminal()
    monkeypatch.setenv("TERM", term)
    terminal.encoding = encoding
    console = begun()
    console.iteration(1, FULL, None)
    console.end()
    told = terminal.screen()
    assert any("a line for each iteration" in line for line in told)
    assert any(line.startswith("1/7  accuracy  64 %  found  25 % of 256") for line in told)
    assert starts(told, "iteration  ") == []


def test_a_rank_other_than_0_shows_nothing_on_its_terminal(open_terminal):
    terminal = open_terminal()
    console = ConsoleLogger(is_silent=True)
    console.begin(asdict(changed()), Path(), 0, [])
    console.iteration(1, FULL, None)
    console.samples(1, [[SAMPLE]])
    console.end()
    assert terminal.getvalue() == "" and console._view is None


def test_a_run_on_a_terminal_ends_with_its_view_and_what_it_came_to(tiny_base, tmp_path, monkeypatch, open_terminal):
    terminal = open_terminal()
    monkeypatch.chdir(tmp_path)
    argv = ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--train.num-iterations", "2"]
    assert main([*argv, "--output-dir", "r"]) == 0
    screen = terminal.screen()
    place = place_of(screen, "iteration  ")
    assert screen[place].startswith("iteration  2/2 ") and "left" not in screen[place]
    last = records(Path("r"))[-1]
    assert f"found      {percent(last['rollout/accuracy']).strip()} of 12 completions right" in screen
    assert re.search(r"search [\d.]+( k)?/s, update [\d.]+( k)?/s", screen[starts(screen, "speed")[0]])
    assert starts(screen, "held out-") == [] and max(starts(screen, "held out")) > place  # the summary is below it
    assert not any("a line for each iteration" in line for line in screen)
    assert isinstance(ConsoleLogger().console, Terminal)
