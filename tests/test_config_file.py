"""What a configuration in a TOML file may say, what the options change, and what is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tinyzero_astar.cli.options import parse
from tinyzero_astar.cli.train import main
from tinyzero_astar.config_file import named_config, read_config_file, stem_of
from tinyzero_astar.presets import PRESETS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text, name="my.toml"):
    Path(name).write_text(text, "utf-8")
    return name


def as_toml(config):
    """Every field of a configuration, as TOML writes it."""
    lines = []
    for section, values in dataclasses.asdict(config).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps('None' if value is None else value)}" for key, value in values.items()]
    return "\n".join(lines)


def test_a_file_changes_the_preset_that_it_names_and_options_change_the_file():
    name = write('preset = "local"\n[search]\nbeam_width = 9\nweight_cap = "None"\n[train]\nlearning_rate = 1\n')
    local = PRESETS["local"]
    expected = dataclasses.replace(
        local,
        search=dataclasses.replace(local.search, beam_width=9, weight_cap=None),
        train=dataclasses.replace(local.train, learning_rate=1),
    )
    assert named_config(name) == expected
    for argv in ([f"--config={name}", "--search.beam-width", "11"], ["--search.beam-width=11", "--config", name]):
        command = parse(argv)
        assert command.config == name and command.search.beam_width == 11 and command.search.weight_cap is None
        assert (command.model, command.train) == (expected.model, expected.train)


def test_without_a_preset_it_is_tiny():
    assert read_config_file(Path(write(""))) == PRESETS["tiny"]
    assert read_config_file(Path(write("[run]\nseed = 3\n"))).run.seed == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_can_be_said(preset):
    assert read_config_file(Path(write(as_toml(PRESETS[preset])))) == PRESETS[preset]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[search]\nbeam_widht = 8\n", "my.toml: search.beam_widht is unknown; the nearest is search.beam_width"),
        ("[serch]\nbeam_width = 8\n", "my.toml: serch is unknown; the nearest is search"),
        ("beam = 8\n", "my.toml: beam is unknown; known are preset, model, data, reward, search, value, train, eval"),
        ("train = 8\n", "my.toml: train is 8; write it as a table, [train], with fields"),
        ('preset = "huge"\n', "my.toml: preset is 'huge', which is not one of tiny, small, local, training"),
        ("preset = ['tiny']\n", "my.toml: preset is ['tiny'], which is not one of tiny, small, local, training"),
        ("[train]\nnum_epochs = 1.5\n", "my.toml: train.num_epochs is 1.5, which is not of type int"),
        ("[train]\ngae_lambda = 2\n", "my.toml: train.gae_lambda 2 is out of range: it must lie between 0 and 1"),
        ("[train\n", "--config my.toml is not valid TOML ("),
        ("[search]\nbeam_width = 1\n", "my.toml: beam_width 1 must be at least num_rollouts_per_problem + 1 = 2"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(text, sentence):
    with pytest.raises(ValueError) as refused:
        named_config(write(text))
    assert str(refused.value).startswith(sentence)


def test_nothing_is_written_for_a_mistake(capsys):
    write("[search]\nbeam_width = 1\n")
    assert main(["--config", "my.toml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: my.toml: beam_width 1 must be") and err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["my.toml"]


def test_files_that_cannot_be_read_are_refused(capsys):
    Path("bad.toml").write_bytes(b"\xff")
    Path("folder.toml").mkdir()
    for name, why in (("bad.toml", "not valid TOML"), ("folder.toml", "cannot be read"), ("no.toml", "does not exist")):
        assert main(["--config", name]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: --config {name} {why}") or err.startswith(f"error: --config {name} is {why}")


def test_a_checkpoint_has_its_own_configuration_and_takes_none_from_a_file(capsys):
    write("[eval]\nnum_problems = 7\n")
    assert main(["--eval-only", "--checkpoint", "c", "--config", "my.toml"]) == 2
    assert capsys.readouterr().err.rstrip().endswith("; --config was given")
    assert main(["--resume", "r", "--config", "my.toml"]) == 2
    assert "leave out --config;" in capsys.readouterr().err
    assert parse(["--eval-only", "--config", "my.toml"]).eval.num_problems == 7


def test_runs_are_named_after_the_file(tiny_base):
    assert [stem_of(name) for name in ("tiny", "a/b.toml")] == ["tiny", "b"]
    write("[train]\nnum_iterations = 0\n[data]\nnum_problems = 64\n[eval]\nnum_problems = 2\n", "mine.toml")
    assert main(["--config", "mine.toml", "--model.model-name", str(tiny_base)]) == 0
    saved = json.loads(Path("runs/mine-001/config.json").read_text())
    assert saved["data"]["num_problems"] == 64 and saved["model"]["model_name"] == str(tiny_base)
