"""What is known of a run's model before any weights are read, and whether this machine can do what is asked of it.

transformers and the hub's client are imported only where a model has to be looked for, because that takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tinyzero_astar.config import Config, ModelConfig
from tinyzero_astar.data.tasks import make_problems
from tinyzero_astar.data.text import prompt_tokens, room_after
from tinyzero_astar.engine.shared_prompt import shared_length
from tinyzero_astar.resources.known import known_shapes
from tinyzero_astar.resources.workload import Shapes

_LETTERS_PER_TOKEN = 3  # of prompts without a tokenizer, fewer than in English, as digits stand alone


@dataclass(frozen=True)
class Model:
    """What is known without weights."""

    shapes: Shapes
    prompt_length: int  # tokens of the longest prompt
    shared_length: int  # tokens that all prompts begin with
    is_estimated: bool  # the prompt's length, for want of a tokenizer


def check_options(config: Config, device: torch.device) -> None:
    """Refuse what this machine cannot do, before any model is looked for.

    Raises:
        ValueError: an option needs a GPU or a package that is not here.
    """
    if device.type == "mps" and config.train.algorithm != "astar_po":
        raise ValueError(
            f"algorithm {config.train.algorithm} is not supported on device mps, which has no float64: use"
            " --train.algorithm astar_po, or --model.device cpu"
        )
    if config.model.lora_rank:
        from tinyzero_astar.model.adapters import import_peft

        import_peft(config.model.lora_rank)
    if config.model.liger:
        from tinyzero_astar.model.liger import import_liger

        import_liger(device)


def read_model(config: Config, say: Callable[[str], None] = print) -> Model:
    """Shapes and longest prompt of the model of a run.

    Raises:
        ValueError: there is no such model, it cannot be used, its longest prompt leaves no room for a completion, or
            there are no such problems.
    """
    return model_for(config, make_problems(config).prompts, say)


def model_for(config: Config, prompts: Sequence[str], say: Callable[[str], None]) -> Model:
    """The same, where the run's prompts are known."""
    estimated = -(-max(map(len, prompts)) // _LETTERS_PER_TOKEN), shared_length(prompts) // _LETTERS_PER_TOKEN
    if (shapes := _known(config.model)) is not None:
        return Model(shapes, *estimated, True)
    from transformers.utils import logging as transformers_logging

    from tinyzero_astar.model.loading import read_config
    from tinyzero_astar.resources.shapes import shapes_of

    transformers_logging.disable_progress_bar()
    hf_config, tokenizer = read_config(config.model.model_name, config.model.max_seq_length, say)
    if tokenizer is None:
        return Model(shapes_of(hf_config), *estimated, True)
    tokens = prompt_tokens(tokenizer, prompts)
    length = max(map(len, tokens))
    room_after(length, config.model.max_seq_length, config.search.max_search_depth)  # or refuses
    return Model(shapes_of(hf_config), length, shared_length(tokens), False)


def _known(model: ModelConfig) -> Shapes | None:
    """The shapes of a preset's model, unless its files are on this machine, since they tell more."""
    shapes = known_shapes(model.model_name, model.max_seq_length)
    if shapes is None or os.path.exists(model.model_name):
        return None
    from huggingface_hub import try_to_load_from_cache

    return None if isinstance(try_to_load_from_cache(model.model_name, "config.json"), str) else shapes
