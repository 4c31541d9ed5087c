"""A model's config.json, read and checked by itself and by building a model of it without storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tinyzero_astar.model.architecture import architecture_name, check_architecture, check_causal
from tinyzero_astar.model.damage import DamageInOneSentence, read_object
from tinyzero_astar.model.model_folder import ADAPTERS, CONFIG, GENERATION, JSON_OF_TOKENIZERS
from tinyzero_astar.terminal import first_line, shortened

_LAYERS, _MOST_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 1000

# What transformers raises for a config.json that it cannot read. StrictDataclassError stands for a field of another
# kind, or one that contradicts another. AttributeError stands for a dtype that PyTorch lacks, TypeError and ValueError
# for values of another kind where it does not check them, KeyError for what is missing of positions.
_MISREAD = (OSError, ValueError, TypeError, AttributeError, KeyError, StrictDataclassError)
# What it raises for a model of sizes or names that do not exist. KeyError stands for an activation or a kind of
# positions, AssertionError for PyTorch's refusal of an embedding, RuntimeError for its refusal of a size, TypeError and
# ZeroDivisionError for the positions' base and shares, ValueError and ImportError for an attention or a package that an
# architecture needs.
_UNBUILT = (KeyError, AssertionError, RuntimeError, TypeError, ZeroDivisionError, ValueError, ImportError)


def checked_config(name: str, folder: Path, max_length: int | None) -> PreTrainedConfig:
    """The config of a folder, refused by config.json alone or as by `check_config`."""
    if (folder / ADAPTERS).is_file():
        raise ValueError(
            f"model_name {name!r}: beside its model lie adapters ({ADAPTERS}), which could be meant or not: merge them"
            " (merge_and_unload of peft), or take that file away"
        )
    raw = read_object(name, folder, CONFIG)
    for file in (GENERATION, *JSON_OF_TOKENIZERS):
        if (folder / file).is_file():
            read_object(name, folder, file)  # or says which one is damaged
    if (layers := _most_layers(raw)) > _MOST_LAYERS:  # transformers makes a list of them, however many they are
        raise ValueError(
            f"model_name {name!r}: its {CONFIG} asks for {shortened(layers)} layers, and models have at most"
            f" {_MOST_LAYERS:,}: the file is damaged, get the model anew"
        )
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        why = "and is not run: code from checkpoints never is" if "auto_map" in raw else "or its config.json is damaged"
        raise ValueError(
            f"model_name {name!r}: architecture {kind!r} is unknown to the installed transformers, {why}; use another"
            " model, or a newer transformers"
        )
    with DamageInOneSentence(name, folder, *_MISREAD), quiet_transformers():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_config(name, config, max_length)
    return config


def _most_layers(config: dict[str, Any]) -> int:
    """The largest number of layers that a config, or a part of it, asks for."""
    found, waiting = 0, [config]
    while waiting:
        part = waiting.pop()
        found = max([found, *(x for key, x in part.items() if key in _LAYERS and isinstance(x, int))])
        waiting += [x for x in part.values() if isinstance(x, dict)]
    return found


def check_config(name: str, config: PreTrainedConfig, max_length: int | None) -> None:
    """Refuse a config by itself, and by a model of it without storage."""
    try:
        check_architecture(config, max_length)
        check_causal(skeleton_of(config))
    except ValueError as error:
        raise ValueError(f"model_name {name!r}: {error}") from None


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
    except _UNBUILT as error:
        cause = first_line(error)
        raise ValueError(f"{architecture_name(config)} cannot be built from its {CONFIG} ({cause})") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, only errors of transformers are printed."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
