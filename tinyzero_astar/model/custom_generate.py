"""A* as a decoding method of transformers, `model.generate(..., custom_generate=astar_generate)`.

    model.generate(**tokenizer(prompt, return_tensors="pt"), custom_generate=astar_generate, max_new_tokens=80,
                   num_leaves=4, beam_width=16)

It works with any causal language model that `docs/tasks.md` and `model/architecture.py` allow. It returns the
completions with the largest f, the best first. Without a policy h is 0, and f is the log-probability of a prefix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, GenerateDecoderOnlyOutput, MaxLengthCriteria

from tinyzero_astar.config import DECODING_INVERSE_BETA, EvalConfig
from tinyzero_astar.engine.host_decoder import make_decoder
from tinyzero_astar.interfaces import Rollouts
from tinyzero_astar.model.architecture import check_architecture
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.policy_loading import check_decoding
from tinyzero_astar.rollout.astar_search import astar_rollouts
from tinyzero_astar.search.heuristic import Guidance


@torch.no_grad()
def astar_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    num_leaves: int = 1,
    beam_width: int = EvalConfig.beam_width,
    policy: Policy | None = None,
    inverse_beta: float = DECODING_INVERSE_BETA,
    **others: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Search the best completions of each prompt by A*.

    Args:
        model: whose `generate` was called.
        input_ids: [B, L] prompts, padded on the left.
        logits_processor: must be empty, because the search needs the model's own probabilities.
        stopping_criteria: nothing but end tokens and the largest length.
        generation_config: max_length, end and padding tokens.
        num_leaves: K, completions of each prompt. `num_return_sequences` would ask for sampling.
        beam_width: size of the open list.
        policy: with `model` inside, such as `tz.load(...).policy`. Its value model is the heuristic. None means h = 0.
        inverse_beta: 1/beta, nats per unit of success. It says how much that value counts.
        others: what else `generate` gives, of which the attention mask counts.

    Returns:
        [B * K, L + T] prompts with their completions, padded on the right. A prompt stands alone where there are fewer
        than K.

    Raises:
        ValueError: something is asked for that a search cannot do, or the model cannot be searched.
    """
    _check(logits_processor, stopping_criteria, generation_config)
    room = generation_config.max_length - input_ids.shape[1]
    if policy is None:
        check_architecture(model.config, generation_config.max_length)
        policy = Policy(model, _ends(generation_config), 1).to(model.device)
        check_decoding(policy)
        strength = 0.0
    elif policy.language_model is not model:
        raise ValueError("astar_generate: policy has another language model inside than the one that generates")
    else:
        strength = 1.0
    mask = others.get("attention_mask")
    is_seen = torch.ones_like(input_ids) if mask is None else mask
    prompts = [ids[seen.bool()].tolist() for ids, seen in zip(input_ids, is_seen, strict=True)]
    rollouts = astar_rollouts(
        make_decoder(policy, room),
        prompts,
        seeds=torch.zeros(len(prompts), dtype=torch.int64, device="cpu"),  # this search draws nothing
        num_rollouts=num_leaves,
        beam_width=max(beam_width, num_leaves),
        max_search_depth=room,
        mode="best_first",
        guidance=Guidance(inverse_beta=inverse_beta, cap=None, strength=strength),
    )
    completions = _padded(rollouts, generation_config, policy.eos_ids[0]).to(input_ids)
    sequences = torch.cat([input_ids.repeat_interleave(num_leaves, 0), completions], dim=1)
    return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences


def _check(processors: LogitsProcessorList, criteria: StoppingCriteriaList, config: GenerationConfig) -> None:
    names = [type(x).__name__ for x in processors]
    names += [type(x).__name__ for x in criteria if not isinstance(x, (EosTokenCriteria, MaxLengthCriteria))]
    if names:
        raise ValueError(
            f"astar_generate searches the model's own probabilities and cannot use {', '.join(names)}: leave out what"
            " asks for it, such as do_sample, temperature or a penalty"
        )
    for name, own in (("num_beams", "beam_width"), ("num_return_sequences", "num_leaves")):
        if (getattr(config, name) or 1) > 1:
            raise ValueError(
                f"{name} {getattr(config, name)} is for other ways of decoding; astar_generate takes {own}"
            )


def _ends(config: GenerationConfig) -> tuple[int, ...]:
    ends = config.eos_token_id
    if ends is None:
        raise ValueError("astar_generate needs an end token: give eos_token_id")
    return tuple(ends) if isinstance(ends, list) else (ends,)


def _padded(rollouts: Rollouts, config: GenerationConfig, end: int) -> Tensor:
    """[B * K, T] completions, padded with what the config says."""
    pad = end if config.pad_token_id is None else config.pad_token_id
    return rollouts.tokens.masked_fill(~rollouts.is_token, pad).flatten(0, 1)
