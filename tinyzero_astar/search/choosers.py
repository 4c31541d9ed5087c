"""Which K rows per problem the next step of a lock-step search keeps: those of "sample" and those of "gumbel".

In "gumbel" every prefix carries G, the maximum of the Gumbel-perturbed log q over its leaves, so the K best prefixes of
each depth are all that the K best leaves need (Kool et al. 2019), and a prefix once left out never comes back: the
largest such G is kappa, the threshold of the weights. Equation numbers are those of docs/algorithm.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tinyzero_astar.interfaces import StepOutput
from tinyzero_astar.search.gumbel import (
    counters,
    exponential,
    exponentials,
    gumbel_after,
    hash_token,
    hashes,
    inverse_cdf,
    log_inclusion,
    mix64,
    root_gumbel,
    to_uniform,
)
from tinyzero_astar.search.heuristic import Guidance, Proposal, Tilt, inverse_beta_of, propose, rise, tilt_of

NO_TOKEN = -1  # a row that adds nothing at this step: a finished leaf, or no leaf at all


@dataclass(frozen=True)
class Beam:
    """K rows per problem; [P, K] each, but for `places` and `problem`."""

    priority: Tensor  # float64; -inf where there is no prefix
    log_q: Tensor  # float64, phi of the prefix
    log_pi: Tensor  # float64, g of the prefix
    state: Tensor  # [3, P, K] int64 hashes of seed and prefix: of itself, and for what is drawn at it
    row: Tensor  # int64, row of the latest StepOutput that evaluated the prefix
    is_open: Tensor  # True where the prefix can be extended
    places: Tensor  # [N] of the open rows in the flattened beam; the decoder is asked for them in this order
    problem: Tensor  # [N] of the open rows


class Choice(NamedTuple):
    """The next K rows of every problem; [P, K] each."""

    parent: Tensor | None  # place in the flattened beam of what each new row extends or carries on; None: its own
    token: Tensor  # that it adds, or NO_TOKEN
    priority: Tensor
    logp: Tensor
    logq: Tensor


class Chooser(Protocol):
    """Which K rows the next step keeps."""

    def begin(self, root: StepOutput) -> Beam:
        """The beam that holds the prompts only."""
        ...

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        """The next rows, given log pi of every evaluated prefix [N, V]."""
        ...

    def weight(self, beam: Beam) -> tuple[Tensor, Tensor]:
        """kappa [P] and the leaves' weights [P, K]."""
        ...

    def count_capped(self) -> Tensor:
        """[P] see `SearchStats.num_capped`."""
        ...


class _Children(NamedTuple):
    """What is known of the children of N prefixes once the best of each is drawn."""

    logp: Tensor  # [N, V]
    twist: Proposal | None  # None: q is the policy. Its mass is `others` by now
    others: Tensor  # [N, V] q(a|s) up to a factor of the prefix; 0 at the best child
    log_rate: Tensor  # [N] phi of the prefix, less the log of that factor
    second: Tensor  # [N] the largest G of the others


class Sampling:
    """Independent draws from the policy (or its likeliest token, without noise)."""

    def __init__(self, seeds: Tensor, num_rollouts: int, noise: bool = True) -> None:
        self._seeds, self._num_rollouts, self._noise = seeds, num_rollouts, noise

    def begin(self, root: StepOutput) -> Beam:
        device, shape = root.logits.device, (len(self._seeds), self._num_rollouts)
        self._none_capped = torch.zeros(shape[0], dtype=torch.int64, device=device)
        stream = torch.arange(self._num_rollouts, device=device)[None]
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        every = torch.arange(shape[0], device=device)
        return Beam(
            priority=zero,
            log_q=zero,
            log_pi=zero,
            state=hashes(mix64(self._seeds.to(device))[:, None] ^ hash_token(stream)),
            row=every[:, None].expand(shape),
            is_open=torch.ones(shape, dtype=torch.bool, device=device),
            places=torch.arange(zero.numel(), device=device),
            problem=every.repeat_interleave(self._num_rollouts),
        )

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        if len(logp) != len(beam.places):  # at first all streams share the prompt's row
            logp = logp[beam.row.flatten()]
        if self._noise:
            drawn = inverse_cdf(logp.exp(), to_uniform(torch.take(beam.state[1], beam.places)[:, None]))
        else:
            drawn = logp.argmax(-1, keepdim=True)
        step_logp = _at_places(logp.gather(1, drawn)[:, 0].double(), beam, 0.0)
        token = _at_places(drawn[:, 0], beam, NO_TOKEN)
        return Choice(None, token, beam.priority + step_logp, step_logp, step_logp)

    def weight(self, beam: Beam) -> tuple[Tensor, Tensor]:
        kappa = torch.full_like(beam.log_pi[:, 0], -torch.inf)
        return kappa, torch.full_like(beam.log_pi, 1.0 / self._num_rollouts)

    def count_capped(self) -> Tensor:
        return self._none_capped


class WithoutReplacement:
    """The K prefixes with the largest Gumbel-perturbed f; remembers the best one left out, kappa."""

    def __init__(self, seeds: Tensor, num_rollouts: int, guidance: Guidance) -> None:
        self._seeds, self._num_rollouts, self._guidance = seeds, num_rollouts, guidance

    def begin(self, root: StepOutput) -> Beam:
        device, problems = root.logits.device, len(self._seeds)
        shape = (problems, self._num_rollouts)
        strength = torch.as_tensor(self._guidance.strength, dtype=root.logits.dtype, device=device).expand(problems)
        tilt = tilt_of(inverse_beta_of(self._guidance, root.value_logit))
        rows = [x.to(strength.dtype) for x in (strength, *tilt)]
        self._strength_and_tilt = torch.stack(rows)[..., None]  # [4, P, 1], to be looked up at once
        self._is_guided = bool((strength > 0).any())
        self._capped: list[tuple[Tensor, Tensor]] = []  # of every step: [N] problems, [N] whether their guidance was
        self._left_out: list[tuple[Tensor, Tensor]] = []  # of every step: problems and the G of what they left out
        state = hashes(self._seeds.to(device)[:, None].repeat(1, shape[1]))
        priority = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        priority[:, 0] = root_gumbel(state[0, :, 0])  # G(x) = 0 would bias eq. 6
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        is_open = torch.isfinite(priority)
        self._every = torch.arange(problems, device=device)
        self._own = torch.arange(priority.numel(), device=device).view_as(priority)  # every row's own place
        self._first = self._own[:, :1]  # [P, 1] place of a problem's first row
        self._counter = counters(root.logits.shape[1], device)
        self._worst = priority.amin(1)  # [P] of the beam's rows; changes only when rows are replaced
        row = self._every[:, None].expand(shape)
        return Beam(priority, zero, zero, state, row, is_open, self._first[:, 0], self._every)

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        """The best child of a prefix has its G and takes its row, unless others' further children push it out.

        They rarely do: where the policy hardly doubts they are far behind. So the further children of a prefix are
        drawn as one at first, and one by one only where their best is better than the worst of the K rows.
        """
        places, problem = beam.places, beam.problem
        log_rate = torch.take(beam.log_q, places)
        twist = self._propose(beam, output, logp) if self._is_guided else None
        if twist is None:
            mass = logp.exp()
        else:
            mass, log_rate = twist.mass, log_rate - twist.log_norm[:, 0]
        which, when = (torch.take(x, places) for x in beam.state[1:])
        token = inverse_cdf(mass, to_uniform(which)[:, None])
        others = mass.scatter_(1, token, 0.0)
        wait = exponential(when).div_(others.sum(-1))
        second = gumbel_after(torch.take(beam.priority, places), wait, log_rate)
        children = _Children(logp, twist, others, log_rate, second)

        step_logp = step_logq = _at_places(logp.gather(1, token)[:, 0].double(), beam, 0.0)
        if twist is not None:
            step_logq = _at_places((twist.score.gather(1, token) - twist.log_norm)[:, 0].double(), beam, 0.0)
        tokens = _at_places(token[:, 0], beam, NO_TOKEN)
        choice = Choice(None, tokens, beam.priority, step_logp, step_logq)
        is_close = second > torch.take(self._worst, problem)
        close = is_close.nonzero()[:, 0]
        if len(close) == 0:
            self._left_out.append((problem, second))
            return choice
        self._left_out.append((problem, second.masked_fill(is_close, -torch.inf)))
        return self._replace_worst(choice, beam, children, close)

    def _replace_worst(self, choice: Choice, beam: Beam, children: _Children, close: Tensor) -> Choice:
        """The choice with worse rows replaced by the further children of the `close` prefixes, one by one."""
        num_problems, num_columns = beam.row.shape
        places, others, log_rate, bound = (
            x.index_select(0, close) for x in (beam.places, children.others, children.log_rate, children.second)
        )
        vocab_size = others.shape[1]
        arrival, token = (
            exponentials(torch.take(beam.state[0], places), self._counter)
            .div_(others)
            .topk(min(num_columns, vocab_size), largest=False)  # no more can be chosen, or be the best one left out
        )
        g = gumbel_after(bound[:, None], arrival - arrival[:, :1], log_rate[:, None])
        shape = beam.row.numel(), token.shape[1]
        pool = g.new_full(shape, -torch.inf).index_copy_(0, places, g).view(num_problems, -1)
        tokens = token.new_empty(shape).index_copy_(0, places, token)  # where G is -inf nobody looks
        # the best of them for the worst of the rows, and so on; K of them are enough, as a child is never better than
        # the row of its prefix, so that not all rows are replaced
        best, entry = pool.topk(num_columns)
        worst, column = beam.priority.topk(num_columns, largest=False)
        self._left_out.append((self._every, torch.minimum(best, worst).amax(1)))
        self._worst = torch.maximum(best, worst).amin(1)

        swaps = (best > worst).flatten().nonzero()[:, 0]
        target = torch.take(self._first + column, swaps)
        entry = torch.take(torch.add(entry, self._first, alpha=shape[1]), swaps)
        source = entry.div(shape[1], rounding_mode="floor")
        row, chosen = torch.take(beam.row, source), torch.take(tokens, entry)
        at = torch.add(chosen, row, alpha=vocab_size)

        def put(x: Tensor, values: Tensor) -> Tensor:
            return x.flatten().index_copy(0, target, values).view_as(x)

        step_logp = step_logq = put(choice.logp, torch.take(children.logp, at).double())
        if children.twist is not None:
            logq = torch.take(children.twist.score, at) - torch.take(children.twist.log_norm, row)
            step_logq = put(choice.logq, logq.double())
        return Choice(
            parent=put(self._own, source),
            token=put(choice.token, chosen),
            priority=put(choice.priority, torch.take(best, swaps)),
            logp=step_logp,
            logq=step_logq,
        )

    def _propose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Proposal:
        strength, *tilt = self._strength_and_tilt.index_select(1, beam.problem)  # [N, 1] each
        log_weight = torch.take(beam.log_pi - beam.log_q, beam.places).to(logp.dtype)[:, None]
        child_rise = rise(output.child_logit(), Tilt(*tilt))
        proposal = propose(logp, child_rise, log_weight, strength, self._guidance.cap)
        if proposal.tau is not strength:  # else nothing was held back
            self._capped.append((beam.problem, proposal.tau < strength))
        return proposal

    def count_capped(self) -> Tensor:
        count = torch.zeros_like(self._every)
        for problem, is_capped in self._capped:
            count.index_add_(0, problem, is_capped[:, 0].long())
        return count

    def weight(self, beam: Beam) -> tuple[Tensor, Tensor]:
        problem, left_out = (torch.cat(x) for x in zip(*self._left_out, strict=True))
        kappa = beam.priority.new_full((len(self._every),), -torch.inf).scatter_reduce_(0, problem, left_out, "amax")
        weight = torch.exp(beam.log_pi - log_inclusion(beam.log_q, kappa[:, None]))
        return kappa, torch.where(torch.isneginf(beam.priority), 0.0, weight)


def _at_places(values: Tensor, beam: Beam, elsewhere: float) -> Tensor:
    """[P, K] of values [N] of the open rows, and one number at the others."""
    return values.new_full(beam.row.shape, elsewhere).flatten().index_copy_(0, beam.places, values).view_as(beam.row)
