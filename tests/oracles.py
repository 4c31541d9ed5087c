"""Slow oracles, written from the formulas of docs/algorithm.md in plain Python floats.

A `Table` is a random tree of next-token probabilities small enough to enumerate. Every leaf, its probability
and its reward are known, so every claim about a search can be summed over all leaves.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field

import torch

from tinyzero_astar.interfaces import StepOutput

Prefix = tuple[int, ...]


@dataclass
class Table:
    """Tokens 0..V-1, 0 is an end token. A prefix of `depth` tokens is a leaf whatever its last token."""

    num_tokens: int
    depth: int
    seed: int
    success: float = 0.5  # share of rewarded leaves
    peak: float = 1.5  # scale of the logits
    ends: tuple[int, ...] = (0,)
    reward: dict[Prefix, float] = field(default_factory=dict)
    log_prob: dict[Prefix, list[float]] = field(default_factory=dict)  # of every internal prefix

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        frontier: list[Prefix] = [()]
        while frontier:
            prefix = frontier.pop()
            if self.is_leaf(prefix):
                self.reward[prefix] = float(rng.random() < self.success)
                continue
            logits = [rng.gauss(0, self.peak) for _ in range(self.num_tokens)]
            total = math.log(sum(math.exp(x) for x in logits))
            self.log_prob[prefix] = [x - total for x in logits]
            frontier += [(*prefix, a) for a in range(self.num_tokens)]

    def is_leaf(self, prefix: Prefix) -> bool:
        return len(prefix) == self.depth or (len(prefix) > 0 and prefix[-1] in self.ends)

    def leaves(self, prefix: Prefix = ()) -> list[Prefix]:
        return [y for y in self.reward if y[: len(prefix)] == prefix]

    def log_pi(self, prefix: Prefix, start: int = 0) -> float:
        """log pi of the prefix given its first `start` tokens."""
        return sum(self.log_prob[prefix[:t]][prefix[t]] for t in range(start, len(prefix)))

    def success_probability(self, prefix: Prefix) -> float:
        """p(s), the mass of rewarded completions."""
        return sum(math.exp(self.log_pi(y, len(prefix))) * self.reward[y] for y in self.leaves(prefix))

    def log_partition(self, prefix: Prefix, inverse_beta: float) -> float:
        """log sum over leaves below s of pi(y|s) e^(R/beta), which is eq. 2 summed directly."""
        return math.log(
            sum(math.exp(self.log_pi(y, len(prefix)) + self.reward[y] * inverse_beta) for y in self.leaves(prefix))
        )


def homes(num_prompts: int, num_slots: int) -> torch.Tensor:
    """So many slots for each prompt."""
    return torch.arange(num_prompts).repeat_interleave(num_slots)


def logit(p: float) -> float:
    """Log-odds, with certainty far out instead of infinite."""
    p = min(max(p, 1e-300), 1 - 1e-16)
    return math.log(p) - math.log1p(-p)


class TableDecoder:
    """A `Decoder` over one table per problem, with exact values (plus noise, to stand for a learned one)."""

    def __init__(self, tables: list[Table], value_noise: float = 0.0, device: str | torch.device = "cpu") -> None:
        self.tables, self.device = tables, device  # where its answers are
        self.eos_ids = tables[0].ends
        self.value_noise = value_noise
        self.num_steps = 0
        self._exact = [{s: t.success_probability(s) for s in [*t.log_prob, *t.reward]} for t in tables]

    def start(self, prompts: list[list[int]], home, *, can_cross: bool = False) -> StepOutput:
        """Prompt i is the list [index of its table]."""
        self.can_cross = can_cross
        self.table_of = [prompts[i][0] for i in home.tolist()]  # by slot
        self.content: list[Prefix] = [()] * len(home)
        return self._output([(home.tolist().index(i), ()) for i in range(len(prompts))])

    def step(self, tokens, source, length, target, path) -> StepOutput:
        self.num_steps += 1
        source = target if source is None else source
        prefixes = []
        rows = zip(tokens.tolist(), source.tolist(), length.tolist(), target.tolist(), strict=True)
        for token, src, n, dst in rows:
            held, table = self.content[src], self.table_of[src]
            assert len(held) >= n, f"slot {src} holds {held}, {n} tokens wanted"
            assert self.can_cross or table == self.table_of[dst], "a fork must stay within its problem"
            prefixes.append((dst, table, (*held[:n], token)))
        assert len({dst for dst, *_ in prefixes}) == len(prefixes), "two rows write the same slot"
        for dst, table, prefix in prefixes:
            self.table_of[dst], self.content[dst] = table, prefix
        return self._output([(dst, prefix) for dst, _, prefix in prefixes])

    def success_logit(self, table: int, prefix: Prefix) -> float:
        exact = logit(self._exact[table][prefix])
        if not self.value_noise:
            return exact
        noise = random.Random(f"{table} {prefix}").gauss(0, self.value_noise)
        return min(max(exact, -20), 20) + noise

    def _output(self, rows: list[tuple[int, Prefix]]) -> StepOutput:
        logits, value, child = [], [], []
        for slot, prefix in rows:
            index = self.table_of[slot]
            table = self.tables[index]
            logits.append(table.log_prob[prefix])
            value.append(self.success_logit(index, prefix))
            child.append([self.success_logit(index, (*prefix, a)) for a in range(table.num_tokens)])
        logits, value, child = (
            torch.tensor(x, dtype=torch.float64, device=self.device) for x in (logits, value, child)
        )
        return StepOutput(logits, value, lambda logp: child, child_logit_of=lambda row, token, logp: child[row, token])


class IndexedDecoder(TableDecoder):
    """The same answers as `TableDecoder` by indexing tensors, fast enough for 100,000 searches at once.

    Prefixes are numbered over all tables, which must share a vocabulary and a depth.
    """

    def __init__(self, tables: list[Table], value_noise: float = 0.0, device: str | torch.device = "cpu") -> None:
        super().__init__(tables, value_noise, device)
        named = [(i, s) for i, t in enumerate(tables) for s in [*t.log_prob, *t.reward]]
        self.number = {key: n for n, key in enumerate(named)}
        self.prefixes = [s for _, s in named]
        depth, vocab = tables[0].depth, tables[0].num_tokens
        self.child = torch.full((len(named), vocab), -1)
        self.ancestor = torch.full((len(named), depth + 1), -1)
        self.logits = torch.full((len(named), vocab), math.nan, dtype=torch.float64)
        self.value_logit = torch.zeros(len(named), dtype=torch.float64)
        self.reward = torch.full((len(named),), math.nan, dtype=torch.float64)
        for n, (i, s) in enumerate(named):
            for t in range(len(s) + 1):
                self.ancestor[n, t] = self.number[i, s[:t]]
            self.value_logit[n] = self.success_logit(i, s)
            if tables[i].is_leaf(s):
                self.reward[n] = tables[i].reward[s]
                continue
            self.logits[n] = torch.tensor(tables[i].log_prob[s], dtype=torch.float64)
            for a in range(vocab):
                self.child[n, a] = self.number[i, (*s, a)]
        for name in ("child", "ancestor", "logits", "value_logit", "reward"):
            setattr(self, name, getattr(self, name).to(device))

    def start(self, prompts: list[list[int]], home, *, can_cross: bool = False) -> StepOutput:
        self.root = torch.tensor([self.number[p[0], ()] for p in prompts], device=self.device)
        self.held = self.root[home.to(self.device)]
        return self._at(self.root)

    def step(self, tokens, source, length, target, path) -> StepOutput:
        source = target if source is None else source
        before = self.ancestor[self.held[source]].gather(1, length[:, None])[:, 0]
        assert (before >= 0).all(), "a slot holds fewer tokens than are wanted"
        self.held[target] = self.child[before, tokens]
        return self._at(self.held[target])

    def _at(self, node: torch.Tensor) -> StepOutput:
        return StepOutput(
            self.logits[node],
            self.value_logit[node],
            lambda logp: self.value_logit[self.child[node]],
            child_logit_of=lambda row, token, logp: self.value_logit[self.child[node[row], token]],
        )

    def visited(self, tokens: torch.Tensor, length: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
        """Numbers of the prefixes before each token and of the leaf, [..., T + 1], with the leaf's at padding."""
        nodes = [root.expand(length.shape)]
        for t in range(tokens.shape[-1]):
            child = self.child[nodes[-1], tokens[..., t]]
            nodes.append(torch.where(t < length, child, nodes[-1]))
        return torch.stack(nodes, -1)


def policy_gradient(table: Table) -> dict[Prefix, list[float]]:
    """dJ/dlogit(a|s) = pi(s) pi(a|s) (p(sa) - p(s)), the softmax policy gradient at every internal prefix."""
    gradient = {}
    for s, logp in table.log_prob.items():
        p = table.success_probability(s)
        reach = math.exp(table.log_pi(s))
        gradient[s] = [reach * math.exp(lp) * (table.success_probability((*s, a)) - p) for a, lp in enumerate(logp)]
    return gradient


def h_max(table: Table, prefix: Prefix, inverse_beta: float) -> float:
    """max over leaves below s of log pi(y|s) + R(y)/beta, the tightest admissible heuristic."""
    return max(
        table.log_pi(y, len(prefix)) + table.reward[y] * inverse_beta
        for y in table.leaves(prefix)
        if all(math.isfinite(table.log_prob[y[:t]][y[t]]) for t in range(len(prefix), len(y)))
    )


def f_exact(table: Table, prefix: Prefix, inverse_beta: float) -> float:
    """f(s) = log pi(s) + log Z(s), by enumeration."""
    return table.log_pi(prefix) + table.log_partition(prefix, inverse_beta)


def astar_order(table: Table, inverse_beta: float) -> tuple[list[Prefix], list[float]]:
    """All leaves by F(y) = log pi(y) + R(y)/beta, the largest first."""
    leaves = sorted(table.reward, key=lambda y: -f_exact(table, y, inverse_beta))
    return leaves, [f_exact(table, y, inverse_beta) for y in leaves]


def plackett_luce_pairs(q: dict[Prefix, float]) -> dict[tuple[Prefix, Prefix], float]:
    """P(first, second) of drawing two leaves without replacement, q(y) q(z) / (1 - q(y))."""
    return {(y, z): q[y] * q[z] / (1 - q[y]) for y, z in itertools.permutations(q, 2)}


def twisted_leaf_law(
    table: Table,
    decoder: TableDecoder,
    index: int,
    inverse_beta: float,
    cap: float | None,
    strength: float = 1.0,
) -> dict[Prefix, tuple[float, float]]:
    """log pi and log q of every leaf under eqs. 5 and 9, token by token with scalar arithmetic."""

    def h(prefix: Prefix) -> float:
        x = decoder.success_logit(index, prefix)
        p = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
        return math.log1p(p * math.expm1(inverse_beta))

    lowest = min(inverse_beta, 0.0)  # h of certain failure, or of certain success where failures are looked for

    law: dict[Prefix, tuple[float, float]] = {}

    def visit(prefix: Prefix, log_pi: float, log_q: float) -> None:
        if table.is_leaf(prefix):
            law[prefix] = (log_pi, log_q)
            return
        logp, child_h = table.log_prob[prefix], [h((*prefix, a)) for a in range(table.num_tokens)]

        def log_norm(tau: float) -> float:
            return math.log(sum(math.exp(lp + tau * x) for lp, x in zip(logp, child_h, strict=True)))

        tau = strength
        worst = log_norm(strength) - strength * lowest
        if cap is not None and worst > 0:
            tau = strength * min(1.0, max(0.0, math.log(cap) - (log_pi - log_q)) / worst)
        for a in range(table.num_tokens):
            visit((*prefix, a), log_pi + logp[a], log_q + logp[a] + tau * child_h[a] - log_norm(tau))

    visit((), 0.0, 0.0)
    return law


def gae_oracle(reward: float, values: list[float], lam: float) -> list[float]:
    """A_t = sum_l lam^l delta_{t+l}, the double sum as it stands."""
    n = len(values)
    after = [*values[1:], 0.0]
    r = [0.0] * (n - 1) + [reward]
    delta = [r[t] + after[t] - values[t] for t in range(n)]
    return [sum(lam**i * delta[t + i] for i in range(n - t)) for t in range(n)]


def clipped_oracle(logp, logp_old, advantage, weight, length, clip_low, clip_high) -> float:
    """-sum_i w_i sum_t min(r A, clip(r) A), token by token."""
    total = 0.0
    for i in range(len(logp)):
        for t in range(length[i]):
            ratio = math.exp(logp[i][t] - logp_old[i][t])
            clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
            total -= weight[i] * min(ratio * advantage[i][t], clipped * advantage[i][t])
    return total
