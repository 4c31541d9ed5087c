"""From a name to a language model and its tokenizer: the package, a folder, the local cache, or the hub.

Safetensors only, and never code from a checkpoint. What cannot be used is refused in one sentence, as early as it is
known: the architecture before weights are downloaded or read. Files that lie in the local cache are used without
asking the hub; nothing is downloaded without saying what and how much.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, StrictDataclassError
from huggingface_hub.errors import HTTPError as HubError  # type: ignore[attr-defined]  # httpx's or httpx2's
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tinyzero_astar.model.architecture import check_architecture

EMBEDDED = "embedded"  # the name of the base model that comes with the package
Say = Callable[[str], None]

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_OTHERS = re.compile(  # of a repository; besides weights and config.json
    r"(tokenizer.*|special_tokens_map|added_tokens|vocab|generation_config)\.json|vocab\.txt|merges\.txt"
    r"|(tokenizer|spiece)\.model|chat_template\.jinja"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
# what damaged or foreign files raise in transformers, tokenizers and safetensors
_DAMAGE = (
    *(OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError),
    *(AssertionError, SafetensorError, StrictDataclassError),
)


def resolve_model(name: str) -> str:
    """The folder of the embedded base for "embedded", else the name as it is."""
    if name == EMBEDDED:
        return str(resources.files("tinyzero_astar") / "assets" / "embedded_base")
    return name


def choose_device(wanted: str) -> torch.device:
    """`cpu`, `cuda`, or for `auto` the GPU if there is one.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ValueError(
            f"device cuda: PyTorch {torch.__version__} finds no CUDA device on this machine; use --model.device cpu,"
            " or install a driver and a CUDA build of PyTorch"
        )
    return torch.device("cuda" if has_gpu and wanted != "cpu" else "cpu")


def load_language_model(
    name: str, dtype: torch.dtype, *, max_length: int | None = None, say: Say = print
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    Args:
        name: "embedded", a folder, or a name on the hub.
        dtype: of the weights.
        max_length: tokens of the longest sequence, see `check_architecture`.
        say: told of every download before it begins.

    Raises:
        ValueError: nothing usable under that name; one sentence says what was looked for, where, and the remedy.
    """
    folder = _find(name, max_length, say)
    _check_config(name, folder, max_length)
    if (lacking := _lacking(folder)) is not None:
        raise ValueError(f"model_name {name!r} lacks {lacking}")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its table of missing weights; ours is a sentence
    try:
        with _DamageInOneSentence(name, folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            plain, special = (tokenizer("1", add_special_tokens=add)["input_ids"] for add in (False, True))
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                attn_implementation="sdpa",  # the decoder's masks are boolean; eager attention would add them
                output_loading_info=True,
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
    if missing := sorted(info["missing_keys"]):  # from_pretrained would draw them at random
        raise ValueError(f"model_name {name!r}: {len(missing)} of its weights are missing, first {missing[0]}")
    num_rows = model.get_output_embeddings().weight.shape[0]
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model_name {name!r}: its tokenizer has no end-of-sequence token")
    if not plain:
        raise ValueError(f"model_name {name!r}: its tokenizer knows no digits; is it the right one?")
    if len(tokenizer) > num_rows:
        raise ValueError(
            f"model_name {name!r}: its tokenizer has {len(tokenizer)} tokens, the model {num_rows}; they do not belong"
            " together"
        )
    if special[-1] == tokenizer.eos_token_id:
        raise ValueError(
            f"model_name {name!r}: its tokenizer ends every text with {tokenizer.eos_token}, so that no prompt could be"
            " continued; set add_eos_token to false in its tokenizer_config.json"
        )
    return model, tokenizer


def read_config(
    name: str, max_length: int, say: Say = print
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase | None]:
    """What is known of a model without its weights: its config, and its tokenizer if that lies on this machine.

    Args:
        name: "embedded", a folder, or a name on the hub, from which config.json alone is fetched.
        max_length: tokens of the longest sequence, see `check_architecture`.
        say: told of the download before it begins.

    Raises:
        ValueError: nothing usable under that name; one sentence says why.
    """
    folder = _local(name)
    if folder is None:
        cached = try_to_load_from_cache(name, _CONFIG)
        folder = Path(cached).parent if isinstance(cached, str) else _fetch_config(name, say)[0]
    config = _check_config(name, folder, max_length)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        return config, None
    with _DamageInOneSentence(name, folder):
        return config, AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _find(name: str, max_length: int | None, say: Say) -> Path:
    """The folder that holds the model, downloaded if need be."""
    if (folder := _local(name)) is not None:
        return folder
    cached = try_to_load_from_cache(name, _CONFIG)
    if isinstance(cached, str) and _lacking(Path(cached).parent) is None:
        return Path(cached).parent
    return _download(name, max_length, say)


def _local(name: str) -> Path | None:
    """The folder that a name means, or None for a name on the hub."""
    folder = Path(os.path.expanduser(resolve_model(name)))  # that of pathlib raises for an unknown user
    if (folder / _CONFIG).is_file():
        return folder
    if name == EMBEDDED:
        raise ValueError(f"model_name {name!r}: {folder} is missing from this installation; make it with `make base`")
    if folder.exists() or not _HUB_NAME.fullmatch(name):
        raise ValueError(
            f"model_name {name!r}: no folder with a {_CONFIG} there; give the name of a Hugging Face model"
            f" or a folder that holds {_CONFIG}, {_WEIGHTS} and the tokenizer"
        )
    return None


def _fetch_config(name: str, say: Say) -> tuple[Path, dict[str, int | None]]:
    """Fetch config.json; returns its folder, and what else there is to fetch with the sizes."""
    cache, hub = constants.HF_HUB_CACHE, constants.ENDPOINT
    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=30)
        size = {s.rfilename: s.size for s in info.siblings or []}
        wanted = _wanted(size)
        if _CONFIG in wanted:
            if not isinstance(try_to_load_from_cache(name, _CONFIG), str):
                say(f"downloading {_CONFIG} of {name} ({_total({_CONFIG: size[_CONFIG]})}) from {hub} to {cache}")
            folder = Path(hf_hub_download(name, _CONFIG)).parent
    except (OSError, HubError) as error:
        raise _unreachable(name, error) from error
    if _CONFIG not in wanted or not any(n.endswith(".safetensors") for n in wanted):
        raise ValueError(
            f"model_name {name!r}: {hub}/{name} has no {_CONFIG} with weights in safetensors format (pickled ones can"
            " run code and are not read); use another model, or convert it and give its folder: --model.model-name PATH"
        )
    return folder, {n: size[n] for n in wanted if n != _CONFIG}


def _download(name: str, max_length: int | None, say: Say) -> Path:
    """Fetch config.json, refuse or announce, fetch the rest."""
    cache, hub = constants.HF_HUB_CACHE, constants.ENDPOINT
    folder, rest = _fetch_config(name, say)
    _check_config(name, folder, max_length)
    say(f"downloading {len(rest)} more files of {name} ({_total(rest)}) from {hub} to {cache}")
    try:
        return Path(snapshot_download(name, allow_patterns=sorted([_CONFIG, *rest])))
    except (OSError, HubError) as error:
        raise _unreachable(name, error) from error


def _wanted(size: Mapping[str, int | None]) -> list[str]:
    """The files of a repository that loading reads; a sharded copy of the weights only where there is no whole one."""
    if _WEIGHTS in size:
        weights = [_WEIGHTS]
    else:
        weights = [n for n in size if n == _INDEX or re.fullmatch(r"model-\d+-of-\d+\.safetensors", n)]
    return sorted({*weights, *(n for n in size if n == _CONFIG or _OTHERS.fullmatch(n))})


def _total(size: Mapping[str, int | None]) -> str:
    known = [n for n in size.values() if n is not None]
    if len(known) < len(size):
        return "size not told"
    total = float(sum(known))
    for unit in ("bytes", "kB", "MB"):
        if total < 1000:
            return f"{total:.3g} {unit}"
        total /= 1000
    return f"{total:.3g} GB"


def _unreachable(name: str, error: Exception) -> ValueError:
    """Which places were tried, and why the last one gave nothing."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        why = f"{hub}/{name} asks for its licence to be accepted: do that there, then log in with `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        why = f"{hub} has no public model of that name: correct it, or log in with `hf auth login` for a private one"
    else:
        why = f"the hub {hub} gave nothing ({_first_line(error)}): download it elsewhere"
    return ValueError(
        f"model_name {name!r}: no folder of that name here, not complete in the cache {constants.HF_HUB_CACHE}, and"
        f" {why}; a folder is given as --model.model-name PATH"
    )


def _check_config(name: str, folder: Path, max_length: int | None) -> PreTrainedConfig:
    """Refuse by config.json alone."""
    with _DamageInOneSentence(name, folder):
        raw = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        kind = raw.get("model_type")
        is_known = kind in CONFIG_MAPPING
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False) if is_known else None
    if config is None:
        why = "and is not run: code from checkpoints never is" if "auto_map" in raw else "or its config.json is damaged"
        raise ValueError(
            f"model_name {name!r}: architecture {kind!r} is unknown to the installed transformers, {why}; use another"
            " model, or a newer transformers"
        )
    try:
        check_architecture(config, max_length)
    except ValueError as error:
        raise ValueError(f"model_name {name!r}: {error}") from None
    return config


def _lacking(folder: Path) -> str | None:
    """What of weights and tokenizer a folder lacks, in words; None when it is complete."""
    if not (folder / _WEIGHTS).is_file():
        if not (folder / _INDEX).is_file():
            is_pickled = any(folder.glob("pytorch_model*.bin"))
            why_not = ": its pytorch_model.bin is a pickle, which can run code and is not read; convert it"
            return f"{_WEIGHTS}{why_not if is_pickled else ''}"
        shards = _shards(folder / _INDEX)
        if gone := [shard for shard in shards if not (folder / shard).is_file()]:
            return f"{len(gone)} of its {len(shards)} weight files, first {gone[0]}"
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        return "a tokenizer (tokenizer.json)"
    return None


def _shards(index: Path) -> list[str]:
    """The weight files that an index names; none if it is damaged, which loading will say."""
    try:
        parts: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(parts.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


class _DamageInOneSentence:
    """Turns what damaged or foreign files raise into a ValueError that names the model."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._where = name, "that folder" if str(folder) == name else str(folder)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # tokenizers, which is written in Rust, raises plain Exception, that very class, for all it does not know
        if error is not None and (isinstance(error, _DAMAGE) or kind is Exception):
            cause = _first_line(error)
            raise ValueError(f"model_name {self._name!r}: a file in {self._where} cannot be used ({cause})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
