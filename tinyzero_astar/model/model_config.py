"""A model's config.json, read and checked by itself and by building a model of it without storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tinyzero_astar.model.architecture import architecture_name, check_architecture, check_causal
from tinyzero_astar.model.damage import DamageInOneSentence, read_object
from tinyzero_astar.model.model_folder import ADAPTERS, CONFIG
from tinyzero_astar.terminal import first_line

# What transformers raises for a config.json that it cannot read. StrictDataclassError stands for a field of another
# kind, or one that contradicts another. AttributeError stands for a dtype that PyTorch lacks, TypeError and ValueError
# for values of another kind where it does not check them.
_MISREAD = (OSError, ValueError, TypeError, AttributeError, StrictDataclassError)
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
