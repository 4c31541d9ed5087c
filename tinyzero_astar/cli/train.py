"""The command line. Options go in, and one of training, resuming or evaluating comes out.

PyTorch is imported only after the options were understood, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from tinyzero_astar.cli.options import Command, config_of, given_fields, parse, parse_evaluate, parse_train
from tinyzero_astar.config import Config
from tinyzero_astar.config_checks import check, check_processes
from tinyzero_astar.config_file import stem_of
from tinyzero_astar.config_json import FREE_ON_RESUME, from_json, with_fields_of, with_files_moved
from tinyzero_astar.files import METRICS, WriteFailedError
from tinyzero_astar.run.checkpoint_folders import model_of_run, resolve_checkpoint, run_and_checkpoints
from tinyzero_astar.run.folder import CONFIG
from tinyzero_astar.terminal import FAILED, USAGE_ERROR, FailedError, complain

if TYPE_CHECKING:
    from tinyzero_astar.run.build import Session

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE_S = 10.0  # torchrun ends all processes at the first failure, so rank 0 must be first to say why


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
    if not command.eval_only:
        check_processes(config, count)
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
    """Every rank makes the same mistake, and rank 0 prints it."""
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
    """Run a command of train.py.

    Returns:
        The exit status. 0 means done, 1 failed, 2 wrong use, and 128 plus the number of the signal that stopped the run
        (130 for Ctrl-C, 143 for SIGTERM) after the current iteration. See also `run_command`.
    """
    return _run_or_fail(parse, sys.argv[1:] if argv is None else argv)


def train_main(argv: Sequence[str]) -> int:
    """Run `tinyzero train`, and return the exit status."""
    return _run_or_fail(parse_train, argv)


def eval_main(argv: Sequence[str]) -> int:
    """Run `tinyzero eval`, and return the exit status."""
    return _run_or_fail(parse_evaluate, argv)


def _run_or_fail(parser: Callable[[Sequence[str]], Command], argv: Sequence[str]) -> int:
    try:
        return _run(parser, argv)
    except (FloatingPointError, WriteFailedError, FailedError) as error:  # all ranks raise it
        return complain(error, FAILED) if _is_main() else FAILED


def _run(parser: Callable[[Sequence[str]], Command], argv: Sequence[str]) -> int:
    checkpoint: Path | None = None
    try:
        with _only_main_speaks():
            command = parser(argv)
        given = given_fields(argv)
        config, name = model_of_run(config_of(command)), stem_of(command.config)
        if command.checkpoint is not None:
            checkpoint = resolve_checkpoint(command.checkpoint, name)
        elif command.resume is not None:
            run, _ = run_and_checkpoints(command.resume)
            config = with_fields_of(from_json(run / CONFIG), command, given.intersection(FREE_ON_RESUME))
            config = with_files_moved(config, command, given)
            check(config)  # what was given fits the preset, but does it fit the run?
        _check_processes(command, config)
    except ValueError as error:
        return _refuse(error)

    from tinyzero_astar.distributed import set_up  # imports PyTorch and transformers, which takes seconds
    from tinyzero_astar.resources.machine import choose_device
    from tinyzero_astar.run import evaluation, loop, start

    with _group_left():
        try:
            if command.distributed:
                set_up(choose_device(config.model.device), config.run.collective_timeout_s)
            if command.eval_only:
                session, folder = start.open_evaluation(config, checkpoint, given)
            elif command.resume is None:
                session = start.start_run(config, name, command.output_dir)
            else:
                session = start.open_run(config, run, command.resume)
        except ValueError as error:
            return _refuse(error)
        if command.eval_only:
            return evaluation.evaluate_only(session, folder)
        status = loop.train(session)
        _write_page(session)
        return status


def _write_page(session: Session) -> None:
    """The run's page, however the run ended. A run without records has none."""
    from tinyzero_astar.report.page import PAGE, write_run_page

    path = session.folder / PAGE
    if not _is_main() or not (session.folder / METRICS).is_file():
        return
    try:
        write_run_page(path, [session.folder])
    except ValueError as error:
        session.console.warn(f"{path} was not written: {error}")
    except OSError as error:
        session.console.warn(f"{path} cannot be written ({error.strerror})")
    else:
        session.console.command("page", str(path))


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
