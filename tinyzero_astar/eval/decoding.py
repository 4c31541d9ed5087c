"""A* at test time against other ways of decoding with the same number of decoded tokens.

The arms are greedy decoding, best_first (the literal A* with the value model), best of N samples chosen by value, and
beam search as Hugging Face implements it. N and the number of beams are chosen so that their decoded tokens come
closest to those of best_first. The tokens that each arm really used are reported beside its accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tinyzero_astar.config import DECODING_INVERSE_BETA, SearchConfig
from tinyzero_astar.eval.evaluate import Estimate, wilson
from tinyzero_astar.interfaces import Problem, Task
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.rollout.records import RewardedRollouts
from tinyzero_astar.terminal import counted

_SEED, _ITERATION = 0, 1 << 41  # noise apart from that of training and of other evaluations


@dataclass(frozen=True)
class Arm:
    """One way of decoding, on all problems."""

    name: str  # in metrics
    title: str  # for people
    accuracy: Estimate
    tokens: float  # decoded per problem
    expanded: float  # prefixes whose children were scored, per problem, nan where not counted
    forks: float  # per problem, nan where not counted

    def metrics(self) -> dict[str, float]:
        """Numbers by their names in metrics.jsonl."""
        numbers = {
            "accuracy": self.accuracy.value,
            "accuracy_low": self.accuracy.low,
            "accuracy_high": self.accuracy.high,
            "tokens": self.tokens,
            "expanded": self.expanded,
            "forks": self.forks,
        }
        return {f"decode/{self.name}_{what}": number for what, number in numbers.items()}


def compare(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    generator: Generator,
    problems: Sequence[Problem],
    settings: SearchConfig,
    *,
    beam_width: int,
    max_rows: int,
) -> list[Arm]:
    """Decode every problem in every way.

    Args:
        policy: with its value model.
        tokenizer: of the policy.
        task: verifies.
        generator: of the policy.
        problems: held out.
        settings: for the depth limit.
        beam_width: of best_first.
        max_rows: sequences decoded at once.
    """
    count = len(problems)
    chunks = [problems[i : i + max_rows] for i in range(0, count, max_rows)]
    greedy = [generator.greedy(chunk, settings.max_search_depth) for chunk in chunks]
    literal = replace(
        settings.one_by_one("best_first", 1),
        beam_width=beam_width,
        inverse_beta=DECODING_INVERSE_BETA,
        weight_cap=None,
        guidance_strength=1.0,
        unguided_fraction=0.0,
    )
    rows = max(1, max_rows // beam_width)
    searched = [
        generator.generate(problems[i : i + rows], literal, seed=_SEED, iteration=_ITERATION)
        for i in range(0, count, rows)
    ]
    budget = _tokens(searched, count)
    length = _tokens(greedy, count)
    width = max(1, round(budget / length)) if length else 1  # no tokens where every answer ends at once
    sampled = _sample(generator, problems, settings, width, max_rows)
    chosen = torch.cat([best_by_value(s) for s in sampled])
    beams, beam_tokens = beam_search(policy, tokenizer, task, generator, problems, settings, width, max_rows)
    nan = float("nan")
    return [
        _arm("greedy", "greedy", torch.cat([g.accuracy[:, 0] for g in greedy]), greedy),
        _arm(
            "best_first", f"best_first, width {beam_width}", torch.cat([s.accuracy[:, 0] for s in searched]), searched
        ),
        _arm("best_of_n", f"best of {counted(width, 'sample')} by value", chosen, sampled),
        Arm(
            "beam_search",
            f"beam search, {counted(width, 'beam')}",
            wilson(float(beams.mean()), count),
            beam_tokens / count,
            nan,
            nan,
        ),
    ]


def _tokens(parts: Sequence[RewardedRollouts], count: int) -> float:
    return float(sum(int(p.rollouts.stats.num_decoded_tokens.sum()) for p in parts)) / count


def _arm(name: str, title: str, correct: torch.Tensor, parts: Sequence[RewardedRollouts]) -> Arm:
    count = len(correct)
    expanded = sum(int(p.rollouts.stats.num_expanded.sum()) for p in parts) / count
    forks = sum(int(p.rollouts.stats.num_forks.sum()) for p in parts) / count
    return Arm(name, title, wilson(float(correct.mean()), count), _tokens(parts, count), expanded, forks)


def _sample(
    generator: Generator, problems: Sequence[Problem], settings: SearchConfig, width: int, max_rows: int
) -> list[RewardedRollouts]:
    plain = settings.one_by_one("sample", width)
    rows = max(1, max_rows // width)
    return [
        generator.generate(problems[i : i + rows], plain, seed=_SEED, iteration=_ITERATION)
        for i in range(0, len(problems), rows)
    ]


def best_by_value(sampled: RewardedRollouts) -> torch.Tensor:
    """Whether the sample whose last prefix has the highest value is right, [P]. Unfinished ones come last."""
    rollouts = sampled.rollouts
    last = (rollouts.length - 1).clamp(min=0)[..., None]
    value = rollouts.value.gather(-1, last)[..., 0] + rollouts.is_finished.double()
    return sampled.accuracy.gather(1, value.argmax(1, keepdim=True))[:, 0]


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
) -> tuple[torch.Tensor, float]:
    """Accuracy per problem and the tokens decoded by all beams until their best hypothesis ended."""
    correct: list[float] = []
    num_tokens = 0
    rows = max(1, max_rows // num_beams)
    for i in range(0, len(problems), rows):
        chunk = problems[i : i + rows]
        prompts, depth = generator.encode(chunk, settings.max_search_depth)
        for problem, row in zip(chunk, best_beams(policy, prompts, depth, num_beams), strict=True):
            length = next((n for n, token in enumerate(row) if token in policy.eos_ids), len(row))
            is_finished = length < len(row)
            num_tokens += num_beams * (length + is_finished - 1)  # the last token is not decoded, here as in the search
            verdict = task.verify(problem, tokenizer.decode(row[:length]), is_finished)
            correct.append(float(verdict.accuracy))
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
