"""The task for lm-evaluation-harness agrees with a run's own evaluation in prompts and verdicts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jinja2 import Template

from recipes.lm_eval import held_out
from tinyzero_astar.config import DataConfig, EvalConfig, SearchConfig
from tinyzero_astar.data.generation import Multiplication

FOLDER = Path(held_out.__file__).parent


class Loader(yaml.SafeLoader):
    """Reads `!function file.name` as the harness does, from a file beside the task."""


def function(loader, node):
    file, name = node.value.split(".")
    assert (FOLDER / f"{file}.py").is_file()
    return getattr(held_out, name)


Loader.add_constructor("!function", function)
TASK = yaml.load((FOLDER / "multiplication.yaml").read_text("utf-8"), Loader)


def splits(monkeypatch, **metadata):
    """The rows that the harness would be given. Its own library is not needed for that."""
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=SimpleNamespace(from_list=list)))
    return TASK["custom_dataset"](**TASK["metadata"], **metadata)


@pytest.mark.parametrize("settings", [{}, {"template": "conversation", "max_digits": 3}])
def test_prompts_and_answers_are_those_of_the_own_evaluation(settings, monkeypatch):
    data = splits(monkeypatch, **settings)[TASK["test_split"]]
    own = Multiplication(DataConfig(**settings), seed=5).held_out_problems(EvalConfig().num_problems)
    asked = [Template(TASK["doc_to_text"]).render(**row) for row in data]
    assert asked == [problem.prompt for problem in own]
    assert [Template(TASK["doc_to_target"]).render(**row) for row in data] == [str(problem.answer) for problem in own]


def test_verdicts_are_those_of_the_own_verifier(monkeypatch):
    row = splits(monkeypatch, num_problems=1)["test"][0]
    right = f"</think><answer>{row['answer']}</answer>"
    for text, accuracy, form in (
        (f"1+1{right}", 1.0, 1.0),
        ("</think><answer>7</answer>", 0.0, 1.0),
        (str(row["answer"]), 0.0, 0.0),
        (f"{right} and more", 0.0, 0.0),
    ):
        assert TASK["process_results"](row, [text]) == {"accuracy": accuracy, "format": form}
    assert [metric["metric"] for metric in TASK["metric_list"]] == ["accuracy", "format"]


def test_decoding_is_greedy_as_long_as_in_the_default_preset_and_ended_by_the_model_alone():
    depth = SearchConfig().max_search_depth
    assert TASK["generation_kwargs"] == {"until": [], "do_sample": False, "max_gen_toks": depth}


def test_a_wrong_setting_is_refused():
    with pytest.raises(ValueError, match="max_digits"):
        held_out.rows(max_digits=9)
    with pytest.raises(ValueError, match="num_shots is 2"):
        held_out.rows(num_shots=2)
