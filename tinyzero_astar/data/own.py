"""Tasks that are not part of the package, by what `data.task` says.

    FILE.jsonl           a table, see `table`, judged by `data.verifier` or by `data.reward_function`
    FILE.py:Class        a class that derives from `questions.QuestionTask`, or has all of `interfaces.Task`
    module:Class         the same in a module that Python finds
    reasoning_gym:NAME   see `reasoning_gym`

This is the one module that imports code by its name. What it imports is the user's own, named by the user, and runs
with the user's rights. A run's configuration names it too. So whoever resumes or evaluates someone else's run also runs
the code that it names. The digest says only that this code has not changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.questions import QuestionTask
from tinyzero_astar.data.reasoning_gym import PREFIX, ReasoningGym
from tinyzero_astar.data.reward_function import RewardedTable
from tinyzero_astar.data.scoring_process import MISHAPS
from tinyzero_astar.data.table import Table
from tinyzero_astar.data.task_names import is_table
from tinyzero_astar.interfaces import Task
from tinyzero_astar.terminal import shortened

FORMS = f"FILE.jsonl, FILE.py:Class, module:Class or {PREFIX}NAME"
_METHODS = ("train_problems", "held_out_problems", "verify", "example", "ask")


def make_own_task(data: DataConfig, seed: int) -> Task | None:
    """The task that `data.task` describes. None where it has none of the forms above.

    Raises:
        ValueError: there is no such task, or it refuses its settings.
    """
    if is_table(data.task):
        if not data.reward_function:
            return Table(data, seed)
        return RewardedTable(data, seed, _function(data.reward_function))
    if data.task.startswith(PREFIX):
        return ReasoningGym(data, seed)
    return _made(data, seed) if ":" in data.task else None


class Origin(NamedTuple):
    """Where a part of a task comes from."""

    file: Path
    name: str  # of the class, the function or the data set, "" for all of the file


def origins_of(data: DataConfig) -> list[Origin]:
    """What a task of the forms above is made of. Empty for others.

    The file of a data set of reasoning-gym is the record of which version is installed.

    Raises:
        ValueError: a module or a package is not found.
    """
    if is_table(data.task):
        judge = [_origin("data.reward_function", data.reward_function)] if data.reward_function else []
        return [Origin(Path(data.task), ""), *judge]
    if data.task.startswith(PREFIX):
        return [Origin(_record_of("reasoning-gym", data.task), data.task)]
    return [_origin("data.task", data.task)] if ":" in data.task else []


def _made(data: DataConfig, seed: int) -> Task:
    kind = _class(data.task)
    try:
        task = kind(data, seed)
    except ValueError as error:  # it refuses its settings
        raise ValueError(f"data.task {data.task}: {error}") from error
    if isinstance(task, QuestionTask) and not hasattr(task, "seed"):
        raise ValueError(f"data.task {data.task}: its __init__ must call super().__init__(data, seed)")
    return task


def _class(text: str) -> Callable[[DataConfig, int], Task]:
    kind = _imported("data.task", text)
    if not inspect.isclass(kind):
        raise ValueError(f"data.task {text}: {shortened(kind)} is no class; name the class of the task")
    missing = [name for name in _METHODS if not callable(getattr(kind, name, None))]
    if missing:
        raise ValueError(
            f"data.task {text}: class {kind.__name__} lacks {', '.join(missing)}; derive it from"
            " tinyzero_astar.data.questions.QuestionTask, which has them"
        )
    if getattr(kind, "questions", None) is QuestionTask.questions:
        raise ValueError(f"data.task {text}: class {kind.__name__} has no questions; write its method questions")
    _check_arguments(text, kind)
    return cast(Callable[[DataConfig, int], Task], kind)


def _check_arguments(text: str, kind: type) -> None:
    try:
        inspect.signature(kind).bind(DataConfig(), 0)
    except TypeError as error:
        raise ValueError(
            f"data.task {text}: class {kind.__name__} does not take the two arguments data and seed ({error})"
        ) from None


def _function(text: str) -> Callable[..., Any]:
    function = _imported("data.reward_function", text)
    if not callable(function) or inspect.isclass(function):
        raise ValueError(f"data.reward_function {text}: {shortened(function)} is no function")
    called: Callable[..., Any] = function
    return called


def _imported(field: str, text: str) -> Any:
    """What FILE.py:NAME or module:NAME names."""
    place, name = _parts(field, text)
    try:
        module = _module_in(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (*MISHAPS, ImportError, SystemExit) as error:
        raise ValueError(f"{field} {text}: {place} cannot be imported ({_words(error)})") from error
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise ValueError(f"{field} {text}: {place} has no {name}; it has {', '.join(own) or 'nothing of its own'}")
    return getattr(module, name)


def _module_in(path: Path) -> ModuleType:
    name = f"own_task_{path.stem}"
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ImportError("it is no regular file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # for a name that ends in .py there is one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for themselves there
    spec.loader.exec_module(module)
    return module


def _parts(field: str, text: str) -> tuple[str, str]:
    place, _, name = text.rpartition(":")
    if not (place and name.isidentifier()):
        raise ValueError(f"{field} {text!r} names nothing to import; write it as FILE.py:NAME or module:NAME")
    return place, name


def _origin(field: str, text: str) -> Origin:
    """The file that FILE.py:NAME or module:NAME stands in, and the name."""
    place, name = _parts(field, text)
    if place.endswith(".py"):
        return Origin(Path(place), name)
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError) as error:  # of a package that it stands in (and __main__ has no spec)
        raise ValueError(f"{field} {text}: {place} is not found ({error})") from None
    if spec is None or spec.origin is None or not spec.has_location:  # those of Python itself have no file
        raise ValueError(f"{field} {text}: Python finds no module {place}; give its file, as in {place}.py:NAME")
    return Origin(Path(spec.origin), name)


def _record_of(package: str, text: str) -> Path:
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "METADATA":
            return Path(str(file.locate()))
    raise ValueError(f"{text} needs the package {package}, which is not installed: pip install -e '.[{package}]'")


def _words(error: BaseException) -> str:
    """What happened while a module was imported, and on which line of it."""
    if isinstance(error, (ImportError, SyntaxError)):  # they say where
        return str(error)
    line = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, OSError) and line.filename.startswith("<frozen "):  # of Python's own import
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}, at {Path(line.filename).name} line {line.lineno}"
