"""AdamW for the policy and the value model, with master weights where they are needed, and the learning rate.

bfloat16 has 8 significant bits. A step of less than 1/512 of a weight would be rounded away, and nearly every step of a
fine-tuning is that small. So bfloat16 weights are rounded copies of float32 master weights, and AdamW steps the
masters. Gradients are added up in float32 too, and each bfloat16 gradient is freed as soon as it was added.

On CUDA a step is one fused kernel, which reads and writes every number once and allocates nothing. Elsewhere it is
PyTorch's default.

Bytes per parameter beside the weight itself (2) are 4 for the master, 8 for the moments and 4 for the gradient. With
float32 they are 8 for the moments and 4 for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tinyzero_astar.model.fsdp_utils import whole

_FULL = (torch.float32, torch.float64)
_MASTER = "master"  # slot of a parameter's optimizer state


class MasterAdamW:
    """AdamW over the trainable parameters of a module. Matrices decay, vectors do not.

    float32 parameters are stepped in place, exactly as by `torch.optim.AdamW`.

    Args:
        module: whose parameters. Each keeps its place and its dtype.
        learning_rate: of all parameters.
        weight_decay: of matrices.
        dtype: that forwards use the weights in. Where it is bfloat16 and the parameters are float32, as shards are,
            those are master weights already, and the state holds them as such.
    """

    def __init__(
        self, module: nn.Module, learning_rate: float, weight_decay: float, dtype: torch.dtype = torch.float32
    ) -> None:
        trainable = [p for p in module.parameters() if p.requires_grad]
        # what AdamW steps and what carries the gradients, in the module's order
        self.stepped: list[Tensor] = [p if p.dtype in _FULL else p.detach().float() for p in trainable]
        groups = [
            {"params": [p for p in self.stepped if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.stepped if p.ndim <= 1], "weight_decay": 0.0},
        ]
        is_fused = all(p.device.type == "cuda" for p in self.stepped)
        self.adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=is_fused)
        order = {id(p): index for index, p in enumerate(self.parameters)}
        self._weight_of: dict[int, Tensor] = {}  # index of a master weight among `parameters` -> its rounded copy
        for weight, stepped in zip(trainable, self.stepped, strict=True):
            if stepped is not weight:
                self._weight_of[order[id(stepped)]] = weight
                weight.register_post_accumulate_grad_hook(_moves_gradient_to(stepped))
        self._masters: list[int] = list(self._weight_of if dtype in _FULL else range(len(order)))

    @property
    def parameters(self) -> list[Tensor]:
        """What AdamW steps, in the order of its state."""
        return [p for group in self.adamw.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self) -> None:
        """One step of AdamW. bfloat16 weights then follow their masters."""
        for weight in self._weight_of.values():
            assert weight.grad is None, "a gradient did not reach its master weight: was the module copied or sharded?"
        self.adamw.step()
        parameters = self.parameters
        for index, weight in self._weight_of.items():
            weight.copy_(parameters[index])

    def zero_grad(self) -> None:
        """Free all gradients."""
        self.adamw.zero_grad()

    def set_learning_rate(self, learning_rate: float) -> None:
        """The same rate for every parameter."""
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate

    def state_dict(self) -> dict[str, Any]:
        """AdamW's, with the master weights among the slots of each parameter."""
        found = self.adamw.state_dict()
        slots = {index: dict(own) for index, own in found["state"].items()}
        parameters = self.parameters
        for index in self._masters:
            slots.setdefault(index, {})[_MASTER] = parameters[index]
        return {**found, "state": slots}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave, on whatever device. How steps are computed here stays as it is.

        Raises:
            KeyError: a master weight is missing.
        """
        slots = {index: dict(own) for index, own in state["state"].items()}
        parameters = self.parameters
        for index in self._masters:
            parameters[index].copy_(slots[index].pop(_MASTER))
        for index, weight in self._weight_of.items():
            weight.copy_(parameters[index])
        fused = self.adamw.defaults["fused"]
        groups = [{**group, "fused": fused} for group in state["param_groups"]]  # torch would take the saved choice
        for own in slots.values():
            if own:
                own["step"] = own["step"].cpu()  # where AdamW counts, unless it is fused and moves them itself
        self.adamw.load_state_dict({"state": {i: own for i, own in slots.items() if own}, "param_groups": groups})


def _moves_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds a parameter's gradient to that of its master and frees it."""

    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
        weight.grad = None

    return move


def schedule(iteration: int, num_iterations: int, warmup_iterations: int) -> float:
    """Factor on the learning rate, with linear warm-up, then linear decay to 0 after the last iteration.

    Args:
        iteration: 0-based, of the iteration about to be trained.
        num_iterations: of the whole run.
        warmup_iterations: the factor is 1 in the first iteration after these.
    """
    if iteration < warmup_iterations:
        return (iteration + 1) / (warmup_iterations + 1)
    return (num_iterations - iteration) / max(1, num_iterations - warmup_iterations)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients to a total norm of at most `max_norm`, and return the norm before."""
    own = list(parameters)
    norm = whole(nn.utils.get_total_norm([p.grad for p in own if p.grad is not None]))  # of all shards
    nn.utils.clip_grads_with_norm_(own, max_norm, norm)
    return float(norm)
