"""The command line: options in, one of training, resuming or evaluating out.

PyTorch is imported only after the options were understood, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields, replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from tinyzero_astar.config import PRESETS, Config, check, from_json
from tinyzero_astar.run_folder import CONFIG, latest_checkpoint, resolve_checkpoint
from tinyzero_astar.terminal import FAILED, INTERRUPTED, USAGE_ERROR, complain

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
    """Folder of a run to continue, with its own configuration."""
    eval_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Evaluate and stop."""
    checkpoint: Path | None = None
    """Checkpoint folder to evaluate (with --eval-only); NAME.pt also means the folder NAME."""
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
    command = tyro.cli(kind, prog=program, args=list(argv), default=default)
    check(command)
    if command.checkpoint is not None and not command.eval_only:
        raise ValueError(f"--checkpoint {command.checkpoint} goes with --eval-only; to continue a run use --resume RUN")
    _check_evaluation(command, preset)
    if command.resume is not None:
        if command.eval_only:
            raise ValueError("--resume and --eval-only exclude each other; evaluate with --checkpoint")
        if _on_any_device(_config_of(command)) != preset or command.output_dir is not None:
            raise ValueError(
                f"--resume {command.resume} continues with the run's own configuration: leave out all options but"
                " --model.device"
            )
    return command


def _check_evaluation(command: Command, preset: Config) -> None:
    if not command.eval_only:
        return
    if command.output_dir is not None:
        raise ValueError(
            f"--output-dir {command.output_dir} is for training; leave it out: an evaluation is saved beside its"
            " checkpoint, or in runs/ without one"
        )
    others = replace(_on_any_device(_config_of(command)), eval=preset.eval, run=preset.run)
    if command.checkpoint is not None and others != preset:
        raise ValueError(
            f"--checkpoint {command.checkpoint} is evaluated with its own configuration: leave out all options"
            " but --eval.*, --run.num-threads and --model.device"
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


def _on_any_device(config: Config) -> Config:
    """The machine is not part of what a run or a checkpoint is."""
    return replace(config, model=replace(config.model, device="auto"))


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
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted; see `run_command`."""
    try:
        return _run(argv)
    except FloatingPointError as error:  # all ranks raise it
        return complain(error, FAILED) if _is_main() else FAILED
    except KeyboardInterrupt:
        print("stopped at once; only what was saved before is kept", file=sys.stderr)
        return INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    try:
        with _only_main_speaks():
            command = parse(sys.argv[1:] if argv is None else argv)
        if command.eval_only and command.checkpoint is not None:
            checkpoint = resolve_checkpoint(command.checkpoint, command.config)
        elif command.resume is not None:
            checkpoint = latest_checkpoint(command.resume)
            config = from_json(command.resume / CONFIG)
            if command.model.device != "auto":
                config = replace(config, model=replace(config.model, device=command.model.device))
        _check_processes(command, config if command.resume is not None else command)
    except ValueError as error:
        return _refuse(error)

    from tinyzero_astar import session as sessions  # PyTorch and transformers: seconds
    from tinyzero_astar import trainer
    from tinyzero_astar.machine import choose_device
    from tinyzero_astar.model.fsdp_utils import set_up, tear_down

    try:
        if command.distributed:
            set_up(choose_device(command.model.device), command.run.collective_timeout_s)
        if command.eval_only:
            source = checkpoint if command.checkpoint is not None else None
            session, folder = sessions.open_evaluation(_config_of(command), source, command)
        elif command.resume is not None:
            session = sessions.open_run(config, command.resume, checkpoint)
        else:
            session = sessions.start_run(_config_of(command), command.config, command.output_dir)
    except ValueError as error:
        return _refuse(error)
    status = trainer.evaluate_only(session, folder) if command.eval_only else trainer.train(session)
    tear_down()
    return status


def _refuse(error: ValueError) -> int:
    if _is_main():
        return complain(error)
    time.sleep(_PATIENCE_S)
    return USAGE_ERROR
