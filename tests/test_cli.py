"""What the command line understands, and that it refuses the rest before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinyzero_astar.cli.options import parse
from tinyzero_astar.cli.train import main
from tinyzero_astar.config_json import to_json
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run.folder import CONFIG

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test starts in an empty folder, and leaves PyTorch's threads as they were."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def words(line):
    return line.split()


def exit_of(argv, capsys):
    """Status and stderr, in one line, of a command that the parser itself refuses."""
    with pytest.raises(SystemExit) as stopped:
        parse(argv)
    return stopped.value.code, " ".join(capsys.readouterr().err.split())


def refusal(argv, capsys):
    """The one line of a refused command."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in out + err
    return err.removeprefix("error: ").rstrip("\n")


# ----------------------------------------------------------------------------------------- what is understood


def test_no_argument_means_preset_tiny():
    command = parse([])
    assert command.config == "tiny"
    for section in ("model", "data", "reward", "search", "value", "train", "eval", "run"):
        assert getattr(command, section) == getattr(PRESETS["tiny"], section)
    assert (command.output_dir, command.resume, command.checkpoint, command.eval_only) == (
        None,
        None,
        None,
        False,
    )


@pytest.mark.parametrize("line", ["--config {}", "--config={}"])
@pytest.mark.parametrize("preset", PRESETS)
def test_config_chooses_the_preset(line, preset):
    command = parse(words(line.format(preset)))
    assert command.config == preset
    assert (command.model, command.train) == (PRESETS[preset].model, PRESETS[preset].train)


def test_the_last_of_several_presets_counts_with_its_values():
    for line in ("--config local --config training", "--config=local --config training"):
        command = parse(words(line))
        assert command.config == "training" and command.model == PRESETS["training"].model


@pytest.mark.parametrize("option", ["--search.beam-width 9", "--search.beam_width 9", "--search.beam-width=9"])
def test_fields_are_options_with_dash_or_underscore(option):
    for argv in (["--config", "training", *words(option)], [*words(option), "--config", "training"]):
        command = parse(argv)
        assert command.search.beam_width == 9 != PRESETS["training"].search.beam_width
        assert command.search.num_rollouts_per_problem == PRESETS["training"].search.num_rollouts_per_problem


def test_options_with_several_types():
    assert parse(words("--search.inverse-beta 2.5")).search.inverse_beta == 2.5
    assert parse(words("--search.inverse-beta balanced")).search.inverse_beta == "balanced"
    assert parse(words("--search.weight-cap None --search.root-tilt 0")).search.weight_cap is None


def test_documented_commands_are_understood():
    command = parse(words("--config training --eval-only --checkpoint checkpoints/checkpoint_iter_100.pt"))
    assert command.eval_only and command.checkpoint == Path("checkpoints/checkpoint_iter_100.pt")
    assert parse(words("--resume runs/tiny-001")).resume == Path("runs/tiny-001")
    assert parse(words("--eval-only --eval.num-problems 7")).eval.num_problems == 7
    assert parse(words("--eval-only --checkpoint c --eval.num-problems 7")).eval.num_problems == 7


# ------------------------------------------------------------------------------------ what the parser refuses


def test_a_typo_is_answered_with_the_nearest_name(capsys):
    status, err = exit_of(words("--search.beam-widht 8"), capsys)
    assert status == 2
    assert "--search.beam-widht" in err and "--search.beam-width " in err


@pytest.mark.parametrize("line", ["--config nope", "--config=nope"])
def test_an_unknown_preset_is_answered_with_the_known_ones(line, capsys):
    sentence = refusal(words(line), capsys)
    assert "nope" in sentence and all(f"'{preset}'" in sentence for preset in PRESETS)


@pytest.mark.parametrize(
    "line", ["--search.beam-width x", "--train.num-epochs 1.5", "--search.mode astar", "--config", "--stray"]
)
def test_wrong_values_and_stray_words_exit_with_2(line, capsys):
    status, err = exit_of(words(line), capsys)
    assert status == 2 and words(line)[-1] in err


# ------------------------------------------------------------------------------------------ what main refuses


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ("--train.gae-lambda 2", "train.gae_lambda 2.0 is out of range: it must lie between 0 and 1"),
        ("--run.seed -1", "run.seed -1 is out of range: it must lie between 0 and "),
        ("--reward.format nan", "reward.format nan is out of range: "),
        ("--search.beam-width 1", "beam_width 1 must be at least num_rollouts_per_problem + 1 = 2: "),
        ("--checkpoint c", "--checkpoint c goes with --eval-only; to continue a run use --resume RUN"),
        ("--resume r --eval-only", "--resume and --eval-only exclude each other"),
        ("--resume r --checkpoint c", "--checkpoint c goes with --eval-only"),
        ("--resume r --train.num-epochs 2", "--resume r continues with the run's own configuration"),
        ("--resume r --output-dir o", "--resume r continues with the run's own configuration"),
        ("--resume r", "--resume r: there is no such folder; name the folder of a run"),
        ("--resume .", "--resume .: no checkpoint in checkpoints; name the folder of a run"),
        ("--eval-only --output-dir o", "--output-dir o is for training"),
        ("--eval-only --checkpoint c", "checkpoint c: no checkpoint folder found; looked for c"),
        (
            "--eval-only --checkpoint c --data.max-digits 3",
            "checkpoint c is evaluated with its own configuration: leave out all options but --eval.*",
        ),
        ("--model.model-name ./nowhere", "model_name './nowhere': no folder with a config.json there"),
        ("--eval-only --model.model-name ./nowhere", "model_name './nowhere': no folder with a config.json"),
        ("--data.min-digits 1 --data.max-digits 1", "num_problems is 2000, but only "),
    ],
)
def test_one_sentence_says_what_is_wrong_and_nothing_is_written(line, start, capsys, elsewhere):
    assert refusal(words(line), capsys).startswith(start)
    assert list(elsewhere.iterdir()) == []


def test_a_missing_checkpoint_names_the_places_and_the_newest_run(capsys, elsewhere):
    (elsewhere / "runs" / "tiny-001").mkdir(parents=True)
    sentence = refusal(words("--eval-only --checkpoint checkpoints/checkpoint_iter_3.pt"), capsys)
    places = ["checkpoints/checkpoint_iter_3.pt", "checkpoints/checkpoint_iter_3"]
    places += [f"runs/tiny-001/{place}" for place in places]
    assert sentence.endswith("looked for " + ", ".join(places))


def test_a_folder_that_holds_a_run_is_not_written_to(capsys, elsewhere, tiny_base):
    run = elsewhere / "mine"
    run.mkdir()
    (run / CONFIG).write_text("kept")
    sentence = refusal(["--output-dir", "mine", "--model.model-name", str(tiny_base)], capsys)
    assert sentence.startswith("--output-dir mine already holds a run; name another folder, or continue it")
    assert {p: p.read_text() for p in elsewhere.rglob("*") if p.is_file()} == {run / CONFIG: "kept"}


def test_a_run_with_a_damaged_configuration_is_not_continued(capsys, elsewhere):
    (elsewhere / "r" / "checkpoints" / "checkpoint_iter_1").mkdir(parents=True)
    assert refusal(words("--resume r"), capsys).startswith("r/config.json does not exist: ")
    text = to_json(PRESETS["tiny"])
    for damaged in (text[:-5], text.replace("beam_width", "beam_widht"), text.replace("0.2,", '"0.2",')):
        (elsewhere / "r" / CONFIG).write_text(damaged)
        assert refusal(words("--resume r"), capsys).startswith("r/config.json")
    assert len(list(elsewhere.rglob("*"))) == 4


def test_prompts_that_do_not_fit_are_refused_before_the_run_begins(capsys, elsewhere, tiny_base):
    for also in ([], ["--eval-only"]):
        argv = [
            *words("--data.template conversation --model.max-seq-length 20 --data.num-problems 70"),
            *words("--eval.num-problems 10"),
            "--model.model-name",
            str(tiny_base),
            *also,
        ]
        assert refusal(argv, capsys).startswith("max_seq_length 20 leaves no room after a prompt of ")
    assert list(elsewhere.iterdir()) == []


def test_a_damaged_model_is_refused(capsys, elsewhere, tiny_base):
    model = elsewhere / "model"
    model.mkdir()
    for file in tiny_base.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    sentence = refusal(["--model.model-name", str(model)], capsys)
    assert sentence.startswith(f"model_name '{model}'")
    assert not (elsewhere / "runs").exists()


# ---------------------------------------------------------------------------------------- how fast it answers


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--help"], 0),
        (["--search.beam-widht", "8"], 2),
        (["--search.beam-width", "1"], 2),
        (["--eval-only", "--checkpoint", "nowhere"], 2),
        (["--resume", "nowhere"], 2),
    ],
)
def test_help_and_mistakes_do_not_wait_for_torch(argv, status, elsewhere):
    program = (
        "import sys\n"
        "from tinyzero_astar.cli.train import main\n"
        "try:\n"
        "    status = main(sys.argv[1:])\n"
        "except SystemExit as stopped:\n"
        "    status = stopped.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print('loaded:', sorted(heavy), 'status:', status)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1:] == [f"loaded: [] status: {status}"], done.stderr
    if argv == ["--help"]:
        for option in ("--config {tiny,small,local,training}|FILE.toml", "--search.beam-width INT", "--eval-only"):
            assert option in done.stdout


def test_the_launcher_passes_the_status_on(elsewhere):
    for argv, status in ((["--help"], 0), (["--train.gae-lambda", "2"], 2)):
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), *argv], capture_output=True)
        assert done.returncode == status


@pytest.mark.parametrize(
    "command",
    [
        "train.py --help",
        "-m tinyzero_astar solve --help",
        pytest.param("-m tinyzero_astar solve 3*4 --json", marks=pytest.mark.slow),
    ],
)
def test_output_that_nobody_reads_to_its_end_is_no_error(command):
    program = subprocess.Popen(
        [sys.executable, *command.split()], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    program.stdout.close()
    assert program.wait() == 141
    assert program.stderr.read() == ""
    program.stderr.close()
