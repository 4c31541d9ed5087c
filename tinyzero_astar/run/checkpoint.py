"""Checkpoints, `checkpoint_iter_<N>/`, a Hugging Face folder with what resuming needs beside it.

model.safetensors, config.json and the tokenizer load with plain `from_pretrained`. trainer.safetensors holds the value
model, both optimizers (with the float32 master weights of a bfloat16 model) and PyTorch's random state. trainer.json
holds the iteration, the count of updates, the run's configuration, the metrics that the guidance gate and the alarms
remember, the record of the last iteration, and what is known of the reference if there is one. Search noise and problem
order are functions of seed and iteration, so they need no state.

With adapters model.safetensors holds the merged weights, so that it is a model like any other. What they were merged
from, A, B and the frozen weights, stands in trainer.safetensors too, since a sum in floating point cannot be undone. So
a run goes on exactly, without asking for its base again. Evaluation reads the merged weights alone.

No pickle anywhere. A checkpoint appears under its name only when it is complete and on the disk itself. manifest.json
lists its files with size and SHA-256, and nothing is loaded from a checkpoint whose files are others.

The files are the same for any number of processes. Rank 0 puts the shards together and writes, and in loading each rank
cuts out its own. So a run may be continued, or evaluated, with another number.
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

from tinyzero_astar.distributed import is_main
from tinyzero_astar.files import PARTIAL, read_text, sync
from tinyzero_astar.manifest import MANIFEST, check_manifest, write_manifest
from tinyzero_astar.model.adapters import adapters_and_their_bases, merged
from tinyzero_astar.model.fsdp_utils import like, whole
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.model_folder import weight_files
from tinyzero_astar.run.checkpoint_folders import TRAINER_STATE, checkpoint_at, remove_checkpoint
from tinyzero_astar.training.optimizer import MasterAdamW

_TENSORS, _STATE = "trainer.safetensors", TRAINER_STATE
OWN_FILES = (_STATE, _TENSORS, MANIFEST)  # without them the folder is a model like any other
_MOMENTS = {"exp_avg", "exp_avg_sq"}  # AdamW's, of a parameter's shape
_LANGUAGE_MODEL, _VALUE_MODEL = "language_model.", "value_model."  # of the policy's weights


def save_checkpoint(
    folder: Path,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    optimizers: Mapping[str, MasterAdamW],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint, replacing an older one of the same name only when the new one is complete.

    All ranks must call it, and rank 0 writes.
    """
    tensors = {f"{name}.{key}": x for name, own in optimizers.items() for key, x in _slots(own)}
    weights: dict[str, Any] = policy.state_dict()
    if is_sharded := isinstance(policy, FSDPModule):
        weights = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not is_main():
        return
    partial = folder.with_name(folder.name + PARTIAL)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    language_model = policy.language_model
    if is_sharded or policy.has_adapters:
        own = {k: v.to("cpu", policy.dtype) for k, v in _inside(weights, _LANGUAGE_MODEL).items()}
        tensors |= {f"{_LANGUAGE_MODEL}{k}": v for k, v in adapters_and_their_bases(own).items()}
        language_model = _put_together(policy, merged(own))
    language_model.save_pretrained(partial)
    with _WritesOrOSError():
        tokenizer.save_pretrained(partial)
    tensors |= {k: v for k, v in weights.items() if k.startswith(_VALUE_MODEL)}
    tensors["random_state"] = torch.get_rng_state()
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial / _TENSORS)
    (partial / _STATE).write_text(json.dumps(dict(state), indent=2))
    mode = (partial / _STATE).stat().st_mode  # by the umask, while safetensors' own files are for their owner alone
    for path in partial.glob("*.safetensors"):
        path.chmod(mode)
    write_manifest(partial)
    for path in (*partial.rglob("*"), partial):  # on the disk before it has its name, should the power fail
        sync(path)
    if folder.exists():
        remove_checkpoint(folder)
    os.replace(partial, folder)
    sync(folder.parent)


class _WritesOrOSError:
    """The package tokenizers raises plain Exception, that very class, for a file that it cannot write."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is Exception:
            raise OSError(str(error)) from None


def _slots(optimizer: MasterAdamW) -> Iterator[tuple[str, Tensor]]:
    """Optimizer state by parameter and slot, whole, on the CPU, one after another. Only rank 0 keeps them.

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
    """Load value model, adapters, optimizers and random state in place, and return the saved state.

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
            _load_optimizer(optimizer, name, tensors, is_fresh=state["num_updates"] == 0)
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


def check_files(folder: Path) -> None:
    """Whether the files of a checkpoint are those that were saved, all of them.

    Raises:
        ValueError: names the first that is not.
    """
    try:
        listed = check_manifest(folder)
        needed = (_STATE, _TENSORS, "config.json", *weight_files(folder))
        if missing := [name for name in needed if name not in listed]:
            raise ValueError(f"{missing[0]} is missing")
    except ValueError as error:
        raise ValueError(f"checkpoint {folder}: {error}; put it back as it was, or use another one") from None


def check_source(model_source: str) -> None:
    """`check_files` of a checkpoint that a model is loaded from. Other models have no list of their files.

    Raises:
        ValueError: names the first file that is not what was saved.
    """
    if (checkpoint := checkpoint_at(model_source)) is not None:
        check_files(checkpoint)


def _read_json(folder: Path, name: str) -> Any:
    try:
        return json.loads(read_text(folder / name))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint {folder}: {name} cannot be read ({error}); use another one") from None


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint, with iteration, num_updates, config, and what `remembered_by` checks.

    Raises:
        ValueError: the file is missing or damaged.
    """
    state = _read_json(folder, _STATE)
    kinds = {"iteration": int, "num_updates": int, "config": dict}
    if not isinstance(state, dict) or any(type(state.get(key)) is not kind for key, kind in kinds.items()):
        raise ValueError(f"checkpoint {folder}: {_STATE} lacks iteration, num_updates or config; use another one")
    return state


def remembered_by(folder: Path, state: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What gate and alarms know of the iterations so far, and the last iteration's record, without its evaluation.

    Raises:
        ValueError: they are not there, as in checkpoints of older versions, or not whole.
    """
    history, record = state.get("history"), state.get("record")
    if isinstance(history, list) and isinstance(record, dict) and len(history) == state["iteration"]:
        items = [item for known in history if isinstance(known, dict) for item in known.items()]
        if all(isinstance(x, list) if name == "alarms" else x is None or type(x) in (int, float) for name, x in items):
            return history, record
    raise ValueError(
        f"checkpoint {folder}: {_STATE} lacks the metrics of its {state['iteration']} iterations, which a resumed run"
        " needs; use another one"
    )


def known_counts(folder: Path, state: Mapping[str, Any]) -> dict[int, int]:
    """In how many iterations each problem that came up had a leaf, by its id.

    Raises:
        ValueError: they are not there, as in checkpoints of older versions, or not whole.
    """
    known = state.get("searched")
    if isinstance(known, dict) and all(key.isdecimal() and type(x) is int for key, x in known.items()):
        return {int(key): x for key, x in known.items()}
    raise ValueError(
        f"checkpoint {folder}: {_STATE} lacks how often each problem was searched, which a resumed run needs; use"
        " another one"
    )


def known_reference(folder: Path, state: Mapping[str, Any]) -> tuple[str, dict[int, float]]:
    """The digest of the frozen first policy, "" of adapters, and V* of the problems that have come up, by their ids.

    Raises:
        ValueError: they are not there, or not whole.
    """
    known = state.get("reference")
    if isinstance(known, dict) and isinstance(known.get("digest"), str) and isinstance(known.get("values"), dict):
        values = known["values"]
        if all(key.isdecimal() and type(x) is float for key, x in values.items()):
            return known["digest"], {int(key): x for key, x in values.items()}
    raise ValueError(
        f"checkpoint {folder}: {_STATE} lacks what is known of the reference, which a resumed run needs; use another"
        " one"
    )


def _load_optimizer(optimizer: MasterAdamW, name: str, tensors: dict[str, Tensor], is_fresh: bool) -> None:
    """Load one optimizer. If `is_fresh`, it has made no step yet, so that nothing need be there."""
    parameters = optimizer.parameters
    slots: dict[int, dict[str, Tensor]] = {}
    for index in range(len(parameters)):
        prefix = f"{name}.{index}."
        if own := _inside(tensors, prefix):
            slots[index] = own
    num_found = sum(key.startswith(f"{name}.") for key in tensors)
    is_complete = num_found == sum(map(len, slots.values())) and (slots or is_fresh)
    if not is_complete or not all(_fits(parameters[i], own) for i, own in slots.items()):
        raise RuntimeError(f"the {name} of {len(parameters)} parameters")
    cut = {i: {k: like(parameters[i], v) if v.ndim else v for k, v in own.items()} for i, own in slots.items()}
    optimizer.load_state_dict({"state": cut, "param_groups": optimizer.state_dict()["param_groups"]})


def _fits(parameter: Tensor, slots: Mapping[str, Tensor]) -> bool:
    """Whether these are the slots of a parameter, which `load_state_dict` does not check."""
    shapes = {"step": torch.Size(), **dict.fromkeys((*_MOMENTS, "master"), parameter.shape)}
    has_stepped = slots.keys() - {"master"} in ({"step", *_MOMENTS}, set())
    return has_stepped and all(x.shape == shapes[slot] and x.is_floating_point() for slot, x in slots.items())
