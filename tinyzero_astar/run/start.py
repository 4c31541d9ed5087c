"""How a run begins, anew, from a checkpoint of its own, or to evaluate one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from transformers.utils import logging as transformers_logging

from tinyzero_astar.config import Config, search_size
from tinyzero_astar.config_checks import check
from tinyzero_astar.config_json import (
    FREE_IN_EVALUATION,
    to_json,
    with_fields_of,
    with_files_moved,
)
from tinyzero_astar.data.tasks import Problems, make_problems, pinned
from tinyzero_astar.distributed import agree, from_main, is_main, world_size
from tinyzero_astar.files import METRICS, replace_text
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.loggers.loggers import check_loggers
from tinyzero_astar.resources.advice import disk_advice, memory_advice
from tinyzero_astar.resources.machine import all_memory, choose_device, free_disk, free_memory
from tinyzero_astar.resources.model import check_options, model_for
from tinyzero_astar.resources.prediction import PlannedRun
from tinyzero_astar.run.build import Session, build, first_policy, optimizers
from tinyzero_astar.run.checkpoint import (
    check_source,
    known_counts,
    known_reference,
    load_trainer,
    read_state,
    remembered_by,
)
from tinyzero_astar.run.checkpoint_folders import go_back_to, run_and_checkpoints, start_over
from tinyzero_astar.run.folder import CONFIG, fresh_run_folder, new_run_folder, prepare
from tinyzero_astar.run.lock import locked
from tinyzero_astar.run.records import check_complete
from tinyzero_astar.run.resuming import changes, first_usable, remember_length, saved_config
from tinyzero_astar.run.writing import write_for_all
from tinyzero_astar.terminal import counted, readable_bytes
from tinyzero_astar.training.algorithms import make_algorithm

_ABSURD = 4  # times the machine's memory, which is no error of the prediction

T = TypeVar("T")


def start_run(config: Config, preset: str, output_dir: Path | None) -> Session:
    """A new run in a folder of its own, made first and removed again if the run is refused.

    Raises:
        ValueError: the folder, the model or the problems cannot be had.
        WriteFailedError: the folder cannot be written to, on rank 0. Every rank raises it.
    """
    config = _pinned(config)
    with ExitStack() as made, ExitStack() as held:
        folder = _made_by_main(lambda: made.enter_context(fresh_run_folder(preset, output_dir)))
        _lock(folder, held)
        session = _begin_run(config, folder)
        write_for_all(
            folder / CONFIG, lambda: replace_text(folder / CONFIG, to_json(config) + "\n") if is_main() else None
        )
        session = replace(session, held=held.pop_all())
    session.console.fact("search", search_in_words(config))
    session.console.fact("training", f"{config.train.algorithm}, {counted(config.train.num_iterations, 'iteration')}")
    session.console.fact("folder", f"{folder}, all settings in its {CONFIG}")
    return session


def search_in_words(config: Config) -> str:
    """What an iteration searches for, with as many problems to a search as share one in fact."""
    count, size = config.search.num_rollouts_per_problem, search_size(config)
    return (
        f"{config.search.mode}, {count:g} completion{'s' * (count != 1)}"
        f" for each of {counted(config.train.problems_per_iteration, 'problem')}"
        + (f", {size} problems share a search" if size > 1 else "")
    )


def _start_over(config: Config, folder: Path) -> None:
    start_over(folder)
    remember_length(config, folder)


def _lock(folder: Path, held: ExitStack) -> None:
    """Keep other processes off the run for as long as `held` lasts.

    Raises:
        ValueError: one works on it already, or the folder cannot be written to.
    """
    killed = agree(lambda: held.enter_context(locked(folder)) if is_main() else None)
    if killed is not None:
        _console().say(f"{killed} was killed while it worked on {folder}: its lock is free")


def _begin_run(config: Config, folder: Path) -> Session:
    console = _console()
    _check_loggers(config)
    make_algorithm(config)  # first, as it may refuse
    problems = _problems(config)
    _prepare(folder)
    agree(lambda: check_source(config.model.model_name) if is_main() else None)
    _check_fit(config, problems, config.model.model_name, folder, console)
    return build(config, problems, folder, config.model.model_name, console, 0, first_policy(config, console))


def _pinned(config: Config) -> Config:
    return replace(config, data=agree(lambda: pinned(config.data)))


def _problems(config: Config) -> Problems:
    return agree(lambda: make_problems(config))


def open_run(config: Config, folder: Path, resume: Path) -> Session:
    """A run to be continued from its newest checkpoint that can be used, or from iteration 0 where it has none.

    Args:
        config: of the run, with what was given anew.
        folder: of the run.
        resume: the run, or one of its checkpoints.

    Raises:
        ValueError: no checkpoint can be used, or it or the records of the run do not fit.
        WriteFailedError: the folder cannot be written to, on rank 0. Every rank raises it.
    """
    _check_loggers(config)
    with ExitStack() as held:
        _lock(folder, held)
        # only now, as another process may have saved and removed some while this one waited
        checkpoints = _made_by_main(lambda: run_and_checkpoints(resume)[1])
        if checkpoints:
            session = _opened(_pinned(config), folder, checkpoints, _console())
        else:
            session = _restarted(_pinned(config), folder)
        return replace(session, held=held.pop_all())


def _restarted(config: Config, folder: Path) -> Session:
    session = _begin_run(config, folder)
    write_for_all(folder, lambda: _start_over(config, folder) if is_main() else None)
    session.console.say(f"{folder} has no checkpoint: starting again from iteration 0 with its configuration")
    return session


def _opened(config: Config, folder: Path, checkpoints: Sequence[Path], console: ConsoleLogger) -> Session:
    checkpoint = _made_by_main(lambda: first_usable(config, folder, checkpoints, console))
    for change in changes(config, checkpoint):
        console.say(change)
    problems = _problems(config)
    try:
        return _continued(config, problems, folder, checkpoint, console)
    except _DamagedError as error:  # found by loading alone
        others = checkpoints[checkpoints.index(checkpoint) + 1 :]
        if not others:
            raise
        console.warn(str(error))
        return _opened(config, folder, others, console)


class _DamagedError(ValueError):
    """A checkpoint that cannot be loaded."""


def _continued(config: Config, problems: Problems, folder: Path, checkpoint: Path, console: ConsoleLogger) -> Session:
    state = read_state(checkpoint)
    iteration = int(state["iteration"])
    history, record = remembered_by(checkpoint, state)
    is_pending = from_main(agree(lambda: is_main() and check_complete(folder, iteration)))
    if not (folder / METRICS).exists():
        console.warn(f"{folder / METRICS} is missing: the run goes on without its earlier records")
    _prepare(folder)
    try:
        first = first_policy(config, console)
    except ValueError as error:
        raise ValueError(f"{error}; on --resume a folder is told as model.model_name in {folder / CONFIG}") from None
    if first is not None and first.digest != known_reference(checkpoint, state)[0]:
        raise ValueError(
            f"the weights of model {config.model.model_name} are not those that the run in {folder} began with, which"
            f" algorithm {config.train.algorithm} compares the policy with: put them back, or start a new run"
        )
    try:
        _check_fit(config, problems, str(checkpoint), folder, console)
        session = build(config, problems, folder, str(checkpoint), console, iteration, first)
        agree(lambda: load_trainer(checkpoint, session.policy, optimizers(session.updater)))
    except ValueError as error:
        raise _DamagedError(str(error)) from error
    session.updater.num_updates = int(state["num_updates"])
    if session.reference is not None:
        session.reference.values |= known_reference(checkpoint, state)[1]
    session.history.extend(history)
    session.searched.update(known_counts(checkpoint, state))
    write_for_all(folder, lambda: _go_back_to(config, folder, iteration, console) if is_main() else None)
    console.say(f"continuing {folder} after iteration {iteration}")
    return replace(session, pending=record if is_pending else None)


def _go_back_to(config: Config, folder: Path, iteration: int, console: ConsoleLogger) -> None:
    remember_length(config, folder)
    for path in go_back_to(folder, iteration):
        console.say(f"a newer checkpoint was set aside: {path}")


def open_evaluation(config: Config, checkpoint: Path | None, given: Iterable[str] = ()) -> tuple[Session, Path]:
    """A session that only evaluates a checkpoint with its own configuration, or the base model.

    A checkpoint is evaluated as in its run, but for the fields of section `eval` that are `given` on the command line.
    Where the files of its task lie may be given too.

    Raises:
        ValueError: the checkpoint, the model or the problems cannot be had, or its configuration does not fit what is
            given.
    """
    console = _console()
    agree(lambda: check_source(str(checkpoint or config.model.model_name)) if is_main() else None)
    if checkpoint is None:
        # first, as it may refuse
        session = build(config, _problems(config), Path(), config.model.model_name, console, 0)
        return session, _made_by_main(lambda: new_run_folder("evaluation", None))
    state = read_state(checkpoint)
    saved = with_files_moved(saved_config(checkpoint), config, given)
    names = {*FREE_IN_EVALUATION, *(name for name in given if name.startswith("eval."))}
    config = _pinned(with_fields_of(saved, config, names))
    check(config)
    # model.safetensors has the adapters in it
    config = replace(config, model=replace(config.model, lora_rank=0, liger=False))
    session = build(config, _problems(config), checkpoint, str(checkpoint), console, int(state["iteration"]))
    agree(lambda: load_trainer(checkpoint, session.policy, {}))
    console.say(f"evaluating {checkpoint}")
    return session, checkpoint


def _check_loggers(config: Config) -> None:
    agree(lambda: check_loggers(config.run.loggers) if is_main() else None)


def _check_fit(config: Config, problems: Problems, model_source: str, folder: Path, console: ConsoleLogger) -> None:
    """Say whether memory and disk will do, before anything takes some.

    Raises:
        ValueError: what is asked of model or device cannot be, many times the machine's memory is needed, or the folder
            cannot be written to.
    """
    device = choose_device(config.model.device)
    check_options(config, device)
    transformers_logging.disable_progress_bar()
    named = replace(config, model=replace(config.model, model_name=model_source))
    model = agree(lambda: model_for(named, problems.prompts, console.say))
    run = PlannedRun(config, model, world_size(), device.type)
    memory, disk, outlook = free_memory(device, world_size()), free_disk(folder), run.outlook
    advice = [memory_advice(run, memory), disk_advice(run, disk)]
    if advice[0] is not None and outlook.memory > _ABSURD * all_memory(device, world_size()):
        raise ValueError(advice[0])
    for text in advice:
        if text is not None:
            console.warn(text)
    if advice == [None, None]:
        console.fact(
            "needs",
            f"{readable_bytes(outlook.memory)} of {readable_bytes(memory)} memory, {readable_bytes(outlook.disk)} of"
            f" {readable_bytes(disk)} disk (tinyzero doctor)",
        )
    _prepare(folder, outlook.checkpoint)


def _prepare(folder: Path, *num_bytes: int) -> None:
    agree(lambda: prepare(folder, *num_bytes) if is_main() else None)


def _console() -> ConsoleLogger:
    return ConsoleLogger(is_silent=not is_main())


def _made_by_main(make: Callable[[], T]) -> T:
    """What rank 0 made or found."""
    return cast(T, from_main(agree(lambda: make() if is_main() else None)))
