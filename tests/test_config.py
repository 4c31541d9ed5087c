"""Presets, ranges, and what comes back from a saved configuration."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing

import pytest

from tinyzero_astar.config import Config, root_tilt_of, search_size
from tinyzero_astar.config_checks import check, check_processes, check_sections, ranges
from tinyzero_astar.config_json import from_dict, from_json, to_json
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run.start import search_in_words

TINY = PRESETS["tiny"]
RANGES = ranges()
SECTIONS = {f.name: getattr(TINY, f.name) for f in dataclasses.fields(Config)}


def changed(config=TINY, **fields):
    """`config` with fields such as search__beam_width=8 changed."""
    for name, value in fields.items():
        section, key = name.split("__")
        part = dataclasses.replace(getattr(config, section), **{key: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def refusal(config):
    with pytest.raises(ValueError) as refused:
        check(config)
    return str(refused.value)


# ---------------------------------------------------------------------------------------------------- presets


def test_preset_training_holds_the_documented_values():
    training = PRESETS["training"]
    documented = [  # design.md, section 1
        (training.model.model_name, "Qwen/Qwen2.5-3B"),
        (training.model.max_seq_length, 512),
        (training.train.num_iterations, 100),
        (training.train.batch_size, 4),
        (training.train.learning_rate, 1e-5),
        (training.search.num_rollouts_per_problem, 4),
        (training.search.beam_width, 8),
        (training.search.max_search_depth, 200),
        (training.value.hidden_size, 512),
        (training.value.update_frequency, 5),
    ]
    assert [held for held, _ in documented] == [wanted for _, wanted in documented]
    assert training.data.num_problems >= 1000


def test_presets_local_and_tiny_are_what_the_table_of_commands_says():
    assert set(PRESETS) == {"tiny", "small", "local", "training"}
    assert PRESETS["local"].model.model_name == "Qwen/Qwen2.5-1.5B"
    assert PRESETS["local"].data.num_problems == 100
    assert PRESETS["small"].model.model_name == "HuggingFaceTB/SmolLM2-135M"
    assert TINY.model.model_name == "embedded" and TINY.model.dtype == "float32"
    assert TINY.eval.num_problems >= 500


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_its_own_check(preset):
    check(PRESETS[preset])


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.search.beam_width = 3


# ----------------------------------------------------------------------------------------------------- ranges


WHOLE = {  # of those, the fields without a fraction
    name
    for name in RANGES
    if typing.get_type_hints(type(SECTIONS[name.split(".")[0]]))[name.split(".")[1]] in (int, int | None)
}


def is_numeric(hint):
    return hint in (int, float) or any(is_numeric(choice) for choice in typing.get_args(hint))


def test_every_number_has_a_range_and_every_range_a_number():
    numbers = {
        f"{section}.{name}"
        for section, part in SECTIONS.items()
        for name, hint in typing.get_type_hints(type(part)).items()
        if is_numeric(hint)
    }
    assert "search.inverse_beta" in numbers and "search.weight_cap" in numbers  # unions count
    assert "model.dtype" not in numbers
    assert set(RANGES) == numbers


@pytest.mark.parametrize("name", RANGES)
def test_values_beyond_either_end_and_nan_are_refused_by_name(name):
    low, high = RANGES[name]
    key = name.replace(".", "__")
    is_whole = name in WHOLE
    for value in (low - 1, high + (1 if is_whole else max(1, high * 1e-3)), *(() if is_whole else (math.nan,))):
        sentence = refusal(changed(**{key: value}))
        assert sentence.startswith(f"{name} {value} is out of range: it must lie between ")
    for value in (low, high):
        check_sections(changed(**{key: value}))


@pytest.mark.parametrize(
    ("field", "value", "ends"),
    [
        ("train.clip_low", 1.0, "1e-06 and 0.999999"),
        ("train.gae_lambda", 1.5, "0 and 1"),
        ("search.weight_cap", 1.0, "1.000001 and 1000000"),
        ("model.max_seq_length", 7, "8 and 1048576"),
        ("data.num_problems", 50_001, "1 and 50000"),
        ("data.num_shots", 65, "0 and 64"),
        ("data.num_shots", -1, "0 and 64"),
        ("data.second_min_digits", 0, "1 and 6"),
        ("data.second_max_digits", 7, "1 and 6"),
        ("eval.num_problems", 50_001, "1 and 50000"),
        ("run.seed", -1, "0 and 4611686018427387904"),
    ],
)
def test_range_sentence_shows_field_value_and_both_ends(field, value, ends):
    sentence = refusal(changed(**{field.replace(".", "__"): value}))
    assert sentence == f"{field} {value} is out of range: it must lie between {ends}"


def test_gumbel_needs_room_for_one_more_prefix_than_rollouts():
    tight = changed(search__num_rollouts_per_problem=4, search__beam_width=4)
    sentence = "beam_width 4 must be at least num_rollouts_per_problem + 1 = 5: "
    assert refusal(tight).startswith(sentence)
    check(changed(tight, search__beam_width=5))
    for mode in ("sample", "best_first"):
        check(changed(tight, search__mode=mode))


def test_the_warm_up_ends_within_the_run():
    check(changed(train__warmup_iterations=50))
    sentence = refusal(changed(train__warmup_iterations=51))
    assert sentence.startswith("warmup_iterations 51 must not exceed num_iterations 50: ")
    check(changed(train__num_iterations=0))  # nothing is trained


def test_what_is_decoded_at_once_must_be_allowed_at_once():
    check(changed(eval__num_samples=64, eval__max_rows=64))
    sentence = refusal(changed(eval__num_samples=64, eval__max_rows=63))
    assert sentence.startswith("eval.max_rows 63 must be at least eval.num_samples 64: ")
    wide = changed(eval__num_samples=1, eval__max_rows=7)  # the open list has 8
    check(wide)
    sentence = refusal(changed(wide, eval__search="best_first"))
    assert sentence.startswith("eval.max_rows 7 must be at least eval.beam_width 8: ")
    check(changed(wide, eval__search="best_first", eval__max_rows=8))


def test_a_saved_configuration_that_is_refused_names_its_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(to_json(changed(train__gae_lambda=2.0)))
    with pytest.raises(ValueError) as refused:
        from_json(file)
    assert str(refused.value).startswith(f"{file}: train.gae_lambda 2.0 is out of range")


def test_fields_that_bound_each_other():
    assert refusal(changed(data__min_digits=3)) == "min_digits 3 must not exceed max_digits 2"
    problems = TINY.train.problems_per_iteration
    check(changed(train__batch_size=problems))
    sentence = refusal(changed(train__batch_size=problems + 1))
    assert sentence.startswith(f"batch_size {problems + 1} must not exceed problems_per_iteration {problems}:")
    check(changed(data__num_problems=problems))
    sentence = refusal(changed(data__num_problems=problems - 1))
    assert sentence.startswith(f"problems_per_iteration {problems} must not exceed num_problems {problems - 1}:")


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"search__problems_per_search": 1}, 1),
        ({"search__problems_per_search": 32}, 16),
        ({"search__problems_per_search": 6}, 4),
        ({"search__problems_per_search": 32, "train__batch_size": 24}, 8),
        ({"search__problems_per_search": 32, "search__mode": "sample"}, 1),
        ({"search__problems_per_search": 32, "search__mode": "sample", "search__num_rollouts_per_problem": 0.5}, 16),
    ],
)
def test_as_many_problems_share_a_search_as_divide_a_step(changes, size):
    small = {"train__problems_per_iteration": 32, "train__batch_size": 16, "search__num_rollouts_per_problem": 1}
    assert search_size(changed(**small | changes)) == size


def test_the_console_says_how_many_problems_share_a_search_in_fact():
    small = {"train__problems_per_iteration": 8, "train__batch_size": 4, "search__num_rollouts_per_problem": 1}
    words = "gumbel, 1 completion for each of 8 problems"
    shared = changed(**small, search__problems_per_search=32)
    assert search_in_words(shared) == f"{words}, 4 problems share a search"
    assert search_in_words(changed(**small, search__problems_per_search=1)) == words
    sampled = changed(**small | {"search__num_rollouts_per_problem": 2}, search__mode="sample")
    assert search_in_words(sampled) == "sample, 2 completions for each of 8 problems"


def test_searches_that_cannot_be_shared_are_refused():
    small = {"train__problems_per_iteration": 32, "train__batch_size": 16, "search__problems_per_search": 4}
    fraction = refusal(changed(**small, search__num_rollouts_per_problem=0.3))
    assert fraction.startswith("num_rollouts_per_problem 0.3 times the 4 problems sharing a search must be a whole")
    uncapped = small | {"search__root_tilt": 0.5, "search__weight_cap": None}
    assert "there is none: set one" in refusal(changed(**uncapped))
    for without in ({"search__problems_per_search": 1}, {"search__mode": "best_first"}):  # no root to tilt
        assert root_tilt_of(changed(**uncapped | without)) == 0
    shared = changed(**small)
    check_processes(shared, 8)
    with pytest.raises(ValueError, match=r"16 processes do not divide .* 4 in each search; use .* 64,"):
        check_processes(shared, 16)


@pytest.mark.parametrize(
    ("count", "changes", "size"),
    [
        (16, {}, 2),
        (32, {}, 1),
        (64, {}, None),  # more than there are problems
        (16, {"search__num_rollouts_per_problem": 0.25}, None),  # half a leaf
        (8, {"search__problems_per_search": 16}, 4),
    ],
)
def test_fewer_problems_in_a_search_are_proposed_where_they_suffice(count, changes, size):
    small = {"train__problems_per_iteration": 32, "train__batch_size": 16, "search__problems_per_search": 4}
    config = changed(**small | {"search__num_rollouts_per_problem": 1} | changes)
    with pytest.raises(ValueError, match="processes do not divide") as refused:
        check_processes(config, count)
    found = re.search(r"use --search.problems-per-search (\d+), or --train", str(refused.value))
    assert (found and int(found[1])) == size
    if size:
        mended = changed(config, search__problems_per_search=size)
        check(mended)
        check_processes(mended, count)


@pytest.mark.parametrize("value", [-0.5, -2])  # -2 is what JSON makes of it
def test_best_first_does_not_look_for_failures(value):
    check(changed(search__inverse_beta=value))
    check(changed(search__mode="best_first"))
    check(changed(search__mode="best_first", search__inverse_beta=0))
    sentence = refusal(changed(search__mode="best_first", search__inverse_beta=value))
    assert sentence.startswith(f"inverse_beta {value} must not be negative with mode best_first")


# ------------------------------------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("preset", PRESETS)
def test_saved_configuration_comes_back_equal(preset, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(to_json(PRESETS[preset]))
    assert from_json(path) == PRESETS[preset]
    assert set(json.loads(path.read_text())) == set(SECTIONS)


def test_a_changed_value_comes_back_too():
    config = changed(search__weight_cap=None, search__root_tilt=0, search__inverse_beta=1.5, run__seed=7)
    assert from_dict(json.loads(to_json(config)), "here") == config != TINY


def loaded(section, **values):
    return from_dict({section: values}, "saved.json")


def test_types_are_checked_as_written():
    for value in ("balanced", 2, 2.5):
        assert loaded("search", inverse_beta=value).search.inverse_beta == value
    assert loaded("search", weight_cap=None).search.weight_cap is None
    assert loaded("reward", accuracy=2).reward.accuracy == 2  # an integer is a number


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "num_epochs", True),
        ("train", "num_epochs", 2.0),
        ("train", "num_epochs", "2"),
        ("train", "num_epochs", None),
        ("train", "learning_rate", True),
        ("train", "learning_rate", "1e-5"),
        ("search", "inverse_beta", "unbalanced"),
        ("search", "inverse_beta", True),
        ("search", "inverse_beta", None),
        ("search", "weight_cap", "none"),
        ("search", "weight_cap", False),
        ("search", "mode", "astar"),
        ("search", "mode", ["gumbel"]),
        ("model", "model_name", 3),
        ("model", "dtype", "float16"),
    ],
)
def test_wrong_type_is_refused_with_source_field_and_value(section, key, value):
    with pytest.raises(ValueError) as refused:
        loaded(section, **{key: value})
    assert str(refused.value).startswith(f"saved.json: {section}.{key} is {value!r}, which is not ")
    assert "typing" not in str(refused.value) and "<class" not in str(refused.value)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"saved.json: \['beam_widht'\] is not a field of SearchConfig; .*beam_width"):
        loaded("search", beam_widht=8)
    with pytest.raises(ValueError, match=r"saved.json: \['serach'\] is not a field of Config; .*'search'"):
        loaded("serach", beam_width=8)


@pytest.mark.parametrize("data", [3, None, [], "text", {"search": 3}, {"search": None}])
def test_something_else_than_sections_is_refused(data):
    with pytest.raises(ValueError, match=r"^saved.json: .* is not a field of "):
        from_dict(data, "saved.json")


def test_ranges_hold_for_saved_values_too():
    with pytest.raises(ValueError, match=r"train\.gae_lambda 7 is out of range"):
        loaded("train", gae_lambda=7)
    with pytest.raises(ValueError, match="beam_width 3 must be at least"):
        loaded("search", beam_width=3)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"search": ', b"\xff\xfe{}", b'{"run": {"seed": ' + b"9" * 5000 + b"}}"],
    ids=["empty", "cut", "no UTF-8", "5000 digits"],
)
def test_damaged_file_is_refused_by_its_name(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refused:
        from_json(path)
    assert str(refused.value).startswith(f"{path} is not valid JSON (")


def test_missing_file_and_a_folder_in_its_place_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.json does not exist: it should hold the configuration"):
        from_json(tmp_path / "nowhere.json")
    with pytest.raises(ValueError) as refused:
        from_json(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path} cannot be read (")
