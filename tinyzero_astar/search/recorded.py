"""Steps of a search in lock step as replays of one recording, for devices on which starting work takes long.

All rows are stepped at every depth, open or not, so that no shape changes. One piece of work is a whole step. Every row
takes the token that was chosen for it, the network scores the new prefixes, and a token is drawn for every row. The
host then reads one small tensor. It says whether a row is open, and for how many rows further children matter. Where
there are such rows, a second piece of work draws these children, and changes what was chosen before the next step. It
is recorded for a few numbers of rows, of which the least that suffices is replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from tinyzero_astar.engine.cuda_graphs import Recorder
from tinyzero_astar.interfaces import StepOutput
from tinyzero_astar.search.beam import CARRIED, Beam, Choice, Step, TokenTable
from tinyzero_astar.search.choosers import Chooser, Drawn
from tinyzero_astar.search.heuristic import LEAST_LOGP, baseline_of, log_policy

T = TypeVar("T")
_LOOKED_AT = (1, 4, 16, 64)  # rows, besides all of them


@runtime_checkable
class AllSlots(Protocol):
    """What a `Decoder` needs besides, so that the steps of all its slots can be recorded."""

    @property
    def recorder(self) -> Recorder | None:
        """None means that each step is run anew."""
        ...

    def shape_at(self, depth: int) -> int:
        """What the shapes in `step_all` depend on, for prefixes of `depth` tokens."""
        ...

    def prepare(self, shape: int) -> None:
        """Make ready what `step_all` must not do itself, before it is recorded."""
        ...

    def step_all(self, tokens: Tensor, length: Tensor, path: Tensor, shape: int) -> StepOutput:
        """Add a token to every slot, without waiting for a result.

        Args:
            tokens: int64 [S].
            length: int64 [], generated tokens that every slot holds. What is written behind it is overwritten.
            path: [S, 3], see `Decoder.step`.
            shape: what `shape_at` says of the new length.
        """
        ...

    def move(self, source: Tensor, length: Tensor) -> None:
        """Every slot becomes the first `length` generated tokens of its source, without waiting for a result.

        Args:
            source: int64 [S] slots. What is a source stays what it is.
            length: int64 [].
        """
        ...


class Flags(NamedTuple):
    """What the host reads of a step."""

    num_stepped: int  # rows that were open
    num_open: int  # rows that are open after the tokens that were drawn
    num_close: int  # rows whose further children matter
    num_not_finite: int


class _Work(NamedTuple):
    """What a replay leaves behind."""

    output: StepOutput
    drawn: Drawn
    flags: Tensor  # [4] int64, see `Flags`


@dataclass
class _Held:
    """The tensors that a recorded step reads and writes."""

    beam: Beam  # with all rows
    choice: Choice  # that each row takes at the beginning of a step
    depth: Tensor  # int64 [1] tokens that a row holds after that
    places: Tensor  # int64 [T, 2, G, K] parent and token of every step
    numbers: Tensor  # float64 [T, 3, G, K] logp, logq and priority
    said: Tensor  # [T, G K, 4 + R] what the network says of every row. See `_said`

    @staticmethod
    def of(beam: Beam, choice: Choice, num_steps: int, root: StepOutput) -> _Held:
        """Before the step that takes `choice`, which is the second of `num_steps`."""
        like, own = beam.grid.place, beam.with_all()
        held, said = [like if x is None else x for x in choice], _said(root)
        return _Held(
            beam=own,
            choice=Choice(*(x.clone() for x in held)),
            depth=torch.zeros(1, dtype=torch.int64, device=like.device),
            places=like.new_zeros(num_steps, 2, *like.shape),
            numbers=beam.priority.new_zeros(num_steps, 3, *like.shape),
            said=said.new_zeros(num_steps, like.numel(), said.shape[1]),
        )

    def note(self, choice: Choice) -> None:
        """Choose for the next step, and keep it."""
        for own, new in zip(self.choice, choice, strict=True):
            assert own is not None
            own.copy_(self.beam.grid.place if new is None else new)
        parent, token, priority, logp, logq = self.choice
        assert parent is not None
        self.places.index_copy_(0, self.depth, torch.stack([parent, token])[None])
        self.numbers.index_copy_(0, self.depth, torch.stack([logp, logq, priority])[None])

    def steps(self, last: int, up: Tensor) -> list[Step]:
        """Those that were noted, up to the depth `last`. `up` is that of the children's values."""
        (parent, token), (logp, logq, priority) = (x[1 : last + 1].unbind(1) for x in (self.places, self.numbers))
        step = torch.arange(last, device=parent.device)[:, None, None]
        said = self.said[1 : last + 1][step, parent]
        value, baseline, offset, slope, features = said[..., 0], said[..., 1], said[..., 2], said[..., 3], said[..., 4:]
        least = logp.to(said.dtype).clamp(min=LEAST_LOGP)
        child = offset + (features * up[token.clamp(min=0)]).sum(-1) + slope * least
        return [Step(*x) for x in zip(parent, token, logp, logq, value, baseline, child, priority, strict=True)]

    @property
    def state(self) -> list[Tensor]:
        """All that a step changes, besides what it notes."""
        carried = [getattr(self.beam, name) for name in CARRIED]
        return [*carried, *(x for x in self.choice if x is not None), self.depth]


def _said(output: StepOutput) -> Tensor:
    """[N, 4 + R] value, baseline, and offset, slope and features of the children's values, at every prefix."""
    assert output.child_terms is not None
    terms = output.child_terms()
    numbers = torch.stack([output.value_logit, baseline_of(output), terms.offset, terms.slope], 1)
    return torch.cat([numbers, terms.features], 1)


@torch.no_grad()
def replayed_steps(
    decoder: AllSlots,
    recorder: Recorder,
    chooser: Chooser,
    beam: Beam,
    choice: Choice,
    root: StepOutput,
    tokens: tuple[TokenTable, TokenTable],
    max_depth: int,
) -> tuple[list[Step], Beam]:
    """Every step of a search after the first one, and the beam once its rows took the tokens of the last of them.

    A step decodes the beam of the step before.

    Args:
        decoder: whose slots hold the prefixes that `choice` extends.
        recorder: turns a step into a replay.
        chooser: what chose.
        beam: before `choice`, which leaves rows open.
        choice: of the first step.
        root: what the network says of the prompts.
        tokens: what they do to a prefix before the last depth, and at it.
        max_depth: at least 2.
    """
    held = _Held.of(beam, choice, max_depth, root)
    own = [*held.state, *chooser.state]
    shape, num_noted, num_rows = 0, 0, held.beam.row.numel()
    for depth in range(1, max_depth):
        if shape != (shape := decoder.shape_at(depth)):
            decoder.prepare(shape)
            kind = type(chooser), len(own), *beam.row.shape, shape  # more is their own where they are guided
            step = _recorded(recorder, partial(_step, decoder, chooser, held, tokens[0], shape), kind, own)
            replacing: dict[int, Callable[[], None]] = {}  # by how many rows they look at
        done = step()
        flags = Flags(*done.flags.tolist())  # the step's only wait
        if flags.num_stepped == 0:  # further children at the step before ended all rows
            break
        if flags.num_not_finite > 0:
            _refuse(done.output)
        num_noted = depth
        if flags.num_close > 0:
            number = next((x for x in _LOOKED_AT if flags.num_close <= x < num_rows), num_rows)
            if number not in replacing:
                work = partial(_replace, decoder, chooser, held, done, number)
                replacing[number] = _recorded(recorder, work, (*kind, number), own)
            replacing[number]()
        elif flags.num_open == 0:
            break
    table = tokens[1] if num_noted == max_depth - 1 else tokens[0]
    assert root.child_terms is not None
    return held.steps(num_noted, root.child_terms().up), held.beam.after(held.choice, table)


def _step(decoder: AllSlots, chooser: Chooser, held: _Held, tokens: TokenTable, shape: int) -> _Work:
    """A whole step. It is recorded."""
    held.beam.advance(held.choice, tokens)
    length = held.depth.clone()[0]
    held.depth += 1
    output = decoder.step_all(held.choice.token.flatten().clamp(min=0), length, held.beam.path, shape)
    drawn = chooser.draw(held.beam, output)
    held.note(drawn.choice)
    held.said.index_copy_(0, held.depth, _said(output)[None])
    is_open = held.beam.at_open(held.beam.is_open)
    goes_on = torch.take(tokens.goes_on, drawn.choice.token).flatten()
    is_finite = drawn.is_finite & torch.isfinite(output.value_logit)
    return _Work(output, drawn, torch.stack([is_open, goes_on, drawn.is_close, is_open & ~is_finite]).sum(1))


def _recorded(
    recorder: Recorder, work: Callable[[], T], kind: tuple[object, ...], state: list[Tensor]
) -> Callable[[], T]:
    """What repeats a work. Recording may run it too, so what it changed is put back."""
    before = [x.clone() for x in state]
    played = recorder.record(work, kind)
    for own, old in zip(state, before, strict=True):
        own.copy_(old)
    return played


def _replace(decoder: AllSlots, chooser: Chooser, held: _Held, work: _Work, number: int) -> None:
    """Let further children of `number` rows push out the worst rows. It is recorded."""
    drawn = work.drawn
    assert drawn.children is not None
    # Rows whose further children matter come first. Others do no harm.
    close = drawn.is_close.long().argsort(descending=True, stable=True)[:number]
    choice = chooser.replace_worst(drawn.choice, held.beam, drawn.children, close)
    held.note(choice)
    assert choice.parent is not None
    # A row that another one descends from is never pushed out. Its own best child has a larger G than the other child.
    decoder.move(choice.parent.flatten(), held.depth.clone()[0])


def _refuse(output: StepOutput) -> None:
    """Say what is no number.

    Raises:
        FloatingPointError: always.
    """
    log_policy(output)
    raise FloatingPointError("the decoder returned a child's value that is NaN")
