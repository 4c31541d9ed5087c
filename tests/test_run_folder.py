"""Where a run writes, with numbers, refusals, records that survive a crash, and which checkpoint a name means."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from tinyzero_astar import files
from tinyzero_astar.files import append_jsonl
from tinyzero_astar.run import folder as folders
from tinyzero_astar.run.checkpoint_folders import (
    TRAINER_STATE,
    latest_checkpoint,
    resolve_checkpoint,
    run_and_checkpoints,
)
from tinyzero_astar.run.folder import CONFIG, new_run_folder, prepare
from tinyzero_astar.run.records import keep_iterations, read_jsonl


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / TRAINER_STATE).write_text("{}")
    return folder


# ---------------------------------------------------------------------------------------------------- folders


def test_runs_are_numbered_per_preset(tmp_path):
    root = tmp_path / "runs"
    made = [new_run_folder(preset, None, root).name for preset in ("tiny", "tiny", "local", "tiny")]
    assert made == ["tiny-001", "tiny-002", "local-001", "tiny-003"]
    assert all((root / name).is_dir() for name in made)


def test_a_new_run_gets_the_highest_number_even_when_older_ones_were_deleted(tmp_path):
    for name in ("tiny-002", "tiny-009", "tiny-010", "tiny-12-old", "tiny-x13", "local-044"):
        (tmp_path / name).mkdir()
    assert new_run_folder("tiny", None, tmp_path).name == "tiny-011"
    (tmp_path / "tiny-999").mkdir()
    assert new_run_folder("tiny", None, tmp_path).name == "tiny-1000"
    assert new_run_folder("tiny", None, tmp_path).name == "tiny-1001"


def test_two_runs_that_start_together_do_not_share_a_folder(tmp_path, monkeypatch):
    other = tmp_path / "tiny-001"
    mkdir = Path.mkdir

    def overtaken(self, *args, **kwargs):  # another process makes the folder a moment before us
        if self.name.startswith("tiny") and not other.exists():
            mkdir(other)
        return mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    assert new_run_folder("tiny", None, tmp_path).name == "tiny-002"


def test_output_dir_is_used_as_given(tmp_path):
    wanted = tmp_path / "a" / "b"
    assert new_run_folder("tiny", wanted, tmp_path / "runs") == wanted
    assert wanted.is_dir() and not (tmp_path / "runs").exists()
    assert new_run_folder("tiny", wanted) == wanted  # empty until a run wrote its configuration


def test_output_dir_that_holds_a_run_is_refused_with_the_remedy(tmp_path):
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ValueError) as refused:
        new_run_folder("tiny", tmp_path)
    sentence = f"--output-dir {tmp_path} already holds a run; name another folder, or continue it with --resume"
    assert str(refused.value) == f"{sentence} {tmp_path}, from iteration 0 as it has no checkpoint yet"
    assert [p.name for p in tmp_path.iterdir()] == [CONFIG]
    make_checkpoint(tmp_path / "checkpoints" / "checkpoint_iter_2")
    with pytest.raises(ValueError) as refused:
        new_run_folder("tiny", tmp_path)
    assert str(refused.value) == f"{sentence} {tmp_path}"


def test_a_file_in_the_way_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"--output-dir .*file is a file; name a folder"):
        new_run_folder("tiny", file)
    for output_dir, root in ((file / "below", Path("runs")), (None, file)):
        with pytest.raises(ValueError, match=r"the folder .*file.* cannot be made .*--output-dir"):
            new_run_folder("tiny", output_dir, root)
    assert file.read_text() == "mine"


# ---------------------------------------------------------------------------------------------------- records


def test_records_come_back_in_order_one_line_each(tmp_path):
    path = tmp_path / "r.jsonl"
    records = [{"iteration": i, "text": text} for i, text in enumerate(["", 'a "b"\n\r\tc', "é≠\0"])]
    for record in records:
        append_jsonl(path, record)
    assert read_jsonl(path) == records
    assert path.read_bytes().count(b"\n") == 3
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == records
    assert read_jsonl(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_model_may_write_any_line_separator(separator, tmp_path):
    path = tmp_path / "samples.jsonl"
    records = [{"iteration": i, "completion": f"a{separator}b"} for i in range(3)]
    for record in records:
        append_jsonl(path, record)
    assert read_jsonl(path) == records
    keep_iterations(path, 1)
    assert read_jsonl(path) == records[:2]


def test_a_line_cut_anywhere_is_left_out_and_the_others_stay(tmp_path):
    path = tmp_path / "r.jsonl"
    append_jsonl(path, {"iteration": 0})
    whole = path.read_bytes()
    append_jsonl(path, {"iteration": 1, "text": "é𝟚"})
    last = path.read_bytes()[len(whole) :]
    for size in range(len(last) - 1):  # without the newline alone the record is complete
        path.write_bytes(whole + last[:size])
        assert read_jsonl(path) == [{"iteration": 0}], last[:size]


@pytest.mark.parametrize("line", [b"3", b"{}", b'{"iteration": "1"}', b"[" * 100_000, b"\xff", b"", b'{"iteration": 1'])
def test_a_damaged_line_is_refused_by_its_number(line, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"iteration": 0})
    first = path.read_bytes()
    path.write_bytes(first + line + b"\n" + first)
    with pytest.raises(ValueError) as refused:
        read_jsonl(path)
    assert str(refused.value).startswith(f"{path}, line 2 is damaged (")
    with pytest.raises(ValueError, match="line 2 is damaged"):
        keep_iterations(path, 3)
    assert path.read_bytes() == first + line + b"\n" + first
    path.write_bytes(first + line)  # cut short
    assert read_jsonl(path) == [{"iteration": 0}]


def test_records_are_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match=r"r\.jsonl is no regular file"):
        read_jsonl(tmp_path / "r.jsonl")


def test_keep_iterations_drops_later_records_and_the_cut_line(tmp_path):
    path = tmp_path / "r.jsonl"
    for iteration in (0, 1, 1, 2, 10, 3):
        append_jsonl(path, {"iteration": iteration, "x": "é"})
    with path.open("a") as file:
        file.write('{"iteration": 1, "x')
    keep_iterations(path, 2)
    assert path.read_text(encoding="utf-8") == "".join(f'{{"iteration": {i}, "x": "é"}}\n' for i in (0, 1, 1, 2))
    append_jsonl(path, {"iteration": 3})
    assert [r["iteration"] for r in read_jsonl(path)] == [0, 1, 1, 2, 3]


# ------------------------------------------------------------------------------------------------ checkpoints

NAME = Path("checkpoints/checkpoint_iter_100")
FORMS = [NAME, NAME.with_name(NAME.name + ".pt")]


@pytest.mark.parametrize("given", FORMS, ids=["NAME", "NAME.pt"])
def test_both_forms_resolve_from_the_run_and_from_the_project(given, tmp_path, monkeypatch):
    held = make_checkpoint(tmp_path / "runs" / "training-003" / NAME)
    monkeypatch.chdir(held.parents[1])
    assert resolve_checkpoint(given, "training").resolve() == held
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint(given, "training").resolve() == held
    assert resolve_checkpoint("runs/training-003" / given, "tiny").resolve() == held
    monkeypatch.chdir(held.parent)
    assert resolve_checkpoint(Path(given.name), "tiny").resolve() == held
    monkeypatch.chdir("/")
    assert resolve_checkpoint(tmp_path / "runs" / "training-003" / given, "tiny") == held


def test_the_newest_run_of_the_preset_is_meant(tmp_path):
    for run in ("tiny-9", "tiny-10", "tiny-10-copy", "tiny-2b", "local-11"):
        make_checkpoint(tmp_path / run / NAME)
    assert resolve_checkpoint(NAME, "tiny", tmp_path) == tmp_path / "tiny-10" / NAME
    assert resolve_checkpoint(NAME, "local", tmp_path) == tmp_path / "local-11" / NAME


def test_a_folder_as_given_goes_before_the_newest_run(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "runs" / "tiny-001" / NAME)
    make_checkpoint(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint(NAME, "tiny") == NAME


def test_what_is_no_checkpoint_is_refused_with_the_places_looked_at(tmp_path):
    run = tmp_path / "tiny-001"
    (run / NAME).mkdir(parents=True)  # a folder, but without the trainer's state
    with pytest.raises(ValueError) as refused:
        resolve_checkpoint(FORMS[1], "tiny", tmp_path)
    places = ", ".join(str(p) for p in (FORMS[1], FORMS[0], run / FORMS[1], run / FORMS[0]))
    assert str(refused.value) == f"checkpoint {FORMS[1]}: no checkpoint folder found; looked for {places}"
    with pytest.raises(ValueError, match=r"looked for /nowhere/x$"):
        resolve_checkpoint(Path("/nowhere/x"), "tiny", tmp_path)


def test_a_path_that_begins_with_the_root_is_not_looked_for_inside_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "runs" / "tiny-001" / NAME)
    wanted = Path("runs") / "tiny-001" / "checkpoints" / "checkpoint_iter_40"
    with pytest.raises(ValueError) as refused:
        resolve_checkpoint(wanted, "tiny")
    assert str(refused.value) == f"checkpoint {wanted}: no checkpoint folder found; looked for {wanted}"


def test_the_folder_of_a_run_means_its_newest_checkpoint(tmp_path):
    for iteration in (9, 10):
        make_checkpoint(tmp_path / "tiny-001" / "checkpoints" / f"checkpoint_iter_{iteration}")
    newest = tmp_path / "tiny-001" / "checkpoints" / "checkpoint_iter_10"
    assert resolve_checkpoint(tmp_path / "tiny-001", "tiny") == newest
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^checkpoint \S*empty: no checkpoint in "):
        resolve_checkpoint(tmp_path / "empty", "tiny")


def test_latest_checkpoint_is_that_of_the_highest_iteration(tmp_path):
    for name in (
        "checkpoint_iter_9",
        "checkpoint_iter_10",
        "checkpoint_iter_2",
        "checkpoint_iter_11.partial",
    ):
        make_checkpoint(tmp_path / "checkpoints" / name)
    make_checkpoint(tmp_path / "checkpoints" / "checkpoint_iter_best")
    assert latest_checkpoint(tmp_path).name == "checkpoint_iter_10"


def test_a_run_without_checkpoint_cannot_be_continued(tmp_path):
    make_checkpoint(tmp_path / "checkpoints" / "checkpoint_iter_2.partial")
    nowhere = tmp_path / "nowhere"
    for run, why in ((tmp_path, f"no checkpoint in {tmp_path / 'checkpoints'}"), (nowhere, "there is no such folder")):
        with pytest.raises(ValueError) as refused:
            run_and_checkpoints(run)
        assert str(refused.value).startswith(f"--resume {run}: {why};")


# ---------------------------------------------------------------------------------------------------------- room


def test_a_run_is_refused_where_a_checkpoint_finds_no_room(tmp_path, monkeypatch):
    """A disk that says so, and a quota that only shows when room is taken."""
    taken = []

    def no_quota(descriptor, offset, length):
        taken.append(length)
        if sum(taken[-2:]) > 1_500_000:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "posix_fallocate", no_quota)
    free = shutil.disk_usage(tmp_path).free
    for num_bytes, reason in ((free * 2, "No space left on device"), (2_000_000, "Disk quota exceeded")):
        with pytest.raises(ValueError) as refused:
            prepare(tmp_path, num_bytes)
        assert str(refused.value) == (
            f"{tmp_path} cannot hold a run: {num_bytes:,} bytes cannot be written there ({reason}); use another folder,"
            " make room or raise the limit"
        )
    prepare(tmp_path, 1_000_000)
    assert taken[-4:] == [500_000] * 4  # both files of tensors, in both folders
    assert [p.name for p in tmp_path.rglob("*")] == ["checkpoints"]


def test_a_file_system_that_cannot_take_room_at_once_is_no_fault(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    prepare(tmp_path, 1_000_000)
    monkeypatch.delattr(os, "posix_fallocate")
    prepare(tmp_path, 1_000_000)


def test_names_of_folders_and_of_new_files_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(folders, "sync", synced.append)
    monkeypatch.setattr(files, "sync", synced.append)
    prepare(tmp_path)
    assert synced == [tmp_path, tmp_path.parent]
    for iteration in (0, 1):
        append_jsonl(tmp_path / "r.jsonl", {"iteration": iteration})
    assert synced[2:] == [tmp_path]  # once, when the file was new
