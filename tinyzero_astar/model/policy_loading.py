"""A policy from a name, with the language model, a fresh value model, and a test that it decodes right."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.model.adapters import add_adapters
from tinyzero_astar.model.architecture import SUPPORTED
from tinyzero_astar.model.damage import enough_memory
from tinyzero_astar.model.hub import Say
from tinyzero_astar.model.liger import apply_liger
from tinyzero_astar.model.loading import end_tokens, load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.tokenizer import textless_ids

# In units of the logits' standard deviation. Rounding explains as much, and mistakes are off by several.
_DECODING_TOLERANCE = {torch.float64: 0.01, torch.float32: 0.01, torch.bfloat16: 0.5}


def load_policy(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    value_hidden_size: int,
    max_length: int,
    lora_rank: int = 0,
    liger: bool = False,
    say: Say = print,
) -> tuple[Policy, PreTrainedTokenizerBase]:
    """A policy with a fresh value model, on a device, tested to decode right, and its tokenizer.

    Args:
        name: "embedded", a folder, or a name on the hub.
        dtype: of the language model. The value model is float32.
        device: see `choose_device`.
        value_hidden_size: width of the value model's MLP.
        max_length: tokens of the longest sequence.
        lora_rank: of adapters that are to be trained instead of the language model. 0 means none.
        liger: whether to use Liger's kernels.
        say: told of every download before it begins.

    Raises:
        ValueError: an optional dependency is missing, or nothing usable has that name. One sentence says why.
    """
    language_model, tokenizer = load_language_model(name, dtype, max_length=max_length, say=say)
    if liger:
        apply_liger(language_model, device)
    ends = end_tokens(language_model)
    textless = textless_ids(tokenizer, language_model.get_output_embeddings().weight.shape[0]) - set(ends)
    with enough_memory(name):
        policy = Policy(language_model, ends, value_hidden_size, textless).to(device)
    try:
        check_decoding(policy)
    except ValueError as error:
        raise ValueError(f"model_name {name!r}: {error}") from error
    if lora_rank:
        add_adapters(language_model, lora_rank)
    return policy, tokenizer


@torch.no_grad()
def check_decoding(policy: Policy) -> None:
    """Compare a few forks through the slot cache with the language model's own full forward and head.

    It catches what no config tells, such as positions read off the mask, attention to later tokens, and scaled logits.

    Raises:
        ValueError: they differ, or the slot cache cannot be used at all.
    """
    name = type(policy.language_model).__name__
    ids = [n % policy.vocab_size for n in range(2, 10)]
    one, two, (a, b, c) = ids[:3], ids[3:5], ids[5:]
    rows = [  # two steps with token, source slot, generated tokens kept, target slot
        [(a, 0, 0, 1), (b, 2, 0, 2)],
        [(c, 1, 1, 1), (c, 2, 0, 3)],
    ]
    try:
        decoder = SlotDecoder(policy, 3)
        decoder.start([one, two], torch.tensor([0, 0, 1, 1]))
        path = torch.zeros(2, 3, dtype=torch.float32, device=policy.device)  # what values say is not compared
        steps = [torch.tensor(step, device=policy.device).T for step in rows]
        decoded = torch.cat([decoder.step(step[0], step[1], step[2], step[3], path).logits for step in steps])
        full = torch.cat([_own_logits(policy, ids) for ids in ([*one, a], [*two, b], [*one, a, c], [*two, c])])
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:  # what misfits raise
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name} cannot be decoded through the slot cache ({cause}); {SUPPORTED}") from error
    is_text = ~torch.isneginf(decoded[0])
    full = full[:, : len(is_text)][:, is_text]
    gap = float(((decoded[:, is_text] - full).abs().amax(-1) / full.std(-1)).max())
    if gap > _DECODING_TOLERANCE[policy.language_model.dtype]:  # a NaN passes, and the search will say where it is
        raise ValueError(
            f"{name} scores tokens differently through the slot cache than in its own forward (logits are off by"
            f" {gap:.1g} of their standard deviation); {SUPPORTED}"
        )


def _own_logits(policy: Policy, ids: list[int]) -> Tensor:
    logits: Tensor = policy.language_model(torch.tensor([ids], device=policy.device), use_cache=False).logits
    return logits[:, -1].float()
