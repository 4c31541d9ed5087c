"""The other schedule of mode "gumbel", dives with rest nodes, measured against lock step.

It is not part of the package.

Both draw K leaves without replacement from the proposal q. Lock step keeps K rows of a problem at one depth. Here a
problem has one row, its current dive. A dive draws tokens as plain sampling does. Wherever it draws token a, all leaves
through the other tokens become one rest entry. Its G is a Gumbel of location phi + log m, where m is the mass of those
tokens, truncated at the dive's own G, since the argmax of Gumbels is independent of their maximum. A finished dive pops
the rest entry with the largest G, which is the next leaf's G, and draws among the tokens not yet taken there.

A rest entry keeps the rows of log q and log pi that its prefix was given, so a pop recomputes nothing. The decoded
tokens are the internal prefixes of the trie of the K leaves, the prompt excluded, each exactly once. The price is K * V
numbers per problem (2 K * V when guided) beside the slots. (Recomputing the row would cost one token more per pop.)
Leaf j stands in slot j, and a rest prefix in the slot of the dive that decoded it, which nobody overwrites.

Sources: Maddison et al. 2014 (A* sampling), Kool et al. 2019 (weights, eq. 6 of docs/algorithm.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Decoder, Rollouts, SearchStats, StepOutput
from tinyzero_astar.search.gumbel import (
    gumbel_after,
    hash_number,
    hash_with,
    inverse_cdf,
    log_inclusion,
    prefix_hashes,
    root_gumbel,
    to_uniform,
    token_bits,
    waiting_time,
)
from tinyzero_astar.search.heuristic import Guidance, inverse_beta_of, log_policy, propose, rise, tilt_of


@dataclass
class _Prefixes:
    """Prefixes and what is left to draw there. [P] are the current dives, [P, K] the rest entries."""

    priority: Tensor  # G, float64, the best perturbed leaf through the tokens not taken, -inf where no prefix
    log_q: Tensor  # phi, float64
    log_pi: Tensor  # float64
    value: Tensor  # p(s), float64
    state: Tensor  # int64 hash of seed and prefix
    slot: Tensor  # slot within the problem that holds the prefix
    length: Tensor  # generated tokens
    num_taken: Tensor  # tokens drawn here so far
    rows: Tensor  # [..., R, V] first log q(a|s), -inf where taken, last log pi(a|s), the same row if q = pi

    @staticmethod
    def empty(shape: tuple[int, ...], rows: Tensor) -> _Prefixes:
        real = torch.zeros((4, *shape), dtype=torch.float64, device=rows.device)
        index = torch.zeros((4, *shape), dtype=torch.int64, device=rows.device)
        return _Prefixes(real[0] - torch.inf, *real[1:], *index, rows.new_zeros(*shape, *rows.shape[1:]))

    def copy(self, where: tuple[Tensor, ...], source: _Prefixes, at: tuple[Tensor, ...]) -> None:
        for field in fields(self):
            getattr(self, field.name)[where] = getattr(source, field.name)[at]


class _Dives:
    """The state of one call. `receive` takes what the network says, `draw` adds one token, `pop` starts a dive."""

    def __init__(self, root: StepOutput, seeds: Tensor, num_leaves: int, max_depth: int, guidance: Guidance) -> None:
        problems, like = len(seeds), root.logits
        self.max_depth, self.cap = max_depth, guidance.cap
        self.inverse_beta = inverse_beta_of(guidance, root.value_logit)
        self.strength = torch.as_tensor(guidance.strength, dtype=like.dtype, device=like.device).expand(problems)
        self.is_guided = bool((self.strength > 0).any())
        rows = like[:, None].expand(-1, 1 + self.is_guided, -1)
        self.dive = _Prefixes.empty((problems,), rows)
        self.dive.state = hash_number(seeds.to(like.device))
        self.dive.priority = root_gumbel(self.dive.state)
        # K entries are enough. With the dive itself they are the K + 1 best, and the next pops K - 1 of them.
        self.rest = _Prefixes.empty((problems, num_leaves), rows)
        self.num_leaves = torch.zeros(problems, dtype=torch.int64, device=like.device)
        self.decoded, self.forks, self.capped, self.max_open = (self.num_leaves.clone() for _ in range(4))
        shape = (problems, num_leaves, max_depth)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=like.device)
        self.logp, self.logq, self.value = (
            torch.zeros(shape, dtype=torch.float64, device=like.device) for _ in range(3)
        )
        self.length = torch.zeros_like(self.tokens[..., 0])
        self.log_q, self.log_pi = torch.zeros_like(self.logp[..., 0]), torch.zeros_like(self.logp[..., 0])
        self.priority = torch.full_like(self.log_q, -torch.inf)

    def receive(self, problem: Tensor, output: StepOutput) -> None:
        """The dives of these problems now have everything to draw from."""
        dive = self.dive
        logp = log_policy(output)
        rows = logp[:, None]
        if self.is_guided:
            child_rise = rise(output.child_logit(logp), tilt_of(self.inverse_beta[problem, None]))
            log_weight = (dive.log_pi - dive.log_q)[problem, None].to(logp.dtype)
            strength = self.strength[problem, None]
            proposal = propose(logp, child_rise, log_weight, strength, self.cap)
            if proposal.is_held_back is not None:
                self.capped[problem] += proposal.is_held_back[:, 0]
            rows = torch.stack([proposal.logq, logp], 1)
        dive.rows[problem] = rows
        dive.value[problem] = torch.sigmoid(output.value_logit.double())
        dive.num_taken[problem] = 0

    def draw(self, problem: Tensor) -> Tensor:
        """One more token for the dives of these problems, and a rest entry each. Returns where that made a leaf."""
        dive = self.dive
        logq = dive.rows[problem, 0].double()
        _, which, when = prefix_hashes(
            dive.state[problem] ^ token_bits(-1 - dive.num_taken[problem])
        )  # tokens are >= 0
        mass = logq.exp()
        token = inverse_cdf(mass, to_uniform(which)[:, None])  # q conditioned on a token not taken
        wait = waiting_time(when) / mass.scatter(1, token, 0.0).sum(-1)  # for a token of the rest
        token = token[:, 0]
        step_logq, step_logp = (dive.rows[problem, r, token].double() for r in (0, -1))

        dive.rows[problem, 0, token] = -torch.inf
        dive.num_taken[problem] += 1
        self._keep_rest(problem, gumbel_after(dive.priority[problem], wait, dive.log_q[problem]))

        at = (problem, self.num_leaves[problem], dive.length[problem])
        for record, x in (
            (self.tokens, token),
            (self.logq, step_logq),
            (self.logp, step_logp),
            (self.value, dive.value[problem]),
        ):
            record[at] = x
        dive.log_q[problem] += step_logq
        dive.log_pi[problem] += step_logp
        dive.state[problem] = hash_with(dive.state[problem], token)
        dive.length[problem] += 1
        return token

    def path(self, problem: Tensor) -> Tensor:
        """The path of the dives of these problems, see `interfaces.Decoder.step`."""
        length = self.dive.length[problem, None]
        logp = self.logp[problem, self.num_leaves[problem]]
        logp = logp.masked_fill(torch.arange(logp.shape[1], device=logp.device) >= length, 0.0)
        return torch.stack([logp.gather(1, length - 1)[:, 0], logp.sum(1), logp.amin(1)], -1)

    def _keep_rest(self, problem: Tensor, priority: Tensor) -> None:
        """The dive's prefix without the tokens taken, in the place of the worst entry if it is better."""
        worst, column = self.rest.priority[problem].min(1)
        is_kept = priority > worst
        problem, column = problem[is_kept], column[is_kept]
        self.rest.copy((problem, column), self.dive, (problem,))
        self.rest.priority[problem, column] = priority[is_kept]
        self.max_open[problem] = torch.maximum(
            self.max_open[problem], torch.isfinite(self.rest.priority[problem]).sum(1)
        )

    def pop(self, problem: Tensor) -> Tensor:
        """Close the dives of these problems as leaves, and return the problems that have another one to make."""
        leaf = self.num_leaves[problem]
        for name in ("priority", "log_q", "log_pi", "length"):
            getattr(self, name)[problem, leaf] = getattr(self.dive, name)[problem]
        self.num_leaves[problem] += 1
        best, column = self.rest.priority[problem].max(1)
        goes_on = torch.isfinite(best) & (leaf + 1 < self.length.shape[1])
        problem, column, leaf = problem[goes_on], column[goes_on], leaf[goes_on] + 1
        self.dive.copy((problem,), self.rest, (problem, column))
        self.rest.priority[problem, column] = -torch.inf
        slot = self.dive.slot[problem]
        for record in (self.tokens, self.logp, self.logq, self.value):
            record[problem, leaf] = record[problem, slot]  # what lies beyond the prefix is drawn anew
        return problem


def dive_rollouts(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Tensor,
    num_rollouts: int,
    max_search_depth: int,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
) -> Rollouts:
    """The same law as `astar_rollouts` with mode "gumbel" (other noise, so not the same leaves)."""
    output = decoder.start(prompts, torch.arange(len(prompts)).repeat_interleave(num_rollouts))
    search = _Dives(output, seeds, num_rollouts, max_search_depth, guidance)
    dive = search.dive
    problem = torch.arange(len(prompts), device=output.logits.device)
    ends = torch.tensor(decoder.eos_ids, device=problem.device)
    while len(problem):
        search.receive(problem, output)
        extended = []
        while len(problem):  # a popped prefix has its row already, so its dive loses no step
            token = search.draw(problem)
            is_leaf = torch.isin(token, ends) | (dive.length[problem] == max_search_depth)
            extended.append((problem[~is_leaf], token[~is_leaf]))
            problem = search.pop(problem[is_leaf])
        problem, token = (torch.cat(x) for x in zip(*extended, strict=True))
        if len(problem):
            slot, target = dive.slot[problem], search.num_leaves[problem]
            search.decoded[problem] += 1
            search.forks[problem] += slot != target
            base = problem * num_rollouts
            length, path = dive.length[problem], search.path(problem)
            output = decoder.step(token, base + slot, length - 1, base + target, path)
            dive.slot[problem] = target
    return _read_leaves(search, ends)


def _read_leaves(search: _Dives, ends: Tensor) -> Rollouts:
    longest = int(search.length.max())
    is_token = torch.arange(longest, device=search.length.device) < search.length[..., None]
    tokens = torch.where(is_token, search.tokens[..., :longest], ends[0])
    last = tokens.gather(-1, (search.length - 1).clamp(min=0)[..., None])[..., 0]
    logp, logq, value = (torch.where(is_token, x[..., :longest], 0.0) for x in (search.logp, search.logq, search.value))
    kappa = search.rest.priority.amax(1)  # the largest G left, which is the (K+1)-th largest of all
    weight = torch.exp(search.log_pi - log_inclusion(search.log_q, kappa[:, None]))
    is_leaf = search.length > 0
    stats = SearchStats(
        num_expanded=search.decoded + 1,
        num_forks=search.forks,
        num_decoded_tokens=search.decoded,
        max_open=search.max_open,
        num_open_final=torch.isfinite(search.rest.priority).sum(1),
        num_pruned=torch.zeros_like(search.decoded),  # entries beyond the K best are not needed
        num_capped=search.capped,
    )
    return Rollouts(
        tokens=tokens,
        length=search.length,
        is_finished=is_leaf & torch.isin(last, ends),
        logp=logp,
        logq=logq,
        value=value,
        baseline=torch.zeros_like(value),
        child_value=torch.zeros_like(value),
        priority=search.priority,
        kappa=kappa,
        weight=torch.where(is_leaf, weight, 0.0),
        stats=stats,
    )
