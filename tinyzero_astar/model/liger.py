"""Liger's Triton kernels in place of a model's own rotary embedding, RMS norms and SwiGLU, optional and for GPUs.

Its fused cross entropy is left out, since our losses need log-probabilities of single tokens, which `model.model`
computes in chunks. Liger swaps methods of the norms and MLPs of this one model. It also swaps the rotary function and
the classes of norms and MLPs in the architecture's module in transformers. So every model of that architecture which
this process makes later has its kernels.
"""

from __future__ import annotations

from types import ModuleType

import torch
from transformers import PreTrainedModel

_INSTEAD = "leave out --model.liger, or set it to false in the config.json of a run to be resumed"


def import_liger(device: torch.device) -> ModuleType:
    """The optional dependency.

    Args:
        device: of the model.

    Raises:
        ValueError: the device is no GPU, or the package or Triton is missing or does not fit.
    """
    if device.type != "cuda":
        raise ValueError(f"model.liger asks for kernels for GPUs, but the model is on {device.type}: {_INSTEAD}")
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"model.liger asks for the kernels of liger-kernel, which cannot be imported ({why}): pip install -e"
            f" '.[gpu]', or {_INSTEAD}"
        ) from error
    module: ModuleType = monkey_patch
    return module


def apply_liger(model: PreTrainedModel, device: torch.device) -> None:
    """Swap the kernels of a loaded model, before it is sharded.

    Args:
        model: changed in place.
        device: where it will be.

    Raises:
        ValueError: see `import_liger`, or there are no kernels for the architecture.
    """
    liger = import_liger(device)
    kind = model.config.model_type
    if kind not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:  # liger itself would do nothing, and say so to nobody
        raise ValueError(f"model.liger: liger-kernel has no kernels for architecture {kind!r}; {_INSTEAD}")
    liger._apply_liger_kernel_to_instance(
        model=model, rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )
