"""Every field of the configuration, given what it must not be, at each of the three doors that settings come through.

The command line, a TOML file and Python all refuse at the start, with one sentence that names field and value. A field
without an entry in the tables below fails `test_every_field_has_an_entry`.
"""

from __future__ import annotations

import dataclasses
import math
import typing

import pytest

from tinyzero_astar import api
from tinyzero_astar.cli.options import parse
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import Config
from tinyzero_astar.config_checks import check
from tinyzero_astar.config_json import with_options
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run import start
from tinyzero_astar.terminal import shortened

TINY = PRESETS["tiny"]
WHOLE = {  # fields that hold a whole number: the ends of their ranges, written once more
    "model.max_seq_length": (8, 1_048_576),
    "model.lora_rank": (0, 1024),
    "data.num_problems": (1, 50_000),
    "data.num_shots": (0, 64),
    "data.min_digits": (1, 6),
    "data.max_digits": (1, 6),
    "data.second_min_digits": (1, 6),
    "data.second_max_digits": (1, 6),
    "data.min_numbers": (2, 6),
    "data.max_numbers": (2, 6),
    "data.max_number": (1, 999),
    "data.max_target": (10, 999),
    "search.problems_per_search": (1, 10**6),
    "search.beam_width": (1, 4096),
    "search.max_search_depth": (1, 1_048_576),
    "value.hidden_size": (1, 65_536),
    "value.update_frequency": (1, 10**6),
    "value.num_steps": (1, 10**5),
    "train.num_iterations": (0, 10**7),
    "train.problems_per_iteration": (1, 10**6),
    "train.batch_size": (1, 10**6),
    "train.num_epochs": (1, 100),
    "train.warmup_iterations": (0, 10**7),
    "train.num_reference_samples": (1, 1024),
    "train.micro_batch_tokens": (1, 1_073_741_824),
    "eval.eval_frequency": (1, 10**7),
    "eval.num_problems": (1, 50_000),
    "eval.num_problems_between": (1, 10**6),
    "eval.num_samples": (1, 1024),
    "eval.max_rows": (1, 1_048_576),
    "eval.beam_width": (1, 4096),
    "run.seed": (0, 4_611_686_018_427_387_904),
    "run.num_threads": (0, 1024),
    "run.checkpoint_frequency": (1, 10**7),
    "run.keep_last": (0, 10**7),
    "run.keep_best": (0, 10**7),
    "run.sample_frequency": (1, 10**7),
}
REAL = {  # and those that hold any number
    "reward.accuracy": (1e-6, 1e6),
    "reward.format": (0, 1e6),
    "search.num_rollouts_per_problem": (0.001, 1024),
    "search.root_tilt": (0, 1),
    "search.guidance_strength": (0, 1),
    "search.inverse_beta": (-20, 20),
    "search.max_inverse_beta": (0, 20),
    "search.weight_cap": (1.000001, 1e6),
    "search.unguided_fraction": (0, 1),
    "search.min_weight": (0, 1),
    "value.learning_rate": (0, 1),
    "train.learning_rate": (0, 1),
    "train.weight_decay": (0, 10),
    "train.max_grad_norm": (1e-6, 1e6),
    "train.clip_low": (1e-6, 0.999999),
    "train.clip_high": (1e-6, 100),
    "train.gae_lambda": (0, 1),
    "train.advantage_floor": (1e-6, 1e6),
    "train.entropy_bonus": (0, 1e3),
    "train.optimal_value_beta": (1e-3, 1e3),
    "train.regression_beta": (1e-9, 1e3),
    "train.ratio_tolerance": (0, 1e6),
    "run.collective_timeout_s": (1, 10**6),
}
TEXTS = {  # free text: fewest and most characters
    "model.model_name": (1, 1000),
    "data.task": (1, 1000),
    "data.reward_function": (0, 1000),
    "data.task_sha256": (0, 64),
}
CHOICES = (
    "model.dtype",
    "model.device",
    "data.template",
    "data.verifier",
    "search.mode",
    "train.algorithm",
    "train.group_loss",
    "train.sharding",
    "eval.search",
)
SWITCHES = ("model.cuda_graphs", "model.liger", "train.gradient_checkpointing")
LISTS = ("run.loggers",)
NUMBERS = WHOLE | REAL
MAY_BE_NONE = ("data.second_min_digits", "data.second_max_digits", "search.weight_cap")
FIELDS = [*NUMBERS, *TEXTS, *CHOICES, *SWITCHES, *LISTS]
NOT_TYPED = ("data.task_sha256",)  # no option: a run fills it in

# Fields that are right one by one, and what their sentence begins with.
CONTRADICTIONS = {
    "--data.min-digits 3": "min_digits 3 must not exceed max_digits 2",
    "--data.second-min-digits 3": "digits must satisfy 1 <= second_min_digits <= second_max_digits <= 6, got",
    "--data.second-max-digits 1": "digits must satisfy 1 <= second_min_digits <= second_max_digits <= 6, got",
    "--data.task countdown --data.min-numbers 5": "min_numbers 5 must not exceed max_numbers 4",
    "--data.task countdown --data.max-number 1 --data.max-numbers 3": "num_problems is 2000, but only ",
    "--data.task countdown --data.min-numbers 6 --data.max-numbers 6 --data.max-number 999 --data.max-target 10": (
        "max_target 10 is hardly ever reached by 6 to 6 numbers up to 999 ("
    ),
    "--data.num-problems 50000": "num_problems is 50000, but only 6436 exist",
    "--eval.num-problems 50000": "count of held-out problems is 50000, but only 844 exist",
    "--data.num-shots 64 --data.num-problems 64 --eval.num-problems 1": "max_seq_length 128 leaves no room after",
    "--data.reward-function x:y": "reward_function x:y judges tables, and data.task 'multiplication' is none",
    "--search.num-rollouts-per-problem 0.01": "num_rollouts_per_problem 0.01 times the 32 problems sharing a search",
    "--search.num-rollouts-per-problem 20": "beam_width 12 must be at least num_rollouts_per_problem + 1 = 21",
    "--search.weight-cap None": "root_tilt 0.5 is a share of the weight_cap, and there is none",
    "--search.mode best_first --search.inverse-beta -1": "inverse_beta -1.0 must not be negative with mode best_first",
    "--train.algorithm grpo": "algorithm grpo compares a problem's rollouts with their mean",
    "--train.algorithm rloo --search.mode sample": "algorithm rloo compares the rollouts of a problem, and num_roll",
    "--train.warmup-iterations 51": "warmup_iterations 51 must not exceed num_iterations 50",
    "--train.batch-size 65": "batch_size 65 must not exceed problems_per_iteration 64",
    "--train.problems-per-iteration 3000": "problems_per_iteration 3000 must not exceed num_problems 2000",
    "--eval.num-samples 1024 --eval.max-rows 64": "eval.max_rows 64 must be at least eval.num_samples 1024",
    "--eval.search best_first --eval.max-rows 7": "eval.max_rows 7 must be at least eval.",
    "--model.max-seq-length 513": "model_name 'embedded': Qwen2ForCausalLM knows 512 positions",
    "--model.liger --model.device cpu": "model.liger asks for kernels for GPUs",
    # each within its range, together far more than any machine has
    "--search.num-rollouts-per-problem 1024 --search.beam-width 4096 --search.problems-per-search 1"
    " --train.problems-per-iteration 2000 --train.batch-size 2000": "memory: search needs ",
}


def test_every_field_has_an_entry():
    known = [
        f"{s.name}.{f.name}" for s in dataclasses.fields(Config) for f in dataclasses.fields(getattr(TINY, s.name))
    ]
    assert sorted(FIELDS) == sorted(known)


def beyond(name):
    """Numbers outside of a field's range, and what is no number."""
    low, high = NUMBERS[name]
    step = 1 if name in WHOLE else max(abs(low), 1.0) * 1e-6
    near = [low - step, high + (1 if name in WHOLE else high * 1e-6)]
    return [*near, -(10**18), max(10**19, 10 * int(high)), math.nan, math.inf, -math.inf]


def wrong_type(name):
    """Values of other types than a field's."""
    if name in SWITCHES:
        return [0, 1, "true", None, []]
    if name in LISTS:
        return [3, None, True, "wandb", b"x", {"a": 1}]
    if name in TEXTS or name in CHOICES:
        return [3, None, True, ["x"], b"x", {"a": 1}]
    others = ["1", "nan", True, [1], {}, b"1", 1j]
    return others + [None] * (name not in MAY_BE_NONE) + [1.0] * (name in WHOLE)


def refusal(name, value, config=TINY):
    with pytest.raises(ValueError) as refused:
        with_options(config, {name: value})
    sentence = str(refused.value)
    assert sentence.startswith(f"options: {name} ") and "\n" not in sentence and len(sentence) < 250
    return sentence.removeprefix(f"options: {name} ")


# ------------------------------------------------------------------------------------------------ Python's door


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beyond_its_range_is_refused_and_the_ends_are_not(name):
    low, high = NUMBERS[name]
    for value in beyond(name):
        if name in WHOLE and isinstance(value, float):
            assert refusal(name, value) == f"is {value}, which is not of type int" + " or None" * (name in MAY_BE_NONE)
        else:
            assert refusal(name, value).startswith(f"{value} is out of range: it must lie between ")
    assert refusal(name, 10**5000) == refusal(name, 10**19).replace(str(10**19), "a number of 16,610 bits")
    section, key = name.split(".")
    for value in (low, high):
        found = dataclasses.replace(TINY, **{section: dataclasses.replace(getattr(TINY, section), **{key: value})})
        try:
            check(found)
        except ValueError as error:  # what it contradicts
            assert "out of range" not in str(error)


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_type_is_refused(name):
    for value in wrong_type(name):
        assert refusal(name, value).startswith(f"is {shortened(value)}, which is not ")


@pytest.mark.parametrize("name", CHOICES)
def test_a_word_that_is_no_choice_is_refused_with_all_choices(name):
    section, key = name.split(".")
    kind = typing.get_type_hints(typing.get_type_hints(Config)[section])[key]
    choices = ", ".join(typing.get_args(kind))
    for value in ("", "nonsense", getattr(getattr(TINY, section), key).upper(), "x" * 10_000):
        assert refusal(name, value) == f"is {shortened(value)}, which is not one of {choices}"


def test_a_list_with_anything_but_its_choices_is_refused():
    for value in (["nonsense"], ["wandb", 3], ["tensorboard", ["wandb"]], ["x" * 10_000]):
        assert refusal("run.loggers", value).endswith("which is not a list of tensorboard, wandb, trackio")
    assert with_options(TINY, {"run.loggers": ["wandb", "wandb"]}).run.loggers == ("wandb", "wandb")


@pytest.mark.parametrize("name", TEXTS)
def test_text_without_end_and_null_characters_are_refused(name):
    fewest, most = TEXTS[name]
    sentence = f"characters: it must have {fewest} to {most}"
    assert refusal(name, "x" * (most + 1)) == f"has {most + 1} {sentence}"
    assert refusal(name, "x" * 10**6) == f"has 1000000 {sentence}"
    if fewest:
        assert refusal(name, "") == f"has 0 {sentence}"
    assert refusal(name, "a\0b") == r"'a\x00b' has a null character, which no name can have: leave it out"
    with_options(TINY, {name: "x" * most})


def test_what_is_no_configuration_is_refused():
    for section in ("search", "run"):
        with pytest.raises(ValueError, match=f"^{section} is 3, which is not of type {section.title()}Config"):
            check(dataclasses.replace(TINY, **{section: 3}))
    for name in ("search", "search.", ".seed", "run.sede", 3, None, "x" * 1000):
        with pytest.raises(ValueError, match=r"^options: .* is no field of a configuration; write section.field"):
            with_options(TINY, {name: 1})
    for config in (3, b"tiny", ["tiny"]):
        with pytest.raises(ValueError, match="which is neither a name nor a configuration"):
            api.load(config=config)
    for config in ("", "nope", "x" * 300):
        with pytest.raises(ValueError, match=r"^--config .* is no preset"):
            api.load(config=config)


# ------------------------------------------------------------------------------------------ the door of TOML


def in_toml(value):
    if isinstance(value, float):
        return str(value)
    return {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, (bool, int)) else f'"{value}"'


@pytest.mark.parametrize("name", FIELDS)
def test_a_file_with_a_wrong_value_is_refused_by_its_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    section, key = name.split(".")
    values = [*beyond(name)[:5], "1", True] if name in NUMBERS else ["\\u0000", 3] if name in TEXTS else ["x", 3, 0.5]
    for value in values:
        (tmp_path / "mine.toml").write_text(f"[{section}]\n{key} = {in_toml(value)}\n")
        assert main(["--config", "mine.toml"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: mine.toml: {name} ") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_number_without_end_in_a_file_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for digits in ("9" * 5000, "0x" + "f" * 5000):  # Python reads the second and would not write it
        (tmp_path / "mine.toml").write_text(f"[run]\nseed = {digits}\n")
        assert main(["--config", "mine.toml"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(
            ("error: mine.toml: run.seed a number of 20,000 bits", "error: --config mine.toml is not")
        )


# ------------------------------------------------------------------------------------ the door of the command line


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in NOT_TYPED])
def test_an_option_with_a_wrong_value_ends_with_status_2(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    option = "--" + name.replace("_", "-")
    if name in NUMBERS:
        value = "1" * 30 if name in WHOLE else "nan"
        assert main([f"{option}={value}"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {name} {value} is out of range: ") and err.count("\n") == 1
    elif name in TEXTS:
        assert main([f"{option}={'x' * 1001}"]) == 2
        assert capsys.readouterr().err == f"error: {name} has 1001 characters: it must have {TEXTS[name][0]} to 1000\n"
    else:
        with pytest.raises(SystemExit) as stopped:
            parse([f"{option}=nonsense"])
        assert stopped.value.code == 2 and "nonsense" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("line", "start"), CONTRADICTIONS.items())
def test_fields_that_contradict_each_other_are_refused_before_anything_is_written(
    line, start, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {start}") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_many_times_the_memory_of_the_machine_is_refused_and_a_little_more_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "free_memory", lambda device, num_processes: 1000)
    argv = ["--train.num-iterations", "0", "--eval.num-problems", "1", "--output-dir", "r"]
    for size, status in ((10**6, 2), (10**9, 0)):
        monkeypatch.setattr(start, "all_memory", lambda device, num_processes, size=size: size)
        assert main(argv) == status
        assert "memory: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "range_"),
    [
        ("--beam-width", "0", "1 and 4096"),
        ("--beam-width", "1000000000000000000", "1 and 4096"),
        ("--inverse-beta", "nan", "0 and 20"),
        ("--inverse-beta", "-1.0", "0 and 20"),
        ("--max-nodes", "0", "1 and 1000000000"),
        ("--max-nodes", "1000000000000000000", "1 and 1000000000"),
    ],
)
def test_what_solve_takes_has_ranges_too(option, value, range_, capsys):
    assert solve_main(["2*3", f"{option}={value}"]) == 2
    name = option.removeprefix("--").replace("-", "_")
    sentence = f"error: solve.{name} {value} is out of range: it must lie between {range_}\n"
    assert capsys.readouterr().err == sentence


# ------------------------------------------------------------------------------------- arguments of the Python API


@pytest.fixture(scope="module")
def model():
    return api.load(is_quiet=True)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.search("2*3=", num_leaves=0), "num_leaves is 0: it must be a whole number between 1 and 1024"),
        (lambda m: m.search("2*3=", num_leaves=10**18), "num_leaves is 1000000000000000000: it must be a whole number"),
        (lambda m: m.search("2*3=", num_leaves=1.5), "num_leaves is 1.5: it must be a whole number"),
        (lambda m: m.search("2*3=", num_leaves="8"), "num_leaves is '8': it must be a whole number"),
        (lambda m: m.search("2*3=", seed=-1), "seed is -1: it must be a whole number between 0 and 46116860184273879"),
        (lambda m: m.search("2*3=", seed=2**63), "seed is 9223372036854775808: it must be a whole number"),
        (lambda m: m.search("2*3=", seed=None), "seed is None: it must be a whole number"),
        (lambda m: m.search(b"2*3="), "prompt is b'2*3=', which is neither a text nor a problem of the task"),
        (lambda m: m.search("\ud800"), "the tokenizer cannot read half of a character, as in '\\ud800'"),
        (lambda m: m.search("2*3=", mode="astar"), "mode 'astar' is not one of 'sample', 'gumbel', 'best_first'"),
        (lambda m: m.train(-1), "num_iterations is -1: it must be a whole number between 0 and 10000000"),
        (lambda m: m.train(10**18), "num_iterations is 1000000000000000000: it must be a whole number"),
        (lambda m: m.train(1.0), "num_iterations is 1.0: it must be a whole number"),
        (lambda m: m.save("/dev/null"), "/dev/null exists and is no checkpoint: it is not replaced"),
    ],
)
def test_an_argument_that_cannot_be_is_one_sentence(call, sentence, model):
    with pytest.raises(ValueError) as refused:
        call(model)
    assert str(refused.value).startswith(sentence)
