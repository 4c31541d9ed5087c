"""Which checkpoint a run goes on from, the newest whose files, records and configuration are the run's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyzero_astar.config import WITH_REFERENCE, Config
from tinyzero_astar.config_json import FREE_ON_RESUME, TASK_FILES, differences, from_dict, from_json, to_json
from tinyzero_astar.files import METRICS, replace_text
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.run.checkpoint import (
    OWN_FILES,
    check_files,
    known_counts,
    known_reference,
    read_state,
    remembered_by,
)
from tinyzero_astar.run.checkpoint_folders import TRAINER_STATE
from tinyzero_astar.run.folder import CONFIG, iteration_of
from tinyzero_astar.run.records import check_same_history, read_jsonl
from tinyzero_astar.training.optimizer import schedule

_LENGTH = "train.num_iterations"


def first_usable(config: Config, folder: Path, checkpoints: Sequence[Path], console: ConsoleLogger) -> Path:
    """The newest of some checkpoints that a run can go on from, and why it is not a newer one.

    Args:
        config: of the run, with what was given anew.
        folder: of the run.
        checkpoints: newest first.
        console: where to say so.

    Raises:
        ValueError: there is none, or its records are damaged.
    """
    failures: list[ValueError] = []
    records = read_jsonl(folder / METRICS)
    for checkpoint in checkpoints:
        try:
            _check_usable(checkpoint, records)
            _check_same(config, saved_config(checkpoint), folder, checkpoint)
        except ValueError as error:
            failures.append(error)
            continue
        for failure in failures:
            console.warn(str(failure))
        if failures:
            console.say(f"going back to {checkpoint}")
        if config.train.num_iterations < (iteration_of(checkpoint) or 0):
            raise ValueError(
                f"train.num_iterations {config.train.num_iterations} is less than what {checkpoint} has been trained"
                " for: use a larger one, or name an older checkpoint"
            )
        return checkpoint
    if len(failures) == 1 or all(isinstance(failure, _OtherConfigError) for failure in failures):
        raise failures[0]
    for failure in failures:
        console.warn(str(failure))
    raise ValueError(
        f"none of the {len(failures)} checkpoints of {folder} can be used. Where model.safetensors and config.json are"
        f" whole, a copy of the folder without {', '.join(OWN_FILES)} is a model, which a new run can start from with"
        " --model.model-name COPY"
    )


def _check_usable(checkpoint: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Whether a run with these records can go on from a checkpoint, as far as can be seen without loading its tensors.

    Raises:
        ValueError: says what is missing, damaged, or of another run.
    """
    check_files(checkpoint)
    state = read_state(checkpoint)
    if state["iteration"] != iteration_of(checkpoint):
        raise ValueError(
            f"checkpoint {checkpoint}: {TRAINER_STATE} says iteration {state['iteration']}; give the folder its name"
            " back, or use another one"
        )
    history, _ = remembered_by(checkpoint, state)
    known_counts(checkpoint, state)
    config = from_dict(state["config"], f"checkpoint {checkpoint}")
    if config.train.algorithm in WITH_REFERENCE:
        known_reference(checkpoint, state)
    try:
        check_same_history(records, history)
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint} is not of this run: {error}; use another one") from None


class _OtherConfigError(ValueError):
    """A checkpoint was trained with another configuration than its run's."""


def _check_same(config: Config, saved: Config, folder: Path, checkpoint: Path) -> None:
    """Whether the run's configuration is what the checkpoint was trained with, but for what may change.

    That includes the name of the base model, which is not needed any more and may have moved, and where the files of
    the task lie, which are known again by their digest.

    Raises:
        ValueError: names the fields that differ.
    """
    may_change = {*FREE_ON_RESUME, "model.model_name", *(TASK_FILES if config.data.task_sha256 else ())}
    if changed := [name for name in differences(config, saved) if name not in may_change]:
        section, key = changed[0].split(".")
        own, other = (getattr(getattr(c, section), key) for c in (config, saved))
        raise _OtherConfigError(
            f"{folder / CONFIG} is not the configuration of {checkpoint}: {', '.join(changed)}"
            f" differ{'s' if len(changed) == 1 else ''} ({changed[0]}: {own!r} and {other!r}); undo the change, or"
            " start a new run"
        )


def saved_config(checkpoint: Path) -> Config:
    """The configuration that a checkpoint was trained with.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    return from_dict(read_state(checkpoint)["config"], f"checkpoint {checkpoint}")


def changes(config: Config, checkpoint: Path) -> Iterator[str]:
    """What is different from now on, a sentence for each field. Fields that matter were refused before."""
    saved = saved_config(checkpoint)
    for name in differences(config, saved):
        section, key = name.split(".")
        new, old = (getattr(getattr(c, section), key) for c in (config, saved))
        if name == _LENGTH:
            yield _new_length(config, old, iteration_of(checkpoint) or 0)
        elif name in FREE_ON_RESUME:
            yield f"changed: {name} from {old} to {new}"


def _new_length(config: Config, old: int, done: int) -> str:
    """What becomes of the learning rate, which depends on the number of iterations."""
    train, new = config.train, config.train.num_iterations
    text = f"changed: {_LENGTH} from {old} to {new}. The learning rate now falls to 0 at the end of iteration {new}"
    lengths = [(done, old)] * (done > 0) + [(done + 1, new)] * (done < new)  # of the iterations before and after
    rates = [
        f"{train.learning_rate * schedule(number - 1, length, train.warmup_iterations):.3g} in iteration {number}"
        for number, length in lengths
    ]
    return f"{text}: {', then '.join(rates)}." + f" A run of {new} iterations from the start would have had other rates"


def remember_length(config: Config, folder: Path) -> None:
    """Write the number of iterations into the run's configuration, so that it holds for later processes too."""
    own = from_json(folder / CONFIG)
    if own.train.num_iterations != config.train.num_iterations:
        train = replace(own.train, num_iterations=config.train.num_iterations)
        replace_text(folder / CONFIG, to_json(replace(own, train=train)) + "\n")
