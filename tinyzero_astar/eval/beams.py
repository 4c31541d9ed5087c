"""Beam search as Hugging Face implements it, by the plain sum of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.interfaces import Problem, Task
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.generator import Generator


def read(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, task: Task, problem: Problem, row: Sequence[int]
) -> tuple[float, int]:
    """Accuracy of a completion that may be padded, and its length, with its end token if it has one."""
    length = next((n for n, token in enumerate(row) if token in policy.eos_ids), len(row))
    is_finished = length < len(row)
    verdict = task.verify(problem, tokenizer.decode(row[:length]), is_finished)
    return float(verdict.accuracy), length + is_finished


@torch.no_grad()
def beam_search(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    generator: Generator,
    problems: Sequence[Problem],
    settings: SearchConfig,
    num_beams: int,
    max_rows: int,
) -> tuple[Tensor, float]:
    """Accuracy per problem and the tokens decoded by all beams until their best hypothesis ended."""
    correct: list[float] = []
    num_tokens = 0
    rows = max(1, max_rows // num_beams)
    for i in range(0, len(problems), rows):
        chunk = problems[i : i + rows]
        prompts, depth = generator.encode(chunk, settings.max_search_depth)
        for problem, row in zip(chunk, best_beams(policy, prompts, depth, num_beams), strict=True):
            accuracy, length = read(policy, tokenizer, task, problem, row)
            num_tokens += num_beams * (length - 1)  # the last token is not decoded, here as in the search
            correct.append(accuracy)
    return torch.tensor(correct, dtype=torch.float64, device="cpu"), float(num_tokens)


def best_beams(policy: Policy, prompts: Sequence[Sequence[int]], depth: int, num_beams: int) -> list[list[int]]:
    """The completion of the largest log-probability that beam search finds for each prompt, padded after its end.

    Args:
        policy: whose language model decodes.
        prompts: token lists.
        depth: most tokens of a completion.
        num_beams: kept at each depth.
    """
    longest, pad = max(len(p) for p in prompts), policy.eos_ids[0]
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=policy.device)
    start = torch.tensor([[longest - len(p)] for p in prompts], device=policy.device)
    settings = GenerationConfig(  # the model's own says nothing else, see `loading.load_language_model`
        do_sample=False,
        num_beams=num_beams,
        # the plain sum of log-probabilities, like the search's g
        **({"length_penalty": 0.0} if num_beams > 1 else {}),
        suppress_tokens=policy.textless or None,
        renormalize_logits=True,
        max_new_tokens=depth,
        eos_token_id=list(policy.eos_ids),
        pad_token_id=pad,
    )
    output = policy.language_model.generate(
        input_ids=ids,
        attention_mask=(torch.arange(longest, device=policy.device) >= start).long(),
        generation_config=settings,
    )
    found: list[list[int]] = output[:, longest:].tolist()
    return found
