"""Which K rows per group the next step of a lock-step search keeps, in the modes "sample" and "gumbel".

In "gumbel" every prefix carries G, the maximum of the Gumbel-perturbed log q over its leaves. So the K best prefixes of
each depth are all that the K best leaves need (Kool et al. 2019), and a prefix that was left out never comes back. The
largest such G is kappa, the threshold of the weights. Equation numbers are those of docs/algorithm.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tinyzero_astar.interfaces import StepOutput
from tinyzero_astar.search.beam import NO_TOKEN, Beam, Choice
from tinyzero_astar.search.children import Children, Further
from tinyzero_astar.search.gumbel import inverse_cdf, log_inclusion, to_uniform, token_counters
from tinyzero_astar.search.heuristic import Guidance, Proposal, Tilt, inverse_beta_of, propose, rise, tilt_of
from tinyzero_astar.search.roots import Roots


class Chooser(Protocol):
    """Which K rows the next step keeps, and what it must remember of the steps so far."""

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        """The next rows, given log pi of every evaluated prefix [N, V]."""
        ...

    def weight(self, beam: Beam) -> tuple[Tensor, Tensor]:
        """kappa [G] and the leaves' weights [G, K]."""
        ...

    def count_capped(self) -> Tensor:
        """The counts of each chosen problem, see `SearchStats.num_capped`."""
        ...


class LockStep(NamedTuple):
    """What a mode of the search in lock step consists of."""

    roots: Callable[[Tensor, int, int, Tensor | None], Roots]
    """Where the rows begin, given the problems' seeds [P], M problems and K rows of a group, and a tilt or none."""
    begin: Callable[[StepOutput, Roots, float, Guidance], Chooser]
    """What chooses, given what the network says of the prompts, the roots, rows of a problem on average, guidance."""


@dataclass(frozen=True)
class Sampling:
    """Independent draws from the policy (or its likeliest token, without noise)."""

    noise: bool
    per_problem: float  # rows of a problem, on average
    num_capped: Tensor  # zeros, because nothing is guided

    @staticmethod
    def begin(
        root: StepOutput, roots: Roots, per_problem: float, guidance: Guidance, *, noise: bool = True
    ) -> Sampling:
        """Start all rows at a prompt, each with a stream of its own and without guidance. See `LockStep`."""
        return Sampling(noise, per_problem, torch.zeros_like(roots.chosen))

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        """See `Chooser.choose`."""
        if len(logp) != len(beam.places):  # at first all streams share the prompt's row
            logp = logp[beam.row.flatten()]
        if self.noise:
            drawn = inverse_cdf(logp.exp(), beam.at_open(self.uniform(beam))[:, None])
        else:
            drawn = logp.argmax(-1, keepdim=True)
        step_logp = beam.spread(logp.gather(1, drawn)[:, 0].double(), 0.0)
        token = beam.spread(drawn[:, 0], NO_TOKEN)
        return Choice(None, token, beam.priority + step_logp, step_logp, step_logp)

    def uniform(self, beam: Beam) -> Tensor:
        """[G, K] the number between 0 and 1 that decides each row's next token."""
        return to_uniform(beam.hashes[1])

    def weight(self, beam: Beam) -> tuple[Tensor, Tensor]:
        """See `Chooser.weight`."""
        kappa = torch.full_like(beam.log_pi[:, 0], -torch.inf)
        return kappa, torch.full_like(beam.log_pi, 1.0 / self.per_problem)

    def count_capped(self) -> Tensor:
        """See `Chooser.count_capped`."""
        return self.num_capped


@dataclass
class _Guide:
    """The guidance of every chosen problem, and where its budget held it back."""

    strength_and_tilt: Tensor  # [4, P, 1], to be looked up at once
    cap: float | None
    capped: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # [N] problems, [N, 1] if held back

    @staticmethod
    def of(guidance: Guidance, root: StepOutput) -> _Guide | None:
        """None where no problem is guided at all."""
        problems, like = len(root.value_logit), root.logits
        strength = torch.as_tensor(guidance.strength, dtype=like.dtype, device=like.device).expand(problems)
        if not bool((strength > 0).any()):
            return None
        tilt = tilt_of(inverse_beta_of(guidance, root.value_logit))
        return _Guide(torch.stack([x.to(strength.dtype) for x in (strength, *tilt)])[..., None], guidance.cap)

    def propose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Proposal:
        """q at the open rows."""
        strength, *tilt = self.strength_and_tilt.index_select(1, beam.problem)  # [N, 1] each
        log_weight = beam.at_open(beam.log_pi - beam.log_q).to(logp.dtype)[:, None]
        child_rise = rise(output.child_logit(logp), Tilt(*tilt))
        proposal = propose(logp, child_rise, log_weight, strength, self.cap)
        if proposal.is_held_back is not None:
            self.capped.append((beam.problem, proposal.is_held_back))
        return proposal

    def count_capped(self) -> Tensor:
        """[P] prefixes at which the guidance was held back."""
        count = torch.zeros(self.strength_and_tilt.shape[1], dtype=torch.int64, device=self.strength_and_tilt.device)
        for problem, is_held_back in self.capped:
            count.index_add_(0, problem, is_held_back[:, 0].long())
        return count


@dataclass
class WithoutReplacement:
    """The K prefixes of each group with the largest Gumbel-perturbed f. It remembers kappa, the best one left out."""

    guide: _Guide | None  # None means that q is the policy
    counters: Tensor  # [V] see `gumbel.token_counters`
    none_capped: Tensor  # zeros, of each chosen problem
    worst: Tensor  # [G] the least G of the beam's rows, which changes only when rows are replaced
    left_out: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # per step, groups and a G that each left out

    @staticmethod
    def begin(root: StepOutput, roots: Roots, per_problem: float, guidance: Guidance) -> WithoutReplacement:
        """Open only the rows with a prompt of their own. See `LockStep`."""
        return WithoutReplacement(
            guide=_Guide.of(guidance, root),
            counters=token_counters(root.logits.shape[1], root.logits.device),
            none_capped=torch.zeros_like(roots.chosen),
            worst=roots.priority.amin(1),
            left_out=[] if roots.left_out is None else [(roots.grid.group, roots.left_out)],
        )

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        """The best child of a prefix has its G and takes its row, unless others' further children push it out.

        This is rare. Where the policy is nearly certain, further children are far behind. So the further children of a
        prefix are first drawn as one, and one by one only where their best is better than the worst of the K rows.
        """
        twist = None if self.guide is None else self.guide.propose(beam, output, logp)
        children = Children.drawn(beam, logp, twist)
        choice, second = children.choice(beam), children.second
        is_close = second > torch.take(self.worst, beam.group)
        close = is_close.nonzero()[:, 0]
        if len(close) == 0:
            self.left_out.append((beam.group, second))
            return choice
        self.left_out.append((beam.group, second.masked_fill(is_close, -torch.inf)))
        return self._replace_worst(choice, beam, children, Further.drawn(beam, children, close, self.counters))

    def _replace_worst(self, choice: Choice, beam: Beam, children: Children, further: Further) -> Choice:
        """Replace the worst of the rows by the best of the further children, and so on.

        K of them are enough. A child is never better than the row of its prefix, so not all rows are replaced.
        """
        num_rows = beam.row.shape[1]
        best, entry = further.priority.topk(num_rows)
        worst, column = beam.priority.topk(num_rows, largest=False)
        self.left_out.append((beam.grid.group, torch.minimum(best, worst).amax(1)))
        self.worst = torch.maximum(best, worst).amin(1)

        chosen = (best > worst).flatten().nonzero()[:, 0]
        target = torch.take(beam.grid.first + column, chosen)
        source, token = further.source_and_token(beam.grid, entry, chosen)
        logp, logq = children.log_probabilities(torch.take(beam.row, source), token)

        def put(x: Tensor, values: Tensor) -> Tensor:
            return x.flatten().index_copy(0, target, values).view_as(x)

        return Choice(
            parent=put(beam.grid.place, source),
            token=put(choice.token, token),
            priority=put(choice.priority, torch.take(best, chosen)),
            logp=put(choice.logp, logp),
            logq=put(choice.logq, logq),
        )

    def weight(self, beam: Beam) -> tuple[Tensor, Tensor]:
        """See `Chooser.weight` (eq. 6)."""
        group, left_out = (torch.cat(x) for x in zip(*self.left_out, strict=True))
        nothing = torch.full_like(self.worst, -torch.inf)
        kappa = nothing.scatter_reduce_(0, group, left_out, "amax")
        weight = torch.exp(beam.log_pi - log_inclusion(beam.log_q, kappa[:, None]))
        return kappa, torch.where(torch.isneginf(beam.priority), 0.0, weight)

    def count_capped(self) -> Tensor:
        """See `Chooser.count_capped`."""
        if self.guide is None:
            return self.none_capped
        return self.guide.count_capped()
