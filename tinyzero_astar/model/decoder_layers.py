"""The decoder layers of a Hugging Face model, where they are and how they give up their activations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of decoder layers, whatever the architecture calls it."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))
    return next(stack for stack in stacks if len(stack) == count)


@contextmanager
def recomputed(layers: nn.ModuleList) -> Iterator[None]:
    """Inside, a layer's forward keeps its inputs alone, and the backward computes its activations again.

    Transformers' own switch works only on layers in training mode, in which some architectures drop out. `forward` is
    replaced and not the call, so that hooks, FSDP's among them, stay outside of what runs again.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of the instance, so the method of the class is back
