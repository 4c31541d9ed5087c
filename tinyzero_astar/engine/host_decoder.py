"""The search on the CPU, its network elsewhere: for devices that have no float64, such as Apple's GPUs (MPS).

A search keeps its scores in float64. Logits and values leave the device once a step, and the search's tensors stay on
the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyzero_astar.engine.decoder import Network, SlotDecoder
from tinyzero_astar.interfaces import Decoder, StepOutput

WITHOUT_FLOAT64 = frozenset({"mps"})  # types of devices


def make_decoder(network: Network, max_new_tokens: int) -> Decoder:
    """The slots of a network, see `SlotDecoder`; with the search on the CPU where it must be."""
    decoder = SlotDecoder(network, max_new_tokens)
    return HostDecoder(decoder, network.device) if network.device.type in WITHOUT_FLOAT64 else decoder


class HostDecoder:
    """Implements `interfaces.Decoder` with all tensors on the CPU.

    Args:
        decoder: whose tensors are on a device.
        device: that one.
    """

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        self.eos_ids = decoder.eos_ids
        self._decoder, self._device = decoder, device

    def start(self, prompts: Sequence[Sequence[int]], home: Tensor, *, can_cross: bool = False) -> StepOutput:
        """See `interfaces.Decoder.start`."""
        return self._on_cpu(self._decoder.start(prompts, home, can_cross=can_cross))

    def step(self, tokens: Tensor, source: Tensor | None, length: Tensor, target: Tensor) -> StepOutput:
        """See `interfaces.Decoder.step`."""
        there = None if source is None else source.to(self._device)
        output = self._decoder.step(tokens.to(self._device), there, length.to(self._device), target.to(self._device))
        return self._on_cpu(output)

    def _on_cpu(self, output: StepOutput) -> StepOutput:
        return StepOutput(
            logits=output.logits.cpu(),
            value_logit=output.value_logit.cpu(),
            child_logit=lambda: output.child_logit().cpu(),
            format_logit=None if output.format_logit is None else output.format_logit.cpu(),
            child_logit_of=lambda row, token: output.taken(row.to(self._device), token.to(self._device)).cpu(),
        )
