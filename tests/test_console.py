"""What a person reads of a run, from the facts and the legend to the end.

The view of a terminal has tests/test_live.py.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.test_run import OPTIONS, records
from tinyzero_astar.cli import train
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import Config
from tinyzero_astar.interfaces import Table
from tinyzero_astar.loggers.console import ConsoleLogger, has_guidance
from tinyzero_astar.loggers.text import broken, percent, short_count
from tinyzero_astar.run.summary import commands, summary

METRICS = {
    "rollout/accuracy": 0.25,
    "rollout/policy_accuracy": 0.5,
    "guidance/is_open": 0.0,
    "search/num_decoded_tokens": 1234,
    "time/iteration_s": 2.0,
}
LONG = "a sentence of many words that is much longer than a line of eighty columns can hold, and goes on"


def changed(**fields):
    """The sections of a configuration with some fields changed, as in train__num_iterations=7."""
    config = Config()
    for name, value in fields.items():
        section, key = name.split("__")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config


def begun(config=None, done=0, known=(), is_terminal=False, width=80):
    """A console after the beginning of a run, and what it has shown."""
    shown = StringIO()
    console = ConsoleLogger(Console(file=shown, force_terminal=is_terminal, width=width, highlight=False))
    console.begin(asdict(config or changed(train__num_iterations=7)), Path(), done, known)
    return console, shown


def lines_of(config, *iterations, known=(), done=0):
    """The lines of iterations, each told as (number, metrics, ranking)."""
    console, shown = begun(config, done, known)
    shown.truncate(shown.seek(0))
    for number, metrics, ranking in iterations:
        console.iteration(number, METRICS | metrics, ranking)
    return shown.getvalue().splitlines()


# ------------------------------------------------------------------------------------------------- an iteration


def test_the_line_of_an_iteration_says_how_right_the_policy_is_what_was_found_and_whether_it_was_guided():
    first, second = lines_of(
        Config(), (9, {"rollout/policy_accuracy": 0.031}, None), (10, {"guidance/is_open": 1.0}, 0.628)
    )
    assert first == " 9/30  accuracy 3.1 %  found  25 % of 256  guide off (–)    1.2 k tokens   2.0 s"
    assert second == "10/30  accuracy  50 %  found  25 % of 256  guide on (.63)   2.5 k tokens   2.0 s"


@pytest.mark.parametrize(("num_iterations", "num_leaves"), [(30, 8), (100, 16), (1000, 128)])
def test_the_line_of_an_iteration_fits_into_80_columns(num_iterations, num_leaves):
    config = changed(train__num_iterations=num_iterations, search__num_rollouts_per_problem=num_leaves)
    worst = {"rollout/accuracy": 1.0, "rollout/policy_accuracy": 1.04, "time/iteration_s": 1234.5}
    counts = {"search/num_decoded_tokens": 612_000}
    (line,) = lines_of(config, (num_iterations, worst | counts, 0.51))
    assert len(line) <= 80 and f"of {32 * num_leaves} " in line and line.endswith(" 1234 s")


@pytest.mark.parametrize(
    "fields",
    [{"search__mode": "sample"}, {"search__guidance_strength": 0.0}, {"train__algorithm": "grpo"}],
)
def test_a_run_without_guidance_says_nothing_of_it(fields):
    assert has_guidance(asdict(Config())) and not has_guidance(asdict(changed(**fields)))
    (line,) = lines_of(changed(**fields), (1, {}, None))
    assert "guide" not in line and "guide" not in begun(changed(**fields))[1].getvalue()


def test_tokens_are_those_of_the_whole_run_also_of_earlier_processes_and_references():
    known = [{"iteration": 0}, {"iteration": 1, "search/num_decoded_tokens": 100_000}]
    console, shown = begun(Config(), 2, known)
    console.record(2, METRICS | {"reference/num_decoded_tokens": 9_000})  # what the earlier one left to do
    console.iteration(3, METRICS, None)
    console.record(3, METRICS)  # which counts once
    console.iteration(4, METRICS, None)
    first, second = (line for line in shown.getvalue().splitlines() if "/30" in line)
    assert " 111 k tokens" in first and " 113 k tokens" in second


def test_shares_and_counts_are_short():
    assert [percent(x) for x in (0, 0.004, 0.0994, 0.0996, 1.0, None)] == [
        *("0.0 %", "0.4 %", "9.9 %", " 10 %", "100 %", "  –  ")
    ]
    assert [short_count(n) for n in (0, 999, 1000, 9_940, 9_960, 61_400, 999_600, 2**31)] == [
        *("0", "999", "1.0 k", "9.9 k", "10 k", "61 k", "1.0 M", "2.1 G")
    ]


# ----------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("mode", ["gumbel", "sample", "best_first"])
def test_the_legend_explains_every_word_of_a_line_once_and_fits_into_80_columns(mode):
    console, shown = begun(changed(search__mode=mode))
    legend = shown.getvalue()
    console.iteration(1, METRICS, None)
    words = re.findall("[a-z]+", shown.getvalue().splitlines()[-1].replace("off", "").replace(" k ", ""))
    for word in {*words, "held out"} - {"of"}:
        assert len(re.findall(f"^{word} ", legend, re.MULTILINE)) == 1
    told = " ".join(legend.split())
    assert ("no accuracy" in told) == (mode != "sample") and ("unknown" in told) == (mode == "best_first")
    assert max(map(len, legend.splitlines())) <= 80
    assert begun(Config(), done=30)[1].getvalue() == ""  # nothing is left to train


@pytest.mark.parametrize("how", ["terminal", "COLUMNS", "pipe"])
def test_sentences_are_broken_at_words_where_the_width_is_known_and_commands_never(how, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    if how == "COLUMNS":
        monkeypatch.setenv("COLUMNS", "80")
    console = ConsoleLogger()
    for own in (console.console, console._errors):
        own._force_terminal, own._color_system = how == "terminal", None
        own._width = 80 if how == "terminal" else None
    console.fact("name", LONG)
    console.warn(LONG)
    console.command("do", f"it --with {LONG}")
    console.evaluation(0, {}, [Table(LONG, [("x", LONG)])])
    console.samples(1, [[{"problem": LONG, "completion": LONG, "reason": "right"}]])
    out, err = capsys.readouterr()
    *_, command = [line for line in out.splitlines() if line.startswith("do ")]
    assert command == f"do        it --with {LONG}"
    longest = max(len(line) for line in (out + err).splitlines() if line != command)
    assert longest <= 80 if how != "pipe" else longest > 100
    assert " ".join(err.split()) == f"warning: {LONG}" and err.count("\n") == (1 if how == "pipe" else 2)
    assert how == "pipe" or out.splitlines()[1].startswith(" " * 10)  # under the text, not under the name


def test_what_is_longer_than_a_line_stays_whole():
    assert broken(f"see /a/{'b' * 90} there", 80, "  ") == f"see\n  /a/{'b' * 90}\n  there"


def test_an_evaluation_between_the_first_and_the_last_is_one_line():
    console, shown = begun(Config())
    shown.truncate(shown.seek(0))
    names = ("greedy_accuracy", "greedy_accuracy_low", "greedy_accuracy_high", "greedy_format")
    metrics = {f"eval/{name}": x for name, x in zip(names, (0.845, 0.788, 0.889, 1.0), strict=True)}
    table, decoding = Table("title", [("x", "1")]), Table("decoding", [("y", "2")])
    console.evaluation(5, metrics | {"eval/num_problems": 200}, [table, decoding])
    line, *rest = shown.getvalue().splitlines()
    assert line == " 5/30  held out 84.5 % [78.8, 88.9] of 200 right, 100 % well-formed"
    assert rest == ["decoding", "  y  2"]
    shown.truncate(shown.seek(0))
    console.evaluation(30, metrics | {"eval/num_problems": 200, "eval/sampled_format": 1.0}, [table])
    assert shown.getvalue() == "title\n  x  1\n"


# ---------------------------------------------------------------------------------------------------- a whole run


def test_a_run_tells_its_story_in_80_columns(tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    argv = ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--train.num-iterations", "2"]
    assert main([*argv, "--output-dir", "r"]) == 0
    told = capsys.readouterr()
    assert max(len(x) for x in (told.out + told.err).splitlines() if str(tiny_base) not in x) <= 80
    rows = records(Path("r"))
    num_tokens = sum(row.get("search/num_decoded_tokens", 0) for row in rows)
    before, after = (100 * row["eval/greedy_accuracy"] for row in (rows[0], rows[-1]))
    assert re.search(rf"^held out  from {before:.1f} % \[.*\] to {after:.1f} % \[.*\] right in 2 iter", told.out, re.M)
    assert (
        f"\ncost      {num_tokens:,} tokens decoded for training," in told.out
        and "\nguidance  used in 0 of 2 iter" in told.out
    )
    assert (Path("r") / "checkpoints" / "checkpoint_iter_2" / "README.md").is_file()
    assert "\ncard      r/checkpoints/checkpoint_iter_2/README.md\npage      r/report.html\n" in told.out


def test_the_end_says_what_the_records_say():
    accuracy = "eval/greedy_accuracy"
    found = {accuracy: 0.002, f"{accuracy}_low": 0.0, f"{accuracy}_high": 0.011}
    last = {accuracy: 0.98, f"{accuracy}_low": 0.964, f"{accuracy}_high": 0.989}
    trained = [{"iteration": i, "guidance/is_open": float(i > 1), "guidance/reason": f"why {i}"} for i in (1, 2, 3)]
    tokens = {"search/num_decoded_tokens": 1000, "reference/num_decoded_tokens": 10, "time/iteration_s": 2.0}
    rows = [{"iteration": 0} | found, *(row | tokens for row in trained)]
    rows[1] = rows[1] | found | {accuracy: 0.5}
    rows[3] = rows[3] | last
    assert dict(summary(Config(), rows)) == {
        "held out": "from 0.2 % [0.0, 1.1] to 98.0 % [96.4, 98.9] right in 3 iterations",
        "cost": "3,030 tokens decoded for training, 6 s of search and update",
        "guidance": "used in 2 of 3 iterations. At the end why 3",
    }
    del rows[2]["time/iteration_s"]  # the process was stopped there
    assert dict(summary(Config(), rows))["cost"].endswith(", at least 4 s of search and update")
    assert dict(summary(Config(), rows[:1])) == {"held out": "0.2 % [0.0, 1.1] right after 0 iterations"}
    assert dict(summary(changed(search__mode="sample"), rows))["guidance"].startswith("none: mode sample")
    assert dict(summary(changed(search__guidance_strength=0.0), rows))["guidance"].startswith("none: search.guid")
    assert dict(summary(Config(), [])) == {}  # somebody damaged them


def test_commands_can_be_pasted():
    told = dict(commands(Path("my runs"), "3*4"))
    assert (
        told["tree"] == "tinyzero solve '3*4' --checkpoint 'my runs'" and told["evaluate"] == "tinyzero eval 'my runs'"
    )
    assert dict(commands(Path("r"), LONG))["tree"] == "tinyzero solve QUESTION --checkpoint r"


# ------------------------------------------------------------------------------------- plain lines, errors, ranks


def test_a_file_gets_plain_lines_and_no_view():
    console, shown = begun(done=2)
    console.iteration(3, METRICS, None)
    console.end()
    assert "\n3/7  accuracy" in shown.getvalue() and "\x1b" not in shown.getvalue()
    assert "2/7" not in shown.getvalue() and console._view is None


def test_warnings_and_errors_go_to_standard_error_and_the_rest_to_standard_output(capsys):
    console = ConsoleLogger()
    console.say("said")
    console.warn("warned")
    console.fail("failed")
    assert capsys.readouterr() == ("said\n", "warning: warned\nerror: failed\n")


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
