"""Records and protocols that every layer shares. Nothing here computes.

Alignment rule, used everywhere: a per-token tensor `x` of shape [..., T] holds in `x[..., t]` a quantity of the
*generated* token `tokens[..., t]` given the prompt and `tokens[..., :t]`. `logp[..., t]` is the natural log-probability
of that token, `value[..., t]` the success probability of the prefix *before* it.

The axes are P problems, K leaves (rollouts) per problem, B = P * K sequences, T generated positions, V vocabulary, D
hidden width, and N rows of one decoder call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from tinyzero_astar.config import Config
from tinyzero_astar.modes import SearchMode

END_OF_EXAMPLE = "\N{END OF TEXT}"
"""Stands in a prompt where a worked example ends. The text of the model's end token takes its place."""


@dataclass(frozen=True)
class Problem:
    """One question with a verifiable answer."""

    id: int  # unique within its task, below 2**62, and the seed of the search noise
    prompt: str  # rendered text that the model continues. END_OF_EXAMPLE stands for the model's end token
    text: str  # the bare question, for people ("23*45")
    answer: Any  # of the task's own type (an integer, a fraction, a string)
    key: str = ""  # equal for problems that differ only in form (23*45, 45*23), the text if it is ""


@dataclass(frozen=True)
class Verdict:
    """What the verifier says about one completion."""

    accuracy: bool  # the one well-formed answer is right
    format: bool  # exactly one well-formed think/answer pair, at the end
    answer: Any  # what was parsed, in a form that JSON can hold, None when the format is wrong
    reason: str  # one phrase for logs, which says why the verdict is what it is
    score: float | None = None  # in [0, 1], of a task that grades, None means that accuracy counts

    def __post_init__(self) -> None:
        """Refuse a score that no probability could predict."""
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"a verdict's score must lie between 0 and 1, got {self.score}")

    @property
    def grade(self) -> float:
        """What the completion is worth before weights, in [0, 1]."""
        return float(self.accuracy) if self.score is None else self.score


class Task(Protocol):
    """A source of problems and their verifier."""

    def train_problems(self, iteration: int, count: int) -> list[Problem]:
        """The `count` training problems of an iteration, a pure function of seed and iteration."""
        ...

    def held_out_problems(self, count: int) -> list[Problem]:
        """The first `count` held-out problems, the same in every run. No key of theirs is trained on."""
        ...

    def verify(self, problem: Problem, completion: str, is_finished: bool) -> Verdict:
        """Judge the text after the prompt. It is cheap and safe on any string."""
        ...

    def example(self, problem: Problem) -> str:
        """A right completion, worked out briefly, as few-shot prompts show it, or "" where none is known."""
        ...

    def ask(self, text: str) -> Problem:
        """The problem that a person typed. A ValueError says how to write one."""
        ...


class Reward(Protocol):
    """What a verdict is worth, in units of reward."""

    def __call__(self, verdict: Verdict) -> float:
        """The reward of a completion."""
        ...


class ChildTerms(NamedTuple):
    """Logits of p(s a) at N prefixes, offset(s) + features(s) . up(a) + slope(s) max(log pi(a|s), -30)."""

    offset: Tensor  # [N]
    features: Tensor  # [N, R]
    up: Tensor  # [V, R]
    slope: Tensor  # [N]


class StepOutput(NamedTuple):
    """What the network says at N prefixes."""

    logits: Tensor  # [N, V] next-token logits of the policy, temperature 1, no top-k or top-p
    value_logit: Tensor  # [N] logit of p(s), the success probability of the prefix
    child_logit: Callable[[Tensor], Tensor]
    """[N, V] logit of p(s a) for every next token a, given log pi(a|s) [N, V]. It is computed when asked for."""
    baseline: Tensor | None = None  # [N] b(s) in units of reward, for the update, no effect on the search
    child_logit_of: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """The same of some rows, given one next token of each and its log pi, [...] each.

    With None, `child_logit` is asked.
    """
    child_terms: Callable[[], ChildTerms] | None = None
    """What the logits of p(s a) are made of. Only for decoders whose steps are recorded."""

    def taken(self, row: Tensor, token: Tensor, logp: Tensor) -> Tensor:
        """Logit of p(s a) for one next token of some rows, without scoring the whole vocabulary where that can be.

        Args:
            row: [...] of the N.
            token: [...] the next token of each.
            logp: [N, V] log pi(a|s).
        """
        if self.child_logit_of is None:
            return self.child_logit(logp)[row, token]
        return self.child_logit_of(row, token, logp[row, token])


class Decoder(Protocol):
    """How the search reaches a network, by slots that hold prefixes, extended by one token a step."""

    eos_ids: tuple[int, ...]  # the tokens that end a completion, of which the first pads

    def start(self, prompts: Sequence[Sequence[int]], home: Tensor, *, can_cross: bool = False) -> StepOutput:
        """Evaluate each prompt once. Slot s then holds prompt `home[s]`.

        Args:
            prompts: N token lists.
            home: int64 [S], in [0, N), each of which is there.
            can_cross: whether forks may go to a slot that holds another prompt, which they then replace.
        """
        ...

    def step(self, tokens: Tensor, source: Tensor | None, length: Tensor, target: Tensor, path: Tensor) -> StepOutput:
        """For row r, `target[r]` becomes the first `length[r]` generated tokens of `source[r]`, then `tokens[r]`.

        `path` [N, 3] float64 describes row r's new prefix under pi, in nats. It is log pi of its last token, of all
        that was generated, and of the least likely token. At a prompt all three are 0.

        The others are int64 [N]. Without a source each row's source is its target. Rows with source == target extend in
        place, the others are forks. Every row reads before any row writes, so a slot may be source of one row and
        target of another.
        """
        ...


@dataclass(frozen=True)
class SearchStats:
    """Counts per problem, int64 [P] each."""

    num_expanded: Tensor  # prefixes whose children were scored, the prompt included
    num_forks: Tensor  # prefixes copied to another slot
    num_decoded_tokens: Tensor  # decoder rows stepped, not counting the prompt
    max_open: Tensor  # largest number of open (unexpanded, kept) prefixes at any time
    num_open_final: Tensor  # open prefixes still kept when the search ended
    num_pruned: Tensor  # open prefixes dropped for lack of room or by the depth cap (best_first)
    num_capped: Tensor  # expanded prefixes at which the budget lowered the guidance (gumbel)


@dataclass(frozen=True)
class Rollouts:
    """P problems with K leaves each, best priority first. T is the longest leaf."""

    tokens: Tensor  # [P, K, T] int64, generated tokens only (the end token included), padded
    length: Tensor  # [P, K] int64, 0 where there is no k-th leaf
    is_finished: Tensor  # [P, K] True where an end token ended the leaf, False where the depth limit cut it
    logp: Tensor  # [P, K, T] log pi of each token (0 after length)
    logq: Tensor  # [P, K, T] log q of each token under the search's proposal (0 after length)
    value: Tensor  # [P, K, T] p(s) before each token (0 after length)
    baseline: Tensor  # [P, K, T] b(s) before each token, in units of reward, 0 where the decoder has none
    child_value: Tensor  # [P, K, T] p(s a) after each token, as its prefix predicts it, which guides the search
    priority: Tensor  # [P, K] G (gumbel), f (best_first), log pi(y) (sample)
    kappa: Tensor  # [P] threshold of docs/algorithm.md eq. 6 (gumbel), else -inf
    weight: Tensor  # [P, K] inclusion weight (gumbel), 1/K (sample), 0 where no leaf, nan for best_first
    stats: SearchStats

    @property
    def is_token(self) -> Tensor:
        """[P, K, T] True at generated tokens, False at padding."""
        return torch.arange(self.tokens.shape[-1], device=self.length.device) < self.length[..., None]

    def padded(self, num_leaves: int, width: int, pad_id: int) -> Rollouts:
        """The same with room for so many leaves of a problem and tokens of a leaf, at least as many as now."""
        leaves = (0, num_leaves - self.tokens.shape[1])
        room = (0, width - self.tokens.shape[-1], *leaves)
        return replace(
            self,
            tokens=pad(self.tokens, room, value=pad_id),
            length=pad(self.length, leaves),
            is_finished=pad(self.is_finished, leaves),
            logp=pad(self.logp, room),
            logq=pad(self.logq, room),
            value=pad(self.value, room),
            baseline=pad(self.baseline, room),
            child_value=pad(self.child_value, room),
            priority=pad(self.priority, leaves, value=-torch.inf),
            weight=pad(self.weight, leaves),
        )


@dataclass(frozen=True)
class TraceNode:
    """One prefix of one problem's search tree, as scored when it was generated.

    Steps count decoder calls. The prompts are evaluated in step 0. Several prompts of one group of mode best_first are
    expanded one after another, in steps 0 to M - 1.
    """

    problem: int  # index into the prompts
    node: int  # unique within the problem, 0 for the prompt
    parent: int  # -1 for the prompt
    token: int  # last token of the prefix, -1 for the prompt
    depth: int  # generated tokens
    g: float  # log pi(prefix | prompt)
    h: float  # heuristic on the scale of log-probabilities
    f: float  # g + h
    priority: float  # what the search ordered by, G (gumbel), f (best_first) or g (sample)
    success: float  # p(s) as the prefix before it foresees it, in [0, 1]
    step: int  # when it was generated
    end: int  # when it was extended, or when better ones pushed it out, -1 means never
    status: Literal["expanded", "leaf", "open", "dropped"]


@dataclass
class Trace:
    """Receives the nodes of a search's first groups of problems, problem by problem, parents before children."""

    num_groups: int  # that are recorded
    nodes: list[TraceNode] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """What a frozen copy of the first policy says about the rows of a batch."""

    logp: Tensor  # [B, T] log pi_ref of each token, any number at padding
    value: Tensor  # [B] V* of the row's problem, in units of reward (docs/algorithm.md eq. 18)

    def rows(self, rows: Tensor, width: int) -> Reference:
        """Some rows, cut to so many tokens."""
        return Reference(self.logp[rows, :width], self.value[rows])


@dataclass(frozen=True)
class Batch:
    """The rollouts of one iteration as the update sees them. Rows are completions, problem by problem."""

    prompts: list[list[int]]  # of every problem, those without a row included
    problem: Tensor  # [B] index of the problem within the iteration
    tokens: Tensor  # [B, T] the completions
    is_token: Tensor  # [B, T] True at generated tokens
    weight: Tensor  # [B] inclusion weights, which sum to about 1 per problem
    accuracy: Tensor  # [B] accuracy reward, 0 or 1, or a grade between
    reward: Tensor  # [B] what the policy is trained on, a weighted sum of the two
    logp_old: Tensor  # [B, T] log pi before the update, as the search recorded it
    baseline: Tensor  # [B, T] b(s) of the prefix before each token, as the search recorded it, in units of reward
    advantage: Tensor  # [B, T]
    reference: Reference | None = None  # of an algorithm that needs one

    def to(self, device: torch.device) -> Batch:
        """The same with all tensors on a device, and without a reference."""
        assert self.reference is None
        tensors: dict[str, Any] = {
            f.name: x.to(device) for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)

    def rows(self, rows: Tensor) -> Batch:
        """Some rows, cut to their longest completion."""
        width = int(self.is_token[rows].sum(1).max())

        def cut(x: Tensor) -> Tensor:
            return x[rows][:, :width]

        return Batch(
            prompts=self.prompts,
            problem=self.problem[rows],
            tokens=cut(self.tokens),
            is_token=cut(self.is_token),
            weight=self.weight[rows],
            accuracy=self.accuracy[rows],
            reward=self.reward[rows],
            logp_old=cut(self.logp_old),
            baseline=cut(self.baseline),
            advantage=cut(self.advantage),
            reference=None if self.reference is None else self.reference.rows(rows, width),
        )


@dataclass(frozen=True)
class PrefixTrees:
    """B completions as R trees, in which each prefix stands once. One forward of the model sees them.

    A tree holds a prompt and then the tokens of its completions, each once for all completions that share the prefix up
    to it. L is the largest number of positions of a tree, E the number of scored tokens of all trees.
    """

    ids: Tensor  # [R, L] tokens, padded on the right
    position: Tensor  # [R, L] number of tokens before it in its own sequence
    is_seen: Tensor  # [R, 1, L, L] True where a query sees a key, which are its own prefix and itself
    parent: Tensor  # [E] place of the last token before each scored token, in the flattened ids
    token: Tensor  # [E] scored tokens, with which completions continue a prefix
    scored: Tensor  # [B, T] which of the E each token of a completion is, 0 at padding
    cell: Tensor  # [E] where each scored token stands in the flattened [B, T], in one of its completions

    def by_completion(self, x: Tensor) -> Tensor:
        """Numbers of scored tokens [E] at the tokens of every completion, [B, T]."""
        return x.index_select(0, self.scored.flatten()).view_as(self.scored)


class Algorithm(Protocol):
    """What turns rewarded rollouts into a loss."""

    measures: ClassVar[tuple[str, ...]]
    """Names of what `prepare` returns to be logged."""

    has_critic: ClassVar[bool]
    """Whether the value model is trained. Without it there is no guidance either."""

    needs_reference: ClassVar[bool]
    """Whether batches must come with a `Reference`."""

    modes: ClassVar[tuple[SearchMode, ...]]
    """Search modes on whose rollouts it may train."""

    reason: ClassVar[str]
    """Why it may not train on those of the others, after "algorithm NAME". Empty where it may."""

    min_rollouts: ClassVar[int]
    """Fewest rollouts of a problem that it compares. With 1 it compares none, and a problem may have none."""

    @classmethod
    def from_config(cls, config: Config) -> Algorithm:
        """The algorithm with a run's settings."""
        ...

    def prepare(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Fill in weights and advantages, without gradients, and return what is worth logging."""
        ...

    def loss(self, batch: Batch, logp: Tensor) -> Tensor:
        """The loss of a micro-batch as a sum. `logp` [B, T] carries the gradient."""
        ...

    def count(self, batch: Batch, num_problems: int) -> float:
        """What the summed loss is divided by, over the whole optimizer batch of `num_problems` problems."""
        ...


class Table(NamedTuple):
    """What was measured, for people."""

    title: str
    rows: list[tuple[str, str]]  # name and value


class Logger:
    """One place that a run reports to. It is a class and no protocol, so that a logger inherits what it does not need.

    Rank 0 alone has loggers. What cannot be written raises `WriteFailedError` (files.py), and the run then ends with
    that sentence. When a method returns, what it was given is safe, because nothing tells it that a run is killed. A
    number that could not be measured is None.
    """

    def begin(self, config: Mapping[str, Any], folder: Path, done: int, records: Sequence[Mapping[str, Any]]) -> None:
        """A run begins, or goes on after `done` iterations. Later events may repeat those of an earlier process.

        Args:
            config: by section and field.
            folder: of the run, which exists.
            done: iterations trained.
            records: what earlier processes recorded of them, each with its iteration. None are given if the file is
                lost.
        """

    def iteration(self, number: int, metrics: Mapping[str, Any], ranking: float | None) -> None:
        """Iteration `number`, counted from 1, has been trained. Its evaluation and its checkpoint are to come.

        Args:
            number: of the iteration.
            metrics: what was measured so far.
            ranking: sibling accuracy that the guidance gate used, None where there were too few measures.
        """

    def alarm(self, number: int, text: str) -> None:
        """Something has just become wrong in iteration `number`, said in one sentence."""

    def samples(self, number: int, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Completions of iteration `number`, problem by problem, the best first, by field, as JSON can hold them."""

    def trace(self, number: int, record: Mapping[str, Any]) -> None:
        """Search trees of iteration `number`, as docs/trace.md has them."""

    def evaluation(self, number: int, metrics: Mapping[str, Any], tables: Sequence[Table]) -> None:
        """The model after iteration `number` (0 is the base model) has been evaluated. `tables` are for people."""

    def record(self, number: int, metrics: Mapping[str, Any]) -> None:
        """All that was measured of iteration `number`, in training, evaluation or both, reported once at its end."""

    def end(self) -> None:
        """The run ends, however it does. Close what is open."""
