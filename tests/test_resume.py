"""Faults around a run, which is stopped from outside, killed, damaged files, folders that cannot be written to.

Whatever happens, the run that goes on must end as one that was never disturbed.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tinyzero_astar as tz
from tests import test_run as runs
from tests.test_run import assert_same_run, checkpoint, contents, read, records, timeless
from tinyzero_astar import files
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.config_json import from_json
from tinyzero_astar.files import METRICS, SAMPLES, append_jsonl
from tinyzero_astar.loggers import jsonl
from tinyzero_astar.manifest import write_manifest
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run import checkpoint as checkpoints
from tinyzero_astar.run import loop as trainer
from tinyzero_astar.run import saving, stopping
from tinyzero_astar.run import start as session
from tinyzero_astar.run.checkpoint_folders import go_back_to, latest_checkpoint, remove_checkpoint, run_and_checkpoints
from tinyzero_astar.run.folder import CONFIG, iteration_of
from tinyzero_astar.run.lock import LOCK, locked
from tinyzero_astar.run.records import check_complete
from tinyzero_astar.terminal import complain

finished, options = runs.session, runs.options
judged_by_a_hash_and_guided_early = runs.judged_by_a_hash_and_guided_early


FEW = ["--eval-only", "--eval.num-problems", "4", "--eval.num-samples", "1", "--run.num-threads", "1", "--checkpoint"]


@pytest.fixture(autouse=True)
def handlers():
    """Nothing is ignored, and whatever a run does, the handlers are the same afterwards."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in stopping.SIGNALS}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert set(after.values()) == {signal.default_int_handler}


@pytest.fixture
def copy(finished, tmp_path):
    """The folder of the finished run, to be damaged."""
    return shutil.copytree(finished.folder, tmp_path / "r")


def send(monkeypatch, number, iteration, times=1):
    """A signal while the given iteration, counted from 0, is searching."""
    original = trainer.iterate

    def interrupted(session, i, *trace):
        for _ in range(times if i == iteration else 0):
            os.kill(os.getpid(), number)
        return original(session, i, *trace)

    monkeypatch.setattr(trainer, "iterate", interrupted)


def names(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def refused(argv, capsys):
    """The one sentence with which a command is refused."""
    capsys.readouterr()
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


def without_end(folder):
    """As if the run had been killed after its third iteration."""
    shutil.rmtree(checkpoint(folder, 4))


# ------------------------------------------------------------------------------------------ stopped from outside

STOPPED = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 138}


def test_a_signal_finishes_the_iteration_and_saves(finished, options, tmp_path, capfd, monkeypatch):
    folder = tmp_path / "r"
    with monkeypatch.context() as patch:
        send(patch, signal.SIGTERM, iteration=2)
        assert main([*options, "--output-dir", str(folder)]) == 143
    out = capfd.readouterr().out
    assert "SIGTERM: finishing this iteration, then saving. A second signal stops at once\n" in out
    assert f"stopped after iteration 3. Continue with: python train.py --resume {folder}\n" in out
    assert names(folder) == ["checkpoint_iter_2", "checkpoint_iter_3"]
    assert main(["--resume", str(folder)]) == 0
    assert_same_run(folder, finished.folder)


@pytest.mark.parametrize("number", STOPPED)
def test_each_signal_has_its_status_and_a_second_one_stops_at_once(number, options, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        send(patch, number, iteration=0)
        assert main([*options, "--output-dir", str(tmp_path / "once")]) == STOPPED[number]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        send(patch, number, iteration=0, times=2)
        main([*options, "--output-dir", str(tmp_path / "twice")])
    assert names(tmp_path / "once") == ["checkpoint_iter_1"] and names(tmp_path / "twice") == []
    assert stopped.value.args == (number,) and capsys.readouterr().err == ""  # the rest is `run_command`'s


def test_a_signal_before_the_first_iteration_stops_there(options, tmp_path, capsys, monkeypatch):
    measure, folder = trainer.measure, tmp_path / "r"

    def interrupted(*args, **given):
        os.kill(os.getpid(), signal.SIGHUP)
        return measure(*args, **given)

    monkeypatch.setattr(trainer, "measure", interrupted)
    assert main([*options, "--output-dir", str(folder)]) == 129
    assert f"stopped after iteration 0. Continue with: python train.py --resume {folder}\n" in capsys.readouterr().out
    assert [r["iteration"] for r in records(folder)] == [0] and names(folder) == []


def test_with_several_processes_the_same_request_may_come_twice(monkeypatch):
    monkeypatch.setattr(stopping, "is_distributed", lambda: True)  # from torchrun and from the system
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    with stopping.stop_requests() as received:
        assert [stops_at_once(signal.SIGTERM) for _ in range(2)] == [False, False]
        assert received == [signal.SIGTERM]
        now[0] += 3
        assert stops_at_once(signal.SIGTERM)


def stops_at_once(number):
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        return True
    return False


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.stop_requests() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received == []
            os.kill(os.getpid(), signal.SIGUSR1)
            assert received == [signal.SIGUSR1]
    finally:
        after = signal.signal(signal.SIGHUP, before)
    assert after == signal.SIG_IGN


def test_a_stopped_run_leaves_its_evaluation_to_the_resumed_one(options, tmp_path, monkeypatch):
    options = [*options, "--eval.eval-frequency", "2"]
    assert main([*options, "--output-dir", str(tmp_path / "whole")]) == 0
    folder = tmp_path / "r"
    with monkeypatch.context() as patch:
        send(patch, signal.SIGTERM, iteration=1)
        assert main([*options, "--output-dir", str(folder)]) == 143
    assert [r["iteration"] for r in records(folder)] == [0, 1]
    assert main(["--resume", str(folder)]) == 0
    assert_same_run(folder, tmp_path / "whole")
    assert "eval/greedy_accuracy" in records(folder)[2]


def test_a_crash_in_an_evaluation_loses_nothing(finished, options, tmp_path, monkeypatch):
    measure = trainer.measure

    def crash(session, iteration, is_whole=True):
        if iteration == 4:
            raise ZeroDivisionError
        return measure(session, iteration, is_whole=is_whole)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "measure", crash)
        with pytest.raises(ZeroDivisionError):
            main([*options, "--output-dir", str(tmp_path / "r")])
    assert names(tmp_path / "r") == ["checkpoint_iter_2", "checkpoint_iter_4"]
    assert main(["--resume", str(tmp_path / "r")]) == 0
    assert_same_run(tmp_path / "r", finished.folder)


def test_a_run_killed_before_its_first_checkpoint_starts_again(finished, copy, capsys):
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints" / "checkpoint_iter_2.partial").mkdir(parents=True)
    (copy / METRICS).write_text('{"iteration": 0}\n{"iter')
    sentence = refused(["--output-dir", str(copy)], capsys)
    assert sentence.endswith(f"continue it with --resume {copy}, from iteration 0 as it has no checkpoint yet")
    assert main(["--resume", str(copy)]) == 0
    assert f"{copy} has no checkpoint: starting again from iteration 0" in capsys.readouterr().out
    assert_same_run(copy, finished.folder)
    assert names(copy) == ["checkpoint_iter_2", "checkpoint_iter_4"]


def test_a_finished_run_says_so(copy, capsys):
    assert main(["--resume", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "This run has finished its 4 iterations.\nA larger --train.num-iterations continues it.\n" in out
    assert f"\nevaluate  tinyzero eval {copy}\n" in out


def test_a_finished_run_may_be_made_longer(finished, options, copy, tmp_path, capsys, monkeypatch):
    longer = ["--train.num-iterations", "6"]
    assert main(["--resume", str(copy), *longer]) == 0
    # warm-up of 1 iteration to the peak of 0.05: of 4 the last has 1/3 of it, of 6 the fifth has 2/5
    assert (
        "changed: train.num_iterations from 4 to 6. The learning rate now falls to 0 at the end of iteration 6:"
        " 0.0167 in iteration 4, then 0.02 in iteration 5. A run of 6 iterations from the start would have had other"
        " rates\n"
    ) in capsys.readouterr().out
    made = timeless(copy)
    assert made[:5] == timeless(finished.folder)
    assert [r["train/learning_rate"] for r in made[4:]] == pytest.approx([0.05 / 3, 0.05 * 2 / 5, 0.05 / 5])
    assert read(copy / CONFIG)["train"]["num_iterations"] == 6
    shutil.rmtree(checkpoint(copy, 6))  # later processes know the new length
    assert main(["--resume", str(copy)]) == 0
    assert timeless(copy) == made


def test_a_new_length_must_fit_what_was_trained(copy, capsys):
    sentence = refused(["--resume", str(copy), "--train.num-iterations", "3"], capsys)
    assert sentence.startswith(f"train.num_iterations 3 is less than what {checkpoint(copy, 4)} has been trained for:")
    older = str(checkpoint(copy, 2))
    assert main(["--resume", older, "--train.num-iterations", "3"]) == 0
    assert [r["iteration"] for r in timeless(copy)] == [0, 1, 2, 3]
    config = read(copy / CONFIG)
    config["train"] |= {"warmup_iterations": 3}
    (copy / CONFIG).write_text(json.dumps(config))
    sentence = refused(["--resume", str(copy), "--train.num-iterations", "2"], capsys)
    assert sentence.startswith("warmup_iterations 3 must not exceed num_iterations 2")


def test_a_run_is_locked_until_it_ends_and_a_second_process_is_refused(options, copy, capsys, monkeypatch):
    iterate, seen = trainer.iterate, []

    def meanwhile(session, i, trace):
        with pytest.raises(ValueError) as refused, locked(session.folder):
            pass
        seen.append(str(refused.value))
        return iterate(session, i, trace)

    monkeypatch.setattr(trainer, "iterate", meanwhile)
    without_end(copy)
    (copy / LOCK).write_text("4194305\nhere\n")  # no system has that process
    assert main(["--resume", str(copy)]) == 0
    said = f"process 4194305 on here was killed while it worked on {copy}: its lock is free\n"
    assert said in capsys.readouterr().out
    shutil.rmtree(copy)
    assert main([*options, "--train.num-iterations", "1", "--output-dir", str(copy)]) == 0
    shutil.rmtree(copy / "checkpoints")
    assert main(["--resume", str(copy)]) == 0
    assert len(seen) == 4 and all(s.startswith(f"{copy} is in use by process {os.getpid()} on ") for s in seen)
    assert not (copy / LOCK).exists()
    with locked(copy):
        before = contents(copy)
        assert refused(["--resume", str(copy)], capsys).startswith(f"{copy} is in use by process {os.getpid()} on ")
        assert contents(copy) == before


def test_what_another_process_saved_before_the_lock_was_free_counts(finished, options, copy, monkeypatch):
    """Between the command and its lock another process may save checkpoints and remove older ones."""
    away = copy.parent / "away"
    for before, after in (([], [2, 4]), ([2], [4])):
        (copy / "checkpoints").rename(away)
        (copy / "checkpoints").mkdir()
        for iteration in before:
            shutil.copytree(away / f"checkpoint_iter_{iteration}", checkpoint(copy, iteration))

        @contextmanager
        def late(run, after=after):
            shutil.rmtree(copy / "checkpoints")
            away.rename(copy / "checkpoints")
            for iteration in {2, 4}.difference(after):
                shutil.rmtree(checkpoint(copy, iteration))
            yield None

        monkeypatch.setattr(session, "locked", late)
        assert main(["--resume", str(copy)]) == 0
        assert timeless(copy) == timeless(finished.folder)
        assert names(copy) == [f"checkpoint_iter_{iteration}" for iteration in after]


# ---------------------------------------------------------------------------------------------------- checkpoints


def empty(folder):
    (folder / "trainer.json").write_bytes(b"")


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def signed(damage):
    """The damage, by somebody who makes the list of files anew."""

    def change(folder):
        damage(folder)
        write_manifest(folder)

    return change


def renumber(folder):
    state = read(folder / "trainer.json")
    (folder / "trainer.json").write_text(json.dumps({**state, "iteration": 3}))


def other_weights(folder):
    shutil.copy(checkpoint(folder.parents[1], 2) / "model.safetensors", folder)


def other_seed(folder):
    config = read(folder / "trainer.json")["config"]
    change_state(folder, "config", {**config, "run": {**config["run"], "seed": 7}})


def other_history(folder):
    first, *later = read(folder / "trainer.json")["history"]
    change_state(folder, "history", [first | {"weight/sum": first["weight/sum"] + 0.1}, *later])


def no_history(folder):
    change_state(folder, "history")


def unknown_option(folder):
    change_state(folder, "config", {"gone": {}})


def change_state(folder, key, *value):
    """Replace an entry of trainer.json, or leave it out."""
    state = read(folder / "trainer.json")
    del state[key]
    (folder / "trainer.json").write_text(json.dumps(state | dict.fromkeys([key] if value else [], *value)))


def nest(folder):
    (folder / "config.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (empty, ": trainer.json is not what was saved: it has 0 bytes instead of "),
        (cut, ": model.safetensors is not what was saved: it has "),
        (renumber, ": trainer.json is not what was saved: it has "),
        (other_weights, ": model.safetensors is not what was saved: its SHA-256 is another"),
        (signed(renumber), ": trainer.json says iteration 3"),
        (signed(no_history), ": trainer.json lacks the metrics"),
        (signed(unknown_option), ": ['gone'] is not a field of Config"),
        (signed(other_history), " is not of this run: iteration 1 has other metrics in metrics.jsonl"),
        (signed(other_seed), ": run.seed differs (run.seed: 0 and 7)"),
    ],
)
def test_a_checkpoint_that_is_not_this_runs_falls_back_to_the_one_before(
    damage, sentence, finished, copy, capsys, monkeypatch
):
    monkeypatch.setattr(session, "_continued", lambda *args: replace(finished, folder=args[3]))  # nothing is loaded
    damage(checkpoint(copy, 4))
    config = from_json(copy / CONFIG)
    assert session.open_run(config, copy, copy).folder == checkpoint(copy, 2)
    out, err = capsys.readouterr()
    assert err.startswith("warning: ") and f"{checkpoint(copy, 4)}{sentence}" in err and err.count("\n") == 1
    assert f"going back to {checkpoint(copy, 2)}\n" in out


@pytest.mark.parametrize(
    "command",
    [
        lambda held: main([*FEW, str(held)]),
        lambda held: main(["--eval-only", "--model.model-name", str(held)]),
        lambda held: main(["--model.model-name", str(held), "--output-dir", str(held.parents[2] / "new")]),
        lambda held: main(["--model.model-name", str(held.parents[1]), "--output-dir", str(held.parents[2] / "new")]),
        lambda held: solve_main(["12*34", "--checkpoint", str(held)]),
        lambda held: tz.load(held.parents[1]),
    ],
    ids=["eval", "eval as base", "base", "run as base", "solve", "python"],
)
def test_nobody_loads_a_checkpoint_with_a_flipped_bit(command, copy, capsys):
    held = checkpoint(copy, 4)
    content = bytearray((held / "model.safetensors").read_bytes())
    content[-5] ^= 4  # of a weight
    (held / "model.safetensors").write_bytes(content)
    try:
        status = command(held)
    except ValueError as error:
        status = complain(error)
    assert status == 2
    sentence = f"checkpoint {held}: model.safetensors is not what was saved: its SHA-256 is another; put it back as it"
    assert capsys.readouterr().err == f"error: {sentence} was, or use another one\n"
    assert not (copy.parent / "new").exists()


def test_a_damaged_newest_checkpoint_is_set_aside(finished, copy, capsys):
    cut(checkpoint(copy, 4))
    assert main(["--resume", str(copy)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith(f"warning: checkpoint {checkpoint(copy, 4)}: ") and err.count("\n") == 1
    assert f"continuing {copy} after iteration 2\n" in out
    assert_same_run(copy, finished.folder)
    assert names(copy) == ["checkpoint_iter_2", "checkpoint_iter_4", "checkpoint_iter_4.set_aside"]


def no_tokenizer(held):
    (held / "tokenizer.json").unlink()


def other_vocabulary(held):
    config = json.loads((held / "config.json").read_text())
    (held / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 8}))


def other_names(held):
    path = held / "trainer.safetensors"
    save_file({f"x.{name}": x for name, x in load_file(path).items()}, path)


def lists_for_numbers(held):
    state = json.loads((held / "trainer.json").read_text())
    state["history"][0] = {name: [1] for name in state["history"][0]}
    (held / "trainer.json").write_text(json.dumps(state))


@pytest.mark.parametrize("damage", [no_tokenizer, other_vocabulary, other_names, lists_for_numbers])
def test_damage_that_loading_finds_falls_back_too(damage, finished, copy, capsys):
    signed(damage)(checkpoint(copy, 4))
    assert main(["--resume", str(copy)]) == 0
    printed = capsys.readouterr()
    assert (
        f"{checkpoint(copy, 4)}" in printed.out + printed.err
        and f"continuing {copy} after iteration 2\n" in printed.out
    )
    assert_same_run(copy, finished.folder)


def test_without_a_good_checkpoint_one_sentence(copy, capsys):
    for iteration, damage in ((2, empty), (4, cut)):
        damage(checkpoint(copy, iteration))
    before = contents(copy)
    assert main(["--resume", str(copy)]) == 2
    *warnings, sentence = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("w", "e"))]
    assert len(warnings) == 2 and sentence.startswith(f"error: none of the 2 checkpoints of {copy} can be used. ")
    assert f"checkpoint {checkpoint(copy, 4)}: model.safetensors" in warnings[0]
    assert f"checkpoint {checkpoint(copy, 2)}: " in warnings[1]
    assert contents(copy) == before


def test_what_is_whole_of_a_damaged_checkpoint_is_a_model_to_start_from(copy, options, tmp_path, capsys):
    damaged = checkpoint(copy, 4)
    (damaged / "trainer.safetensors").write_bytes(b"")
    model = tmp_path / "model"
    shutil.copytree(damaged, model, ignore=shutil.ignore_patterns(*checkpoints.OWN_FILES))
    new = ["--model.model-name", str(model), "--train.num-iterations", "0", "--output-dir", str(tmp_path / "new")]
    assert main([*options, *new]) == 0
    assert main([*options, *new[:1], str(damaged), *new[2:-1], str(tmp_path / "other")]) == 2  # not the folder itself
    capsys.readouterr()


def test_a_checkpoint_may_be_chosen(finished, copy, capsys):
    assert main(["--resume", str(checkpoint(copy, 2))]) == 0
    aside = copy / "checkpoints" / "checkpoint_iter_4.set_aside"
    assert f"a newer checkpoint was set aside: {aside}\n" in capsys.readouterr().out
    assert_same_run(copy, finished.folder)
    sentence = refused(["--resume", str(checkpoint(copy, 3))], capsys)
    assert sentence.endswith(f"no such checkpoint; {copy / 'checkpoints'} has: checkpoint_iter_2, checkpoint_iter_4")


@pytest.mark.parametrize("name", ["checkpoint_iter_²", "checkpoint_iter_٣", "checkpoint_iter_07", "checkpoint_iter_+9"])
def test_only_plain_numbers_name_a_checkpoint(name, copy):
    (copy / "checkpoints" / name).mkdir()
    assert run_and_checkpoints(copy) == (copy, [checkpoint(copy, 4), checkpoint(copy, 2)])


def test_what_an_interrupted_write_left_is_removed(copy):
    for path in (
        copy / "checkpoints" / "checkpoint_iter_6.partial" / "x",
        copy / "metrics.jsonl.partial",
        checkpoint(copy, 4) / "README.md.partial",
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    before = contents(copy)
    assert main(["--resume", str(copy)]) == 0
    assert contents(copy).keys() - {Path("report.html")} == {path for path in before if ".partial" not in str(path)}


@pytest.mark.parametrize(
    ("section", "key", "value"), [("search", "beam_width", 5), ("run", "seed", 7), ("train", "learning_rate", 0.5)]
)
def test_a_configuration_that_is_not_the_checkpoints_is_refused_by_name(section, key, value, copy, capsys):
    config = read(copy / CONFIG)
    was, config[section][key] = config[section][key], value
    (copy / CONFIG).write_text(json.dumps(config))
    before = contents(copy)
    sentence = refused(["--resume", str(copy)], capsys)
    start = f"{copy / CONFIG} is not the configuration of {checkpoint(copy, 4)}: {section}.{key} differs"
    assert sentence.startswith(f"{start} ({section}.{key}: {value} and {was});")
    assert contents(copy) == before


def test_machine_and_pace_may_change(finished, copy):
    without_end(copy)
    config = read(copy / CONFIG)
    config["run"]["sample_frequency"] = 2
    (copy / CONFIG).write_text(json.dumps(config))
    options = ["--run.num-threads", "1", "--model.device", "cpu", "--run.checkpoint-frequency", "3"]
    options += ["--run.keep-last", "3"]
    assert main(["--resume", str(copy), *options]) == 0
    assert names(copy) == ["checkpoint_iter_2", "checkpoint_iter_3", "checkpoint_iter_4"]
    assert timeless(copy) == timeless(finished.folder)
    assert {r["iteration"] for r in records(copy, SAMPLES)} == {1, 2, 4}


def test_a_checkpoint_of_an_older_version_is_one_sentence(copy, capsys):
    path = checkpoint(copy, 4) / "trainer.json"
    state = read(path)
    for lacking in ("history", "record"):
        signed(
            lambda _, lacking=lacking: path.write_text(json.dumps({k: v for k, v in state.items() if k != lacking}))
        )(path.parent)
        sentence = refused(["--resume", str(checkpoint(copy, 4))], capsys)
        assert "trainer.json lacks the metrics of its 4 iterations" in sentence
    for damaged in (state["history"][:-1], [*state["history"][:-1], {"weight/sum": "1"}]):
        signed(lambda _, damaged=damaged: path.write_text(json.dumps({**state, "history": damaged})))(path.parent)
        assert "lacks the metrics" in refused(["--resume", str(checkpoint(copy, 4))], capsys)


def test_the_files_are_on_the_disk_before_a_checkpoint_has_its_name(finished, tmp_path, monkeypatch):
    synced, replace = [], os.replace
    monkeypatch.setattr(checkpoints, "sync", synced.append)

    def renamed(source, target):
        assert {Path(source), *Path(source).iterdir()} <= set(synced)
        replace(source, target)

    monkeypatch.setattr(os, "replace", renamed)
    folder = tmp_path / "checkpoints" / "checkpoint_iter_4"
    checkpoints.save_checkpoint(folder, finished.policy, finished.tokenizer, {}, {})
    assert synced[-1] == folder.parent and len(synced) == len(list(folder.iterdir())) + 2


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "kept"),
    [
        (0, 0, [1, 2, 3, 4, 5, 6]),
        (1, 0, [6]),
        (2, 0, [5, 6]),
        (2, 1, [4, 5, 6]),
        (1, 2, [2, 4, 6]),
        (1, 3, [2, 4, 6]),  # no more were evaluated
        (9, 1, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_which_checkpoints_are_kept(keep_last, keep_best, kept):
    accuracy = {0: 0.9, 2: 0.5, 4: 0.5, 6: 0.1}  # before the first there is none to keep
    records = [{"iteration": i} | ({"eval/greedy_accuracy": accuracy[i]} if i in accuracy else {}) for i in range(7)]
    assert sorted({*range(1, 7)} - set(saving.superfluous(range(1, 7), records, keep_last, keep_best))) == kept


def test_old_checkpoints_go_and_a_kill_before_that_is_made_up_for(options, tmp_path, monkeypatch):
    removed, remove, folder = [], saving.remove_checkpoint, tmp_path / "r"
    monkeypatch.setattr(saving, "remove_checkpoint", lambda x: (removed.append(iteration_of(x)), remove(x)))
    options += ["--train.num-iterations", "5", "--eval.eval-frequency", "2"]
    options += ["--run.checkpoint-frequency", "1", "--run.keep-last", "1"]
    assert main([*options, "--output-dir", str(folder)]) == 0
    accuracy = {r["iteration"]: r.get("eval/greedy_accuracy") for r in records(folder)}
    best = max((2, 4, 5), key=lambda i: (accuracy[i], i))
    kept = [f"checkpoint_iter_{i}" for i in sorted({best, 5})]
    assert names(folder) == kept and removed[0] == 1
    shutil.copytree(checkpoint(folder, 5), checkpoint(folder, 3))
    (folder / "checkpoints" / "checkpoint_iter_1.removed.partial").mkdir()
    assert main(["--resume", str(folder)]) == 0
    assert names(folder) == kept


def test_a_checkpoint_loses_its_name_before_its_files(finished, copy, monkeypatch):
    seen = []
    monkeypatch.setattr(shutil, "rmtree", lambda path: seen.append((Path(path).name, names(copy))))
    remove_checkpoint(checkpoint(copy, 2))
    gone = "checkpoint_iter_2.removed.partial"
    assert seen == [(gone, [gone, "checkpoint_iter_4"])]


# -------------------------------------------------------------------------------------------------------- records


def test_what_the_gate_remembers_comes_from_the_checkpoint(finished, copy, capsys, monkeypatch):
    without_end(copy)
    (copy / METRICS).unlink()
    seen = []
    monkeypatch.setattr(trainer, "guidance_gate", lambda h: (seen.append(list(h)), (len(h) >= 2, "early"))[1])
    assert main(["--resume", str(copy)]) == 0
    assert f"{copy / METRICS} is missing" in capsys.readouterr().err
    assert seen == [finished.history[:2], finished.history[:3]]
    assert timeless(copy) == timeless(finished.folder)[3:]
    for name in ("model.safetensors", "trainer.safetensors"):
        ours, theirs = (load_file(checkpoint(folder, 4) / name) for folder in (copy, finished.folder))
        assert [k for k in theirs if not torch.equal(ours[k], theirs[k])] == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: [], "line 1: the end of the file where iteration 0 should be"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3: iteration 3 where iteration 2 should be"),
        (lambda lines: [*lines[:3], *lines[2:]], "line 4: iteration 2 where iteration 3 should be"),
        (lambda lines: [lines[2], lines[4]], "line 2: iteration 4 where iteration 3 should be"),
        (lambda lines: [lines[3], *lines], "line 2: iteration 0 where iteration 4 should be"),
        (lambda lines: lines[1:3], "line 3: the end of the file where iteration 3 should be"),
        (lambda lines: lines[:3], "line 4: the end of the file where iteration 3 should be"),
        (lambda lines: [*lines[:2], b"{}", *lines[2:]], "line 3 is damaged (it is no JSON object with an iteration)"),
        (lambda lines: [*lines[:4], b"\0" * 40], "line 5 is damaged ("),
    ],
)
def test_a_hole_in_the_metrics_is_refused(change, sentence, copy, capsys):
    lines = (copy / METRICS).read_bytes().splitlines()
    (copy / METRICS).write_bytes(b"".join(line + b"\n" for line in change(lines)))
    before = contents(copy)
    assert refused(["--resume", str(copy)], capsys).startswith(f"{copy / METRICS}, {sentence}")
    assert contents(copy) == before


def test_a_run_whose_records_were_moved_away_may_be_resumed_again_and_again(finished, copy):
    later = timeless(finished.folder)[3:]
    (copy / METRICS).unlink()
    for damage in (without_end, lambda folder: None, without_end):  # killed after iteration 2, at its end, after 2
        damage(copy)
        assert main(["--resume", str(copy)]) == 0
        assert timeless(copy) == later
    go_back_to(copy, 2)
    assert not (copy / METRICS).exists()  # none of its records is left: as if moved away
    assert main(["--resume", str(copy)]) == 0
    assert timeless(copy) == later


@pytest.mark.parametrize(
    ("held", "last", "is_pending"),
    [
        ([0, 1, 2], 2, False),
        ([0, 1], 2, True),
        ([0, 1, 2, 3], 2, False),
        ([2, 3], 3, False),
        ([2], 3, True),
        ([3, 4], 2, False),  # moved away, then gone back
        (None, 2, False),
    ],
)
def test_whether_the_last_record_is_missing(held, last, is_pending, tmp_path):
    for iteration in held or ():
        append_jsonl(tmp_path / METRICS, {"iteration": iteration})
    assert check_complete(tmp_path, last) == is_pending


def test_going_back_survives_a_crash_at_any_moment(copy, tmp_path, monkeypatch):
    go_back_to(wanted := shutil.copytree(copy, tmp_path / "wanted"), 2)
    kept = contents(wanted)
    assert kept[Path(METRICS)].count(b"\n") == 3
    for last in range(20):
        folder = shutil.copytree(copy, tmp_path / f"killed-{last}")
        with monkeypatch.context() as patch:
            is_dead = dying(patch, last)
            with suppress(KeyboardInterrupt):
                go_back_to(folder, 2)
        assert complaint(folder) is None, last
        go_back_to(folder, 2)
        assert contents(folder) == kept, last
        if not is_dead():
            break
    assert last > 6  # so many operations were tried


def complaint(folder):
    """What the records lack for going on from the newest checkpoint."""
    try:
        check_complete(folder, iteration_of(latest_checkpoint(folder)))
    except ValueError as error:
        return str(error)


def dying(patch, last):
    """A kill at one of the operations that change something. It is not done, or a file is left empty."""
    num_calls, write_text = 0, Path.write_text

    def limit(original):
        def call(*args, **options):
            nonlocal num_calls
            num_calls += 1
            if num_calls > last:
                if original is write_text:
                    write_text(args[0], "")
                raise KeyboardInterrupt
            return original(*args, **options)

        return call

    for place, name in ((files, "sync"), (os, "replace"), (Path, "replace"), (Path, "write_text")):
        patch.setattr(place, name, limit(getattr(place, name)))
    return lambda: num_calls > last


# --------------------------------------------------------------------------------- what cannot be written


@contextmanager
def limited(size):
    """Inside, no file of this process may grow beyond so many bytes, as after `ulimit -f`. pytest may write to one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_files_is_known_before_the_work(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(session, "build", None)  # no model is loaded
    with limited(20_000):
        sentence = refused([*options, "--output-dir", str(tmp_path / "a" / "r")], capsys)
    assert sentence.startswith(f"{tmp_path / 'a' / 'r'} cannot hold a run: ") and "(File too large)" in sentence
    assert list(tmp_path.iterdir()) == []


def in_the_way(name):
    def put(folder):
        folder.mkdir()
        (folder / name).write_text("mine")

    return put


@pytest.mark.parametrize(
    ("put", "sentence"),
    [
        (lambda folder: folder.write_text("mine"), "is a file; name a folder"),
        (in_the_way("checkpoints"), "cannot hold a run"),
        (in_the_way(METRICS), "holds metrics.jsonl of a run without its config.json"),
        (lambda folder: folder.symlink_to("/proc/nowhere"), "cannot be made"),
    ],
)
def test_an_unusable_folder_is_refused_before_the_model_is_loaded(put, sentence, tmp_path, capsys):
    folder = tmp_path / "r"
    put(folder)
    before = contents(tmp_path)
    assert sentence in refused(["--model.model-name", "no/such-model", "--output-dir", str(folder)], capsys)
    assert contents(tmp_path) == before


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("module", "name"), [(saving, "save_checkpoint"), (jsonl, "append_jsonl")])
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(
    module, name, finished, options, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "r"
    original = getattr(module, name)

    def filling(target, *args):
        if (checkpoint(folder, 2)).exists():
            (folder / "checkpoints" / "checkpoint_iter_4.partial").mkdir(exist_ok=True)
            full()
        original(target, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, filling)
        assert main([*options, "--output-dir", str(folder)]) == 1
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"error: {folder}/") and "No space left on device" in sentence
    assert sentence.endswith(f"continue with: python train.py --resume {folder}")
    assert contents(checkpoint(folder, 2)) == contents(checkpoint(finished.folder, 2))
    assert main(["--resume", str(folder)]) == 0
    assert_same_run(folder, finished.folder)
    assert names(folder) == ["checkpoint_iter_2", "checkpoint_iter_4"]


def test_a_limit_that_hits_a_checkpoint_is_one_sentence(options, tmp_path, capsys, monkeypatch):
    save = saving.save_checkpoint

    def saved(*args):
        with limited(20_000):
            save(*args)

    monkeypatch.setattr(saving, "save_checkpoint", saved)
    assert main([*options, "--output-dir", str(tmp_path / "r")]) == 1
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"error: {checkpoint(tmp_path / 'r', 2)} cannot be written (") and (
        "File too large" in sentence
    )
    assert names(tmp_path / "r") == []


# ------------------------------------------------------------------------------------------------ evaluation


def test_an_evaluation_overwrites_no_other(copy):
    held = checkpoint(copy, 4)
    assert main([*FEW, str(held)]) == 0
    first = contents(held)
    assert main([*FEW, str(held), "--eval.num-problems", "5"]) == 0
    after = contents(held)
    assert after.keys() - first.keys() == {Path("evaluation-2.json")}
    assert {path: after[path] for path in first} == first
    assert read(held / "evaluation-2.json")["eval/num_problems"] == 5


@pytest.mark.parametrize("is_anywhere", [True, False])
def test_an_evaluation_that_cannot_be_saved_beside_its_checkpoint(is_anywhere, copy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held, write = checkpoint(copy, 4), Path.write_text

    def read_only(self, *args, **options):
        if not is_anywhere or held in self.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return write(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", read_only)
    assert main([*FEW, str(held)]) == (0 if is_anywhere else 1)
    out, err = capsys.readouterr()
    assert "pass@1" in out and err.startswith(f"warning: {held / 'evaluation.json'} cannot be written (")
    there = Path("runs/evaluation-001/evaluation.json")
    assert there.exists() == is_anywhere
    assert (f"saved to {there}" in out, "saved nowhere" in err) == (is_anywhere, not is_anywhere)


# -------------------------------------------------------------------------------- iterations without a gradient


def test_an_iteration_that_drops_every_leaf_says_so_and_may_be_resumed(options, tmp_path, capsys, monkeypatch):
    make_batch, iterate, numbers = trainer.make_batch, trainer.iterate, []

    def dropping(rewarded):
        is_empty = numbers[-1] in (0, 2)
        weight = torch.zeros_like(rewarded.update_weight) if is_empty else rewarded.update_weight
        return make_batch(replace(rewarded, update_weight=weight))

    monkeypatch.setattr(trainer, "make_batch", dropping)
    monkeypatch.setattr(
        trainer, "iterate", lambda session, i, *trace: (numbers.append(i), iterate(session, i, *trace))[1]
    )
    assert main([*options, "--output-dir", str(tmp_path / "whole")]) == 0
    out, err = capsys.readouterr()
    _, *written = records(tmp_path / "whole")
    assert [r["train/num_rows"] == 0 for r in written] == [True, False, True, False]
    assert written[0].keys() == written[1].keys()
    assert [r["train/learning_rate"] for r in written] == pytest.approx([0.025, 0.05, 0.1 / 3, 0.05 / 3])
    assert [r["train/num_updates"] for r in written] == [0, 2, 2, 4]
    assert written[0]["advantage/rms"] is written[2]["policy/entropy"] is None
    assert err.count("nothing was learned in iteration 1: every leaf") == err.count("iteration 3: every leaf") == 1
    assert "nan" not in out
    folder = tmp_path / "r"
    with monkeypatch.context() as patch:
        send(patch, signal.SIGTERM, iteration=0)
        assert main([*options, "--output-dir", str(folder)]) == 143
    assert read(checkpoint(folder, 1) / "trainer.json")["num_updates"] == 0
    assert main(["--resume", str(folder)]) == 0
    assert_same_run(folder, tmp_path / "whole")


# ------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"--train.learning-rate {PRESETS['tiny'].train.learning_rate}", "--train.learning-rate"),
        (f"--search.beam_width={PRESETS['tiny'].search.beam_width}", "--search.beam-width"),
        ("--config tiny", "--config"),
        ("--model.model-name embedded", "--model.model-name"),
        ("--train.no-gradient-checkpointing", "--train.gradient-checkpointing"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused_though_it_is_the_default(line, named, copy, capsys):
    before = contents(copy)
    sentence = refused(["--resume", str(copy), *line.split()], capsys)
    assert sentence.startswith(f"--resume {copy} continues with the run's own configuration: leave out {named}; only")
    sentence = refused([*FEW, str(checkpoint(copy, 4)), *line.split()], capsys) if "config" not in line else named
    assert sentence.endswith(f"{named} was given") or "config" in line
    assert contents(copy) == before


@pytest.mark.parametrize("argv", [["--output-dir", ""], ["--output-dir="], ["--resume", ""], ["--checkpoint", ""]])
def test_an_empty_value_is_refused(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = refused(argv, capsys)
    assert sentence == f"{argv[0].rstrip('=')} has an empty value; give one, or leave the option out"
    assert list(tmp_path.iterdir()) == []
