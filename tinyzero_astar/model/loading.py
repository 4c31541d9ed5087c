"""From a name to a language model and its tokenizer: the package, a folder, the local cache, or the hub.

Safetensors only, and never code from a checkpoint. What cannot be used is refused in one sentence, as early as it is
known: the architecture before weights are downloaded or read. Files that lie in the local cache are used without
asking the hub; nothing is downloaded without saying what and how much.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, StrictDataclassError
from huggingface_hub.errors import HTTPError as HubError  # type: ignore[attr-defined]  # httpx's or httpx2's
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tinyzero_astar.data.text import text_fault
from tinyzero_astar.model.architecture import architecture_name, check_architecture, check_causal
from tinyzero_astar.terminal import readable_bytes

EMBEDDED = "embedded"  # the name of the base model that comes with the package
Say = Callable[[str], None]

_PATIENCE_S = 10.0  # for the hub's first answer, tried once: without a network a run says so soon
_CONFIG, _GENERATION, _ADAPTERS = "config.json", "generation_config.json", "adapter_config.json"
_WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_OTHERS = re.compile(  # of a repository; besides weights and config.json
    r"(tokenizer.*|special_tokens_map|added_tokens|vocab|generation_config)\.json|vocab\.txt|merges\.txt"
    r"|(tokenizer|spiece)\.model|chat_template\.jinja"
)
_PROBE = "12*3=?\n<think>4</think> <answer>0123456789</answer>"  # letters of problems, tags and answers
_FLOATING = {"F64", "F32", "F16", "BF16"}  # of safetensors
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


def load_language_model(
    name: str, dtype: torch.dtype, *, max_length: int | None = None, say: Say = print
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    How its generation_config.json wants it to be sampled does not count: that file is read for end tokens alone.

    Args:
        name: "embedded", a folder, or a name on the hub.
        dtype: of the weights.
        max_length: tokens of the longest sequence, see `check_architecture`.
        say: told of every download before it begins, and of what in the files contradicts itself.

    Raises:
        ValueError: nothing usable under that name; one sentence says what was looked for, where, and the remedy.
    """
    folder = _find(name, max_length, say)
    config = _check_config(name, folder, max_length)
    if (lacking := _lacking(name, folder)) is not None:
        raise ValueError(f"model_name {name!r} lacks {lacking}")
    tokenizer = _read_tokenizer(name, folder, config)
    ends = _declared_ends(name, folder, tokenizer)
    with _DamageInOneSentence(name, folder):
        last = tokenizer("1")["input_ids"][-1]
    if last in ends:
        raise ValueError(
            f"model_name {name!r}: its tokenizer ends every text with {tokenizer.eos_token}, so that no prompt could be"
            " continued; set add_eos_token to false in its tokenizer_config.json"
        )
    if len(ends) > 1:
        names = (f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ends)
        say(f"the files of {name} declare {len(ends)} end tokens, and each ends a completion: {', '.join(names)}")
    model = _read_weights(name, folder, config, dtype, _generation_config(tokenizer, ends))
    model.config.eos_token_id = model.generation_config.eos_token_id
    if model.config.tie_word_embeddings and not _is_tied(model):
        say(f"{name} has a head of its own, though its {_CONFIG} says tie_word_embeddings: trained and saved as it is")
        model.config.tie_word_embeddings = False  # or whoever reads a checkpoint would lose the head
    return model, tokenizer


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that end a completion of a model from `load_language_model`; the first is its tokenizer's."""
    ends: int | list[int] = model.generation_config.eos_token_id
    return (ends,) if isinstance(ends, int) else tuple(ends)


def textless_ids(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> set[int]:
    """Ids of an embedding of `num_rows` rows that the tokenizer has no token for; they would be decoded to nothing.

    Embeddings are often padded to a round number of rows. A verifier cannot see what such an id adds to a completion.
    """
    return set(range(num_rows)).difference(tokenizer.get_vocab().values())


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
    return config, _read_tokenizer(name, folder, config)


def _read_tokenizer(name: str, folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    with _DamageInOneSentence(name, folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        fault = text_fault(tokenizer, [_PROBE])
        count = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model_name {name!r}: its tokenizer has no end-of-sequence token")
    if fault is not None:
        raise ValueError(f"model_name {name!r}: its {fault}")
    if count > config.vocab_size:
        raise ValueError(
            f"model_name {name!r}: its tokenizer has {count} tokens, the model {config.vocab_size}; they do not belong"
            " together"
        )
    return tokenizer


def _declared_ends(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer, config.json and generation_config.json say, as it stands there, without defaults."""
    known, ends = set(tokenizer.get_vocab().values()), [tokenizer.eos_token_id]
    for file in (_CONFIG, _GENERATION):
        with _DamageInOneSentence(name, folder):
            said = json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).is_file() else {}
            declared = said.get("eos_token_id")
        ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
        for i in ids:
            if type(i) is not int or i not in known:
                raise ValueError(
                    f"model_name {name!r}: its {file} declares the end token {i!r} (eos_token_id), and its tokenizer"
                    f" has no token of that id; correct {file}"
                )
        ends += ids
    return tuple(dict.fromkeys(ends))


def _generation_config(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> GenerationConfig:
    """Plain sampling, which is what is trained: not the temperature or the penalties of the base."""
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(ends) if len(ends) > 1 else ends[0],
        pad_token_id=ends[0] if pad is None else pad,
    )


def _read_weights(
    name: str, folder: Path, config: PreTrainedConfig, dtype: torch.dtype, generation: GenerationConfig
) -> PreTrainedModel:
    with _DamageInOneSentence(name, folder), quiet_transformers():  # its table of missing weights; ours is a sentence
        foreign = _not_floating(folder)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",  # the decoder's masks are boolean; eager attention would add them
            generation_config=generation,
            output_loading_info=True,
        )
    if foreign:
        raise ValueError(
            f"model_name {name!r}: {len(foreign)} of its weights are in no floating-point format, first {foreign[0]};"
            " use the original checkpoint"
        )
    if missing := sorted(info["missing_keys"]):  # from_pretrained would draw them at random
        raise ValueError(f"model_name {name!r}: {len(missing)} of its weights are missing, first {missing[0]}")
    return model


def _not_floating(folder: Path) -> list[str]:
    """Matrices of integers or of 8 bits; masks and the like, which old checkpoints hold, are none."""
    found = []
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as tensors:
            kinds = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys() if key.endswith("weight")}  # noqa: SIM118
        found += [f"{key} ({kind})" for key, kind in kinds.items() if kind not in _FLOATING]
    return found


def _is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, only errors of transformers are printed."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _find(name: str, max_length: int | None, say: Say) -> Path:
    """The folder that holds the model, downloaded if need be."""
    if (folder := _local(name)) is not None:
        return folder
    cached = try_to_load_from_cache(name, _CONFIG)
    if isinstance(cached, str) and _lacking(name, Path(cached).parent) is None:
        return Path(cached).parent
    return _download(name, max_length, say)


def _local(name: str) -> Path | None:
    """The folder that a name means, or None for a name on the hub."""
    folder = Path(os.path.expanduser(resolve_model(name)))  # that of pathlib raises for an unknown user
    if (folder / _CONFIG).is_file():
        return folder
    if name == EMBEDDED:
        raise ValueError(f"model_name {name!r}: {folder} is missing from this installation; make it with `make base`")
    if (folder / _ADAPTERS).is_file():
        raise ValueError(
            f"model_name {name!r}: that folder holds adapters ({_ADAPTERS}) without their model; merge them"
            " (merge_and_unload of peft) and give the folder of the whole model"
        )
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
        info = HfApi().model_info(name, files_metadata=True, timeout=_PATIENCE_S)
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
        weights = [n for n in size if n == INDEX or re.fullmatch(r"model-\d+-of-\d+\.safetensors", n)]
    return sorted({*weights, *(n for n in size if n == _CONFIG or _OTHERS.fullmatch(n))})


def _total(size: Mapping[str, int | None]) -> str:
    known = [n for n in size.values() if n is not None]
    return "size not told" if len(known) < len(size) else readable_bytes(sum(known))


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
    """Refuse by config.json alone, and by a model of it without storage."""
    if (folder / _ADAPTERS).is_file():
        raise ValueError(
            f"model_name {name!r}: beside its model lie adapters ({_ADAPTERS}), which could be meant or not: merge them"
            " (merge_and_unload of peft), or take that file away"
        )
    with _DamageInOneSentence(name, folder), quiet_transformers():
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
        check_causal(skeleton_of(config))
    except ValueError as error:
        raise ValueError(f"model_name {name!r}: {error}") from None
    return config


def skeleton_of(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config without storage, its weights as they would be in float32.

    Raises:
        ValueError: there is no such model.
    """
    try:
        with torch.device("meta"), quiet_transformers():
            return AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False, attn_implementation="sdpa"
            )
    except _DAMAGE as error:
        cause = _first_line(error)
        raise ValueError(f"{architecture_name(config)} cannot be built from its {_CONFIG} ({cause})") from error


def _lacking(name: str, folder: Path) -> str | None:
    """What of weights and tokenizer a folder lacks, in words; None when it is complete."""
    if not (folder / _WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            is_pickled = any(folder.glob("pytorch_model*.bin"))
            why_not = ": its pytorch_model.bin is a pickle, which can run code and is not read; convert it"
            return f"{_WEIGHTS}{why_not if is_pickled else ''}"
        shards = weight_files(folder)
        if outside := [shard for shard in shards if os.path.basename(shard) != shard or shard == os.pardir]:
            raise ValueError(
                f"model_name {name!r}: its {INDEX} names {outside[0]!r} as a file of weights, which is no file of that"
                " folder itself; get the model anew"
            )
        if gone := [shard for shard in shards if not (folder / shard).is_file()]:
            return f"{len(gone)} of its {len(shards)} weight files, first {gone[0]}"
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        return "a tokenizer (tokenizer.json)"
    return None


def weight_files(folder: Path) -> list[str]:
    """Names of the files with a model's weights; none if the index of several is damaged, which loading will say."""
    if (folder / _WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [_WEIGHTS]
    try:
        parts: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return sorted({str(part) for part in parts.values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


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
        f"model_name {name!r}: there is not enough memory to load it ({_first_line(error)}); `python -m tinyzero_astar"
        " doctor` with the same options tells what a run needs"
    )


class _DamageInOneSentence:
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
        if isinstance(error, _DAMAGE) or kind is Exception:
            cause = _first_line(error)
            raise ValueError(f"model_name {self._name!r}: a file in {self._where} cannot be used ({cause})") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(x.strip() for x in lines[: 2 if lines[0].endswith(":") else 1])
    return f"{type(error).__name__} {line}" if isinstance(error, KeyError) else line  # whose line is the key alone
