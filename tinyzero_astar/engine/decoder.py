"""The search's `Decoder` on a Hugging Face causal language model, over a slot cache.

What all prompts begin with, such as worked examples, is read once. The rest of each is padded on the left, so that
generated token j of every slot stands in the same column. Masks and position ids hide the padding. Slots are mapped
to physical rows, and the rows that are extended are kept in front. So finished prefixes cost nothing.

With a recorder (`engine.cuda_graphs`) all slots are stepped at every step instead, in shapes that change only from
block to block of columns. On a GPU more rows are cheap, and starting kernels is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tinyzero_astar.engine.cuda_graphs import BLOCK, Recorder
from tinyzero_astar.engine.shared_prompt import length_read_apart, shared_length
from tinyzero_astar.engine.slot_cache import SlotCache, Visible, is_token
from tinyzero_astar.interfaces import ChildTerms, StepOutput


class HiddenFn(Protocol):
    """What a search runs, for prompts and tokens alike."""

    reads_lengths: bool  # whether a decode step takes as long as its rows are, however many columns are planned

    def __call__(self, ids: Tensor, position_ids: Tensor, seen: Tensor | Visible, cache: SlotCache) -> Tensor:
        """Last hidden states [N, Q, D] of ids [N, Q] at positions [N, Q], written to and read from a planned cache.

        Args:
            ids: of prompts, or one token per row.
            position_ids: of those.
            seen: for prompts, boolean [N, 1, Q, L], True where a query sees a column. For tokens, what each row sees.
            cache: planned for them.
        """
        ...


class Scores(NamedTuple):
    """What a network says at N prefixes."""

    logits: Tensor  # [N, V] of the next token
    value_logit: Tensor  # [N]
    baseline: Tensor  # [N]
    features: Tensor  # [N, ...] what it needs to know of the prefixes to score their children


class Network(Protocol):
    """What the decoder needs of a policy."""

    eos_ids: tuple[int, ...]  # the tokens that end a completion, of which the first pads
    num_layers: int  # with keys and values
    recorder: Recorder | None  # of decode steps, None means that each is run anew

    @property
    def device(self) -> torch.device:
        """Where its inputs live."""
        ...

    def decoding_fn(self, num_positions: int) -> HiddenFn:
        """What one search runs, for prompts and tokens alike. It is valid while the weights stay as they are.

        Args:
            num_positions: of its longest sequence.
        """
        ...

    def score(self, hidden: Tensor, path: Tensor) -> Scores:
        """Scores at hidden states [N, D] of prefixes with these paths [N, 3], see `interfaces.Decoder.step`."""
        ...

    def score_children(self, scores: Scores, logp: Tensor) -> Tensor:
        """Value logits of all children, [N, V], given log pi of each."""
        ...

    def score_child_terms(self, scores: Scores) -> ChildTerms:
        """What they are made of, see `interfaces.StepOutput.child_terms`."""
        ...

    def score_child(self, scores: Scores, row: Tensor, token: Tensor, logp: Tensor) -> Tensor:
        """Value logits of one child of some of the prefixes, [...] as `row`, `token` and its log pi are."""
        ...


class SlotDecoder:
    """Implements `interfaces.Decoder`. One object serves any number of searches, one at a time.

    Args:
        network: the policy with its value model.
        max_new_tokens: most generated tokens that a slot will hold.
    """

    def __init__(self, network: Network, max_new_tokens: int) -> None:
        self.eos_ids = network.eos_ids
        self._network, self._max_new_tokens = network, max_new_tokens

    @property
    def num_bytes(self) -> int:
        """Memory of the slots of the search that was started last."""
        return self._cache.num_bytes

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], home: Tensor, *, can_cross: bool = False) -> StepOutput:
        """See `interfaces.Decoder.start`."""
        device = self._network.device
        longest, num_slots = max(len(p) for p in prompts), len(home)
        first = torch.full((len(prompts),), num_slots, dtype=torch.int64, device=home.device).scatter_reduce_(
            0, home, torch.arange(num_slots, device=home.device), "amin"
        )  # slot of each prompt
        home, first = home.to(device), first.to(device)
        lead = length_read_apart(shared_length(prompts), len(prompts))
        ids = torch.full((len(prompts), longest), self.eos_ids[0], dtype=torch.int64, device="cpu")
        for row, prompt in zip(ids, prompts, strict=True):
            row[:lead] = torch.tensor(prompt[:lead], device="cpu")
            row[longest - len(prompt) + lead :] = torch.tensor(prompt[lead:], device="cpu")
        padding = torch.tensor([longest - len(p) for p in prompts], device=device)

        num_columns = longest + self._max_new_tokens
        self._hidden_fn = self._network.decoding_fn(num_columns + 1)
        self._num_prompt_columns, self._lead = longest, lead
        self._row_of_slot = torch.arange(num_slots, device=device)
        self._slot_of_row = torch.arange(num_slots, device=device)
        self._num_filled = torch.zeros(num_slots, dtype=torch.int64, device=device)  # by row
        self._padding = padding.index_select(0, home)  # by row
        self._can_cross = can_cross
        self._is_padded = any(len(p) < longest for p in prompts)
        # One column more than needed. In recorded steps, the rows that are not extended write there.
        self._cache = SlotCache(self._network.num_layers, num_slots, num_columns + 1)
        ids, column = ids.to(device), torch.arange(longest, device=device)
        is_causal = column[:, None] >= column
        if lead > 0:
            self._cache.plan_prompts(first[:1], 0, lead)
            self._hidden_fn(ids[:1, :lead], column[None, :lead], is_causal[None, None, :lead, :lead], self._cache)
        is_seen = is_causal & (is_token(column, padding[:, None], lead)[:, None] | (column[:, None] == column))
        # Padding sees itself, since a row that sees nothing would be NaN.
        position = (column[lead:] - padding[:, None]).clamp(min=0)
        self._cache.plan_prompts(first, lead, longest)
        hidden = self._hidden_fn(ids[:, lead:], position, is_seen[:, None, lead:], self._cache)
        # Every slot has its prompt from the start. Forks leave it out, unless they come from another prompt.
        slots = torch.arange(num_slots, device=device)
        self._cache.fork(first[:1].expand(num_slots), slots, 0, lead)
        self._cache.fork(first.index_select(0, home), slots, lead, longest)
        self._token = torch.full((num_slots, 1), self.eos_ids[0], dtype=torch.int64, device=device)  # by row
        self._column = torch.zeros(num_slots, dtype=torch.int64, device=device)  # by row, for recorded steps
        self._recorded: dict[int, Callable[[], Scores]] = {}
        dtype = torch.promote_types(hidden.dtype, torch.float32)  # what values are read in
        self._path = torch.zeros(num_slots, 3, dtype=dtype, device=device)  # by row, for recorded steps
        return self._output(self._network.score(hidden[:, -1], self._path.new_zeros(len(prompts), 3)))

    @torch.no_grad()
    def step(self, tokens: Tensor, source: Tensor | None, length: Tensor, target: Tensor, path: Tensor) -> StepOutput:
        """See `interfaces.Decoder.step`."""
        shortest, longest = (int(x) for x in length.aminmax())
        row = self._row_of_slot.index_select(0, target)
        if source is not None:
            self._fork(source, target, row, longest)
        if self._network.recorder is not None:
            return self._recorded_step(self._network.recorder, tokens, length, target, path, longest)
        self._num_filled.index_copy_(0, row, length + 1)  # before rows move, as forks hold more now
        row = self._bring_to_front(target, row)
        self._token.index_copy_(0, row, tokens[:, None])
        num_rows, num_columns = len(row), self._num_prompt_columns + longest + 1
        column: Tensor | int = num_columns - 1
        if shortest < longest:
            column = self._num_filled[:num_rows] + (self._num_prompt_columns - 1)
        self._cache.plan_tokens(num_rows, column, num_columns)
        hidden = self._hidden(num_rows, column, num_columns)
        return self._output(self._network.score(hidden[row, 0], path))

    @property
    def recorder(self) -> Recorder | None:
        """See `search.recorded.AllSlots`."""
        return self._network.recorder

    def shape_at(self, depth: int) -> int:
        """Columns planned for prefixes of `depth` tokens. These are whole blocks, or all where that costs no more."""
        if self._hidden_fn.reads_lengths:
            return self._cache.num_columns
        blocks = (self._num_prompt_columns + depth - 1) // BLOCK + 1
        return min(blocks * BLOCK, self._cache.num_columns)

    def prepare(self, shape: int) -> None:
        """See `search.recorded.AllSlots.prepare`. It clears the columns."""
        self._cache.plan_tokens(len(self._column), self._column, shape)

    @torch.no_grad()
    def step_all(self, tokens: Tensor, length: Tensor, path: Tensor, shape: int) -> StepOutput:
        """See `search.recorded.AllSlots.step_all`. Every slot is in the row of its number."""
        self._token.copy_(tokens[:, None])
        self._column.copy_((length + self._num_prompt_columns).expand_as(self._column))
        self._path.copy_(path)
        return self._output(self._run_all(shape))

    @torch.no_grad()
    def move(self, source: Tensor, length: Tensor) -> None:
        """See `search.recorded.AllSlots.move`. The prompt is copied where it may differ."""
        first = self._num_prompt_columns
        last = torch.full_like(source, first).add_(length)
        self._cache.move(source, 0 if self._can_cross else first, last)
        if self._can_cross:
            self._padding.copy_(self._padding[source])

    def _recorded_step(
        self, recorder: Recorder, tokens: Tensor, length: Tensor, target: Tensor, path: Tensor, longest: int
    ) -> StepOutput:
        """All slots at once, each in the row of its number. A slot that is not extended writes behind what it holds."""
        self._token[target, 0] = tokens
        self._path[target] = path.to(self._path.dtype)
        self._num_filled[target] = length
        torch.add(self._num_filled, self._num_prompt_columns, out=self._column)
        num_columns = self.shape_at(longest + 1)
        if num_columns not in self._recorded:
            self._cache.plan_tokens(len(self._column), self._column, num_columns)  # clears them, once
            self._recorded[num_columns] = recorder.record(
                partial(self._run_all, num_columns), ("forward", *self._token.shape, num_columns)
            )
        scores = Scores(*(x[target] for x in self._recorded[num_columns]()))  # copies before the next replay
        self._num_filled[target] = length + 1
        return self._output(scores)

    def _run_all(self, num_columns: int) -> Scores:
        self._cache.plan_tokens(len(self._column), self._column, num_columns)
        hidden = self._hidden(len(self._column), self._column, num_columns)[:, 0]
        return self._network.score(hidden, self._path)

    def _output(self, scores: Scores) -> StepOutput:
        return StepOutput(
            logits=scores.logits,
            value_logit=scores.value_logit,
            child_logit=partial(self._score_children, scores),
            baseline=scores.baseline,
            child_logit_of=partial(self._score_child, scores),
            child_terms=partial(self._score_child_terms, scores),
        )

    @torch.no_grad()
    def _score_children(self, scores: Scores, logp: Tensor) -> Tensor:
        return self._network.score_children(scores, logp)

    @torch.no_grad()
    def _score_child_terms(self, scores: Scores) -> ChildTerms:
        return self._network.score_child_terms(scores)

    @torch.no_grad()
    def _score_child(self, scores: Scores, row: Tensor, token: Tensor, logp: Tensor) -> Tensor:
        return self._network.score_child(scores, row, token, logp)

    def _hidden(self, num_rows: int, column: Tensor | int, num_columns: int) -> Tensor:
        """Hidden states [N, 1, D] of the first rows' tokens at `column` ([N] or one), as the cache was planned."""
        padding = self._padding[:num_rows]
        last = column[:, None] if isinstance(column, Tensor) else column
        seen = Visible(self._lead, padding, column, self._is_padded)
        return self._hidden_fn(self._token[:num_rows], last - padding[:, None], seen, self._cache)

    def _fork(self, source: Tensor, target: Tensor, row: Tensor, longest: int) -> None:
        """Copy what is generated, and the prompt where it may differ, to slots that are not their own source."""
        forked = (source != target).nonzero()[:, 0]
        if len(forked) == 0:
            return
        here = self._row_of_slot.index_select(0, source.index_select(0, forked))
        there, first = row.index_select(0, forked), self._num_prompt_columns
        self._cache.fork(here, there, 0 if self._can_cross else first, first + longest)
        if self._can_cross:
            self._padding[there] = self._padding[here]

    def _bring_to_front(self, slots: Tensor, row: Tensor) -> Tensor:
        """The first rows, in the order of `slots`. Those further back swap places with idle rows in front."""
        if int(row.max()) < len(row):
            return row
        is_idle = torch.ones(len(row), dtype=torch.bool, device=row.device)
        is_idle[row[row < len(row)]] = False
        back, idle = row[row >= len(row)], is_idle.nonzero()[:, 0]  # as many of each
        here, there = torch.cat([back, idle]), torch.cat([idle, back])
        num_columns = self._num_prompt_columns + int(self._num_filled[here].max())
        self._cache.fork(there, here, 0, num_columns)
        for by_row in (self._num_filled, self._padding, self._slot_of_row):
            by_row[here] = by_row[there]
        self._row_of_slot[self._slot_of_row[here]] = here
        return self._row_of_slot[slots]
