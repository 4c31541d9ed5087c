"""Names, paths and files that cannot be: one sentence and status 2 at once, never a traceback or a wait."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tinyzero_astar.cli.commands import main
from tinyzero_astar.cli.train import main as train
from tinyzero_astar.files import read_text
from tinyzero_astar.model.model_config import checked_config
from tinyzero_astar.model.model_folder import GENERATION, resolve_model

LONG = "x" * 300  # no file system takes it
NAMES = ("pipe", "loop", "device", "folder", "gone", "/dev/null/x", LONG, f"a/{LONG}")
STRANGE = (".", "/", " ", "a\nb", "\udc80", "x.git", "a--b", "~nobody/x")
MODULES = (":", "x:", "os:path", "a..b:c", "__main__:x")
READ = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", GENERATION)


@pytest.fixture(autouse=True)
def strange_files(tmp_path, monkeypatch):
    """A folder with a pipe, a device, a loop of links and a folder under each ending that commands know."""
    monkeypatch.chdir(tmp_path)
    for ending in ("", ".jsonl", ".py", ".toml", ".gguf", ".pt"):
        os.mkfifo(f"pipe{ending}")
        os.symlink(f"loop{ending}", f"loop{ending}")
        os.symlink("/dev/zero", f"device{ending}")
        os.mkdir(f"folder{ending}")
    return tmp_path


def places(ending=""):
    return [f"{name}{ending}" for name in NAMES]


def refused(argv, capsys, command=main):
    before = sorted(os.listdir())
    assert command(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(os.listdir()) == before
    return err


@pytest.mark.parametrize("name", [*places(), "pipe.gguf", "gone.gguf", *STRANGE])
def test_what_is_no_model_is_refused(name, capsys):
    if name == "gone":  # may be a name on the hub
        assert "no folder of that name here" in refused(["train", f"--model.model-name={name}"], capsys)
    else:
        assert refused(["train", f"--model.model-name={name}"], capsys).startswith("error: model_name '")


@pytest.mark.parametrize("name", [*places(".jsonl"), "pipe.py:X", "device.py:X", *MODULES])
def test_what_is_no_task_is_refused(name, capsys):
    assert refused(["train", f"--data.task={name}"], capsys).startswith("error: data.task")


@pytest.mark.parametrize("name", [*(f"{p}:f" for p in places(".py")), "nan", "os:getcwd", "json:JSONDecoder"])
def test_what_is_no_reward_function_is_refused(name, capsys, tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "1", "answer": 1}\n')
    err = refused(["train", "--data.task=own.jsonl", f"--data.reward-function={name}"], capsys)
    assert name.removesuffix(":f") in err


@pytest.mark.parametrize("name", [*places(".toml"), "device", ".toml"])
def test_what_is_no_file_of_settings_is_refused(name, capsys):
    assert refused(["train", f"--config={name}"], capsys).startswith("error: --config")


@pytest.mark.parametrize("name", [*places(), "pipe.pt"])
def test_what_is_no_run_or_checkpoint_is_refused_by_every_command(name, capsys):
    for words in (["eval"], ["train", "--resume"], ["solve", "2*3", "--checkpoint"], ["report"], ["compare", name]):
        assert name in refused([*words, name], capsys)


@pytest.mark.parametrize("name", ["pipe", "device", "loop", "/dev/null/x", "/proc/x", LONG, f"a/{LONG}"])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(name, capsys):
    assert name in refused([f"--output-dir={name}"], capsys, train)


@pytest.mark.parametrize("name", ["pipe", "device", "folder"])
def test_only_regular_files_are_read(name, tmp_path):
    with pytest.raises(OSError, match=f"{name} is no regular file"):
        read_text(tmp_path / name)


def edited_base(folder, file, change):
    base = shutil.copytree(resolve_model("embedded"), folder / "base")
    content = json.loads((base / file).read_text())
    (base / file).write_text(json.dumps(change(content)))
    return base


def sentence_of(base):
    with pytest.raises(ValueError) as refusal:
        checked_config(str(base), base, 64)
    return str(refusal.value).removeprefix(f"model_name '{base}': ")


@pytest.mark.parametrize("count", [10**4, 10**12, 10**30])
@pytest.mark.parametrize("where", ["num_hidden_layers", "n_layer", "inside"])
def test_layers_without_end_are_refused_before_they_are_counted(where, count, tmp_path):
    more = {"text_config": {"num_hidden_layers": count}} if where == "inside" else {where: count, "layer_types": None}
    base = edited_base(tmp_path, "config.json", lambda config: config | more)
    assert sentence_of(base).startswith(f"its config.json asks for {count} layers, and models have at most 1,000")


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ({"rope_parameters": {"rope_type": "yarn"}}, "a file in that folder cannot be used (KeyError"),
        ({"rope_theta": float("nan")}, "config.json in that folder cannot be used (NaN is no number)"),
        ({"rms_norm_eps": float("inf")}, "config.json in that folder cannot be used (Infinity is no number)"),
    ],
)
def test_what_a_config_cannot_mean_is_one_sentence(change, start, tmp_path):
    assert sentence_of(edited_base(tmp_path, "config.json", lambda config: config | change)).startswith(start)


@pytest.mark.parametrize("file", READ)
@pytest.mark.parametrize("content", [b"\xff\x00", b"[" * 100_000, b"3", b"", b'{"a": NaN}'])
def test_a_damaged_file_of_a_model_is_named(file, content, tmp_path):
    base = edited_base(tmp_path, "config.json", dict)
    (base / file).write_bytes(content)
    sentence = sentence_of(base)
    assert sentence.startswith(f"{file} in that folder cannot be used (") and "\n" not in sentence
