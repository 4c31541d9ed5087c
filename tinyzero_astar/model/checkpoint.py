"""Checkpoints: `checkpoint_iter_<N>/`, a Hugging Face folder with what resuming needs beside it.

model.safetensors, config.json and the tokenizer load with plain `from_pretrained`. trainer.safetensors holds the
value model, both optimizers (with the float32 master weights of a bfloat16 model) and PyTorch's random state;
trainer.json the iteration, the count of updates and the run's configuration. Search noise and problem order are
functions of seed and iteration, so they need no state.

With adapters model.safetensors holds the merged weights, so that it is a model like any other. What they were merged
from, A, B and the frozen weights, stands in trainer.safetensors too: a sum in floating point cannot be undone, and a
run goes on exactly, without asking for its base again. Evaluation reads the merged weights alone.

No pickle anywhere. A checkpoint appears under its name only when it is complete.

The files are the same for any number of processes: rank 0 puts the shards together and writes, and in loading each
rank cuts out its own. So a run may be continued, or evaluated, with another number.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinyzero_astar.model.adapters import adapters_and_their_bases, merged
from tinyzero_astar.model.fsdp_utils import is_main, like, whole
from tinyzero_astar.model.model import Policy
from tinyzero_astar.training.optimizer import MasterAdamW

_TENSORS, _STATE = "trainer.safetensors", "trainer.json"
_LANGUAGE_MODEL, _VALUE_MODEL = "language_model.", "value_model."  # of the policy's weights


def save_checkpoint(
    folder: Path,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    optimizers: Mapping[str, MasterAdamW],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint, replacing an older one of the same name only when the new one is complete.

    All ranks must call it; rank 0 writes.
    """
    tensors = {f"{name}.{key}": x for name, own in optimizers.items() for key, x in _moments(own)}
    weights: dict[str, Any] = policy.state_dict()
    if is_sharded := isinstance(policy, FSDPModule):
        weights = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not is_main():
        return
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    language_model = policy.language_model
    if is_sharded or policy.has_adapters:
        own = {k: v.to("cpu", policy.dtype) for k, v in _inside(weights, _LANGUAGE_MODEL).items()}
        tensors |= {f"{_LANGUAGE_MODEL}{k}": v for k, v in adapters_and_their_bases(own).items()}
        language_model = _put_together(policy, merged(own))
    language_model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    tensors |= {k: v for k, v in weights.items() if k.startswith(_VALUE_MODEL)}
    tensors["random_state"] = torch.get_rng_state()
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial / _TENSORS)
    (partial / _STATE).write_text(json.dumps(dict(state), indent=2))
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def _moments(optimizer: MasterAdamW) -> Iterator[tuple[str, Tensor]]:
    """Optimizer state by parameter and slot, whole, on the CPU; one after another, and only rank 0 keeps them.

    `torch.distributed.checkpoint.state_dict` could do it too, but it steps an optimizer that has no state yet, with
    gradients of zero, and would save that step.
    """
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            full = whole(value)
            yield f"{index}.{slot}", full.cpu() if is_main() else full.new_empty(0)


def _put_together(policy: Policy, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """A plain language model like the policy's, neither sharded nor adapted, of these weights."""
    original = policy.language_model
    with torch.device("meta"):
        model = type(original)(original.config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = original.generation_config
    return model


def _inside(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_trainer(folder: Path, policy: Policy, optimizers: Mapping[str, MasterAdamW]) -> dict[str, Any]:
    """Load value model, adapters, optimizers and random state in place; returns the saved state.

    Without optimizers (evaluation) only the value model is loaded.

    Raises:
        ValueError: a file is missing, damaged, or of another shape.
    """
    state = read_state(folder)
    try:
        tensors = load_file(folder / _TENSORS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {folder}: {_TENSORS} cannot be read ({error}); use another one") from None
    own = policy.value_model.state_dict()
    value = {k: like(own[k], v) if k in own else v for k, v in _inside(tensors, _VALUE_MODEL).items()}
    try:
        policy.value_model.load_state_dict(value)
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint {folder}: its value model does not fit ({str(error).splitlines()[-1].strip()});"
            " use the configuration that it was saved with"
        ) from None
    if not optimizers:
        return state
    try:
        _load_adapters(policy, _inside(tensors, _LANGUAGE_MODEL))
        for name, optimizer in optimizers.items():
            _load_optimizer(optimizer, name, tensors)
        torch.set_rng_state(tensors["random_state"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"checkpoint {folder}: {_TENSORS} does not hold what resuming needs ({error}); use another one"
        ) from None
    return state


@torch.no_grad()
def _load_adapters(policy: Policy, saved: Mapping[str, Tensor]) -> None:
    own = adapters_and_their_bases(policy.language_model.state_dict())
    if own.keys() != saved.keys() or any(own[k].shape != x.shape for k, x in saved.items()):
        raise RuntimeError(f"the adapters of {len(own)} matrices")
    for key, x in saved.items():
        own[key].copy_(like(own[key], x))


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint: iteration, num_updates, config.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {folder}: {_STATE} cannot be read ({error}); use another one") from None
    kinds = {"iteration": int, "num_updates": int, "config": dict}
    if not isinstance(state, dict) or any(type(state.get(key)) is not kind for key, kind in kinds.items()):
        raise ValueError(f"checkpoint {folder}: {_STATE} lacks iteration, num_updates or config; use another one")
    return state


def _load_optimizer(optimizer: MasterAdamW, name: str, tensors: dict[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{name}."):
            index, slot = key.removeprefix(f"{name}.").split(".")
            slots.setdefault(int(index), {})[slot] = value
    blank = optimizer.state_dict()
    parameters = optimizer.parameters
    fits = (v.shape in ((), parameters[i].shape) for i, own in slots.items() for v in own.values())
    if not slots or max(slots) >= len(parameters) or not all(fits):  # load_state_dict checks none of these
        raise RuntimeError(f"the {name} of {len(parameters)} parameters")
    cut = {i: {k: like(parameters[i], v) if v.ndim else v for k, v in own.items()} for i, own in slots.items()}
    optimizer.load_state_dict({"state": cut, "param_groups": blank["param_groups"]})
