"""The page of runs as text. What is in it, that data stays data, how large it gets; tests/test_browser.py sees it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from pathlib import Path

import pytest

from tests.pages import GREEDY, HOSTILE, Elements, hostile_run, make_run, row, sample, trace
from tests.test_run import OPTIONS
from tinyzero_astar.cli.report import report_main
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.metrics import alarms
from tinyzero_astar.report import page_data
from tinyzero_astar.report.charts import CALIBRATION, drawn_metrics
from tinyzero_astar.report.headline import ALARMS
from tinyzero_astar.report.page import PAGE
from tinyzero_astar.report.page_data import curves, packed

ROOT = Path(__file__).resolve().parents[1]
VENDOR = ROOT / "tinyzero_astar/assets/page/vendor"
ORIGINALS = {  # of the packages on npm, SHA-256
    "d3-hierarchy.min.js": "971f374ce9fdbec711eb2358003e2bb755bff22ec6852dc5ebd59f987270db64",  # 3.1.3
    "d3-hierarchy.LICENSE": "2a6d2d5f32ba0b755ddbc1c833f766e30cdbe6ebe9a6d4e3e24427721f0b63d3",  # ISC
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",  # 1.6.32
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",  # MIT
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page_of(*runs, capsys=None):
    assert report_main([*map(str, runs), "-o", "page.html"]) == 0
    return Path("page.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------- what is in it


def test_the_page_holds_the_records_of_a_run(elsewhere):
    run = make_run(elsewhere / "r")
    (told,) = Elements(page_of(run)).data["runs"]
    assert told["iterations"] == list(range(21)) and told["tokens"][:4] == [0, 100, 200, 300]
    assert told["seconds"][:3] == [0.5, 1.0, 1.5]
    assert told["metrics"][GREEDY][0] == 0 and told["metrics"][GREEDY][1:10] == [None] * 9
    assert told["metrics"]["train/value_loss"][20] == row(20, 20)["train/value_loss"]
    assert told["calibration"] == {"iteration": 20, "bins": row(20, 20)[CALIBRATION]}
    assert [s["iteration"] for s in told["samples"]] == [1] * 4 + [10] * 4 + [20] * 4 and told["numSamples"] == 12
    assert [t["iteration"] for t in told["traces"]] == [1, 10]


def test_a_packed_tree_has_every_node_and_leaf_of_the_record():
    record = trace(3, branches=4, text="xy")
    nodes, small = record["nodes"], packed(record)
    assert [small["texts"][i] for i in small["nodes"]["text"]] == nodes["text"]
    for name in ("parent", "step", "end"):
        assert small["nodes"][name] == nodes[name]
    for name in ("g", "h", "priority", "success"):
        assert small["nodes"][name] == pytest.approx(nodes[name], abs=5e-4)
    assert [("expanded", "leaf", "open", "dropped")[i] for i in small["nodes"]["status"]] == nodes["status"]
    assert small["nodes"]["problem"] == [0, 1] and [leaf["node"] for leaf in small["leaves"]] == [
        leaf["node"] for leaf in record["leaves"]
    ]


def test_the_head_says_what_was_learned_from_where_to_where_and_at_which_cost(elsewhere):
    page = page_of(make_run(elsewhere / "my run"))
    for said in (
        *(
            "<h1>my run</h1>",
            "embedded base model (1,234 parameters) on the task multiplication, by algorithm astar_po",
        ),
        *("<b>0.0 %</b><small>0.0 to 10.0</small>", "<b>100.0 %</b><small>90.0 to 100.0</small>"),
        *("<b>10 s and 2,000 decoded tokens.</b>", "20 iterations on cpu, 2 cores."),
        *("No alarm was raised", "python train.py --run.seed 3", "torch 2"),
        '<th scope="row">task</th><td>multiplication</td>',
    ):
        assert said in page


def test_alarms_are_told_with_when_they_held(elsewhere):
    rows = [row(i, 9, alarms=["no_gradient"] if i in (4, 5) else []) for i in range(10)]
    page = page_of(make_run(elsewhere / "r", rows=rows))
    assert "no_gradient, 2 iterations, first in iteration 4" in page and "No alarm was raised" not in page


def test_every_alarm_and_every_metric_of_the_page_is_documented():
    documented = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| (\w+) \| ", documented.partition("## Alarms")[2], re.MULTILINE)
    rules = set(re.findall(r'^        "(\w+)": ', Path(alarms.__file__).read_text(encoding="utf-8"), re.MULTILINE))
    assert rules == ALARMS.keys() <= {*names}
    known = documented.replace("[_low\\|_high]", "").replace("_<k>", "_1")
    for name in (*drawn_metrics(), CALIBRATION):
        assert f"`{re.sub(r'_(low|high)$', '', re.sub(r'depth_[234]', 'depth_1', name))}`" in known


def test_several_runs_stand_on_one_page(elsewhere, capsys):
    runs = [make_run(elsewhere / "a"), make_run(elsewhere / "b", 10)]
    assert report_main([*map(str, runs)]) == 0
    assert capsys.readouterr().out == f"{PAGE}\n"
    told = Elements(Path(PAGE).read_text(encoding="utf-8")).data["runs"]
    assert [run["name"] for run in told] == ["a", "b"] and [len(run["iterations"]) for run in told] == [21, 11]


def test_the_page_of_one_run_lies_in_its_folder(elsewhere, capsys):
    run = make_run(elsewhere / "r")
    assert report_main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / PAGE}\n" and (run / PAGE).is_file()


def test_a_run_with_nothing_but_metrics_has_a_page(elsewhere):
    run = make_run(elsewhere / "r", rows=[{"iteration": 0}], samples=[], traces=[])
    (run / "processes.jsonl").unlink()
    (told,) = Elements(page_of(run)).data["runs"]
    assert told["metrics"] == {} and told["samples"] == [] == told["traces"]


# ------------------------------------------------------------------------------------------------ data stays data


def test_whatever_the_records_say_the_page_has_the_same_elements(elsewhere):
    page = page_of(hostile_run(elsewhere))
    elements = Elements(page)
    assert [attributes.get("type") for tag, attributes in elements.found if tag == "script"] == [
        "application/json",
        None,
    ]
    assert not {"img", "iframe", "object", "embed", "base", "form", "b>"} & {tag for tag, _ in elements.found}
    assert [a for _, a in elements.found if any(name.startswith("on") for name in a)] == []
    (told,) = elements.data["runs"]
    assert told["samples"][0]["completion"] == HOSTILE and told["traces"][0]["texts"] == ["", HOSTILE]
    assert "<" not in elements.scripts[0]
    assert "49" not in re.findall(r"\{\{.*?\}\}|\b49\b", page)  # the template of the hostile text was not run


def test_nothing_is_loaded_and_a_policy_allows_one_script_alone(elsewhere):
    page = page_of(make_run(elsewhere / "r"))
    elements = Elements(page)
    addresses = [a[name] for _, a in elements.found for name in ("src", "href", "action", "data") if name in a]
    assert all(address.startswith("#") or address == "data:," for address in addresses)
    assert not re.search(r"@import|url\(", page)
    (policy,) = (a["content"] for _, a in elements.found if "Content-Security-Policy" in (a.get("http-equiv") or ""))
    digest = base64.b64encode(hashlib.sha256(elements.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ") and f"script-src 'sha256-{digest}'" in policy


def test_what_is_inlined_are_the_original_files_with_their_licences(elsewhere):
    assert {path.name for path in VENDOR.iterdir()} == ORIGINALS.keys()
    for name, digest in ORIGINALS.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
    page = page_of(make_run(elsewhere / "r"))
    for said in ("(v1.6.32)", "v3.1.3 Copyright", "The MIT License", "Copyright 2010-2026 Mike Bostock"):
        assert said in page


# ---------------------------------------------------------------------------------------------------------- size


def test_a_long_run_stays_below_a_megabyte(elsewhere):
    rows = [row(i, 1200) for i in range(1201)]
    samples = [sample(i, k, f"{k} " * 20_000) for i in range(1, 1200, 200) for k in range(14)]
    traces = [trace(i, branches=50, depth=49, text=f"token {i}") for i in range(1, 1200, 200)]
    assert traces[0]["num_nodes"] > 4_500
    page = page_of(make_run(elsewhere / "r", rows=rows, samples=samples, traces=traces))
    assert len(page.encode()) < 1_000_000
    (told,) = Elements(page).data["runs"]
    assert told["numSamples"] == 84 > len(told["samples"]) and {s["iteration"] for s in told["samples"]} == {
        *range(1, 1200, 200)
    }
    assert told["samples"][0]["cut"] == 2 * 20_000 - 4_000
    assert [t["iteration"] for t in told["traces"]][-1] == 1001 and told["numTraces"] == 6 > len(told["traces"])


def test_long_curves_are_thinned_but_for_evaluations_and_what_was_spent_is_summed_before(monkeypatch):
    monkeypatch.setattr(page_data, "MOST_POINTS", 20)
    told = curves([row(i, 100) for i in range(101)])
    assert told["iterations"] == sorted({*range(0, 101, 6), *range(0, 101, 10)})
    assert told["tokens"] == [100 * i for i in told["iterations"]]


def test_of_too_many_trees_the_first_and_the_last_stay(monkeypatch):
    monkeypatch.setattr(page_data, "TREE_BYTES", 5 * len(json.dumps(packed(trace(1)))))
    found = page_data._traces([trace(i) for i in range(1, 30)], {}, page_data.TREE_BYTES)
    assert 3 <= len(found) <= 5 and (found[0]["iteration"], found[-1]["iteration"]) == (1, 29)


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("file", "line", "sentence"),
    [
        ("metrics.jsonl", "3", "r/metrics.jsonl, line 1 is damaged (it is no JSON object with an iteration); "),
        ("metrics.jsonl", '{"iteration": 1, "rollout/reward": "x"}', "r/metrics.jsonl: rollout/reward of iteration 1"),
        ("metrics.jsonl", '{"iteration": 1, "rollout/reward": NaN}', "r/metrics.jsonl: rollout/reward of iteration 1"),
        ("metrics.jsonl", "", "r: no metrics.jsonl there; name the folder of a run"),
        ("trace.jsonl", '{"iteration": 7, "nodes": 3}', "the record of iteration 7 in trace.jsonl is damaged"),
        ("config.json", "[]", "r/config.json is no configuration"),
        ("config.json", "{", "r/config.json cannot be read ("),
    ],
)
def test_a_damaged_run_is_one_sentence(file, line, sentence, elsewhere, capsys):
    make_run(elsewhere / "r")
    (elsewhere / "r" / file).write_text(f"{line}\n" if line else "")
    assert report_main(["r"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {sentence}") and err.count("\n") == 1
    assert not (elsewhere / "r" / PAGE).exists()


def test_a_page_that_cannot_be_written_and_no_run_at_all_are_one_sentence(elsewhere, capsys):
    run = make_run(elsewhere / "r")
    assert report_main([str(run), "-o", "nowhere/page.html"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere/page.html cannot be written (")
    assert report_main([]) == 2
    assert capsys.readouterr().err.startswith("error: no run was named")


# ------------------------------------------------------------------------------------------------- who writes it


def test_every_run_ends_with_its_page_and_one_that_cannot_be_written_is_a_warning(tiny_base, elsewhere, capsys):
    argv = ["--model.model-name", str(tiny_base), *OPTIONS.split(), "--train.num-iterations", "2"]
    assert main([*argv, "--output-dir", "r"]) == 0
    assert capsys.readouterr().out.endswith(f"page      r/{PAGE}\n")
    told = Elements(Path("r", PAGE).read_text(encoding="utf-8")).data["runs"][0]
    assert told["iterations"] == [0, 1, 2] and told["traces"] and told["samples"]
    Path("r", PAGE).unlink()
    Path("r", PAGE).mkdir()
    assert main(["--resume", "r"]) == 0
    assert f"warning: r/{PAGE} cannot be written (" in " ".join(capsys.readouterr().err.split())


def test_without_jinja_only_the_page_is_missing(monkeypatch, elsewhere, capsys):
    """A command's modules are imported late: the sentence comes from `run_command`."""
    monkeypatch.setitem(sys.modules, "tinyzero_astar.report.page", None)
    with pytest.raises(ModuleNotFoundError):
        report_main([str(make_run(elsewhere / "r"))])


def test_solve_writes_the_page_of_one_search(elsewhere, capsys):
    assert solve_main(["3*4", "--html", "tree.html", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "page: tree.html"
    shown, page = json.loads(out), Path("tree.html").read_text(encoding="utf-8")
    (told,) = Elements(page).data["runs"]
    (search,) = told["traces"]
    assert "<h1>3*4</h1>" in page and search["mode"] == "best_first"
    assert len(search["nodes"]["parent"]) == len(shown["nodes"])
    (leaf,) = search["leaves"]
    assert leaf["reason"] == shown["verdict"] and leaf["weight"] is None and not told["hasValue"]
    assert len(page) < 300_000
    assert solve_main(["3*4", "--html", "nowhere/tree.html"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --html nowhere/tree.html cannot be written (")
