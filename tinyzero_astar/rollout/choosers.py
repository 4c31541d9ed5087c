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
from torch.nn.functional import pad

from tinyzero_astar.interfaces import StepOutput
from tinyzero_astar.rollout.gumbel import fold, gumbel_noise, log_inclusion, mix64, root_gumbel, truncated_gumbel
from tinyzero_astar.rollout.heuristic import Guidance, Tilt, inverse_beta_of, propose, rise, tilt_of

NO_TOKEN = -1  # a row that adds nothing at this step: a finished leaf, or no leaf at all


@dataclass(frozen=True)
class Beam:
    """K rows per problem; [P, K] each, but for `places` and `problem`."""

    priority: Tensor  # float64; -inf where there is no prefix
    log_q: Tensor  # float64, phi of the prefix
    log_pi: Tensor  # float64, g of the prefix
    state: Tensor  # int64 hash of seed and prefix
    slot: Tensor  # int64, decoder slot within the problem
    row: Tensor  # int64, row of the latest StepOutput that evaluated the prefix
    is_open: Tensor  # True where the prefix can be extended
    places: Tensor  # [N] of the open rows in the flattened beam; the decoder is asked for them in this order
    problem: Tensor  # [N] of the open rows


class Choice(NamedTuple):
    """The next K rows of every problem; [P, K] each."""

    parent: Tensor | None  # row of the beam that each new row extends or carries on; None: its own
    is_extended: Tensor  # True where it adds a token
    token: Tensor  # that token, else NO_TOKEN
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


class Sampling:
    """Independent draws by the Gumbel-max trick (or the mode itself, without noise)."""

    def __init__(self, seeds: Tensor, num_rollouts: int, noise: bool = True) -> None:
        self._seeds, self._num_rollouts, self._noise = seeds, num_rollouts, noise

    def begin(self, root: StepOutput) -> Beam:
        device, shape = root.logits.device, (len(self._seeds), self._num_rollouts)
        self._none_capped = torch.zeros(shape[0], dtype=torch.int64, device=device)
        stream = torch.arange(self._num_rollouts, device=device)[None]
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        index = torch.zeros(shape, dtype=torch.int64, device=device)
        return Beam(
            priority=zero,
            log_q=zero,
            log_pi=zero,
            state=fold(mix64(self._seeds.to(device))[:, None], stream),
            slot=index,
            row=index + torch.arange(len(self._seeds), device=device)[:, None],
            is_open=torch.ones(shape, dtype=torch.bool, device=device),
            places=torch.arange(index.numel(), device=device),
            problem=torch.arange(len(self._seeds), device=device).repeat_interleave(self._num_rollouts),
        )

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        parent = None
        if len(logp) != len(beam.places):  # at first all streams share the prompt's row, and its slot
            logp = logp[beam.row.flatten()]
            parent = torch.arange(self._num_rollouts, device=logp.device).expand_as(beam.row)
        perturbed = logp
        if self._noise:
            perturbed = gumbel_noise(torch.take(beam.state, beam.places), logp.shape[-1], logp.dtype).add_(logp)
        drawn = perturbed.argmax(-1)
        step_logp = _at_places(logp.gather(1, drawn[:, None])[:, 0].double(), beam, 0.0)
        token = _at_places(drawn, beam, NO_TOKEN)
        return Choice(parent, beam.is_open, token, beam.priority + step_logp, step_logp, step_logp)

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
        self._widths = _widths(self._num_rollouts, root.logits.shape[1], device)
        self._left_out: list[tuple[Tensor, Tensor]] = []  # of every step: problems and the G of what they left out
        state = mix64(self._seeds.to(device))[:, None].repeat(1, shape[1])
        priority = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        priority[:, 0] = root_gumbel(state[:, 0])  # G(x) = 0 would bias eq. 6
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        index = torch.zeros(shape, dtype=torch.int64, device=device)
        row = index + torch.arange(problems, device=device)[:, None]
        is_open = torch.isfinite(priority)
        self._every = torch.arange(problems, device=device)
        return Beam(priority, zero, zero, state, index, row, is_open, self._every * shape[1], self._every)

    def choose(self, beam: Beam, output: StepOutput, logp: Tensor) -> Choice:
        """The best child of a prefix has its G and takes its place, unless others' second children push it out.

        They rarely do: where the policy hardly doubts they are far behind. Only where one is better than the worst of
        the K rows are further children looked at, and only those of its prefix.
        """
        logq = self._log_proposal(beam, output, logp) if self._is_guided else logp
        places, problem = beam.places, beam.problem
        perturbed = gumbel_noise(torch.take(beam.state, places), logp.shape[-1], logp.dtype).add_(logq)
        phi, bound = torch.take(beam.log_q, places), torch.take(beam.priority, places)
        best, token = perturbed.max(-1, keepdim=True)
        others = perturbed.scatter_(1, token, -torch.inf)
        best = best[:, 0].double().add_(phi)
        second = truncated_gumbel(others.amax(-1).double().add_(phi), best, bound)
        is_close = second > torch.take(beam.priority.amin(1), problem)
        tokens = _at_places(token[:, 0], beam, NO_TOKEN)
        if not bool(is_close.any()):
            self._left_out.append((problem, second))
            step_logp = _at_places(logp.gather(1, token)[:, 0].double(), beam, 0.0)
            step_logq = _at_places(logq.gather(1, token)[:, 0].double(), beam, 0.0) if self._is_guided else step_logp
            return Choice(None, beam.is_open, tokens, beam.priority, step_logp, step_logq)

        self._left_out.append((problem, second.masked_fill(is_close, -torch.inf)))
        close = is_close.nonzero()[:, 0]
        num_problems, num_columns = beam.row.shape
        others, phi, best, bound, places, problem = (
            x.index_select(0, close) for x in (others, phi, best, bound, places, problem)
        )
        for width in self._widths:
            more, further = others.topk(width)
            more = truncated_gumbel(more.double().add_(phi[:, None]), best[:, None], bound[:, None])
            pool = pad(beam.priority.view(-1, 1), (0, width), value=-torch.inf)  # best children, and leaves as they are
            pool[:, 1:].index_copy_(0, places, more)
            priority, place = pool.view(num_problems, -1).topk(num_columns + 1)
            if width == self._widths[-1] or not bool((more[:, -1] > torch.take(priority[:, -1], problem)).any()):
                break  # else a prefix has so many children among the best that there may be more of them
        self._left_out.append((self._every, priority[:, num_columns]))
        priority, place = priority[:, :num_columns].contiguous(), place[:, :num_columns]

        children = pad(tokens.view(-1, 1), (0, width), value=NO_TOKEN)
        children[:, 1:].index_copy_(0, places, further)
        chosen = children.view(num_problems, -1).gather(1, place)
        parent = place.div(width + 1, rounding_mode="floor")
        is_extended = (chosen != NO_TOKEN) & (priority > -torch.inf)
        at = torch.add(chosen, beam.row.gather(1, parent), alpha=logp.shape[1]).clamp_(min=0)
        step_logp = torch.take(logp, at).double().where(is_extended, 0.0)
        step_logq = torch.take(logq, at).double().where(is_extended, 0.0) if self._is_guided else step_logp
        return Choice(parent, is_extended, chosen.where(is_extended, NO_TOKEN), priority, step_logp, step_logq)

    def _log_proposal(self, beam: Beam, output: StepOutput, logp: Tensor) -> Tensor:
        strength, *tilt = self._strength_and_tilt.index_select(1, beam.problem)  # [N, 1] each
        log_weight = torch.take(beam.log_pi - beam.log_q, beam.places).to(logp.dtype)[:, None]
        child_rise = rise(output.child_logit(), Tilt(*tilt))
        proposal = propose(logp, child_rise, log_weight, strength, self._guidance.cap)
        if proposal.tau is not strength:  # else nothing was held back
            self._capped.append((beam.problem, proposal.tau < strength))
        return proposal.logq

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


def _widths(num_needed: int, vocab_size: int, device: torch.device) -> list[int]:
    """How many further children of a prefix to look at: at last as many as can matter, on a CPU first what is cheap.

    `topk` sorts partially there as long as it looks for no more than one in 64, and is several times as fast.
    """
    most, cheap = min(num_needed, vocab_size), vocab_size // 64
    return [cheap, most] if device.type == "cpu" and 0 < cheap < most else [most]
