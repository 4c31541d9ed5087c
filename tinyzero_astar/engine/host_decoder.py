"""The search on the CPU and its network elsewhere, for devices without float64, such as Apple's GPUs (MPS).

A search keeps its scores in float64. Logits and values leave the device once a step, and the search's tensors stay on
the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinyzero_astar.engine.decoder import Network, SlotDecoder
from tinyzero_astar.interfaces import Decoder, StepOutput

WITHOUT_FLOAT64 = frozenset({"mps"})  # types of devices


def make_decoder(network: Network, max_new_tokens: int) -> Decoder:
    """The slots of a network, see `SlotDecoder`. The search is on the CPU where it must be."""
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

    def step(self, tokens: Tensor, source: Tensor | None, length: Tensor, target: Tensor, path: Tensor) -> StepOutput:
        """See `interfaces.Decoder.step`."""
        there = None if source is None else source.to(self._device)
        tokens, length, target = (x.to(self._device) for x in (tokens, length, target))
        return self._on_cpu(self._decoder.step(tokens, there, length, target, path.float().to(self._device)))

    def _on_cpu(self, output: StepOutput) -> StepOutput:
        def every_child(logp: Tensor) -> Tensor:
            return output.child_logit(logp.to(self._device)).cpu()

        def children(row: Tensor, token: Tensor, logp: Tensor) -> Tensor:
            assert output.child_logit_of is not None
            return output.child_logit_of(*(x.to(self._device) for x in (row, token, logp))).cpu()

        tensors: dict[str, Any] = {name: x.cpu() for name, x in output._asdict().items() if isinstance(x, Tensor)}
        return output._replace(
            **tensors,
            child_logit=every_child,
            child_logit_of=None if output.child_logit_of is None else children,
        )
