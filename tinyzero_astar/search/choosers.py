"""Which K rows per group the next step of a lock-step search keeps, in the modes "sample" and "gumbel".

In "gumbel" every prefix carries G, the maximum of the Gumbel-perturbed log q over its leaves. So the K best prefixes of
each depth are all that the K best leaves need (Kool et al. 2019), and a prefix that was left out never comes back. The
largest such G is kappa, the threshold of the weights. Equation numbers are those of docs/algorithm.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tinyzero_astar.interfaces import StepOutput
from tinyzero_astar.search.beam import NO_TOKEN, Beam, Choice
from tinyzero_astar.search.best_child import Guide
from tinyzero_astar.search.children import Children, Further, FusedChildren, WholeChildren
from tinyzero_astar.search.gumbel import inverse_cdf, log_inclusion, to_uniform, token_counters
from tinyzero_astar.search.heuristic import Guidance, Proposal, Tilt, inverse_beta_of, propose, rise, tilt_of
from tinyzero_astar.search.roots import Roots
from tinyzero_astar.search.vocabulary import best_child


class Drawn(NamedTuple):
    """A token for every row, and what the host must know before it counts."""

    choice: Choice  # every row's own best child
    is_finite: Tensor  # [N] whether all that the network says of the row's children is a number
    is_close: Tensor  # [N] whether further children of the row matter
    children: Children | None  # of the rows, None where further ones never matter


class Chooser(Protocol):
    """Which K rows the next step keeps, and what it must remember of the steps so far."""

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        """The next rows, given log pi of every evaluated prefix [N, V]."""
        ...

    def draw(self, beam: Beam, output: StepOutput) -> Drawn:
        """The same for a beam `with_all` rows, without waiting for a result, so that it can be recorded."""
        ...

    def replace_worst(self, choice: Choice, beam: Beam, children: Children, close: Tensor) -> Choice:
        """The next rows where further children of some prefixes `close` [M] matter, without waiting for a result."""
        ...

    @property
    def state(self) -> list[Tensor]:
        """What `draw` writes."""
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
            if logp.is_cuda:  # one copy of the logits for each stream, and no other tensor of that size
                first = output._replace(logits=output.logits[beam.row.flatten()])
                return self.draw(beam, first).choice
            logp = logp[beam.row.flatten()]
        if self.noise:
            drawn = inverse_cdf(logp.exp(), beam.at_open(self.uniform(beam))[:, None])
        else:
            drawn = logp.argmax(-1, keepdim=True)
        return self._choice(beam, drawn[:, 0], logp.gather(1, drawn)[:, 0].double())

    def draw(self, beam: Beam, output: StepOutput) -> Drawn:
        """See `Chooser.draw`."""
        drawn = best_child(output.logits, beam.at_open(self.uniform(beam)), None)
        token, logp = drawn.token, drawn.logp
        if not self.noise:
            logit, token = output.logits.max(-1)
            logp = (logit - drawn.log_total).double()
        nowhere = torch.zeros_like(drawn.is_finite)
        return Drawn(self._choice(beam, token, logp), drawn.is_finite, nowhere, None)

    def replace_worst(self, choice: Choice, beam: Beam, children: Children, close: Tensor) -> Choice:
        """Nothing is replaced, because rows do not compete."""
        return choice

    @property
    def state(self) -> list[Tensor]:
        """See `Chooser.state`."""
        return []

    def _choice(self, beam: Beam, token: Tensor, logp: Tensor) -> Choice:
        """Of tokens [N] with log pi [N]."""
        step_logp = beam.spread(logp, 0.0)
        return Choice(None, beam.spread(token, NO_TOKEN), beam.priority + step_logp, step_logp, step_logp)

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
    num_capped: Tensor  # [P] prefixes at which the guidance was held back

    @staticmethod
    def of(guidance: Guidance, root: StepOutput) -> _Guide | None:
        """None where no problem is guided at all."""
        problems, like = len(root.value_logit), root.logits
        strength = torch.as_tensor(guidance.strength, dtype=like.dtype, device=like.device).expand(problems)
        if not bool((strength > 0).any()):
            return None
        tilt = tilt_of(inverse_beta_of(guidance, root.value_logit))
        return _Guide(
            strength_and_tilt=torch.stack([x.to(strength.dtype) for x in (strength, *tilt)])[..., None],
            cap=guidance.cap,
            num_capped=torch.zeros(problems, dtype=torch.int64, device=like.device),
        )

    def propose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Proposal:
        """q at the open rows."""
        strength, tilt, log_weight = self._at(beam, logp)
        proposal = propose(logp, rise(output.child_logit(logp), tilt), log_weight, strength, self.cap)
        if proposal.is_held_back is not None:
            self.count(beam, proposal.is_held_back[:, 0])
        return proposal

    def fused(self, beam: Beam, output: StepOutput) -> Guide:
        """What `vocabulary.best_child` needs at the rows."""
        assert output.child_terms is not None
        strength, tilt, log_weight = self._at(beam, output.logits)
        own = Tilt(*(x[:, 0] for x in tilt))
        return Guide(output.child_terms(), own, strength[:, 0], log_weight[:, 0], self.cap)

    def count(self, beam: Beam, is_held_back: Tensor) -> None:
        """Note at which of the open rows [N] the guidance was held back."""
        self.num_capped.index_add_(0, beam.problem, is_held_back.long())

    def _at(self, beam: Beam, like: Tensor) -> tuple[Tensor, Tilt, Tensor]:
        """Strength, tilt and log of the running weight at the open rows, [N, 1] each."""
        strength, *tilt = self.strength_and_tilt.index_select(1, beam.problem)
        return strength, Tilt(*tilt), beam.at_open(beam.log_pi - beam.log_q).to(like.dtype)[:, None]


@dataclass
class WithoutReplacement:
    """The K prefixes of each group with the largest Gumbel-perturbed f. It remembers kappa, the best one left out."""

    guide: _Guide | None  # None means that q is the policy
    counters: Tensor  # [V] see `gumbel.token_counters`
    none_capped: Tensor  # zeros, of each chosen problem
    worst: Tensor  # [G] the least G of the beam's rows, which changes only when rows are replaced
    kappa: Tensor  # [G] the largest G that was left out so far

    @staticmethod
    def begin(root: StepOutput, roots: Roots, per_problem: float, guidance: Guidance) -> WithoutReplacement:
        """Open only the rows with a prompt of their own. See `LockStep`."""
        worst = roots.priority.amin(1)
        return WithoutReplacement(
            guide=_Guide.of(guidance, root),
            counters=token_counters(root.logits.shape[1], root.logits.device),
            none_capped=torch.zeros_like(roots.chosen),
            worst=worst,
            kappa=torch.full_like(worst, -torch.inf) if roots.left_out is None else roots.left_out.clone(),
        )

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        """The best child of a prefix has its G and takes its row, unless others' further children push it out.

        This is rare. Where the policy is nearly certain, further children are far behind. So the further children of a
        prefix are first drawn as one, and one by one only where their best is better than the worst of the K rows.
        """
        twist = None if self.guide is None else self.guide.propose(beam, output, logp)
        children = WholeChildren.drawn(beam, logp, twist)
        close = self._leave_out(beam, children).nonzero()[:, 0]
        choice = children.choice(beam)
        return choice if len(close) == 0 else self.replace_worst(choice, beam, children, close)

    def draw(self, beam: Beam, output: StepOutput) -> Drawn:
        """See `Chooser.draw`."""
        guide = None if self.guide is None else self.guide.fused(beam, output)
        children = FusedChildren.drawn(beam, output.logits, guide)
        if self.guide is not None:
            self.guide.count(beam, children.best.is_held_back & beam.at_open(beam.is_open))
        return Drawn(children.choice(beam), children.best.is_finite, self._leave_out(beam, children), children)

    def _leave_out(self, beam: Beam, children: Children) -> Tensor:
        """[N] whether further children must be drawn one by one. Elsewhere the best of them is left out."""
        second = children.second
        is_close = second > torch.take(self.worst, beam.group)
        self.kappa.scatter_reduce_(0, beam.group, second.masked_fill(is_close, -torch.inf), "amax")
        return is_close

    def replace_worst(self, choice: Choice, beam: Beam, children: Children, close: Tensor) -> Choice:
        """Replace the worst of the rows by the best of the further children, and so on.

        K of them are enough. A child is never better than the row of its prefix, so not all rows are replaced.

        Args:
            choice: the best child of every row.
            beam: before this step.
            children: of the open rows.
            close: [M] the open rows whose further children matter. Others among them do no harm.
        """
        num_rows = beam.row.shape[1]
        further = Further.drawn(beam, children, close, self.counters)
        best, entry = further.priority.topk(num_rows)
        worst, column = beam.priority.topk(num_rows, largest=False)
        self.kappa.copy_(torch.maximum(self.kappa, torch.minimum(best, worst).amax(1)))
        self.worst.copy_(torch.maximum(best, worst).amin(1))

        source, token = further.source_and_token(beam.grid, entry)
        logp, logq = children.log_probabilities(torch.take(beam.row, source).flatten(), token.flatten())
        is_better = best > worst

        def put(x: Tensor, values: Tensor) -> Tensor:
            values = torch.where(is_better, values.view_as(x), x.gather(1, column))
            return x.scatter(1, column, values)  # `column` has every row of a group once

        return Choice(
            parent=put(beam.grid.place, source),
            token=put(choice.token, token),
            priority=put(choice.priority, best),
            logp=put(choice.logp, logp),
            logq=put(choice.logq, logq),
        )

    def weight(self, beam: Beam) -> tuple[Tensor, Tensor]:
        """See `Chooser.weight` (eq. 6)."""
        weight = torch.exp(beam.log_pi - log_inclusion(beam.log_q, self.kappa[:, None]))
        return self.kappa, torch.where(torch.isneginf(beam.priority), 0.0, weight)

    def count_capped(self) -> Tensor:
        """See `Chooser.count_capped`."""
        return self.none_capped if self.guide is None else self.guide.num_capped

    @property
    def state(self) -> list[Tensor]:
        """See `Chooser.state`."""
        return [self.worst, self.kappa, *([] if self.guide is None else [self.guide.num_capped])]
