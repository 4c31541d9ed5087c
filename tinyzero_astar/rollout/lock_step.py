"""Search in lock step: K rows per problem, all at the same depth ("sample" and "gumbel").

The two modes share the loop, the slots and the way leaves are read off; they differ only in which K rows the next step
keeps (`rollout.choosers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Decoder, Rollouts, SearchStats, TraceNode
from tinyzero_astar.rollout.choosers import NO_TOKEN, Beam, Choice, Chooser
from tinyzero_astar.rollout.gumbel import hash_token, mix64
from tinyzero_astar.rollout.heuristic import Guidance, Tilt, f_score, inverse_beta_of, log_policy, soft_value, tilt_of

_UNTRACED = torch.empty(0)


class _Step(NamedTuple):
    """What one step added; [P, K] each. Enough to read every leaf off backwards."""

    parent: Tensor | None
    token: Tensor
    logp: Tensor
    logq: Tensor
    value_logit: Tensor
    child_logit: Tensor  # of the new prefix; only for a trace
    priority: Tensor


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


def _extend(beam: Beam, choice: Choice, token_hash: Tensor, eos_id: int, is_last: bool) -> Beam:
    """The beam after each row took its token; a depth-limited row is closed as a leaf."""
    is_extended, parent = choice.is_extended, choice.parent
    state = _carried(beam.state, parent)
    is_open = is_extended & (choice.token != eos_id) & (not is_last)
    places = is_open.flatten().nonzero()[:, 0]
    return Beam(
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


def _read_leaves(history: list[_Step], beam: Beam, chooser: Chooser, eos_id: int, stats: SearchStats) -> Rollouts:
    """Every row's tokens, read backwards along the parents, best priority first."""
    order = beam.priority.argsort(dim=1, descending=True, stable=True)
    row = order
    columns: list[list[Tensor]] = []
    for step in reversed(history):
        columns.append([x.gather(1, row) for x in (step.token, step.logp, step.logq, step.value_logit)])
        row = row if step.parent is None else step.parent.gather(1, row)
    tokens, logp, logq, value_logit = (torch.stack(x[::-1], -1) for x in zip(*columns, strict=True))
    is_token = tokens != NO_TOKEN
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
        nodes.append(TraceNode(problem, 0, -1, NO_TOKEN, 0, 0.0, h, h, priority, "expanded"))
        at_row = [nodes[-1]] * history[0].token.shape[1]
        num_nodes = 1
        for depth, step in enumerate(history, start=1):
            child_h = soft_value(step.child_logit[problem], Tilt(*(x[problem] for x in tilt)))
            next_row = []
            parents = range(len(at_row)) if step.parent is None else step.parent[problem].tolist()
            for k, parent in enumerate(at_row[j] for j in parents):
                token = int(step.token[problem, k])
                if token == NO_TOKEN:
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
