"""Search in lock step: K rows per problem, all at the same depth ("sample" and "gumbel").

The two modes share the loop, the slots and the way leaves are read off; they differ only in which K rows the
next step keeps. In "gumbel" every prefix carries G, the maximum of the Gumbel-perturbed log q over its leaves,
so the K best prefixes of each depth are all that the K best leaves need (Kool et al. 2019), and a prefix once
left out never comes back: the largest such G is kappa, the threshold of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from tinyzero_astar.interfaces import Decoder, Rollouts, SearchStats, StepOutput, TraceNode
from tinyzero_astar.rollout.gumbel import (
    fold,
    gumbel_noise,
    hash_token,
    log_inclusion,
    mix64,
    root_gumbel,
    truncated_gumbel,
)
from tinyzero_astar.rollout.heuristic import (
    Guidance,
    Tilt,
    f_score,
    inverse_beta_of,
    log_policy,
    propose,
    rise,
    soft_value,
    tilt_of,
)

_UNTRACED = torch.empty(0)
_NO_TOKEN = -1  # a row that adds nothing at this step: a finished leaf, or no leaf at all


@dataclass(frozen=True)
class _Beam:
    """K rows per problem; [P, K] each, but for `places`."""

    priority: Tensor  # float64; -inf where there is no prefix
    log_q: Tensor  # float64, phi of the prefix
    log_pi: Tensor  # float64, g of the prefix
    state: Tensor  # int64 hash of seed and prefix
    slot: Tensor  # int64, decoder slot within the problem
    row: Tensor  # int64, row of the latest StepOutput that evaluated the prefix
    is_open: Tensor  # True where the prefix can be extended
    places: Tensor  # [N] of the open rows in the flattened beam; the decoder is asked for them in this order
    problem: Tensor  # [N] of the open rows


class _Choice(NamedTuple):
    """The next K rows of every problem; [P, K] each."""

    parent: Tensor | None  # row of the beam that each new row extends or carries on; None: its own
    is_extended: Tensor  # True where it adds a token
    token: Tensor  # that token, else _NO_TOKEN
    priority: Tensor
    logp: Tensor
    logq: Tensor


class _Step(NamedTuple):
    """What one step added; [P, K] each. Enough to read every leaf off backwards."""

    parent: Tensor | None
    token: Tensor
    logp: Tensor
    logq: Tensor
    value_logit: Tensor
    child_logit: Tensor  # of the new prefix; only for a trace
    priority: Tensor


class Chooser(Protocol):
    """Which K rows the next step keeps."""

    def begin(self, root: StepOutput) -> _Beam:
        """The beam that holds the prompts only."""
        ...

    def choose(self, beam: _Beam, output: StepOutput, logp: Tensor) -> _Choice:
        """The next rows, given log pi of every evaluated prefix [N, V]."""
        ...

    def weight(self, beam: _Beam) -> tuple[Tensor, Tensor]:
        """kappa [P] and the leaves' weights [P, K]."""
        ...

    def count_capped(self) -> Tensor:
        """[P] see `SearchStats.num_capped`."""
        ...


class Sampling:
    """Independent draws by the Gumbel-max trick (or the mode itself, without noise)."""

    def __init__(self, seeds: Tensor, num_rollouts: int, noise: bool = True) -> None:
        self._seeds, self._num_rollouts, self._noise = seeds, num_rollouts, noise

    def begin(self, root: StepOutput) -> _Beam:
        device, shape = root.logits.device, (len(self._seeds), self._num_rollouts)
        self._none_capped = torch.zeros(shape[0], dtype=torch.int64, device=device)
        stream = torch.arange(self._num_rollouts, device=device)[None]
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        index = torch.zeros(shape, dtype=torch.int64, device=device)
        return _Beam(
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

    def choose(self, beam: _Beam, output: StepOutput, logp: Tensor) -> _Choice:
        parent = None
        if len(logp) != len(beam.places):  # at first all streams share the prompt's row, and its slot
            logp = logp[beam.row.flatten()]
            parent = torch.arange(self._num_rollouts, device=logp.device).expand_as(beam.row)
        perturbed = logp
        if self._noise:
            perturbed = gumbel_noise(torch.take(beam.state, beam.places), logp.shape[-1], logp.dtype).add_(logp)
        drawn = perturbed.argmax(-1)
        step_logp = _at_places(logp.gather(1, drawn[:, None])[:, 0].double(), beam, 0.0)
        token = _at_places(drawn, beam, _NO_TOKEN)
        return _Choice(parent, beam.is_open, token, beam.priority + step_logp, step_logp, step_logp)

    def weight(self, beam: _Beam) -> tuple[Tensor, Tensor]:
        kappa = torch.full_like(beam.log_pi[:, 0], -torch.inf)
        return kappa, torch.full_like(beam.log_pi, 1.0 / self._num_rollouts)

    def count_capped(self) -> Tensor:
        return self._none_capped


class WithoutReplacement:
    """The K prefixes with the largest Gumbel-perturbed f; remembers the best one left out, kappa."""

    def __init__(self, seeds: Tensor, num_rollouts: int, guidance: Guidance) -> None:
        self._seeds, self._num_rollouts, self._guidance = seeds, num_rollouts, guidance

    def begin(self, root: StepOutput) -> _Beam:
        device, problems = root.logits.device, len(self._seeds)
        shape = (problems, self._num_rollouts)
        strength = torch.as_tensor(self._guidance.strength, dtype=root.logits.dtype, device=device).expand(problems)
        tilt = tilt_of(inverse_beta_of(self._guidance, root.value_logit))
        rows = [x.to(strength.dtype) for x in (strength, *tilt)]
        self._strength_and_tilt = torch.stack(rows)[..., None]  # [4, P, 1], to be looked up at once
        self._is_guided = bool((strength > 0).any())
        self._capped: list[tuple[Tensor, Tensor]] = []  # of every step: [N] problems, [N] whether their guidance was
        self._widths = _widths(self._num_rollouts, root.logits.shape[1], device)
        self._kappa = torch.full((problems,), -torch.inf, dtype=torch.float64, device=device)
        state = mix64(self._seeds.to(device))[:, None].repeat(1, shape[1])
        priority = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        priority[:, 0] = root_gumbel(state[:, 0])  # G(x) = 0 would bias eq. 6
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        index = torch.zeros(shape, dtype=torch.int64, device=device)
        row = index + torch.arange(problems, device=device)[:, None]
        is_open = torch.isfinite(priority)
        each = torch.arange(problems, device=device)
        return _Beam(priority, zero, zero, state, index, row, is_open, each * shape[1], each)

    def choose(self, beam: _Beam, output: StepOutput, logp: Tensor) -> _Choice:
        """The best child of a prefix has its G and takes its place, unless others' second children push it out.

        They rarely do: where the policy hardly doubts they are far behind. Only where one is better than the worst of
        the K rows are further children looked at, and only those of its prefix.
        """
        logq = self._log_proposal(beam, output, logp) if self._is_guided else logp
        places, problem = beam.places, beam.problem
        perturbed = gumbel_noise(torch.take(beam.state, places), logp.shape[-1], logp.dtype).add_(logq)
        phi, bound = torch.take(beam.log_q, places), torch.take(beam.priority, places)
        best, token = perturbed.max(-1)
        others = perturbed.scatter_(1, token[:, None], -torch.inf)
        best = best.double().add_(phi)
        second = truncated_gumbel(others.amax(-1).double().add_(phi), best, bound)
        is_close = second > torch.take(beam.priority.amin(1), problem)
        close = is_close.nonzero()[:, 0]
        self._kappa.scatter_reduce_(0, problem, second.masked_fill_(is_close, -torch.inf), "amax")
        tokens = _at_places(token, beam, _NO_TOKEN)
        if len(close) == 0:
            at = torch.arange(0, logp.numel(), logp.shape[1], device=token.device).add_(token)
            step_logp = _at_places(torch.take(logp, at).double(), beam, 0.0)
            step_logq = _at_places(torch.take(logq, at).double(), beam, 0.0) if self._is_guided else step_logp
            return _Choice(None, beam.is_open, tokens, beam.priority, step_logp, step_logq)

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
        self._kappa = torch.maximum(self._kappa, priority[:, num_columns])
        priority, place = priority[:, :num_columns].contiguous(), place[:, :num_columns]

        children = pad(tokens.view(-1, 1), (0, width), value=_NO_TOKEN)
        children[:, 1:].index_copy_(0, places, further)
        chosen = children.view(num_problems, -1).gather(1, place)
        parent = place.div(width + 1, rounding_mode="floor")
        is_extended = (chosen != _NO_TOKEN) & (priority > -torch.inf)
        at = torch.add(chosen, beam.row.gather(1, parent), alpha=logp.shape[1]).clamp_(min=0)
        step_logp = torch.take(logp, at).double().where(is_extended, 0.0)
        step_logq = torch.take(logq, at).double().where(is_extended, 0.0) if self._is_guided else step_logp
        return _Choice(parent, is_extended, chosen.where(is_extended, _NO_TOKEN), priority, step_logp, step_logq)

    def _log_proposal(self, beam: _Beam, output: StepOutput, logp: Tensor) -> Tensor:
        strength, *tilt = self._strength_and_tilt.index_select(1, beam.problem)  # [N, 1] each
        log_weight = torch.take(beam.log_pi - beam.log_q, beam.places).to(logp.dtype)[:, None]
        child_rise = rise(output.child_logit(), Tilt(*tilt))
        proposal = propose(logp, child_rise, log_weight, strength, self._guidance.cap)
        if proposal.tau is not strength:
            self._capped.append((beam.problem, proposal.tau < strength))
        return proposal.logq

    def count_capped(self) -> Tensor:
        count = torch.zeros_like(self._kappa, dtype=torch.int64)
        for problem, is_capped in self._capped:
            count.index_add_(0, problem, is_capped[:, 0].long())
        return count

    def weight(self, beam: _Beam) -> tuple[Tensor, Tensor]:
        weight = torch.exp(beam.log_pi - log_inclusion(beam.log_q, self._kappa[:, None]))
        return self._kappa, torch.where(torch.isneginf(beam.priority), 0.0, weight)


def _at_places(values: Tensor, beam: _Beam, elsewhere: float) -> Tensor:
    """[P, K] of values [N] of the open rows, and one number at the others."""
    return values.new_full(beam.row.shape, elsewhere).flatten().index_copy_(0, beam.places, values).view_as(beam.row)


def _widths(num_needed: int, vocab_size: int, device: torch.device) -> list[int]:
    """How many further children of a prefix to look at: at last as many as can matter, on a CPU first what is cheap.

    `topk` sorts partially there as long as it looks for no more than one in 64, and is several times as fast.
    """
    most, cheap = min(num_needed, vocab_size), vocab_size // 64
    return [cheap, most] if device.type == "cpu" and 0 < cheap < most else [most]


def lock_step(
    chooser: Chooser,
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    num_rollouts: int,
    max_search_depth: int,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    trace: list[TraceNode] | None = None,
) -> Rollouts:
    """Run `chooser` to the end of every leaf; `guidance` only scores the nodes of `trace`."""
    output = decoder.start(prompts, num_rollouts)
    beam = chooser.begin(output)
    root_logit, root_priority = output.value_logit, beam.priority[:, 0]
    token_hash = hash_token(torch.arange(output.logits.shape[-1], device=output.logits.device))
    history: list[_Step] = []
    one = torch.ones(len(prompts), dtype=torch.int64, device=output.logits.device)
    none = torch.zeros_like(one)
    num_open, num_forked = [one], [none]
    for depth in range(1, max_search_depth + 1):
        choice = chooser.choose(beam, output, log_policy(output))
        row = _carried(beam.row, choice.parent)
        history.append(
            _Step(
                choice.parent,
                choice.token,
                choice.logp,
                choice.logq,
                torch.take(output.value_logit, row),
                output.child_logit()[row, choice.token.clamp(min=0)] if trace is not None else _UNTRACED,
                choice.priority,
            )
        )
        beam = _extend(beam, choice, token_hash, decoder.eos_id, is_last=depth == max_search_depth)
        places = beam.places
        if len(places) == 0:
            break
        base = beam.problem * num_rollouts
        source = target = base + torch.take(beam.slot, places)
        forked = none
        if choice.parent is not None:
            slot, forked = _assign_slots(beam.slot, beam.is_open)
            beam = replace(beam, slot=slot)
            target = base + torch.take(slot, places)
        length = torch.full_like(places, depth - 1)
        output = decoder.step(torch.take(choice.token, places), source, length, target)
        beam.row.view(-1).index_copy_(0, places, torch.arange(len(places), device=places.device))
        num_open.append(beam.is_open.sum(1))
        num_forked.append(forked)
    opened = torch.stack(num_open)
    expanded = opened.sum(0)
    stats = SearchStats(
        num_expanded=expanded,
        num_forks=torch.stack(num_forked).sum(0),
        num_decoded_tokens=expanded - 1,
        max_open=opened.amax(0),
        num_open_final=beam.is_open.sum(1),
        num_pruned=torch.zeros_like(expanded),
        num_capped=chooser.count_capped(),
    )
    if trace is not None:
        trace.extend(_trace(history, root_priority, root_logit, guidance, decoder.eos_id))
    return _read_leaves(history, beam, chooser, decoder.eos_id, stats)


def _extend(beam: _Beam, choice: _Choice, token_hash: Tensor, eos_id: int, is_last: bool) -> _Beam:
    """The beam after each row took its token; a depth-limited row is closed as a leaf."""
    is_extended, parent = choice.is_extended, choice.parent
    state = _carried(beam.state, parent)
    is_open = is_extended & (choice.token != eos_id) & (not is_last)
    places = is_open.flatten().nonzero()[:, 0]
    return _Beam(
        priority=choice.priority,
        log_q=_carried(beam.log_q, parent) + choice.logq,
        log_pi=_carried(beam.log_pi, parent) + choice.logp,
        state=torch.where(is_extended, mix64(state ^ torch.take(token_hash, choice.token)), state),
        slot=_carried(beam.slot, parent),
        row=torch.zeros_like(beam.row),
        is_open=is_open,
        places=places,
        problem=places.div(is_open.shape[1], rounding_mode="floor"),
    )


def _carried(x: Tensor, parent: Tensor | None) -> Tensor:
    """What each row's parent has; [P, K]."""
    return x if parent is None else x.gather(1, parent)


def _assign_slots(source: Tensor, is_open: Tensor) -> tuple[Tensor, Tensor]:
    """A slot of its own for every open row: the first row of a source stays, the others fork to free slots.

    Args:
        source: [P, K] slot where each row's prefix stands, in [0, K).
        is_open: [P, K] rows that need a slot.

    Returns:
        The slots [P, K], distinct over a problem's open rows, and the number of forks [P].
    """
    row, none = torch.arange(source.shape[1], device=source.device), source.shape[1]
    first = torch.full_like(source, none).scatter_reduce_(1, source, torch.where(is_open, row, none), "amin")
    is_fork = (first.gather(1, source) != row) & is_open
    free = first.argsort(dim=1, descending=True, stable=True)  # slots without an open row first, in order
    rank = is_fork.cumsum(1).sub_(1).clamp_(min=0)
    return torch.where(is_fork, free.gather(1, rank), source), is_fork.sum(1)


def _read_leaves(history: list[_Step], beam: _Beam, chooser: Chooser, eos_id: int, stats: SearchStats) -> Rollouts:
    """Every row's tokens, read backwards along the parents, best priority first."""
    order = beam.priority.argsort(dim=1, descending=True, stable=True)
    row = order
    columns: list[list[Tensor]] = []
    for step in reversed(history):
        columns.append([x.gather(1, row) for x in (step.token, step.logp, step.logq, step.value_logit)])
        row = row if step.parent is None else step.parent.gather(1, row)
    tokens, logp, logq, value_logit = (torch.stack(x[::-1], -1) for x in zip(*columns, strict=True))
    is_token = tokens != _NO_TOKEN
    tokens = torch.where(is_token, tokens, eos_id)
    length = is_token.sum(-1)
    kappa, weight = chooser.weight(beam)
    last = tokens.gather(-1, (length - 1).clamp(min=0)[..., None])[..., 0]
    return Rollouts(
        tokens=tokens,
        length=length,
        is_finished=(length > 0) & (last == eos_id),
        logp=torch.where(is_token, logp, 0.0),
        logq=torch.where(is_token, logq, 0.0),
        value=torch.where(is_token, torch.sigmoid(value_logit.double()), 0.0),
        priority=beam.priority.gather(1, order),
        kappa=kappa,
        weight=weight.gather(1, order),
        stats=stats,
    )


def _trace(
    history: list[_Step], root_priority: Tensor, root_logit: Tensor, guidance: Guidance, eos_id: int
) -> list[TraceNode]:
    """The kept prefixes of every problem as nodes, parents before children."""
    tilt = tilt_of(inverse_beta_of(guidance, root_logit))
    root_h = soft_value(root_logit, tilt)
    nodes: list[TraceNode] = []
    for problem in range(len(root_logit)):
        h = float(root_h[problem])
        priority = float(root_priority[problem])
        nodes.append(TraceNode(problem, 0, -1, _NO_TOKEN, 0, 0.0, h, h, priority, "expanded"))
        at_row = [nodes[-1]] * history[0].token.shape[1]
        num_nodes = 1
        for depth, step in enumerate(history, start=1):
            child_h = soft_value(step.child_logit[problem], Tilt(*(x[problem] for x in tilt)))
            next_row = []
            parents = range(len(at_row)) if step.parent is None else step.parent[problem].tolist()
            for k, parent in enumerate(at_row[j] for j in parents):
                token = int(step.token[problem, k])
                if token == _NO_TOKEN:
                    next_row.append(parent)
                    continue
                g, h = parent.g + float(step.logp[problem, k]), float(child_h[k])
                f = float(f_score(torch.tensor(g, dtype=torch.float64), torch.tensor(h, dtype=torch.float64)))
                is_leaf = token == eos_id or depth == len(history)
                status: Literal["leaf", "expanded"] = "leaf" if is_leaf else "expanded"
                priority = float(step.priority[problem, k])
                nodes.append(TraceNode(problem, num_nodes, parent.node, token, depth, g, h, f, priority, status))
                next_row.append(nodes[-1])
                num_nodes += 1
            at_row = next_row
    return nodes
