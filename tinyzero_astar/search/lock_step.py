"""Search in lock step: K rows per group of problems, all at the same depth, for every mode but "best_first".

These modes share the loop, the slots and the way leaves are read off. They differ only in which K rows the next step
keeps (`search.choosers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Decoder, Rollouts, SearchStats, StepOutput, Trace
from tinyzero_astar.search.beam import NO_TOKEN, Beam, Step, TokenTable, carried
from tinyzero_astar.search.choosers import Chooser
from tinyzero_astar.search.gumbel import token_bits
from tinyzero_astar.search.heuristic import Guidance, baseline_of, log_policy
from tinyzero_astar.search.leaves import Leaves
from tinyzero_astar.search.recorded import AllSlots, replayed_steps
from tinyzero_astar.search.roots import Roots
from tinyzero_astar.search.tracing import trace_rows


def lock_step(
    begin: Callable[[StepOutput, Roots], Chooser],
    roots: Roots,
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_search_depth: int,
    guidance: Guidance,
    trace: Trace | None = None,
) -> Rollouts:
    """Run what `begin` starts at the roots to the end of every leaf. `guidance` only scores the nodes of `trace`."""
    can_cross = len(roots.grid.group) < len(prompts)
    output = decoder.start([prompts[i] for i in roots.chosen.tolist()], roots.home.flatten(), can_cross=can_cross)
    roots = roots.to(output.logits.device)
    chooser, beam = begin(output, roots), roots.beam()
    root_logit = output.value_logit
    ends = torch.tensor(decoder.eos_ids, device=output.logits.device)
    tokens, final = _token_tables(output.logits.shape[-1], ends)
    tally, history = _Tally(roots), list[Step]()
    for depth in range(1, max_search_depth + 1):
        every_logp = log_policy(output)
        choice = chooser.choose(beam, output, every_logp)
        row = carried(beam.row, choice.parent)
        history.append(
            Step(
                choice.parent,
                choice.token,
                choice.logp,
                choice.logq,
                torch.take(output.value_logit, row),
                torch.take(baseline_of(output), row),
                output.taken(row, choice.token.clamp(min=0), every_logp),
                choice.priority,
            )
        )
        before, beam = beam, beam.after(choice, final if depth == max_search_depth else tokens)
        places = beam.places
        if len(places) == 0:
            break
        source = None  # every prefix stays in the slot that has its place
        if depth == 1:  # only the first of a problem's slots counts as holding its prompt
            source = torch.take(roots.first, beam.problem)
        elif choice.parent is not None:
            source = torch.take(choice.parent, places)
        tally.note(beam, source)
        if source is not None and isinstance(decoder, AllSlots) and decoder.recorder is not None:  # at depth 1
            place = beam.grid.place.flatten()
            decoder.move(place.index_copy(0, places, source), torch.zeros_like(place[0]))
            tables, first = (tokens, final), beam
            rest, beam = replayed_steps(
                decoder, decoder.recorder, chooser, before, choice, output, tables, max_search_depth
            )
            tally.note_all(first, rest[:-1], tokens.goes_on)
            history += rest
            break
        length = torch.full_like(places, depth - 1)
        output = decoder.step(torch.take(choice.token, places), source, length, places, beam.path)
    if trace is not None:
        trace.nodes += trace_rows(history, roots, root_logit, guidance, decoder.eos_ids, trace.num_groups)
    stats = tally.statistics(beam, chooser, len(prompts))
    return _read_leaves(history, roots, beam, chooser, ends, stats)


def _token_tables(vocab_size: int, ends: Tensor) -> tuple[TokenTable, TokenTable]:
    """What tokens do to a prefix, and what they do at the last depth, where none goes on."""
    token_ids = torch.arange(vocab_size + 1, device=ends.device)  # the last one is for NO_TOKEN
    goes_on = ~torch.isin(token_ids, ends) & (token_ids != token_ids[NO_TOKEN])
    tokens = TokenTable(token_bits(token_ids), goes_on)
    return tokens, tokens._replace(goes_on=torch.zeros_like(goes_on))


class _Tally:
    """Counts of the prefixes that were decoded, step by step."""

    def __init__(self, roots: Roots) -> None:
        self.chosen = roots.chosen
        self.stepped = [torch.arange(len(roots.chosen), device=roots.chosen.device)]  # problems of decoded prefixes
        self.most = torch.ones_like(roots.grid.group)  # [G] most open rows at any time
        self.moved: list[tuple[Tensor, Tensor]] = []  # [N] problems, and whether a prefix was copied

    def note(self, beam: Beam, source: Tensor | None) -> None:
        """The open rows of a beam were decoded, from the slots `source` or their own."""
        self.stepped.append(beam.problem)
        self.most = torch.maximum(self.most, beam.is_open.sum(1))
        if source is not None:
            self.moved.append((beam.problem, source != beam.places))

    def note_all(self, beam: Beam, steps: list[Step], goes_on: Tensor) -> None:
        """So were the rows that these steps after a beam left open."""
        if not steps:
            return
        origins, place = [beam.origin], beam.grid.place
        for step in steps:
            origins.append(carried(origins[-1], step.parent))
        is_open = torch.stack([torch.take(goes_on, step.token) for step in steps])
        source = torch.stack([place if step.parent is None else step.parent for step in steps])
        at = is_open.flatten().nonzero()[:, 0]
        problem = torch.take(torch.stack(origins[1:]), at)
        self.stepped.append(problem)
        self.most = torch.maximum(self.most, is_open.sum(2).amax(0))
        self.moved.append((problem, torch.take(source != place, at)))

    def statistics(self, last: Beam, chooser: Chooser, num_problems: int) -> SearchStats:
        """Counts per problem. The largest number of open rows is that of its group."""
        none = torch.zeros(num_problems, dtype=torch.int64, device=self.chosen.device)

        def count(chosen: Tensor, number: Tensor | None = None) -> Tensor:
            problem = torch.take(self.chosen, chosen)
            return none.index_add(0, problem, torch.ones_like(problem) if number is None else number)

        num_expanded, num_forks = count(torch.cat(self.stepped)), none
        if self.moved:
            problem, is_copied = (torch.cat(x) for x in zip(*self.moved, strict=True))
            num_forks = count(problem, is_copied.long())
        return SearchStats(
            num_expanded=num_expanded,
            num_forks=num_forks,
            num_decoded_tokens=num_expanded - count(self.stepped[0]),
            max_open=self.most.repeat_interleave(num_problems // len(self.most)),
            num_open_final=count(torch.take(last.origin, last.is_open.flatten().nonzero()[:, 0])),
            num_pruned=none,
            num_capped=count(self.stepped[0], chooser.count_capped()),
        )


def _read_leaves(
    history: list[Step], roots: Roots, beam: Beam, chooser: Chooser, ends: Tensor, stats: SearchStats
) -> Rollouts:
    """Every leaf's tokens, read backwards along the parents."""
    num_problems, num_groups = len(stats.num_forks), len(roots.grid.group)
    is_alone = num_problems == num_groups  # then every problem has as many columns as rows
    leaves = Leaves.of(
        torch.take(roots.chosen, beam.origin), beam.priority, num_problems, beam.row.shape[1] if is_alone else None
    )
    place = leaves.place
    columns: list[list[Tensor]] = []
    for step in reversed(history):
        recorded = (step.token, step.logp, step.logq, step.baseline, step.value_logit, step.child_logit)
        columns.append([torch.take(x, place) for x in recorded])
        place = place if step.parent is None else torch.take(step.parent, place)
    tokens, logp, logq, baseline, *logits = (torch.stack(x[::-1], -1) for x in zip(*columns, strict=True))
    is_token = (tokens != NO_TOKEN) & leaves.is_leaf[..., None]
    tokens = torch.where(is_token, tokens, ends[0])
    length = is_token.sum(-1)
    value, child = (torch.where(is_token, torch.sigmoid(x.double()), 0.0) for x in logits)
    kappa, weight = chooser.weight(beam)
    last = tokens.gather(-1, (length - 1).clamp(min=0)[..., None])[..., 0]
    return Rollouts(
        tokens=tokens,
        length=length,
        is_finished=(length > 0) & torch.isin(last, ends),
        logp=torch.where(is_token, logp, 0.0),
        logq=torch.where(is_token, logq, 0.0),
        value=value,
        baseline=torch.where(is_token, baseline.double(), 0.0),
        child_value=child,
        priority=leaves.take(beam.priority, -torch.inf),
        kappa=kappa.repeat_interleave(num_problems // num_groups),
        weight=leaves.take(weight, 0.0),
        stats=stats,
    )
