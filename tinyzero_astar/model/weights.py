"""The weights of a model. They must be safetensors in floating point, and none may be missing."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from tinyzero_astar.model.damage import DamageInOneSentence, damaged
from tinyzero_astar.model.model_config import quiet_transformers
from tinyzero_astar.model.model_folder import INDEX, weight_files

_FLOATING = {"F64", "F32", "F16", "BF16"}  # of safetensors
# What safetensors raises for a damaged file, and transformers for weights of other shapes (RuntimeError) and an index
# without what it counts on (KeyError)
_KNOWN = (OSError, SafetensorError, RuntimeError, KeyError)


def read_weights(
    name: str, folder: Path, config: PreTrainedConfig, dtype: torch.dtype, generation: GenerationConfig
) -> PreTrainedModel:
    """The model of a folder. `generation` says how it samples by itself, instead of what the folder says.

    Raises:
        ValueError: a weight is missing, damaged or no floating-point number, or there is not enough memory.
    """
    if not (files := weight_files(folder)):
        raise damaged(name, folder, f"{INDEX} lacks its weight_map")
    foreign = [weight for file in files for weight in _not_floating(name, folder, file)]
    # Quiet, since it would print its own table of missing weights and ours is a sentence.
    with DamageInOneSentence(name, folder, *_KNOWN), quiet_transformers():
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",  # the decoder's masks are boolean, and eager attention would add them
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


def _not_floating(name: str, folder: Path, file: str) -> list[str]:
    """Matrices of integers or of 8 bits. Masks and the like, which old checkpoints hold, do not count."""
    with DamageInOneSentence(name, folder / file, *_KNOWN), safe_open(folder / file, framework="pt") as tensors:
        kinds = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys() if key.endswith("weight")}  # noqa: SIM118
    return [f"{key} ({kind})" for key, kind in kinds.items() if kind not in _FLOATING]
