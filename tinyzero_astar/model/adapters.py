"""LoRA through peft, small trained matrices beside the frozen projections of the decoder layers.

    W becomes W + (32 / rank) B A,   A [rank, in],   B [out, rank]

Source: Hu et al. 2021, arXiv 2106.09685, eq. 3. B begins as 0, so the policy begins as its base, to the bit. The factor
is fixed, as in Schulman et al. 2025, "LoRA Without Regret". Then the learning rate that suits it hardly depends on the
rank.

Adapters are injected into the model. Its class and the names of its modules stay, and a projection's own weight moves
to `<name>.base_layer.weight`. Adapters have the dtype of the model. The optimizer keeps float32 masters of bfloat16
ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinyzero_astar.model.decoder_layers import decoder_layers

_ALPHA = 32
_NAME = "default"  # peft's, in the names of the adapters' parameters
_WEIGHT, _BASE = ".base_layer.weight", ".base_layer."


def import_peft(rank: int) -> ModuleType:
    """The optional dependency.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ValueError(
            f"lora_rank {rank} needs the package {error.name}, which is not installed: pip install -e"
            " '.[lora]', or train all weights with --model.lora-rank 0"
        ) from error
    module: ModuleType = peft
    return module


def add_adapters(model: PreTrainedModel, rank: int) -> None:
    """Freeze the model and give every linear projection of its decoder layers an adapter. PyTorch's RNG draws A.

    The experts of a mixture are not linear projections but one tensor for all of them, see `without_adapter`.

    Args:
        model: changed in place.
        rank: of A and B, at least 1.

    Raises:
        ValueError: peft is not installed, or the layers have no `nn.Linear`.
    """
    peft = import_peft(rank)
    inside = {id(m) for m in decoder_layers(model).modules() if type(m) is nn.Linear}
    names = [name for name, module in model.named_modules() if id(module) in inside]
    if not names:
        raise ValueError(
            f"lora_rank {rank}: the layers of {type(model).__name__} have no linear projections to adapt; train all"
            " weights with --model.lora-rank 0"
        )
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=_ALPHA, target_modules=names), model)


def unadapted(model: PreTrainedModel) -> str | None:
    """One sentence on the matrices of the decoder layers that have no adapter and stay as they are.

    None if all have one.

    Args:
        model: after `add_adapters`.
    """
    layers = decoder_layers(model)
    adapted = {id(p) for module in _adapted_modules(model) for p in module.parameters()}
    kinds: dict[str, int] = {}
    for module in layers.modules():
        for p in module.parameters(recurse=False):
            if p.ndim > 1 and id(p) not in adapted:
                kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + p.numel()
    if not kinds:
        return None
    total = sum(p.numel() for p in layers.parameters() if not p.requires_grad)
    return (
        f"adapters stand beside linear projections alone: {sum(kinds.values()) / total:.0%} of the layers' weights"
        f" ({', '.join(sorted(kinds))}) have none and stay as they are; --model.lora-rank 0 trains all weights"
    )


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model is its frozen base."""
    layers = _adapted_modules(model)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether `add_adapters` was called."""
    return bool(_adapted_modules(model))


def _adapted_modules(model: PreTrainedModel) -> list[Any]:
    return [m for m in model.modules() if _NAME in getattr(m, "lora_A", ())]


def adapters_and_their_bases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a model's state that `merged` loses, which is A, B, and the weights that they are added to."""
    return {k: v for k, v in weights.items() if _is_adapter(k) or k.endswith(_WEIGHT)}


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the plain model that computes the same, W + (32 / rank) B A, rounded once, under W's own name."""
    found = {}
    for key, weight in weights.items():
        if _is_adapter(key):
            continue
        if key.endswith(_WEIGHT):
            stem = key.removesuffix(_WEIGHT)
            wide = torch.promote_types(weight.dtype, torch.float32)
            a, b = (weights[f"{stem}.lora_{which}.{_NAME}.weight"].to(wide) for which in "AB")
            weight = (weight.to(wide) + _ALPHA / len(a) * (b @ a)).to(weight.dtype)
        found[key.replace(_BASE, ".")] = weight
    return found


def _is_adapter(key: str) -> bool:
    return ".lora_A." in key or ".lora_B." in key
