"""The list of a checkpoint's files. Every change of one is found and named, before anything is loaded from it."""

from __future__ import annotations

import json
import os

import pytest

from tinyzero_astar.manifest import MANIFEST, check_manifest, write_manifest

CONTENTS = {
    "model.safetensors": bytes(range(256)) * 40,
    "trainer.json": b'{"iteration": 3}',
    "empty.txt": b"",
    "templates/x": b"a template",
}


@pytest.fixture
def folder(tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    for name, content in CONTENTS.items():
        (held / name).parent.mkdir(exist_ok=True)
        (held / name).write_bytes(content)
    write_manifest(held)
    return held


def refusal(folder):
    with pytest.raises(ValueError) as refused:
        check_manifest(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_was_saved_is_known_again(folder):
    assert check_manifest(folder) == CONTENTS.keys()
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert {name: entry["size"] for name, entry in files.items()} == {name: len(x) for name, x in CONTENTS.items()}
    # sha256sum of an empty file, from FIPS 180-4
    assert files["empty.txt"]["sha256"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_every_flipped_bit_is_found(folder):
    for name, content in CONTENTS.items():
        for index in range(0, len(content), 1000):
            changed = bytearray(content)
            changed[index] ^= 1 << index % 8
            (folder / name).write_bytes(changed)
            assert refusal(folder) == f"{name} is not what was saved: its SHA-256 is another"
        (folder / name).write_bytes(content)
    assert check_manifest(folder)


def linked(path):
    path.replace(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def piped(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not what was saved: it has 10,239 bytes instead of"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\n"), "not what was saved: it has 10,241 bytes instead"),
        (lambda path: path.unlink(), "model.safetensors is missing"),
        (linked, "model.safetensors is a link"),
        (piped, "model.safetensors is no regular file"),
        (lambda path: (path.unlink(), path.mkdir()), "model.safetensors is no regular file"),
        (
            lambda path: (path.parent / "adapter_config.json").write_text("{}"),
            "adapter_config.json was not saved with it",
        ),
        (lambda path: (path.parent / "templates" / "x").write_bytes(b"other"), "templates/x is not what was saved"),
        (lambda path: (path.parent / "templates" / "y").write_bytes(b""), "templates/y was not saved with it"),
        (lambda path: (path.parent / "other").symlink_to(path.parent / "templates"), "other is a link"),
    ],
)
def test_every_other_change_is_named(change, sentence, folder):
    change(folder / "model.safetensors")
    assert sentence in refusal(folder)


@pytest.mark.parametrize(
    "name", ["README.md", "evaluation.json", "evaluation-12.json", ".DS_Store", "README.md.partial"]
)
def test_what_comes_to_a_checkpoint_later_is_no_fault(name, folder):
    (folder / name).write_text("later")
    assert check_manifest(folder)


@pytest.mark.parametrize(
    "files",
    [
        None,
        [],
        {"trainer.json": 16},
        {"trainer.json": {"size": 16}},
        {"trainer.json": {"size": "16", "sha256": ""}},
        {"../held/trainer.json": {"size": 16, "sha256": ""}},
        {"/etc/passwd": {"size": 16, "sha256": ""}},
        {"..": {"size": 16, "sha256": ""}},
        {"templates//x": {"size": 10, "sha256": ""}},
    ],
)
def test_a_damaged_list_is_named(files, folder):
    (folder / MANIFEST).write_text(json.dumps({"files": files}))
    assert refusal(folder) == f"{MANIFEST} is not as it was saved: it lacks a size or a SHA-256"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.unlink(), f"{MANIFEST} is missing"),
        (lambda path: path.write_bytes(b"\xff"), f"{MANIFEST} cannot be read ("),
        (lambda path: path.write_text("[" * 100_000), f"{MANIFEST} cannot be read ("),
        (piped, f"{MANIFEST} cannot be read ({MANIFEST} is no regular file)"),
        (linked, f"{MANIFEST} is a link"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(change, sentence, folder):
    change(folder / MANIFEST)
    assert refusal(folder).startswith(sentence)
