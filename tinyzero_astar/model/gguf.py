"""A model in one .gguf file, as llama.cpp has them, read into an ordinary model without quantization.

transformers reads these files with the packages `gguf` and `accelerate`. Its result counts as quantized and could not
be saved, so the weights are copied into a fresh model of the same config.
"""

from __future__ import annotations

import os
import struct
from copy import deepcopy
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_accelerate_available, is_gguf_available

from tinyzero_astar.model.damage import DamageInOneSentence
from tinyzero_astar.model.model_config import check_config, quiet_transformers
from tinyzero_astar.model.tokenizer import check_tokenizer

SUFFIX = ".gguf"
_ENDS = tuple(f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
# What gguf and transformers raise for a damaged file or one of another kind
_KNOWN = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, struct.error)


def gguf_file(name: str) -> Path | None:
    """The file that a model's name means, None where the name is no file of that kind.

    Raises:
        ValueError: there is no such file, or a package is missing.
    """
    if not name.endswith(SUFFIX):
        return None
    path = Path(os.path.expanduser(name))
    if not os.path.isfile(path):
        raise ValueError(
            f"model_name {name!r}: there is no such file; a {SUFFIX} file must lie on this machine: download it first"
        )
    packages = {"gguf": is_gguf_available(), "accelerate": is_accelerate_available()}
    missing = [package for package, is_there in packages.items() if not is_there]
    if missing:
        raise ValueError(
            f"model_name {name!r} needs the package {missing[0]}, which is not installed or too old: pip install -e"
            " '.[gguf]'"
        )
    return path


def gguf_config(name: str, path: Path, max_length: int | None) -> PreTrainedConfig:
    """The config that a file describes.

    Raises:
        ValueError: the file is damaged, or its architecture cannot be trained here.
    """
    with DamageInOneSentence(name, path, *_KNOWN), quiet_transformers():
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    check_config(name, config, max_length)
    return config


def gguf_tokenizer(name: str, path: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer in a file, tried out, see `check_tokenizer`.

    Raises:
        ValueError: the file is damaged, or its tokenizer cannot be used.
    """
    with DamageInOneSentence(name, path, *_KNOWN), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False, local_files_only=True
        )
    check_tokenizer(name, path, config, tokenizer)
    return tokenizer


def gguf_ends(name: str, path: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a text, a turn or a message.

    The tokenizer's end token is first, then those that the file names.

    Raises:
        ValueError: one of them is no token.
    """
    from gguf import GGUFReader

    with DamageInOneSentence(name, path, *_KNOWN):
        fields = GGUFReader(path).fields
        said = {key: int(fields[key].contents()) for key in _ENDS if key in fields}
    known = set(tokenizer.get_vocab().values())
    for key, end in said.items():
        if end not in known:
            raise ValueError(f"model_name {name!r}: it declares the end token {end} ({key}), which its tokenizer lacks")
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *said.values()]))


def gguf_weights(
    name: str, path: Path, config: PreTrainedConfig, dtype: torch.dtype, generation: GenerationConfig
) -> PreTrainedModel:
    """The model of a file. `generation` says how it samples by itself.

    Raises:
        ValueError: a weight is missing or damaged, or there is not enough memory.
    """
    with DamageInOneSentence(name, path, *_KNOWN), quiet_transformers():
        read, info = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=deepcopy(config),  # it writes there that the model is quantized
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        if missing := sorted(info["missing_keys"]):  # from_pretrained would draw them at random
            raise ValueError(f"{len(missing)} of its weights are missing, first {missing[0]}")
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and then replaced
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=False, attn_implementation="sdpa"
            )
        model.load_state_dict(read.state_dict())
    model.generation_config = generation
    model.eval()
    return model
