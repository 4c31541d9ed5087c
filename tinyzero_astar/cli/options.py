"""The options of commands that work with a whole configuration, understood and checked, with nothing done yet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from tinyzero_astar.config import Config
from tinyzero_astar.config_checks import check
from tinyzero_astar.config_file import SUFFIX, named_config
from tinyzero_astar.config_json import FREE_IN_EVALUATION, FREE_ON_RESUME, TASK_FILES
from tinyzero_astar.presets import PRESETS

_DEFAULT = "tiny"


@dataclass(frozen=True)
class Options(Config):
    """What all of them take."""

    config: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(PRESETS)}}}|FILE{SUFFIX}")] = _DEFAULT
    """What the other options change. A preset, or a file with a table for each section of the configuration."""


@dataclass(frozen=True)
class Shared(Options):
    """What the commands take that work with a model."""

    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Share the work and the weights with the other processes that torchrun started."""


@dataclass(frozen=True)
class Train(Shared):
    """Teach a base model verifiable arithmetic by reinforcement learning on searched rollouts.

    Without options it runs preset tiny, the embedded base model, on a CPU, in a minute or two.
    """

    output_dir: Path | None = None
    """Folder of the run. By default runs/PRESET-NNN."""
    resume: Path | None = None
    """Folder of a run to continue, or one of its checkpoints, with the run's own configuration."""


@dataclass(frozen=True)
class Command(Train):
    """Teach a base model verifiable arithmetic by reinforcement learning on searched rollouts.

    Without options it runs preset tiny, the embedded base model, on a CPU, in a minute or two.
    """

    eval_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Evaluate and stop."""
    checkpoint: Path | None = None
    """Checkpoint folder to evaluate (with --eval-only) as its run did, but for the --eval.* that are given.

    The folder of a run means its newest one, NAME.pt also the folder NAME.
    """


@dataclass(frozen=True)
class Evaluate(Shared):
    """Evaluate a checkpoint as its run did, but for the --eval.* that are given.

    Without one, evaluate the base model.
    """

    checkpoint: tyro.conf.Positional[Path | None] = None
    """Checkpoint folder, or that of a run for its newest one."""


C = TypeVar("C", bound=Options)


def parse(argv: Sequence[str]) -> Command:
    """The command of train.py, see `parse_as`."""
    return _checked(parse_as(Command, "train.py", argv), given_fields(argv))


def parse_train(argv: Sequence[str]) -> Command:
    """That of `tinyzero train`."""
    return _checked(Command(**vars(parse_as(Train, "tinyzero train", argv))), given_fields(argv))


def parse_evaluate(argv: Sequence[str]) -> Command:
    """That of `tinyzero eval`."""
    options = parse_as(Evaluate, "tinyzero eval", argv)
    return _checked(Command(eval_only=True, **vars(options)), given_fields(argv))


def parse_as(kind: type[C], program: str, argv: Sequence[str]) -> C:
    """The options of an argument list, over the values of what --config names.

    Raises:
        ValueError: --config names nothing that can be used, or an option has an empty value.
        SystemExit: an option is unknown or of the wrong type (status 2), or --help was asked for (0).
    """
    given_fields(argv)  # or it refuses an empty value
    start = named_config(_config_name(argv))
    default = kind(**{f.name: getattr(start, f.name) for f in fields(Config)})
    return tyro.cli(kind, prog=program, args=list(argv), default=default)


def config_of(options: Options) -> Config:
    """The configuration alone."""
    return Config(**{f.name: getattr(options, f.name) for f in fields(Config)})


def given_fields(argv: Sequence[str]) -> set[str]:
    """Names of the fields that an argument list sets, with their sections, whatever the values.

    Raises:
        ValueError: an option has an empty value, which as a folder would mean the current one.
    """
    for word, then in itertools.pairwise([*argv, "end"]):
        if word.startswith("--") and (word.endswith("=") or then == ""):
            raise ValueError(f"{word.rstrip('=')} has an empty value; give one, or leave the option out")
    options = (word.removeprefix("--").partition("=")[0] for word in argv if word.startswith("--"))
    return {option.replace("-", "_").replace(".no_", ".") for option in options}


def _config_name(argv: Sequence[str]) -> str:
    name = _DEFAULT
    for position, word in enumerate(argv):  # the last one counts, as everywhere on the command line
        if word == "--config" and position + 1 < len(argv):
            name = argv[position + 1]
        elif word.startswith("--config="):
            name = word.removeprefix("--config=")
    return name


def _checked(command: Command, given: set[str]) -> Command:
    """The command, refused where a value is out of range or options contradict each other."""
    if command.checkpoint is None:  # else its own configuration counts, with what was given of this one
        check(command)
    elif not command.eval_only:
        raise ValueError(f"--checkpoint {command.checkpoint} goes with --eval-only; to continue a run use --resume RUN")
    if command.eval_only:
        _check_evaluation(command, given)
    if command.resume is not None:
        if command.eval_only:
            raise ValueError("--resume and --eval-only exclude each other; evaluate with --checkpoint")
        if others := sorted(given - {"resume", "distributed", *TASK_FILES, *FREE_ON_RESUME}):
            raise ValueError(
                f"--resume {command.resume} continues with the run's own configuration: leave out"
                f" {', '.join(map(_option, others))}; only {', '.join(map(_option, FREE_ON_RESUME))}, and where the"
                f" files of its task have moved {', '.join(map(_option, TASK_FILES))}, may be given"
            )
    return command


def _check_evaluation(command: Command, given: set[str]) -> None:
    if command.output_dir is not None:
        raise ValueError(
            f"--output-dir {command.output_dir} is for training; leave it out: an evaluation is saved beside its"
            " checkpoint, or in runs/ without one"
        )
    if command.checkpoint is None:
        return
    free = {"config", "eval_only", "checkpoint", "distributed", *TASK_FILES, *FREE_IN_EVALUATION}
    others = sorted(name for name in given - free if not name.startswith("eval."))
    if command.config.endswith(SUFFIX):
        others.insert(0, "config")
    if others:
        raise ValueError(
            f"checkpoint {command.checkpoint} is evaluated with its own configuration: leave out all options"
            f" but --eval.*, {', '.join(map(_option, FREE_IN_EVALUATION))}, and where the files of its task have moved"
            f" {', '.join(map(_option, TASK_FILES))}; {_option(others[0])} was given"
        )


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
