"""The files of a model's folder, which there are and which are missing."""

from __future__ import annotations

import json
import os
import re
from importlib import resources
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from tinyzero_astar.files import read_text

EMBEDDED = "embedded"  # the name of the base model that comes with the package
CONFIG, GENERATION, ADAPTERS = "config.json", "generation_config.json", "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
JSON_OF_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


def resolve_model(name: str) -> str:
    """The folder of the embedded base for "embedded", else the name as it is."""
    if name == EMBEDDED:
        return str(resources.files("tinyzero_astar") / "assets" / "embedded_base")
    return name


def local_folder(name: str) -> Path | None:
    """The folder that a name means, or None for a name on the hub."""
    folder = Path(os.path.expanduser(resolve_model(name)))  # that of pathlib raises for an unknown user
    if os.path.isfile(folder / CONFIG):  # never raises, whatever the name
        return folder
    if name == EMBEDDED:
        raise ValueError(f"model_name {name!r}: {folder} is missing from this installation; make it with `make base`")
    if os.path.isfile(folder / ADAPTERS):
        raise ValueError(
            f"model_name {name!r}: that folder holds adapters ({ADAPTERS}) without their model; merge them"
            " (merge_and_unload of peft) and give the folder of the whole model"
        )
    if os.path.lexists(folder) or not _is_hub_name(name):
        raise ValueError(
            f"model_name {name!r}: no folder with a {CONFIG} there; give the name of a Hugging Face model"
            f" or a folder that holds {CONFIG}, {WEIGHTS} and the tokenizer"
        )
    return None


def _is_hub_name(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return _HUB_NAME.fullmatch(name) is not None


def lacking(name: str, folder: Path) -> str | None:
    """What of weights and tokenizer a folder lacks, in words. None when it is complete."""
    if not (folder / WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            is_pickled = any(folder.glob("pytorch_model*.bin"))
            why_not = ": its pytorch_model.bin is a pickle, which can run code and is not read; convert it"
            return f"{WEIGHTS}{why_not if is_pickled else ''}"
        shards = weight_files(folder)
        if outside := [shard for shard in shards if os.path.basename(shard) != shard or shard == os.pardir]:
            raise ValueError(
                f"model_name {name!r}: its {INDEX} names {outside[0]!r} as a file of weights, which is no file of that"
                " folder itself; get the model anew"
            )
        if gone := [shard for shard in shards if not (folder / shard).is_file()]:
            return f"{len(gone)} of its {len(shards)} weight files, first {gone[0]}"
    if not any((folder / file).is_file() for file in TOKENIZERS):
        return "a tokenizer (tokenizer.json)"
    return None


def weight_files(folder: Path) -> list[str]:
    """Names of the files with a model's weights.

    There are none if the index of several is damaged, which loading reports.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS]
    try:
        index = json.loads(read_text(folder / INDEX))
    except (OSError, ValueError, RecursionError):  # no JSON, no UTF-8, or nested too deeply
        return []
    parts = index.get("weight_map") if isinstance(index, dict) else None
    return sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []
