"""Search in lock step: K rows per problem, all at the same depth (every mode but "best_first").

These modes share the loop, the slots and the way leaves are read off; they differ only in which K rows the next step
keeps (`search.choosers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Decoder, Rollouts, SearchStats, TraceNode
from tinyzero_astar.search.beam import NO_TOKEN, Beam, TokenTable, carried
from tinyzero_astar.search.choosers import Begin, Chooser
from tinyzero_astar.search.gumbel import token_bits
from tinyzero_astar.search.heuristic import (
    Guidance,
    Tilt,
    f_score,
    format_logit_of,
    inverse_beta_of,
    log_policy,
    soft_value,
    tilt_of,
)

_UNTRACED = torch.empty(0)


class _Step(NamedTuple):
    """What one step added; [G, K] each. Enough to read every leaf off backwards."""

    parent: Tensor | None
    token: Tensor
    logp: Tensor
    logq: Tensor
    value_logit: Tensor
    format_logit: Tensor
    child_logit: Tensor  # of the new prefix; only for a trace
    priority: Tensor


def lock_step(
    begin: Begin,
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    seeds: Tensor,
    num_rollouts: int,
    max_search_depth: int,
    guidance: Guidance,
    trace: list[TraceNode] | None = None,
) -> Rollouts:
    """Run what `begin` starts to the end of every leaf; the arguments are those of `rollout.astar_search`."""
    output = decoder.start(prompts, num_rollouts)
    chooser, beam = begin(output, seeds, num_rollouts, guidance)
    root_logit, root_priority = output.value_logit, beam.priority[:, 0]
    ends = torch.tensor(decoder.eos_ids, device=output.logits.device)
    tokens, final = _token_tables(output.logits.shape[-1], ends)
    history: list[_Step] = []
    opened: list[Tensor] = []  # by step, [G, K]: the prefixes that were decoded
    moved: list[tuple[Tensor, Tensor]] = []  # of steps with forks: places of prefixes, and where these came from
    for depth in range(1, max_search_depth + 1):
        choice = chooser.choose(beam, output, log_policy(output))
        row = carried(beam.row, choice.parent)
        history.append(
            _Step(
                choice.parent,
                choice.token,
                choice.logp,
                choice.logq,
                torch.take(output.value_logit, row),
                torch.take(format_logit_of(output), row),
                output.child_logit()[row, choice.token.clamp(min=0)] if trace is not None else _UNTRACED,
                choice.priority,
            )
        )
        beam = beam.after(choice, final if depth == max_search_depth else tokens)
        places = beam.places
        if len(places) == 0:
            break
        source = None  # every prefix stays in the slot that has its place
        if depth == 1:  # only the first of a group's slots holds its prompt
            source = torch.take(beam.grid.first, beam.group)
        elif choice.parent is not None:
            source = torch.take(choice.parent, places)
        if source is not None:
            moved.append((places, source))
        length = torch.full_like(places, depth - 1)
        output = decoder.step(torch.take(choice.token, places), source, length, places)
        opened.append(beam.is_open)
    stats = _statistics(opened, moved, beam, chooser)
    if trace is not None:
        trace.extend(_trace(history, root_priority, root_logit, guidance, decoder.eos_ids))
    return _read_leaves(history, beam, chooser, ends, stats)


def _token_tables(vocab_size: int, ends: Tensor) -> tuple[TokenTable, TokenTable]:
    """What tokens do to a prefix, and what they do at the last depth, where none goes on."""
    token_ids = torch.arange(vocab_size + 1, device=ends.device)  # the last: for NO_TOKEN
    goes_on = ~torch.isin(token_ids, ends) & (token_ids != token_ids[NO_TOKEN])
    tokens = TokenTable(token_bits(token_ids), goes_on)
    return tokens, tokens._replace(goes_on=torch.zeros_like(goes_on))


def _statistics(opened: list[Tensor], moved: list[tuple[Tensor, Tensor]], beam: Beam, chooser: Chooser) -> SearchStats:
    root = torch.ones_like(beam.grid.group)
    num_open = torch.stack([root, *(x.sum(1) for x in opened)])
    num_expanded, none = num_open.sum(0), torch.zeros_like(root)
    num_forks = none
    if moved:
        places, source = (torch.cat(x) for x in zip(*moved, strict=True))
        num_forks = none.index_add(0, beam.grid.group_of(places), (source != places).long())
    return SearchStats(
        num_expanded=num_expanded,
        num_forks=num_forks,
        num_decoded_tokens=num_expanded - 1,
        max_open=num_open.amax(0),
        num_open_final=beam.is_open.sum(1),
        num_pruned=none,
        num_capped=chooser.count_capped(),
    )


def _read_leaves(history: list[_Step], beam: Beam, chooser: Chooser, ends: Tensor, stats: SearchStats) -> Rollouts:
    """Every row's tokens, read backwards along the parents, best priority first."""
    order = beam.priority.argsort(dim=1, descending=True, stable=True)
    place = order + beam.grid.first
    columns: list[list[Tensor]] = []
    for step in reversed(history):
        recorded = (step.token, step.logp, step.logq, step.value_logit, step.format_logit)
        columns.append([torch.take(x, place) for x in recorded])
        place = place if step.parent is None else torch.take(step.parent, place)
    tokens, logp, logq, value_logit, format_logit = (torch.stack(x[::-1], -1) for x in zip(*columns, strict=True))
    is_token = tokens != NO_TOKEN
    tokens = torch.where(is_token, tokens, ends[0])
    length = is_token.sum(-1)
    kappa, weight = chooser.weight(beam)
    last = tokens.gather(-1, (length - 1).clamp(min=0)[..., None])[..., 0]
    return Rollouts(
        tokens=tokens,
        length=length,
        is_finished=(length > 0) & torch.isin(last, ends),
        logp=torch.where(is_token, logp, 0.0),
        logq=torch.where(is_token, logq, 0.0),
        value=torch.where(is_token, torch.sigmoid(value_logit.double()), 0.0),
        format_value=torch.where(is_token, torch.sigmoid(format_logit.double()), 0.0),
        priority=beam.priority.gather(1, order),
        kappa=kappa,
        weight=weight.gather(1, order),
        stats=stats,
    )


def _trace(
    history: list[_Step], root_priority: Tensor, root_logit: Tensor, guidance: Guidance, eos_ids: tuple[int, ...]
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
            parents = range(len(at_row)) if step.parent is None else (step.parent[problem] % len(at_row)).tolist()
            for k, parent in enumerate(at_row[j] for j in parents):
                token = int(step.token[problem, k])
                if token == NO_TOKEN:
                    next_row.append(parent)
                    continue
                g, h = parent.g + float(step.logp[problem, k]), float(child_h[k])
                f = float(f_score(torch.tensor(g, dtype=torch.float64), torch.tensor(h, dtype=torch.float64)))
                is_leaf = token in eos_ids or depth == len(history)
                status: Literal["leaf", "expanded"] = "leaf" if is_leaf else "expanded"
                priority = float(step.priority[problem, k])
                nodes.append(TraceNode(problem, num_nodes, parent.node, token, depth, g, h, f, priority, status))
                next_row.append(nodes[-1])
                num_nodes += 1
            at_row = next_row
    return nodes
