"""The progress bar on a terminal, and what every rank but the first keeps to itself."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tinyzero_astar.cli import train
from tinyzero_astar.cli.train import main
from tinyzero_astar.loggers.console import ConsoleLogger

METRICS = {
    "rollout/accuracy": 0.25,
    "rollout/policy_accuracy": 0.5,
    "weight/sum": 1.0,
    "train/policy_loss": 0.1,
    "train/value_loss": 0.2,
    "search/num_decoded_tokens": 1234,
    "search/num_expanded": 1300,
    "time/iteration_s": 2.0,
}


def test_a_terminal_shows_how_many_iterations_are_done_and_the_bar_goes_at_the_end():
    shown = StringIO()
    console = ConsoleLogger(Console(file=shown, force_terminal=True, width=100))
    console.begin({"train": {"num_iterations": 7}}, Path(), 2)
    assert console._progress.tasks[0].completed == 2
    console.iteration(3, METRICS)
    assert console._progress.tasks[0].completed == 3
    console.end()
    console.end()  # there is none any more
    assert "2/7" in shown.getvalue() or "3/7" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, and the bar's line is gone
    assert console._progress is None


def test_a_file_gets_plain_lines_and_no_bar():
    shown = StringIO()
    console = ConsoleLogger(Console(file=shown, width=100))
    console.begin({"train": {"num_iterations": 7}}, Path(), 2)
    console.iteration(3, METRICS)
    console.end()
    assert "iteration   3" in shown.getvalue() and "\x1b" not in shown.getvalue() and "/7" not in shown.getvalue()


def test_warnings_and_errors_go_to_standard_error_and_the_rest_to_standard_output(capsys):
    console = ConsoleLogger()
    console.say("said")
    console.warn("warned")
    console.fail("failed")
    assert capsys.readouterr() == ("said\n", "warning: warned\nerror: failed\n")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_that_shows_the_bar_gets_warnings_above_it(is_terminal, monkeypatch):
    shown, errors = StringIO(), StringIO()
    monkeypatch.setattr("sys.stderr", errors)
    console = ConsoleLogger(Console(file=shown, force_terminal=True, width=100))
    console._errors._force_terminal = is_terminal
    console.begin({"train": {"num_iterations": 7}}, Path(), 2)
    console.warn("warned")
    console.end()
    assert ("warned" in shown.getvalue(), "warned" in errors.getvalue()) == (is_terminal, not is_terminal)


@pytest.mark.parametrize("argv", [["--search.beam-widht", "8"], ["--train.gae-lambda", "2"], ["--resume", "nowhere"]])
def test_a_mistake_that_all_ranks_make_is_told_by_the_first_alone(argv, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "_PATIENCE_S", 0.0)
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        try:
            status = main(argv)
        except SystemExit as leaving:
            status = leaving.code
        assert status == 2
        told.append("".join(capsys.readouterr()))
    assert argv[-1] in told[0] and told[1] == ""
