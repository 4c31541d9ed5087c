"""From a name to a language model and its tokenizer.

The name means the package's base, a folder, a .gguf file, or a model on the hub. Only safetensors and .gguf files are
read, and never code from a checkpoint. What cannot be used is refused in one sentence, as early as it is known. The
architecture is checked before weights are downloaded or read. Files in the local cache are used without asking the hub.
Nothing is downloaded without saying what and how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tinyzero_astar.model.gguf import gguf_config, gguf_ends, gguf_file, gguf_tokenizer, gguf_weights
from tinyzero_astar.model.hub import Say, download, fetch_config
from tinyzero_astar.model.model_config import checked_config
from tinyzero_astar.model.model_folder import CONFIG, TOKENIZERS, lacking, local_folder
from tinyzero_astar.model.tokenizer import declared_ends, read_tokenizer
from tinyzero_astar.model.weights import read_weights


def load_language_model(
    name: str, dtype: torch.dtype, *, max_length: int | None = None, say: Say = print
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    How its generation_config.json wants it to be sampled does not count. That file is read for end tokens alone.

    Args:
        name: "embedded", a folder, a .gguf file, or a name on the hub.
        dtype: of the weights.
        max_length: tokens of the longest sequence, see `check_architecture`.
        say: told of every download before it begins, and of what in the files contradicts itself.

    Raises:
        ValueError: nothing usable has that name. One sentence says what was looked for, where, and the remedy.
    """
    files = _files(name, max_length, say)
    tokenizer, ends = files.tokenizer, files.ends
    if tokenizer("1")["input_ids"][-1] in ends:
        raise ValueError(
            f"model_name {name!r}: its tokenizer ends every text with {tokenizer.eos_token}, so that no prompt could be"
            " continued; set add_eos_token to false in its tokenizer_config.json"
        )
    if len(ends) > 1:
        names = (f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ends)
        say(f"the files of {name} declare {len(ends)} end tokens, and each ends a completion: {', '.join(names)}")
    model = files.read_weights(dtype, _generation_config(tokenizer, ends))
    model.config.eos_token_id = model.generation_config.eos_token_id
    if model.config.tie_word_embeddings and not _is_tied(model):
        say(f"{name} has a head of its own, though its {CONFIG} says tie_word_embeddings: trained and saved as it is")
        model.config.tie_word_embeddings = False  # or whoever reads a checkpoint would lose the head
    return model, tokenizer


def read_config(
    name: str, max_length: int, say: Say = print
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase | None]:
    """What is known of a model without its weights: its config, and its tokenizer if that lies on this machine.

    Args:
        name: "embedded", a folder, a .gguf file, or a name on the hub, from which config.json alone is fetched.
        max_length: tokens of the longest sequence, see `check_architecture`.
        say: told of the download before it begins.

    Raises:
        ValueError: nothing usable has that name. One sentence says why.
    """
    if (path := gguf_file(name)) is not None:
        config = gguf_config(name, path, max_length)
        return config, gguf_tokenizer(name, path, config)
    folder = local_folder(name)
    if folder is None:
        cached = try_to_load_from_cache(name, CONFIG)
        folder = Path(cached).parent if isinstance(cached, str) else fetch_config(name, say)[0]
    config = checked_config(name, folder, max_length)
    if not any((folder / file).is_file() for file in TOKENIZERS):
        return config, None
    return config, read_tokenizer(name, folder, config)


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that end a completion of a model from `load_language_model`. The first is its tokenizer's."""
    ends: int | list[int] = model.generation_config.eos_token_id
    return (ends,) if isinstance(ends, int) else tuple(ends)


class _Files(NamedTuple):
    """What the files of a model say, but for its weights, and how to read those."""

    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    read_weights: Callable[[torch.dtype, GenerationConfig], PreTrainedModel]


def _files(name: str, max_length: int | None, say: Say) -> _Files:
    """Those of a .gguf file or of a folder, downloaded if need be."""
    if (path := gguf_file(name)) is not None:
        config = gguf_config(name, path, max_length)
        tokenizer = gguf_tokenizer(name, path, config)
        return _Files(tokenizer, gguf_ends(name, path, tokenizer), partial(gguf_weights, name, path, config))
    folder = _find(name, max_length, say)
    config = checked_config(name, folder, max_length)
    if (gap := lacking(name, folder)) is not None:
        raise ValueError(f"model_name {name!r} lacks {gap}")
    tokenizer = read_tokenizer(name, folder, config)
    return _Files(tokenizer, declared_ends(name, folder, tokenizer), partial(read_weights, name, folder, config))


def _find(name: str, max_length: int | None, say: Say) -> Path:
    """The folder that holds the model, downloaded if need be."""
    if (folder := local_folder(name)) is not None:
        return folder
    cached = try_to_load_from_cache(name, CONFIG)
    if isinstance(cached, str) and lacking(name, Path(cached).parent) is None:
        return Path(cached).parent
    return download(name, max_length, say)


def _generation_config(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> GenerationConfig:
    """Plain sampling, which is what is trained, without the temperature or the penalties of the base."""
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(ends) if len(ends) > 1 else ends[0],
        pad_token_id=ends[0] if pad is None else pad,
    )


def _is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight
