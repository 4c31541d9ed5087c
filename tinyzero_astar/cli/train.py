"""The command line: options in, one of training, resuming or evaluating out.

PyTorch is imported only after the options were understood, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from tinyzero_astar.config import (
    FREE_IN_EVALUATION,
    FREE_ON_RESUME,
    PRESETS,
    TASK_FILES,
    Config,
    check,
    from_json,
    with_fields_of,
    with_files_moved,
)
from tinyzero_astar.files import WriteFailedError
from tinyzero_astar.run.checkpoint_folders import resolve_checkpoint, run_and_checkpoints
from tinyzero_astar.run.folder import CONFIG
from tinyzero_astar.terminal import FAILED, USAGE_ERROR, FailedError, complain

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE_S = 10.0  # torchrun ends everyone at the first failure: rank 0 must be the first, or it could not say why


@dataclass(frozen=True)
class Command(Config):
    """Teach a base model verifiable arithmetic by reinforcement learning on searched rollouts.

    Without options: preset tiny, the embedded base model, on a CPU, in a minute or two.
    """

    config: Literal["tiny", "local", "training"] = "tiny"
    """Preset that the other options change."""
    output_dir: Path | None = None
    """Folder of the run; default: runs/PRESET-NNN."""
    resume: Path | None = None
    """Folder of a run to continue, or one of its checkpoints, with the run's own configuration."""
    eval_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Evaluate and stop."""
    checkpoint: Path | None = None
    """Checkpoint folder to evaluate (with --eval-only) as its run did, but for the --eval.* that are given.

    NAME.pt also means the folder NAME.
    """
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Share the work and the weights with the other processes that torchrun started."""


C = TypeVar("C", bound=Command)


def parse(argv: Sequence[str]) -> Command:
    """The command of train.py; see `parse_as`."""
    return parse_as(Command, "train.py", argv)


def parse_as(kind: type[C], program: str, argv: Sequence[str]) -> C:
    """The command of an argument list, the preset's values filled in and checked.

    Raises:
        ValueError: a value is out of range, or options contradict each other.
        SystemExit: an option is unknown or of the wrong type (status 2), or --help was asked for (0).
    """
    preset = PRESETS.get(_preset_name(argv), PRESETS["tiny"])
    default = kind(**{f.name: getattr(preset, f.name) for f in fields(Config)})
    given = _given_fields(argv)
    command = tyro.cli(kind, prog=program, args=list(argv), default=default)
    if command.checkpoint is None:  # else its own configuration counts, with what was given of this one
        check(command)
    elif not command.eval_only:
        raise ValueError(f"--checkpoint {command.checkpoint} goes with --eval-only; to continue a run use --resume RUN")
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


def _given_fields(argv: Sequence[str]) -> set[str]:
    """Names of the fields that an argument list sets, with their sections, whatever the values.

    Raises:
        ValueError: an option has an empty value, which as a folder would mean the current one.
    """
    for word, then in itertools.pairwise([*argv, "end"]):
        if word.startswith("--") and (word.endswith("=") or then == ""):
            raise ValueError(f"{word.rstrip('=')} has an empty value; give one, or leave the option out")
    options = (word.removeprefix("--").partition("=")[0] for word in argv if word.startswith("--"))
    return {option.replace("-", "_").replace(".no_", ".") for option in options}


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def _check_evaluation(command: Command, given: set[str]) -> None:
    if not command.eval_only:
        return
    if command.output_dir is not None:
        raise ValueError(
            f"--output-dir {command.output_dir} is for training; leave it out: an evaluation is saved beside its"
            " checkpoint, or in runs/ without one"
        )
    free = {"config", "eval_only", "checkpoint", "distributed", *TASK_FILES, *FREE_IN_EVALUATION}
    others = sorted(name for name in given - free if not name.startswith("eval."))
    if command.checkpoint is not None and others:
        raise ValueError(
            f"--checkpoint {command.checkpoint} is evaluated with its own configuration: leave out all options"
            f" but --eval.*, {', '.join(map(_option, FREE_IN_EVALUATION))}, and where the files of its task have moved"
            f" {', '.join(map(_option, TASK_FILES))}; {_option(others[0])} was given"
        )


def _preset_name(argv: Sequence[str]) -> str:
    name = "tiny"
    for position, word in enumerate(argv):  # the last one counts, as everywhere on the command line
        if word == "--config" and position + 1 < len(argv):
            name = argv[position + 1]
        elif word.startswith("--config="):
            name = word.removeprefix("--config=")
    return name


def _config_of(command: Command) -> Config:
    return Config(**{f.name: getattr(command, f.name) for f in fields(Config)})


def _check_processes(command: Command, config: Config) -> None:
    """Whether torchrun's environment fits the command.

    Raises:
        ValueError: --distributed without torchrun, torchrun without --distributed, or the work cannot be shared.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if not command.distributed:
        if count > 1:
            raise ValueError(
                f"torchrun started {count} processes without --distributed: each would train alone; add --distributed"
            )
        return
    if missing := [name for name in _TORCHRUN if name not in os.environ]:
        raise ValueError(
            f"--distributed needs torchrun ({missing[0]} is not set): torchrun --nproc_per_node=4 train.py"
            " --distributed; for one process leave it out"
        )
    problems = config.train.problems_per_iteration
    if not command.eval_only and problems % count:
        raise ValueError(
            f"{count} processes do not divide problems_per_iteration {problems}: all search the same number of"
            f" problems; use --train.problems-per-iteration {-(-problems // count) * count}, or another number of"
            " processes"
        )
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    if config.train.sharding == "hybrid" and count % local:
        raise ValueError(
            f"sharding hybrid needs as many processes on every machine: {count} are not a multiple of the {local} here"
        )


def _is_main() -> bool:
    """Before there is a process group."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _only_main_speaks() -> Iterator[None]:
    """Every rank makes the same mistake; rank 0 prints it."""
    if _is_main():
        yield
        return
    try:
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            yield
    except SystemExit as leaving:
        if leaving.code:
            time.sleep(_PATIENCE_S)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, 128 plus the number of the signal that stopped it (130 for
        Ctrl-C, 143 for SIGTERM) after the current iteration; see also `run_command`.
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except (FloatingPointError, WriteFailedError, FailedError) as error:  # all ranks raise it
        return complain(error, FAILED) if _is_main() else FAILED


def _run(argv: Sequence[str]) -> int:
    checkpoint: Path | None = None
    try:
        with _only_main_speaks():
            command = parse(argv)
        given = _given_fields(argv)
        config = _config_of(command)
        if command.checkpoint is not None:
            checkpoint = resolve_checkpoint(command.checkpoint, command.config)
        elif command.resume is not None:
            run, checkpoints = run_and_checkpoints(command.resume)
            config = with_fields_of(from_json(run / CONFIG), command, given.intersection(FREE_ON_RESUME))
            config = with_files_moved(config, command, given)
        _check_processes(command, config)
    except ValueError as error:
        return _refuse(error)

    from tinyzero_astar.distributed import set_up  # PyTorch and transformers: seconds
    from tinyzero_astar.resources.machine import choose_device
    from tinyzero_astar.run import evaluation, loop, start

    with _group_left():
        try:
            if command.distributed:
                set_up(choose_device(config.model.device), config.run.collective_timeout_s)
            if command.eval_only:
                session, folder = start.open_evaluation(config, checkpoint, given)
            elif command.resume is None:
                session = start.start_run(config, command.config, command.output_dir)
            elif checkpoints:
                session = start.open_run(config, run, checkpoints)
            else:
                session = start.restart_run(config, run)
        except ValueError as error:
            return _refuse(error)
        return evaluation.evaluate_only(session, folder) if command.eval_only else loop.train(session)


@contextmanager
def _group_left() -> Iterator[None]:
    """The process group, if there is one, is left on every way out that all ranks take together.

    An interpreter that ends while threads of the group live may abort. Other exceptions may be one rank's alone, and
    to leave could then wait for the others.
    """
    from tinyzero_astar.distributed import tear_down

    try:
        yield
    except (FloatingPointError, WriteFailedError, FailedError):
        tear_down()
        raise
    tear_down()


def _refuse(error: ValueError) -> int:
    if _is_main():
        return complain(error)
    time.sleep(_PATIENCE_S)
    return USAGE_ERROR
