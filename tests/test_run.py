"""Whole runs on a tiny random model, with records, interruption, continuing, evaluation.

The random model never answers a question, so a hash of the text replaces the verifier. Rewards then vary and
depend on every token, and whatever differs between two runs shows.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinyzero_astar.cli import commands
from tinyzero_astar.cli.options import parse
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import Config
from tinyzero_astar.config_json import from_json
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.eval.decoding import Arm
from tinyzero_astar.interfaces import Verdict
from tinyzero_astar.manifest import write_manifest
from tinyzero_astar.report.page import PAGE
from tinyzero_astar.run import loop as trainer
from tinyzero_astar.run.folder import CONFIG
from tinyzero_astar.run.start import start_run
from tinyzero_astar.terminal import run_command
from tinyzero_astar.training.algorithms import ALGORITHMS
from tinyzero_astar.training.astar_po import AStarPO

EVAL = "--run.num-threads 1 --eval.num-problems 24 --eval.num-samples 4 --eval.eval-frequency 4 --eval.max-rows 40"
OPTIONS = (
    "--train.num-iterations 4 --train.problems-per-iteration 4 --train.batch-size 2"
    " --train.learning-rate 0.05 --data.num-problems 12 --search.num-rollouts-per-problem 3"
    " --search.beam-width 4 --search.max-search-depth 8 --search.guidance-strength 1"
    " --value.hidden-size 8 --value.update-frequency 3"
    f" --run.checkpoint-frequency 2 --run.sample-frequency 1 {EVAL}"
)
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"


def judge(self, problem, completion, is_finished):
    number = zlib.crc32(f"{problem.text} {completion}".encode())
    is_right = number % 3 == 0
    return Verdict(is_right, is_right or number % 2 == 0, None, "by a hash")


@pytest.fixture(autouse=True, scope="module")
def judged_by_a_hash_and_guided_early():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Multiplication, "verify", judge)
        # the real gate needs more iterations than these runs have
        patch.setattr(trainer, "guidance_gate", lambda history: (len(history) >= 2, "early"))
        yield


@pytest.fixture(autouse=True)
def ctrl_c_is_not_ignored():
    """As it would be in a job that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def options(tiny_base):
    return ["--model.model-name", str(tiny_base), *OPTIONS.split()]


@pytest.fixture(scope="module")
def session(tiny_base, tmp_path_factory):
    """A run of four iterations, finished."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    command = parse(["--model.model-name", str(tiny_base), *OPTIONS.split()])
    config = Config(**{f.name: getattr(command, f.name) for f in dataclasses.fields(Config)})
    session = start_run(config, "tiny", folder)
    assert trainer.train(session) == 0
    return session


def strict(line):
    """JSON without the NaN and Infinity that only Python reads."""

    def refuse(constant):
        raise AssertionError(f"{constant} in {line}")

    return json.loads(line, parse_constant=refuse)


def records(folder, name="metrics.jsonl"):
    return [strict(line) for line in (folder / name).read_text(encoding="utf-8").split("\n")[:-1]]


def timeless(folder):
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records(folder)]


def checkpoint(folder, iteration):
    return folder / "checkpoints" / f"checkpoint_iter_{iteration}"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_same_run(got, want, iteration=4):
    for name in ("model.safetensors", "trainer.safetensors"):
        ours, theirs = (load_file(checkpoint(folder, iteration) / name) for folder in (got, want))
        assert ours.keys() == theirs.keys()
        assert [k for k in theirs if not torch.equal(ours[k], theirs[k])] == []
    assert timeless(got) == timeless(want)
    assert records(got, "samples.jsonl") == records(want, "samples.jsonl")


def press_ctrl_c(monkeypatch, iteration, times=1):
    """SIGINT while the given iteration, counted from 0, is searching."""
    original = trainer.iterate

    def interrupted(session, i, *trace):
        for _ in range(times if i == iteration else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return original(session, i, *trace)

    monkeypatch.setattr(trainer, "iterate", interrupted)


# ---------------------------------------------------------------------------------------------------- records


def test_there_is_one_record_per_iteration(session):
    found = records(session.folder)
    assert [r["iteration"] for r in found] == [0, 1, 2, 3, 4]
    assert [any(name.startswith("eval/") for name in r) for r in found] == [True, False, False, False, True]
    assert [("train/policy_loss" in r) for r in found] == [False, True, True, True, True]
    assert found[1].keys() == found[3].keys() and found[4].keys() == found[0].keys() | found[1].keys()
    numbers = ("train/policy_loss", "train/value_loss", "rollout/accuracy", "weight/sum", "advantage/rms")
    assert all(isinstance(r[name], float) for r in found[1:] for name in numbers)
    assert len({r["rollout/reward"] for r in found[1:]}) > 1  # else the comparisons below would be empty
    assert [r["guidance/is_open"] for r in found[1:]] == [0, 0, 1, 1]


def test_samples_show_every_leaf_and_what_the_verifier_said(session):
    found = records(session.folder, "samples.jsonl")
    by_iteration = [sum(r["iteration"] == i for r in found) for i in range(5)]
    assert by_iteration == [0, 12, 12, 12, 12]
    for sample in found:
        verdict = judge(None, type("P", (), {"text": sample["problem"]}), sample["completion"], True)
        assert (sample["accuracy"], sample["format"]) == (verdict.accuracy, verdict.format)
        a, b = sample["problem"].split("*")
        assert sample["answer"] == int(a) * int(b)
    shares = {r["iteration"]: r["rollout/accuracy"] for r in records(session.folder)[1:]}
    for iteration, share in shares.items():
        right = [s["accuracy"] for s in found if s["iteration"] == iteration]
        assert share == pytest.approx(sum(right) / len(right))


def test_configuration_is_saved_and_shown(session, capsys, options, tmp_path):
    assert from_json(session.folder / CONFIG) == session.config
    assert main([*options, "--output-dir", str(tmp_path / "r"), "--train.num-iterations", "0"]) == 0
    out = capsys.readouterr().out
    assert "0 on both sides" in out and f"\nfolder    {tmp_path / 'r'}, all settings in its config.json\n" in out
    assert "--checkpoint" not in out and "a line for each iteration" not in out  # there are none
    assert [r["iteration"] for r in records(tmp_path / "r")] == [0]


def test_leaves_that_do_not_exist_are_not_shown(options, tmp_path):
    folder = tmp_path / "r"  # one token of 320: fewer leaves than asked for
    few = "--search.num-rollouts-per-problem 330 --search.beam-width 331 --search.max-search-depth 1"
    argv = [*options, *few.split(), "--train.num-iterations", "1", "--output-dir", str(folder)]
    assert main(argv) == 0
    assert len(records(folder, "samples.jsonl")) == 4 * 320
    [_, record] = records(folder)
    shown = records(folder, "samples.jsonl")
    assert record["rollout/format"] == pytest.approx(sum(s["format"] for s in shown) / len(shown))
    reward = sum(s["accuracy"] + 0.1 * s["format"] for s in shown) / len(shown)
    assert record["rollout/reward"] == pytest.approx(reward)


def documented():
    """The first column of the tables in docs/metrics.md. <k> is a number, [_low|_high] may follow or not."""
    names = re.findall(r"^(?:\| )?`([a-z]+/[^`]+|alarms)`", DOCUMENT.read_text(encoding="utf-8"), re.M)
    assert len(names) == len(set(names)) > 40
    return [name.replace("\\", "") for name in names]


def is_named(written, name):
    number, arm, interval = (re.escape(x) for x in ("<k>", "<way>", "[_low|_high]"))
    pattern = re.escape(name).replace(number, r"[0-9]+").replace(arm, "[a-z_]+").replace(interval, "(_low|_high)?")
    return re.fullmatch(pattern, written) is not None


def test_every_metric_is_documented_and_every_documented_one_is_written(session):
    written = {name for r in records(session.folder) for name in r} - {"iteration"}
    arms = [Arm("greedy", "", torch.ones(2), 0.0), Arm("best_first", "", torch.ones(2), 0.0)]
    decoding = {name for arm in arms for name in arm.metrics(arms[0])}
    written.add("policy/kl_to_base")  # with adapters only: tests/test_adapters.py
    for kind in ALGORITHMS.values():  # of other algorithms: tests/test_algorithm_runs.py
        written |= set(kind.measures)
    written |= {f"reference/num_{what}" for what in ("problems", "decoded_tokens", "prompt_tokens")}
    written |= {"gate/auc", "gate/sibling_ranking"}  # of the page, computed from others
    written |= decoding  # with eval.search best_first
    names = documented()
    assert [w for w in sorted(written) if not any(is_named(w, name) for name in names)] == []
    assert [name for name in names if not any(is_named(w, name) for w in written)] == []


# -------------------------------------------------------------------------------- interruption and continuing


def test_ctrl_c_leaves_a_checkpoint_and_the_resumed_run_equals_an_uninterrupted_one(
    session, options, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "r"
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, iteration=2)
        assert main([*options, "--output-dir", str(folder)]) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    out = capsys.readouterr().out
    assert f"stopped after iteration 3. Continue with: python train.py --resume {folder}\n" in out
    assert [r["iteration"] for r in records(folder)] == [0, 1, 2, 3]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "checkpoint_iter_2",
        "checkpoint_iter_3",
    ]

    assert main(["--resume", str(folder)]) == 0
    assert f"continuing {folder} after iteration 3" in capsys.readouterr().out
    assert_same_run(folder, session.folder)
    assert read(checkpoint(folder, 4) / "trainer.json") == read(checkpoint(session.folder, 4) / "trainer.json")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_after_a_crash_the_run_goes_on_from_its_last_checkpoint(session, tmp_path, monkeypatch):
    folder = tmp_path / "crashed"
    shutil.copytree(session.folder, folder)
    checkpoint(folder, 4).rename(checkpoint(folder, 4).with_suffix(".partial"))  # died while it saved
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "train/')
    iterate, seen = trainer.iterate, []

    def watched(session, iteration, *trace):
        seen.append([r["iteration"] for r in records(folder)])
        return iterate(session, iteration, *trace)

    monkeypatch.setattr(trainer, "iterate", watched)
    assert main(["--resume", str(folder)]) == 0
    assert seen == [[0, 1, 2], [0, 1, 2, 3]]  # records 3, 4 and the cut one were dropped first
    assert_same_run(folder, session.folder)


def test_a_finished_run_may_be_resumed_and_stays_as_it_is(session, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(session.folder, folder)
    before = contents(folder)
    assert main(["--resume", str(folder)]) == 0
    (folder / PAGE).unlink()  # the command writes it, which the session's run was not made by
    assert contents(folder) == before


def test_a_run_of_mode_best_first_does_not_claim_the_policys_accuracy(options, tmp_path, capsys):
    argv = [*options, "--search.mode", "best_first", "--train.num-iterations", "1", "--output-dir", str(tmp_path / "r")]
    assert main(argv) == 0
    record = records(tmp_path / "r")[1]
    assert record["rollout/policy_accuracy"] is record["rollout/policy_accuracy_stderr"] is None
    out = capsys.readouterr().out
    assert "\n1/1  accuracy   –    found " in out and "\naccuracy  unknown: " in out


def test_pressing_ctrl_c_twice_stops_at_once(options, tmp_path, capsys, monkeypatch):
    press_ctrl_c(monkeypatch, iteration=2, times=2)
    with pytest.raises(KeyboardInterrupt) as stopped:
        main([*options, "--output-dir", str(tmp_path / "r")])
    assert stopped.value.args == (signal.SIGINT,) and capsys.readouterr().err == ""  # `run_command` says it
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["checkpoint_iter_2"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_during_the_first_evaluation_is_no_traceback(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trainer, "measure", lambda *_, **__: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    assert run_command(lambda: main([*options, "--output-dir", str(tmp_path / "r")])) == 130
    assert capsys.readouterr().err == "stopped at once. Only what was saved before is kept\n"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    session, options, tmp_path, capsys, monkeypatch
):
    loss, num_calls = AStarPO.loss, []

    def broken(self, batch, logp):
        num_calls.append(1)
        return loss(self, batch, logp) * (math.nan if len(num_calls) > 2 * 2 else 1.0)

    monkeypatch.setattr(AStarPO, "loss", broken)
    folder = tmp_path / "r"
    assert main([*options, "--output-dir", str(folder)]) == 1
    err = capsys.readouterr().err
    sentence = "error: iteration 3: the loss is nan: stopped before the optimizer step; the last checkpoint is"
    assert err.startswith(sentence) and err.count("\n") == 1
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["checkpoint_iter_2"]
    assert contents(checkpoint(folder, 2)) == contents(checkpoint(session.folder, 2))
    assert [r["iteration"] for r in records(folder)] == [0, 1, 2]


def test_a_model_that_yields_nan_is_a_sentence_even_in_an_evaluation(session, tmp_path, capsys):
    held = tmp_path / "checkpoint_iter_4"
    shutil.copytree(checkpoint(session.folder, 4), held)
    weights = load_file(held / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, held / "model.safetensors", metadata={"format": "pt"})
    write_manifest(held)
    assert main(["--eval-only", "--checkpoint", str(held), *EVAL.split()]) == 1
    assert capsys.readouterr().err.startswith("error: the decoder returned NaN logits")


# ------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(("between", "num"), [(2, 2), (9, 4)])
def test_evaluations_between_the_start_and_the_end_decode_fewer_problems_greedily(options, tmp_path, between, num):
    argv = "--train.num-iterations 3 --eval.eval-frequency 1 --eval.num-problems 4 --eval.num-samples 4"
    options = [*options, *argv.split(), "--eval.num-problems-between", str(between)]
    assert main([*options, "--output-dir", str(tmp_path / "run")]) == 0
    first, *middle, last = records(tmp_path / "run")
    for record, num_problems, num_samples in ((first, 4, 4), (middle[0], num, 0), (middle[1], num, 0), (last, 4, 4)):
        found = {name for name in record if re.fullmatch(r"eval/pass_at_\d+", name)}
        assert found == {f"eval/pass_at_{k}" for k in (1, 2, 4) if k <= num_samples}
        assert ("eval/mean_length" in record) == (num_samples > 0) and 0 <= record["eval/greedy_accuracy"] <= 1
        assert record["eval/num_problems"] == num_problems


def test_a_checkpoint_is_evaluated_to_the_numbers_of_its_run(session, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "r"
    shutil.copytree(session.folder, folder)
    monkeypatch.chdir(folder)
    assert main(["--eval-only", "--checkpoint", "checkpoints/checkpoint_iter_4.pt"]) == 0
    out = capsys.readouterr().out
    found = read(checkpoint(folder, 4) / "evaluation.json")
    first, last = (records(folder)[i] for i in (0, -1))
    before, after = ({name: x for name, x in r.items() if name.startswith("eval/")} for r in (first, last))
    assert found == after != before  # shares alone may happen to agree
    assert "iteration 4: 24 held-out problems" in out
    for name in ("greedy_accuracy", "pass_at_1", "pass_at_4", "sampled_format"):
        title = name.replace("pass_at_", "sampled pass@").replace("_", " ")
        row = next(line for line in out.splitlines() if line.startswith(f"  {title} "))
        assert f"{100 * found[f'eval/{name}']:.1f} %" in row
        assert f"[{100 * found[f'eval/{name}_low']:.1f}, {100 * found[f'eval/{name}_high']:.1f}]" in row


@pytest.mark.parametrize(
    ("given", "num_problems", "num_samples"),
    [
        ("--eval.num-problems 5 --eval.num-samples 2", 5, 2),
        ("--eval.num-problems=5", 5, 4),
        ("--eval.num-samples 1 --config training", 24, 1),  # each 1 is the value of preset tiny, too
    ],
)
def test_what_is_given_of_an_evaluation_counts_and_the_rest_is_the_checkpoints(
    given, num_problems, num_samples, session, tmp_path
):
    held = shutil.copytree(checkpoint(session.folder, 4), tmp_path / "c")
    words = ["--run.num-threads", "1", *given.split()]
    assert main(["--eval-only", "--checkpoint", str(held), *words]) == 0
    found = read(held / "evaluation.json")
    assert found["eval/num_problems"] == num_problems
    assert max(
        int(name.removeprefix("eval/pass_at_")) for name in found if re.fullmatch(r"eval/pass_at_\d+", name)
    ) == (num_samples)


def test_an_evaluations_options_are_checked_against_the_checkpoints_own(session, tmp_path, capsys):
    held = shutil.copytree(checkpoint(session.folder, 4), tmp_path / "c")
    assert main(["--eval-only", "--checkpoint", str(held), "--eval.num-samples", "41"]) == 2  # max_rows of tiny: 512
    assert capsys.readouterr().err.startswith("error: eval.max_rows 40 must be at least eval.num_samples 41: ")
    assert main(["--eval-only", "--checkpoint", str(held), "--eval.num-samples", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: eval.num_samples 0 is out of range: ")
    argv = ["--eval.num-samples", "600", "--eval.max-rows", "600", "--eval.num-problems", "1"]
    assert parse(["--eval-only", "--checkpoint", str(held), *argv[:2]]).eval.num_samples == 600  # may be, or not
    assert main(["--eval-only", "--checkpoint", str(held), *argv]) == 0


def test_the_command_that_evaluates_again_gives_the_same_evaluation(options, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = "--train.num-iterations 1 --eval.num-problems 20 --eval.num-samples 2 --eval.search best_first"
    assert main([*options, *few.split(), "--output-dir", "r"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^1 iteration in [\d.]+ s, evaluations included$", out, re.MULTILINE)
    command = re.search(r"^evaluate  tinyzero (.*)$", out, re.MULTILINE)
    assert commands.main(command[1].split()) == 0
    found = read(checkpoint(Path("r"), 1) / "evaluation.json")
    assert found == {n: x for n, x in records(Path("r"))[-1].items() if n.startswith(("eval/", "decode/"))}
    assert found["eval/num_problems"] == 20 and "decode/best_first_accuracy" in found


def test_a_checkpoint_searches_with_the_value_model_that_was_trained(session, tmp_path):
    held = shutil.copytree(checkpoint(session.folder, 4), tmp_path / "c")
    words = [*EVAL.split(), "--eval.search", "best_first", "--eval.beam-width", "4"]
    assert main(["--eval-only", "--checkpoint", str(held), *words]) == 0
    found = {name: x for name, x in read(held / "evaluation.json").items() if name.startswith("decode/")}
    settings = dataclasses.replace(session.config.eval, search="best_first", beam_width=4)
    config = dataclasses.replace(session.config, eval=settings)
    wanted = trainer.measure(dataclasses.replace(session, config=config), 4).metrics
    assert found == trainer.finite({name: x for name, x in wanted.items() if name in found})
    assert len(found) == 7 * 6 + 6 * 3  # counts and accuracies, and all but greedy decoding a gain


def test_the_base_model_is_evaluated_without_a_checkpoint(session, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*options, "--eval-only"]) == 0
    first = records(session.folder)[0]
    assert contents(tmp_path).keys() == {Path("runs/evaluation-001/evaluation.json")}
    found = read(tmp_path / "runs/evaluation-001/evaluation.json")
    assert found == {name: x for name, x in first.items() if name.startswith("eval/")}


def test_ways_of_decoding_are_compared_where_no_answer_has_a_token(session):
    shallow = dataclasses.replace(session.search, max_search_depth=1)
    settings = dataclasses.replace(session.config.eval, search="best_first")
    config = dataclasses.replace(session.config, eval=settings)
    found = trainer.measure(dataclasses.replace(session, search=shallow, config=config), 4).metrics
    assert found["decode/best_first_expanded"] == 1
    assert found["decode/greedy_tokens"] == found["decode/beam_search_tokens"] == 0


CHOSEN = "checkpoints/checkpoint_iter_4"


@pytest.mark.parametrize("argv", [["--resume", CHOSEN], ["--eval-only", "--checkpoint", CHOSEN]])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("trainer.json", -9),
        ("trainer.safetensors", None),
        ("trainer.safetensors", -9),
        ("model.safetensors", -9),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(session, argv, name, size, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "r"
    shutil.copytree(session.folder, folder)
    monkeypatch.chdir(folder)
    path = checkpoint(folder, 4) / name
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])
    before = contents(folder)
    assert main([*argv, *(["--run.num-threads", "1"] if "--eval-only" in argv else [])]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "checkpoint_iter_4" in err
    assert contents(folder) == before
