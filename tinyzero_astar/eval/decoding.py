"""A* at test time against other ways of decoding with the same number of decoded tokens.

The arms are greedy decoding, best_first (the literal A* with the value model), value-guided search without replacement,
N samples from which one is chosen by value or by majority, beam search as Hugging Face implements it, and power
sampling. N, the number of beams and the steps of power sampling are chosen so that the decoded tokens come closest to
those of best_first, for each arm by itself. The tokens that each arm really used are reported beside its accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinyzero_astar.config import DECODING_INVERSE_BETA, SearchConfig
from tinyzero_astar.eval.beams import beam_search, read
from tinyzero_astar.eval.evaluate import Estimate, paired_difference, wilson
from tinyzero_astar.eval.power import Chains, spend
from tinyzero_astar.interfaces import Problem, Task
from tinyzero_astar.model.model import Policy
from tinyzero_astar.modes import SearchMode
from tinyzero_astar.rollout.generator import Generator, problem_seeds
from tinyzero_astar.rollout.records import RewardedRollouts
from tinyzero_astar.terminal import counted

_SEED, _ITERATION = 0, 1 << 41  # noise apart from that of training and of other evaluations
_NAN = float("nan")

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of decoding, on all problems."""

    name: str  # in metrics
    title: str  # for people
    correct: Tensor  # [P] float64, 1 where the answer is right and 0 where it is wrong
    tokens: float  # decoded per problem
    expanded: float = _NAN  # prefixes whose children were scored, per problem, nan where not counted
    forks: float = _NAN  # per problem, nan where not counted

    @property
    def accuracy(self) -> Estimate:
        """Share of the problems with a right answer."""
        return wilson(float(self.correct.mean()), len(self.correct))

    def gain(self, other: Arm) -> Estimate:
        """How much higher the accuracy is than that of another way on the same problems."""
        gained, lost = (int((x > 0).sum()) for x in (self.correct - other.correct, other.correct - self.correct))
        return paired_difference(gained, lost, len(self.correct))

    def metrics(self, greedy: Arm) -> dict[str, float]:
        """Numbers by their names in metrics.jsonl. Those of greedy decoding have no gain over it."""
        numbers = {"tokens": self.tokens, "expanded": self.expanded, "forks": self.forks}
        estimates = {"accuracy": self.accuracy} | ({} if self is greedy else {"gain": self.gain(greedy)})
        for what, estimate in estimates.items():
            numbers |= {what: estimate.value, f"{what}_low": estimate.low, f"{what}_high": estimate.high}
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
    """Decode every problem in every way, greedily first.

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

    def search(wanted: SearchConfig, rows: int) -> list[RewardedRollouts]:
        run = partial(generator.generate, settings=wanted, seed=_SEED, iteration=_ITERATION)
        return _in_chunks(run, problems, max_rows // rows)

    def beams_of(number: int) -> tuple[Tensor, float]:
        return beam_search(policy, tokenizer, task, generator, problems, settings, number, max_rows)

    greedy = _in_chunks(lambda chunk: generator.greedy(chunk, settings.max_search_depth), problems, max_rows)
    searched = search(_guided(settings, "best_first", 1, beam_width), beam_width)
    budget, length = _tokens(searched), _tokens(greedy)
    guess = max(1, round(budget / length)) if length else 1  # no tokens where every answer ends at once
    leaves, found = closest(lambda n: search(_guided(settings, "gumbel", n, n + 1), n), _tokens, budget, guess)
    number, sampled = closest(lambda n: search(settings.one_by_one("sample", n), n), _tokens, budget, guess)
    width, (beams, beam_tokens) = closest(beams_of, itemgetter(1), budget, guess)
    powered, power_tokens, steps = power_sample(
        policy, tokenizer, task, generator, problems, settings, budget, max_rows
    )
    samples = counted(number, "sample")
    return [
        _arm("greedy", "greedy", greedy, first),
        _arm("best_first", f"best_first, width {beam_width}", searched, first),
        _arm("gumbel", f"gumbel, best of {counted(leaves, 'completion')} by value", found, best_by_value),
        _arm("best_of_n", f"best of {samples} by value", sampled, best_by_value),
        _arm("majority", f"majority of {samples}", sampled, majority),
        Arm("beam_search", f"beam search, {counted(width, 'beam')}", beams, beam_tokens / len(problems)),
        Arm("power", f"power sampling, {counted(steps, 'step')}", powered, power_tokens / len(problems)),
    ]


def closest(
    decode: Callable[[int], Found], tokens: Callable[[Found], float], budget: float, guess: int
) -> tuple[int, Found]:
    """How many completions (or beams) bring the decoded tokens closest to a budget, and what was decoded.

    From a first number it goes up while the tokens are below the budget, or down while they are not, as far as four
    times that number or 1. The last two numbers have the budget between them.

    Args:
        decode: with so many.
        tokens: decoded, of what was found.
        budget: tokens.
        guess: the first number, at least 1.
    """
    tried: dict[int, Found] = {}
    number = guess
    while 1 <= number <= 4 * guess and number not in tried:
        tried[number] = decode(number)
        number += 1 if tokens(tried[number]) < budget else -1
    return min(tried.items(), key=lambda pair: (abs(tokens(pair[1]) - budget), pair[0]))


def _guided(settings: SearchConfig, mode: SearchMode, leaves: int, width: int) -> SearchConfig:
    """The whole of h for every problem, looking for success, without the bound that keeps weights small."""
    return replace(
        settings.one_by_one(mode, leaves),
        beam_width=width,
        inverse_beta=DECODING_INVERSE_BETA,
        weight_cap=None,
        guidance_strength=1.0,
        unguided_fraction=0.0,
    )


def _in_chunks(
    decode: Callable[[Sequence[Problem]], RewardedRollouts], problems: Sequence[Problem], size: int
) -> list[RewardedRollouts]:
    size = max(1, size)
    return [decode(problems[i : i + size]) for i in range(0, len(problems), size)]


def _tokens(parts: Sequence[RewardedRollouts]) -> int:
    return sum(int(p.rollouts.stats.num_decoded_tokens.sum()) for p in parts)


def _arm(name: str, title: str, parts: Sequence[RewardedRollouts], choose: Callable[[RewardedRollouts], Tensor]) -> Arm:
    correct = torch.cat([choose(part) for part in parts]).cpu()
    count = len(correct)
    expanded = sum(int(p.rollouts.stats.num_expanded.sum()) for p in parts) / count
    forks = sum(int(p.rollouts.stats.num_forks.sum()) for p in parts) / count
    return Arm(name, title, correct, _tokens(parts) / count, expanded, forks)


def first(found: RewardedRollouts) -> Tensor:
    """Whether the first leaf is right, [P]."""
    return found.accuracy[:, 0]


def best_by_value(found: RewardedRollouts) -> Tensor:
    """Whether the leaf whose last prefix has the highest value is right, [P]. Unfinished ones come last."""
    rollouts = found.rollouts
    last = (rollouts.length - 1).clamp(min=0)[..., None]
    value = rollouts.value.gather(-1, last)[..., 0] + rollouts.is_finished.double()
    return found.accuracy.gather(1, value.argmax(1, keepdim=True))[:, 0]


def majority(sampled: RewardedRollouts) -> Tensor:
    """Whether the answer that most samples give is right, [P].

    Of answers with as many samples, the one whose samples have the larger sum of probabilities is chosen. Samples in a
    wrong format do not vote, unless all are. Source: Wang et al. 2023, self-consistency.
    """
    logp = sampled.rollouts.logp.sum(-1)
    chosen = []
    for verdicts, texts, probability in zip(sampled.verdicts, sampled.texts, logp.exp().tolist(), strict=True):
        votes: dict[str, list[int]] = {}
        for k in [k for k, verdict in enumerate(verdicts) if verdict.format] or range(len(verdicts)):
            answer = verdicts[k].answer
            votes.setdefault(texts[k] if answer is None else repr(answer), []).append(k)
        chosen.append(max(votes.values(), key=lambda own: (len(own), sum(probability[k] for k in own)))[0])
    return sampled.accuracy.gather(1, torch.tensor(chosen, device=sampled.accuracy.device)[:, None])[:, 0]


def power_sample(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    generator: Generator,
    problems: Sequence[Problem],
    settings: SearchConfig,
    budget: int,
    max_rows: int,
) -> tuple[Tensor, int, int]:
    """Accuracy per problem by power sampling, the tokens that were decoded, and the steps of each chain.

    Args:
        policy: whose language model decodes.
        tokenizer: of the policy.
        task: verifies.
        generator: of the policy.
        problems: held out.
        settings: for the depth limit.
        budget: tokens, of all problems together.
        max_rows: sequences decoded at once.
    """
    prompts, depth = generator.encode(problems, settings.max_search_depth)
    seeds = problem_seeds(problems, _SEED, _ITERATION)
    chains = Chains(generator.decoder_fn, prompts, seeds, depth, max_rows)
    found, steps = spend(chains, budget)
    rows = [row[:n] for row, n in zip(found.tokens.tolist(), found.length.tolist(), strict=True)]
    correct = [read(policy, tokenizer, task, p, row)[0] for p, row in zip(problems, rows, strict=True)]
    return torch.tensor(correct, dtype=torch.float64, device="cpu"), found.num_tokens, steps
