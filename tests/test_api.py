"""The Python interface does the same search and training as the command line, with less to write."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tinyzero_astar as tz
from tests.test_run import OPTIONS, judge
from tinyzero_astar import api
from tinyzero_astar.cli.options import config_of, parse
from tinyzero_astar.cli.train import main
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.report.tree import outline

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Multiplication, "verify", judge)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def config(tiny_base):
    return config_of(parse(["--model.model-name", str(tiny_base), *OPTIONS.split()]))


def without_time(record):
    return {name: value for name, value in record.items() if not name.startswith("time/") and name != "alarms"}


def weights_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


# ------------------------------------------------------------------------------------------------ the package


def test_the_package_hands_out_what_api_has_when_asked():
    assert set(dir(tz)) == set(tz.__all__) and tz.load is api.load
    with pytest.raises(AttributeError, match="'tinyzero_astar' has no attribute 'nonsense'"):
        _ = tz.nonsense
    code = "import sys, tinyzero_astar as t; t.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


# ------------------------------------------------------------------------------------------------ training


def test_three_steps_are_those_of_a_run_to_the_bit(config, elsewhere, capsys):
    argv = ["--model.model-name", config.model.model_name, *OPTIONS.split(), "--output-dir", "r"]
    assert main([*argv, "--run.checkpoint-frequency", "3"]) == 0
    capsys.readouterr()
    recorded = [json.loads(line) for line in (elsewhere / "r/metrics.jsonl").read_text().splitlines()]
    model = tz.load(config=config, is_quiet=True)
    trained = model.train() + model.train(2)
    for own, record in zip(trained, recorded[1:4], strict=True):
        assert without_time(own) == {k: v for k, v in without_time(record).items() if not k.startswith("eval/")}
    samples = [json.loads(line) for line in (elsewhere / "r/samples.jsonl").read_text().splitlines()]
    assert [{"iteration": 3, **leaf} for leaves in model.samples for leaf in leaves] == [
        s for s in samples if s["iteration"] == 3
    ]
    saved = model.save("mine")
    ours, theirs = weights_of(saved), weights_of("r/checkpoints/checkpoint_iter_3")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert capsys.readouterr().out == ""


def test_a_checkpoint_brings_its_value_model_its_settings_and_what_its_gate_knows(config, capsys):
    model = tz.load(config=config, is_quiet=True)
    model.train(2)
    question = model.ask("3*4")
    model.save("mine")
    again = tz.load("mine", is_quiet=True)
    assert again.config == replace(config, model=replace(config.model, model_name="mine"))
    assert again.history == model.history and len(again.history) == 2
    for is_guided in (False, True):
        own, other = (m.search(question, 3, is_guided=is_guided).leaves for m in (model, again))
        assert own == other
    assert again.train(4)[-1]["iteration"] == 4  # a schedule of its own
    assert tz.load(again.save("longer"), is_quiet=True).history == again.history
    assert main(["--eval-only", "--checkpoint", "mine"]) == 0
    with pytest.raises(ValueError, match="value model does not fit"):
        tz.load("mine", config=replace(config, value=replace(config.value, hidden_size=9)), is_quiet=True)


def test_the_schedule_ends(config):
    model = tz.load(config=config, options={"train.num_iterations": 1, "train.warmup_iterations": 0}, is_quiet=True)
    assert repr(model) == f"Model({config.model.model_name!r}, trained for 0 iterations here)"
    model.train()
    with pytest.raises(ValueError, match="the learning rate is 0 after 1 iterations, and 1 of them are done: load"):
        model.train()


def test_an_evaluation_is_that_of_a_run(config, elsewhere):
    assert main(["--eval-only", "--model.model-name", config.model.model_name, *OPTIONS.split()]) == 0
    saved = json.loads((elsewhere / "runs/evaluation-001/evaluation.json").read_text())
    assert tz.load(config=config, is_quiet=True).evaluate() == saved


def test_nothing_but_a_checkpoint_is_replaced(config, elsewhere):
    model = tz.load(config=config, is_quiet=True)
    (elsewhere / "thesis").mkdir()
    with pytest.raises(ValueError, match="thesis exists and is no checkpoint: it is not replaced"):
        model.save("thesis")
    model.save("mine")
    model.save("mine")


# ------------------------------------------------------------------------------------------------ search


def test_leaves_have_the_policys_probabilities_and_a_verdict(config):
    model = tz.load(config=config, is_quiet=True)
    problem = model.ask("3*4")
    tree = model.search(problem, 3, seed=5)
    ids = model.tokenizer(problem.prompt)["input_ids"]
    assert [leaf.verdict for leaf in tree.leaves] == [
        judge(None, problem, leaf.text, leaf.is_finished) for leaf in tree.leaves
    ]
    for leaf in tree.leaves:
        logits = model.policy.language_model(torch.tensor([[*ids, *leaf.tokens]])).logits[0].detach().double()
        logits[:, model.policy.textless] = -torch.inf
        logp = torch.log_softmax(logits, -1)[len(ids) - 1 : -1]
        assert leaf.logp == pytest.approx(float(logp[range(len(leaf.tokens)), leaf.tokens].sum()), abs=1e-4)
        assert leaf.weight > 0 and 0 < leaf.success < 1
    assert tree.leaves == model.search(problem, 3, seed=5).leaves != model.search(problem, 3, seed=6).leaves
    assert len({tuple(leaf.tokens) for leaf in tree.leaves}) == 3 == len(tree.leaves)


def test_the_value_model_bends_the_search_where_its_gate_is_open(config, monkeypatch):
    model = tz.load(config=config, is_quiet=True)
    model.train(2)
    closed, bent = (model.search("3*4=", 3, is_guided=is_guided).leaves for is_guided in (False, True))
    assert closed != bent
    assert model.search("3*4=", 3).leaves == closed
    monkeypatch.setattr(api, "guidance_gate", lambda history: (len(history) == 2, ""))
    assert model.search("3*4=", 3).leaves == bent


def test_modes_and_texts_that_are_no_problem(config):
    model = tz.load(config=config, is_quiet=True)
    sampled = model.search("3*4=", 4, mode="sample")
    assert [leaf.weight for leaf in sampled.leaves] == [0.25] * 4 and sampled.prompt == "3*4="
    best = model.search("3*4=", 2, mode="best_first")
    assert best.mode == "best_first" and [(leaf.weight, leaf.verdict) for leaf in best.leaves] == [(None, None)] * 2
    assert best.stats["num_expanded"] == sum(n["status"] == "expanded" for n in best.nodes)


def test_a_mistake_is_one_sentence(config):
    model = tz.load(config=config, is_quiet=True)
    for call, sentence in (
        (lambda: model.search("1" * 130), "max_seq_length 128 leaves no room after a prompt of 130 tokens"),
        (lambda: model.ask("?"), ""),
        (lambda: tz.load(options={"train.seed": 1}), "options: 'train.seed' is no field of a configuration"),
        (lambda: tz.load(options={"seed": 1}), "options: 'seed' is no field of a configuration"),
        (
            lambda: tz.load(options={"search.beam_width": 1.5}),
            "options: search.beam_width is 1.5, which is not of type",
        ),
        (lambda: tz.load(config="huge"), "--config 'huge' is no preset"),
        (lambda: tz.load("./nowhere", is_quiet=True), "model_name './nowhere': no folder"),
    ):
        with pytest.raises(ValueError) as refused:
            call()
        assert str(refused.value).startswith(sentence)


def test_the_outline_has_a_line_for_each_stretch_without_a_fork():
    """prompt -> a b -> (c leaf, d e given up), prompt -> f open, the most probable first."""
    nodes = [
        {"node": i, "parent": parent, "token": i, "text": "<p>\n", "g": g, "status": status}
        for i, (parent, g, status) in enumerate(
            [
                (-1, 0.0, "expanded"),
                (0, -2.0, "open"),
                (0, -1.0, "expanded"),
                (2, -1.5, "expanded"),
                (3, -1.9, "leaf"),
                (3, -1.6, "expanded"),
                (5, -3.0, "expanded"),
            ]
        )
    ]
    drawn = outline(nodes, lambda tokens: " ".join("?fabcde"[t] for t in tokens) + " ", lambda tokens: f"leaf {tokens}")
    assert drawn.splitlines() == [
        r"<p>\n",
        "├─ a b␣",
        "│  ├─ d e␣  (given up)",
        "│  └─ c␣  leaf [2, 3, 4]",
        "└─ f␣  (open)",
    ]


# ------------------------------------------------------------------------------------------------ documents


def python_blocks(text):
    return [part.partition("```")[0] for part in text.split("```python\n")[1:]]


@pytest.fixture
def small(monkeypatch):
    """Preset tiny with few problems."""
    tiny = PRESETS["tiny"]
    small = replace(
        tiny,
        data=replace(tiny.data, num_problems=20),
        search=replace(tiny.search, max_search_depth=24),
        train=replace(tiny.train, problems_per_iteration=4, batch_size=2),
        eval=replace(tiny.eval, num_problems=4),
    )
    monkeypatch.setitem(PRESETS, "tiny", small)


def test_the_examples_of_the_page_run_as_written(small, capsys):
    blocks = python_blocks((ROOT / "docs/python.md").read_text("utf-8"))
    lines = [line for line in blocks[0].partition("print(tree)")[0].splitlines() if line]
    assert lines[0].startswith("import") and len(lines) <= 10
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    assert (
        len(blocks) == 5
        and out.count("weight 0.") == 4 + 2
        and "[1.0, 0.0]" in out
        and names["again"].history == names["model"].history
    )


def test_the_cells_of_the_notebook_run_as_written(small, capsys):
    notebook = json.loads((ROOT / "docs/first_steps.ipynb").read_text("utf-8"))
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert [len(line.get_xdata()) for line in names["axes"].get_lines()] == [3, 3]
    assert len(names["records"]) == 3 and "weight 0." in capsys.readouterr().out
