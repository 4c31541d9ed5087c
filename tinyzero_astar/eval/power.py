"""Power sampling: completions from pi^alpha by the Metropolis-Hastings algorithm.

A step resamples the end of a completion from the policy and accepts it or not. Its law gets closer to pi^alpha with
every step, normalised over all completions. It needs no value model. After few steps it is still close to that of the
first completion, which is a plain sample.

Source: Karan and Du 2025, "Reasoning with Sampling". They grow the completion block by block, and these chains change
whole completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Decoder
from tinyzero_astar.search.gumbel import hash_with, inverse_cdf, to_uniform
from tinyzero_astar.search.heuristic import log_policy

POWER = 4.0  # alpha
POSITION_STREAM, ACCEPTANCE_STREAM = 0x9057, 0xACC3  # keep these draws apart from those of the tokens


class Completions(NamedTuple):
    """A completion of each of P problems."""

    tokens: Tensor  # [P, T] int64, anything after the length
    logp: Tensor  # [P, T] float64, log pi of each
    length: Tensor  # [P] int64, the end token included
    num_tokens: int  # decoded for all of them, from the first step on

    def since(self, start: Tensor) -> Tensor:
        """[P] log pi of what stands at position `start` [P] and after it, given what stands before."""
        place = torch.arange(self.tokens.shape[1], device=self.length.device)
        return torch.where((place >= start[:, None]) & (place < self.length[:, None]), self.logp, 0.0).sum(1)


class Chains:
    """A Markov chain for each problem. Its noise is a hash of the problem's seed and the number of the step.

    Args:
        decoder_fn: makes a decoder for so many more tokens, see `generator.Generator`.
        prompts: P token lists.
        seeds: int64 [P].
        limit: most tokens of a completion.
        max_rows: completions decoded at once.
    """

    def __init__(
        self,
        decoder_fn: Callable[[int], Decoder],
        prompts: Sequence[Sequence[int]],
        seeds: Tensor,
        limit: int,
        max_rows: int,
    ) -> None:
        self._decoder_fn, self._prompts, self._seeds = decoder_fn, prompts, seeds
        self._limit, self._max_rows = limit, max_rows

    def begin(self) -> Completions:
        """A sample of the policy for each problem."""
        shape = (len(self._prompts), self._limit)
        tokens, nothing = torch.zeros(shape, dtype=torch.int64, device="cpu"), torch.zeros_like(self._seeds)
        logp = torch.zeros(shape, dtype=torch.float64, device="cpu")
        return self._resample(Completions(tokens, logp, nothing, 0), nothing, hash_with(self._seeds, nothing))

    def step(self, now: Completions, number: int, power: float = POWER) -> Completions:
        """Step `number`, 1 or more. The end from a uniformly random position on is drawn anew, and taken or not."""
        noise = hash_with(self._seeds, torch.tensor(number, device="cpu"))
        share = to_uniform(hash_with(noise, torch.tensor(POSITION_STREAM, device="cpu")))
        start = torch.minimum((share * now.length).long(), now.length - 1)  # the product may round up to the length
        new = self._resample(now, start, noise)
        log_ratio = log_acceptance(now.since(start), new.since(start), now.length, new.length, power)
        is_taken = to_uniform(hash_with(noise, torch.tensor(ACCEPTANCE_STREAM, device="cpu"))).log() < log_ratio
        return Completions(
            torch.where(is_taken[:, None], new.tokens, now.tokens),
            torch.where(is_taken[:, None], new.logp, now.logp),
            torch.where(is_taken, new.length, now.length),
            new.num_tokens,
        )

    def _resample(self, now: Completions, start: Tensor, noise: Tensor) -> Completions:
        tokens, logp, length = (x.clone() for x in now[:3])
        num_tokens = now.num_tokens
        for rows in torch.arange(len(start), device="cpu").split(self._max_rows):
            num_tokens += self._continue(rows, start, noise, tokens, logp, length)
        return Completions(tokens, logp, length, num_tokens)

    def _continue(
        self, rows: Tensor, start: Tensor, noise: Tensor, tokens: Tensor, logp: Tensor, length: Tensor
    ) -> int:
        """Draw some rows [N] anew from `start` [P] on, in place, and count the tokens that were decoded.

        As in a search, a completion's last token is not decoded. Nor is what stands before `start`, which the chain has
        decoded already.
        """
        kept = [[*self._prompts[i], *tokens[i, : start[i]].tolist()] for i in rows.tolist()]
        decoder = self._decoder_fn(self._limit - int(start[rows].min()))
        slot = torch.arange(len(rows), device="cpu")
        output = decoder.start(kept, slot)
        device = output.logits.device
        ends = torch.tensor(decoder.eos_ids, device="cpu")
        num_tokens = 0
        for depth in range(self._limit):
            every, row = log_policy(output), rows[slot]
            place = start[row] + depth
            uniform = to_uniform(hash_with(noise[row], place)).to(device)
            drawn = inverse_cdf(every.exp(), uniform[:, None])
            token = drawn[:, 0].cpu()
            tokens[row, place], length[row] = token, place + 1
            logp[row, place] = every.gather(1, drawn)[:, 0].double().cpu()
            goes_on = ~torch.isin(token, ends) & (place + 1 < self._limit)
            slot = slot[goes_on]
            if len(slot) == 0:
                break
            num_tokens += len(slot)
            path = torch.zeros(len(slot), 3, dtype=torch.float64, device=device)  # of values, which nobody reads
            length_before = torch.full_like(slot, depth)
            output = decoder.step(token[goes_on].to(device), None, length_before.to(device), slot.to(device), path)
        return num_tokens


def log_acceptance(now: Tensor, new: Tensor, now_length: Tensor, new_length: Tensor, power: float) -> Tensor:
    """Natural log of the probability that a proposal is taken (Hastings 1970).

        log min(1, pi(y')^alpha q(y | y') / (pi(y)^alpha q(y' | y)))
            = min(0, (alpha - 1) (log pi(v' | u) - log pi(v | u)) + log |y| - log |y'|)

    The completion y = u v has |y| tokens. Its position |u| is drawn with probability 1 / |y|, and then v' from the
    policy, so q(y' | y) = pi(v' | u) / |y|. The way back begins at the same position, and has 1 / |y'|. Each position
    balances by itself, so their sum does.

    Args:
        now: [P] log pi(v | u), nats.
        new: [P] log pi(v' | u).
        now_length: [P] |y|, at least 1.
        new_length: [P] |y'|.
        power: alpha.
    """
    length_ratio = now_length.double().log() - new_length.double().log()
    return ((power - 1) * (new - now) + length_ratio).clamp(max=0.0)


def spend(chains: Chains, budget: int) -> tuple[Completions, int]:
    """Completions after as many steps as bring the decoded tokens of all problems closest to a budget, and the steps.

    No more steps are taken than the budget has tokens per problem. So the chains end even where they decode nothing.
    """
    before = now = chains.begin()
    number = 0
    while now.num_tokens < budget and number * len(now.length) < budget:
        number += 1
        before, now = now, chains.step(now, number)
    if number > 0 and budget - before.num_tokens <= now.num_tokens - budget:
        return before, number - 1
    return now, number
