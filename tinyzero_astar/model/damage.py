"""What damaged files of a model, and models too large, raise in other libraries: one sentence that names the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

# what damaged or foreign files raise in transformers, tokenizers and safetensors
DAMAGE = (
    *(OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError),
    *(AssertionError, SafetensorError, StrictDataclassError),
)


class DamageInOneSentence:
    """Turns what damaged or foreign files raise into a ValueError that names the model."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._where = name, "that folder" if str(folder) == name else str(folder)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if _is_out_of_memory(error):
            raise _not_enough_memory(self._name, error) from error
        # tokenizers, which is written in Rust, raises plain Exception, that very class, for all it does not know
        if isinstance(error, DAMAGE) or kind is Exception:
            cause = first_line(error)
            raise ValueError(f"model_name {self._name!r}: a file in {self._where} cannot be used ({cause})") from error


@contextmanager
def enough_memory(name: str) -> Iterator[None]:
    """Turns what a failed allocation raises, on a CPU or a GPU, into a ValueError that names the model."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise _not_enough_memory(name, error) from error


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _not_enough_memory(name: str, error: BaseException) -> ValueError:
    return ValueError(
        f"model_name {name!r}: there is not enough memory to load it ({first_line(error)}); `python -m tinyzero_astar"
        " doctor` with the same options tells what a run needs"
    )


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(x.strip() for x in lines[: 2 if lines[0].endswith(":") else 1])
    return f"{type(error).__name__} {line}" if isinstance(error, KeyError) else line  # whose line is the key alone
