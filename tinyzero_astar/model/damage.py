"""Errors that damaged or too large models raise in other libraries, turned into one sentence that names the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyzero_astar.files import read_text
from tinyzero_astar.terminal import first_line, is_out_of_memory


class DamageInOneSentence:
    """Turns what a damaged file makes another library raise into a ValueError that names the model.

    It surrounds calls of that library alone, so a mistake of this package comes through unchanged.

    Args:
        name: of the model.
        folder: that holds its files, or the one file.
        known: what the library raises for damaged files. The Rust library tokenizers raises plain Exception, that very
            class, for all it does not know. That class is always included.
    """

    def __init__(self, name: str, folder: Path, *known: type[Exception]) -> None:
        self._name, self._folder, self._known = name, folder, known

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if is_out_of_memory(error):
            raise _not_enough_memory(self._name, error) from error
        if isinstance(error, self._known) or kind is Exception:
            raise damaged(self._name, self._folder, first_line(error)) from error


def damaged(name: str, folder: Path, cause: str) -> ValueError:
    """The sentence about a file, or one of a folder, that is not what its name says."""
    is_file = folder.is_file()
    place = folder.parent if is_file else folder
    what = f"{folder.name if is_file else 'a file'} in {'that folder' if str(place) == name else place}"
    what = "that file" if is_file and str(folder) == name else what
    return ValueError(f"model_name {name!r}: {what} cannot be used ({cause})")


def read_object(name: str, folder: Path, file: str) -> dict[str, Any]:
    """The object that a JSON file of a model holds.

    Raises:
        ValueError: the file cannot be read or holds something else.
    """
    try:
        found = json.loads(read_text(folder / file), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deeply
        raise damaged(name, folder / file, first_line(error)) from error
    if not isinstance(found, dict):
        raise damaged(name, folder / file, "it holds no JSON object")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


@contextmanager
def enough_memory(name: str) -> Iterator[None]:
    """Turns what a failed allocation raises, on a CPU or a GPU, into a ValueError that names the model."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _not_enough_memory(name, error) from error


def _not_enough_memory(name: str, error: BaseException) -> ValueError:
    return ValueError(
        f"model_name {name!r}: there is not enough memory to load it ({first_line(error)}); `python -m tinyzero_astar"
        " doctor` with the same options tells what a run needs"
    )
