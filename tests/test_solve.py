"""`solve` with one question, its answer and its search tree."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_run import OPTIONS
from tinyzero_astar.cli.doctor import doctor_main
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.manifest import write_manifest
from tinyzero_astar.report.tree import drawn_tree

NOTE = "the value model is untrained"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tiny_base, tmp_path_factory):
    """The folder of a run of two iterations with a checkpoint after each, whose sequences have at most 14 tokens."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = [*OPTIONS.split(), "--train.num-iterations", "2", "--run.checkpoint-frequency", "1"]
    argv += ["--model.max-seq-length", "14", "--output-dir", str(folder)]
    assert main(["--model.model-name", str(tiny_base), *argv]) == 0
    return folder


def damaged(run, folder, file, key):
    shutil.copytree(run / "checkpoints" / "checkpoint_iter_2", folder)
    tensors = load_file(folder / file)
    tensors[key] = torch.full_like(tensors[key], float("nan"))
    save_file(tensors, folder / file, metadata={"format": "pt"})
    write_manifest(folder)
    return str(folder)


def refusal(argv, capsys, status=2):
    assert solve_main(argv) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err.removeprefix("error: ")


def test_a_run_folder_means_its_newest_checkpoint(run, capsys):
    assert solve_main(["3*4", "--checkpoint", str(run)]) == 0
    out = capsys.readouterr().out
    assert solve_main(["3*4", "--checkpoint", str(run / "checkpoints" / "checkpoint_iter_2")]) == 0
    assert capsys.readouterr().out == out and NOTE not in out
    assert solve_main(["3*4", "--checkpoint", str(run / "checkpoints" / "checkpoint_iter_1")]) == 0
    assert capsys.readouterr().out != out


def test_evaluation_takes_a_run_folder_too(run, capsys):
    assert main(["--eval-only", "--checkpoint", str(run), "--eval.num-problems", "4"]) == 0
    newest = run / "checkpoints" / "checkpoint_iter_2"
    assert f"saved to {newest / 'evaluation.json'}" in capsys.readouterr().out


def test_the_base_says_that_its_value_model_is_untrained_and_tokens_are_quoted(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert solve_main(["3*4", "--max-nodes", "200"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith(NOTE) and "\n3*4\n" in out
    tree = [line for line in lines if line.lstrip("│ ").startswith(("├", "└"))]
    assert len(tree) > 5 and all(
        re.fullmatch(r'[│├─━└ ]+"[^"]+"  (success [\d.]+ %  )?f -?[\d.]+(  .+)?', x) for x in tree
    )
    assert any('─ " ' in line for line in tree) and max(map(len, lines)) <= 80


def traced():
    """prompt -> a b -> (c d the end, e still open), prompt -> f -> g h given up. What leads to the end has less f."""
    told = [  # parent, f, h, status
        *(
            (-1, 0.0, 1.0, "expanded"),
            (0, -1.0, 0.5, "expanded"),
            (1, -1.5, 1.0, "expanded"),
            (2, -2.0, 2.0, "expanded"),
        ),
        *((3, -2.5, 9.0, "leaf"), (2, -9.0, 0.1, "open"), (0, -0.5, 0.2, "expanded"), (6, -0.6, 0.3, "expanded")),
        (7, -0.7, 0.4, "expanded"),
    ]
    names = ("parent", "f", "h", "status")
    nodes = [{"node": i, "token": i, "text": "?", **dict(zip(names, row, strict=True))} for i, row in enumerate(told)]
    dropped = nodes[5] | {"node": 9, "status": "dropped", "f": 0.0}  # whatever its f, it is not drawn
    return [*(n | {"success": n["h"] / 10} for n in nodes), dropped]


def drawn(*args, nodes=None):
    found, num_drawn = drawn_tree(nodes or traced(), lambda tokens: "".join(" abcdefgh "[t] for t in tokens), *args)
    return [f"{line.indent}{line.text}  {line.note}" for line in found], num_drawn, [line.is_answer for line in found]


def test_a_tree_has_a_line_for_each_stretch_with_success_and_the_path_to_the_answer():
    lines, num_drawn, is_answer = drawn(60, 3.0, 80)
    assert lines == [
        '├─ "fgh"  success 4.0 %  f -0.70  given up',
        '└━ "ab"  success 10 %  f -1.50',
        '   ├━ "cd"  success 20 %  f -2.50  the answer',
        '   └─ "e"  success 1.0 %  f -9.00  still open',
    ]
    assert num_drawn == 9 and is_answer == [False, True, True, False]


def test_without_a_value_in_f_nothing_is_said_of_success():
    assert "success" not in "".join(drawn(60, 0.0, 80)[0])


def test_the_best_nodes_are_drawn_with_the_path_and_what_goes_on_undrawn_is_marked():
    lines, num_drawn, _ = drawn(7, 0.0, 80)
    assert lines == ['├─ "fg"  f -0.60  …', '└━ "abcd"  f -2.50  the answer'] and num_drawn == 7


def test_a_long_stretch_is_shortened_in_the_middle_to_the_width():
    nodes = [n for n in traced() if n["node"] < 5]
    found, _ = drawn_tree(nodes, lambda tokens: "start" + 90 * "-" + "\n end", 60, 0.0, 60)
    line = f"{found[0].indent}{found[0].text}  {found[0].note}"
    assert len(line) == 60 and line.startswith('└━ "start---') and '⏎ end"  f -2.50  the answer' in line and "…" in line


def test_a_right_answer_stands_out_in_colour_and_no_answer_is_said_to_be_none(run, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert solve_main(["3*4", "--max-nodes", "9"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"no answer  \(|answer \x1b\[1;3[23]m", out) and "\x1b[1;3" in out and "None" not in out


@pytest.mark.parametrize(
    ("task", "question"),
    [("countdown", "4 6 8 = 24"), ("table.jsonl", "how many?"), ("multiplication", "3*4")],
)
def test_any_task_is_solved(task, question, capsys):
    rows = [{"prompt": f"how many? {i}", "answer": str(i)} for i in range(9)]
    Path("table.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert solve_main(["how many? 3" if "table" in task else question, "--data.task", task]) == 0
    out = capsys.readouterr().out
    assert re.search(r"answer.*  \(.+\)\n\nThe search tree\. ", out) and " prefixes extended, " in out


def test_a_checkpoint_without_a_critic_says_that_its_value_model_is_untrained(tiny_base, capsys):
    argv = [*OPTIONS.split(), "--train.num-iterations", "1", "--search.mode", "sample", "--train.algorithm", "rloo"]
    assert main(["--model.model-name", str(tiny_base), *argv, "--output-dir", "r"]) == 0
    capsys.readouterr()
    assert solve_main(["3*4", "--checkpoint", "r"]) == 0
    first = " ".join(capsys.readouterr().out.split())
    assert first.startswith(NOTE) and "algorithm rloo does without it" in first
    assert solve_main(["3*4", "--checkpoint", "r", "--inverse-beta", "0"]) == 0  # which it recommends
    out = capsys.readouterr().out
    assert NOTE not in out and "success" not in out


@pytest.mark.parametrize(
    ("file", "key", "what"),
    [
        ("model.safetensors", "model.norm.weight", "the decoder returned NaN logits"),
        ("trainer.safetensors", "value_model.output.weight", "the decoder returned a value that is NaN or infinite"),
    ],
)
def test_weights_that_are_nan_are_one_sentence_that_names_the_checkpoint(file, key, what, run, tmp_path, capsys):
    folder = damaged(run, tmp_path / "nan", file, key)
    sentence = refusal(["3*4", "--checkpoint", folder], capsys, 1)
    assert sentence.startswith(f"{folder}: {what}") and "its weights are damaged" in sentence


def test_a_prompt_that_does_not_fit_names_both_lengths(run, tiny_base, capsys):
    """The template has three tokens besides the digits and the *."""
    assert solve_main(["12345*12345", "--checkpoint", str(run)]) == 0  # 13 tokens: one is left
    capsys.readouterr()
    sentence = refusal(["12345*123456", "--checkpoint", str(run)], capsys)
    newest = run / "checkpoints" / "checkpoint_iter_2"
    assert sentence.startswith(f"{newest}: max_seq_length 14 leaves no room after a prompt of 14 tokens: ")
    argv = ["--model.model-name", str(tiny_base), "--model.max-seq-length", "9", "--data.max-digits", "3"]
    for command in (main, doctor_main):
        assert command(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: max_seq_length 9 leaves no room after a prompt of 9 tokens: raise it to 89 ")
    assert not Path("runs").exists()
