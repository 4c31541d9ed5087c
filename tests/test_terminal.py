"""What every command does when its output or its installation is not what it hoped for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import unicodedata
from dataclasses import asdict
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast

from tests.test_layers import product_files
from tests.test_run import OPTIONS
from tinyzero_astar import terminal
from tinyzero_astar.cli.doctor import doctor_main
from tinyzero_astar.cli.report import report_main
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import Config
from tinyzero_astar.interfaces import Table
from tinyzero_astar.loggers.console import ConsoleLogger, Terminal
from tinyzero_astar.resources import machine
from tinyzero_astar.resources.machine import Speed
from tinyzero_astar.terminal import complain, counted, printable, run_command

ROOT = Path(__file__).resolve().parents[1]
ENCODINGS = ["cp1252", "ascii", "latin-1", "cp437"]
HOSTILE = "a\x1b[2J\x9b31m\x07\r\u202eb"  # clears the screen, colours, rings, overwrites, turns the direction


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "measure_speed", lambda *a: Speed(1e12, 1e14))
    threads, before = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, before)
    torch.set_num_threads(threads)


@pytest.fixture
def ctrl_c_is_heeded():
    """Even where the tests are a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def run(tiny_base, tmp_path_factory):
    """The folder of a finished run of one iteration."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = [*OPTIONS.split(), "--train.num-iterations", "1", "--output-dir", str(folder)]
    assert main(["--model.model-name", str(tiny_base), *argv]) == 0
    return folder


def commands(run):
    """Each command a user types, cheap."""
    checkpoint = str(run / "checkpoints" / "checkpoint_iter_1")
    quick = ["--model.model-name", checkpoint, *OPTIONS.split(), "--train.num-iterations", "1"]
    return {
        "train": lambda: main([*quick, "--output-dir", "r"]),
        "evaluate": lambda: main(["--eval-only", "--checkpoint", checkpoint, "--eval.num-problems", "4"]),
        "doctor": lambda: doctor_main(quick),
        "solve": lambda: solve_main(["3*4", "--checkpoint", checkpoint]),
        "report": lambda: report_main([str(run)]),
    }


NAMES = ["train", "evaluate", "doctor", "solve", "report"]


def printed(monkeypatch, encoding, run):
    """The status of a command, and what it wrote to a standard output of an encoding."""
    raw = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(raw, encoding=encoding))
    return run_command(run), raw.getvalue().decode(encoding)


@pytest.fixture
def hostile(monkeypatch):
    """The tokenizer decodes to hostile text, but where it is tried on known texts, at loading and prompts."""
    decode = PreTrainedTokenizerFast.decode

    def harmful(text):
        return text if "0123456789" in text or "=?" in text else HOSTILE

    def decoded(self, *args, **options):
        found = decode(self, *args, **options)  # a list, of several texts
        return harmful(found) if isinstance(found, str) else list(map(harmful, found))

    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", decoded)


# ------------------------------------------------------------------------------------------------ the encoding


@pytest.mark.parametrize("name", NAMES)
def test_what_the_output_cannot_encode_is_replaced(name, run, monkeypatch):
    status, text = printed(monkeypatch, "ascii", commands(run)[name])
    assert status == 0 and text
    assert "?" in text or name not in ("train", "solve")  # which print –, and ␣


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_takes_every_character(encoding, monkeypatch):
    kept = "é" if encoding != "ascii" else "?"
    assert printed(monkeypatch, encoding, lambda: print("ŵ é ⏎ \ud800"))[1] == f"? {kept} ? ?\n"


def test_json_is_exact_in_any_encoding(run, monkeypatch, hostile):
    checkpoint = str(run / "checkpoints" / "checkpoint_iter_1")
    status, text = printed(monkeypatch, "ascii", lambda: solve_main(["3*4", "--checkpoint", checkpoint, "--json"]))
    assert status == 0 and json.loads(text)["completion"] == HOSTILE


# --------------------------------------------------------------------------- output that is closed, full or unread


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_behind_the_output_is_one_sentence(name, run, monkeypatch, capfd):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(commands(run)[name]) == 1
        monkeypatch.undo()
    err = capfd.readouterr().err
    assert err == "error: standard output cannot be written (No space left on device); send it elsewhere\n"


@pytest.mark.parametrize("name", NAMES)
def test_output_that_nobody_reads_is_status_141_and_no_word(name, run, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert run_command(commands(run)[name]) == 141
        monkeypatch.undo()
    assert capfd.readouterr().err == ""


def test_a_pipe_that_breaks_in_a_progress_bars_thread_is_noticed_by_the_main_thread(monkeypatch):
    said = []
    monkeypatch.setattr(threading, "excepthook", lambda args: said.append(args.exc_type))
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as broken:
        console = Terminal(file=broken, force_terminal=True)
        thread = threading.Thread(target=lambda: console.print("x"))
        thread.start()
        thread.join()
        assert said in ([], [SystemExit])  # which threading itself passes over in silence
        with pytest.raises(BrokenPipeError), Progress(console=console):
            console.print("x")
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_another_error_of_the_system_is_not_taken_for_the_outputs():
    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_command(fail)


@pytest.mark.parametrize("name", NAMES)
def test_closed_streams_take_everything(name, run, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run_command(commands(run)[name]) == 0
    sys.stdout.close()
    sys.stderr.close()
    monkeypatch.undo()
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------ Ctrl-C

STOPPED = "stopped at once. Only what was saved before is kept\n"


def ctrl_c(turned_into=None):
    """SIGINT, of which a library makes another exception."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        if turned_into is None:
            raise
    raise turned_into


def complaint_about_ctrl_c():
    """As where a model cannot be loaded."""
    try:
        ctrl_c(ImportError("Could not import module"))
    except ImportError as error:
        return complain(error)


@pytest.mark.parametrize(
    "run",
    [
        ctrl_c,
        lambda: ctrl_c(ModuleNotFoundError("Could not import module 'Qwen2ForCausalLM'")),
        lambda: ctrl_c(ModuleNotFoundError("No module named 'torch'", name="torch")),
        lambda: ctrl_c(OSError(5, "Input/output error")),
        lambda: ctrl_c(SystemExit(1)),
        complaint_about_ctrl_c,
    ],
)
def test_ctrl_c_is_one_line_and_status_130_whatever_a_library_makes_of_it(run, ctrl_c_is_heeded, capsys):
    assert run_command(run) == 130
    assert capsys.readouterr() == ("", STOPPED)


def test_the_signal_that_stopped_a_command_gives_the_status(ctrl_c_is_heeded):
    def stopped():
        raise KeyboardInterrupt(signal.SIGTERM)

    assert run_command(stopped) == 143


def test_a_command_after_an_interrupted_one_starts_afresh(ctrl_c_is_heeded):
    assert run_command(ctrl_c) == 130
    assert run_command(lambda: complain("wrong")) == 2


def test_once_more_and_after_the_end_the_system_stops_the_process(ctrl_c_is_heeded):
    def second():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return 0 if signal.getsignal(signal.SIGINT) is signal.SIG_DFL else 1

    assert run_command(second) == 0
    assert run_command(lambda: 0) == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_background_jobs_ignored_ctrl_c_stays_ignored(ctrl_c_is_heeded):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run_command(lambda: signal.raise_signal(signal.SIGINT) or 0) == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


INTERRUPTING = """
import signal, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(Finder)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["train.py"], "tyro"),
        (["train.py", "--eval-only"], "torch"),
        pytest.param(["train.py", "--eval-only"], "tinyzero_astar.run.start", marks=pytest.mark.slow),
        (["-m", "tinyzero_astar", "solve", "3*4"], "tyro"),
        (["-m", "tinyzero_astar", "doctor"], "torch"),
        (["-m", "tinyzero_astar", "report", "run"], "jinja2"),
    ],
)
def test_ctrl_c_while_a_command_imports_is_one_line(command, module, run, tmp_path):
    """Where the package is imported from, `sitecustomize` runs before the command."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING.format(module=module))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [str(ROOT / word) if word == "train.py" else str(run) if word == "run" else word for word in command]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (130, STOPPED)


def test_ctrl_c_that_also_stops_the_reader_of_the_output_is_status_130_and_no_word(ctrl_c_is_heeded, monkeypatch):
    """As in `... 2>&1 | tee log`."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        monkeypatch.setattr(sys, "stderr", broken)
        assert run_command(lambda: print("x") or ctrl_c()) == 130
        broken.flush()  # as the interpreter does at its end
        monkeypatch.undo()


# ------------------------------------------------------------------------------------------- what is not installed


@pytest.mark.parametrize(
    "command", [["train.py"], ["-m", "tinyzero_astar"], ["-m", "tinyzero_astar", "solve", "3*4"]], ids=" ".join
)
def test_without_an_activated_environment_one_sentence_says_how(command):
    """-S means without site-packages, as the system's Python is."""
    done = subprocess.run([sys.executable, "-S", "-E", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {sys.executable} has no package ") and done.stderr.count("\n") == 1
    assert "`make train`" in done.stderr and "`.venv/bin/python`" in done.stderr


def test_a_package_that_is_missing_later_is_the_same_sentence_but_not_a_module_of_ours(capsys):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert run_command(lambda: missing("torch.nn")) == 2
    assert "has no package 'torch.nn': " in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: missing("tinyzero_astar.nowhere"))


def test_an_old_python_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(terminal.sys, "version_info", (3, 10, 9))
    assert run_command(lambda: 0) == 2
    assert capsys.readouterr().err == f"error: Python 3.11 or newer is needed, and {sys.executable} is older\n"


def test_nothing_says_that_an_index_has_the_package():
    """No index does. `pip install -e '.[plot]'` is what works."""
    files = [*product_files(), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert [str(file) for file in files if "tinyzero-astar[" in file.read_text(encoding="utf-8")] == []


# ------------------------------------------------------------------------------------------------------ numbers


def test_one_thing_has_no_plural():
    assert [counted(n, "beam") for n in (0, 1, 2)] == ["0 beams", "1 beam", "2 beams"]


# -------------------------------------------------------------------------------------- text of foreign origin


def test_nothing_that_a_terminal_obeys_is_printable():
    assert printable(HOSTILE) == "a�[2J�31m���b"
    assert printable("a\nŵ ⏎") == "a\nŵ ⏎"


def test_control_and_direction_characters_are_not_printable_wherever_unicode_has_them():
    controls = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert {"\x1b", "\x9b", "\x7f", "\u202e", "\u2066", "\u2028", "\ud800", "\U000e0041"} <= set(controls)
    assert set(printable("".join(controls))) == {"\n", "\N{REPLACEMENT CHARACTER}"}


def test_what_a_model_wrote_is_no_picture(capsys):
    ConsoleLogger().say(":smile: :warning: [bold]x[/] \\[y]")
    assert capsys.readouterr().out == ":smile: :warning: [bold]x[/] \\[y]\n"


def test_a_lack_of_memory_is_one_sentence_and_status_1(capsys):
    def allocate(error):
        raise error

    told = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    for error in (RuntimeError(told), MemoryError()):
        assert terminal.run_command(lambda error=error: allocate(error)) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: there is not enough memory (") and err.count("\n") == 1
    with pytest.raises(RuntimeError, match="another"):
        terminal.run_command(lambda: allocate(RuntimeError("another")))


def test_hostile_text_reaches_the_terminal_harmless(capsys):
    console = ConsoleLogger()
    console.say(HOSTILE)
    console.warn(HOSTILE)
    console.fail(HOSTILE)
    console.evaluation(0, {}, [Table(HOSTILE, [(HOSTILE, HOSTILE)])])
    console.samples(1, [[dict.fromkeys(("problem", "completion", "reason"), HOSTILE)]])
    terminal.complain(HOSTILE)
    out, err = capsys.readouterr()
    assert out.count("a�[2J�31m���b") == 7 and err.count("a�[2J�31m���b") == 3
    assert all(c.isprintable() or c == "\n" for c in out + err)


def test_a_hostile_model_name_and_completion_reach_it_harmless(run, tmp_path, hostile, capsys):
    folder = tmp_path / "[red]\x1b[2J"
    folder.symlink_to(run / "checkpoints" / "checkpoint_iter_1")
    assert doctor_main(["--model.model-name", str(folder)]) == 0
    out = "".join(capsys.readouterr().out.split())
    assert "[red]�[2J" in out and "\x1b" not in out
    assert solve_main(["3*4", "--checkpoint", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "a�[2J�31m���b" in out and "\x1b" not in out + err and "\x9b" not in out


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (0.25, "accuracy  25 %  found 100 % of 256  guide on (.25)"),
        (None, "accuracy   –    found 100 % of 256  guide on (–)  "),
    ],
)
def test_what_could_not_be_measured_is_a_dash(measured, text, capsys):
    names = ("rollout/accuracy", "guidance/is_open", "search/num_decoded_tokens", "time/iteration_s")
    console = ConsoleLogger()
    console.begin(asdict(Config()), Path(), 0, [])
    console.iteration(1, dict.fromkeys(names, 1.0) | {"rollout/policy_accuracy": measured}, measured)
    assert f"\n 1/30  {text}       1 tokens   1.0 s\n" in capsys.readouterr().out


@pytest.mark.parametrize("is_under_torchrun", [False, True])
def test_a_process_of_torchrun_ends_at_once_and_loses_no_output(is_under_torchrun):
    """Others end in order. What is registered to run at the interpreter's end still does."""
    code = (
        "import atexit; from tinyzero_astar.terminal import end_process;"
        "atexit.register(print, 'in order'); print('said', end=' '); end_process(3)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    environment |= {"TORCHELASTIC_RUN_ID": "x"} if is_under_torchrun else {}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (3, ["said"] if is_under_torchrun else ["said", "in", "order"])
