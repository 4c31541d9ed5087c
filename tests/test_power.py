"""Power sampling on tables that can be enumerated, with the law of its steps summed over all pairs of completions."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from tests.oracles import IndexedDecoder, Table
from tinyzero_astar.eval.power import Chains, Completions, log_acceptance, spend

TABLE = Table(2, 3, seed=5)  # 1 completion of one token, 1 of two, 2 of three
LARGER = Table(3, 4, seed=1)


class Prefixed(IndexedDecoder):
    """Prompt i is the index of its table and then the first tokens of a completion. It counts the rows stepped."""

    num_stepped = 0

    def start(self, prompts, home, *, can_cross=False):
        self.root = torch.tensor([self.number[p[0], tuple(p[1:])] for p in prompts])
        self.held, self.offset = self.root[home], torch.tensor([len(p) - 1 for p in prompts])[home]
        return self._at(self.root)

    def step(self, tokens, source, length, target, path):
        self.num_stepped += len(tokens)
        return super().step(tokens, source, length + self.offset[target], target, path)


def chains_of(table, num, max_rows=10**6, decoder=None):
    decoder = decoder or Prefixed([table])
    return Chains(lambda depth: decoder, [[0]] * num, torch.arange(num), table.depth, max_rows)


def at(table, leaf, num):
    """So many chains that have come to a completion."""
    tokens = torch.tensor([[*leaf, *[0] * (table.depth - len(leaf))]]).expand(num, -1)
    logp = [[table.log_prob[leaf[:t]][leaf[t]] if t < len(leaf) else 9.0 for t in range(table.depth)]]
    return Completions(
        tokens, torch.tensor(logp, dtype=torch.float64).expand(num, -1), torch.tensor([len(leaf)] * num), 7
    )


def leaves_of(found):
    return [tuple(row[:n]) for row, n in zip(found.tokens.tolist(), found.length.tolist(), strict=True)]


def one(x):
    return torch.tensor([x], dtype=torch.float64)


def moved(table, now, new, power):
    """Probability that one step goes from a completion to another one, over the positions that lead there."""
    total = 0.0
    for start in range(len(now)):
        if now[:start] == new[:start]:
            old, own = table.log_pi(now, start), table.log_pi(new, start)
            accepted = log_acceptance(one(old), one(own), one(len(now)), one(len(new)), power)
            total += math.exp(own) / len(now) * float(accepted.exp())
    return total


@pytest.mark.parametrize("power", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("table", [TABLE, LARGER], ids=["4 leaves", "31 leaves"])
def test_the_stationary_law_is_the_power_of_the_policys(table, power):
    leaves = table.leaves()
    assert {len(y) for y in leaves} == set(range(1, table.depth + 1)), "all of one length would hide it"
    mass = {y: math.exp(power * table.log_pi(y)) for y in leaves}
    law = {y: m / sum(mass.values()) for y, m in mass.items()}
    flow = {(x, y): law[x] * moved(table, x, y, power) for x in leaves for y in leaves if x != y}
    for x, y in flow:  # detailed balance, pair by pair
        assert flow[x, y] == pytest.approx(flow[y, x], rel=1e-12, abs=0)
    for y in leaves:  # so the law stays as it is, with what is refused or drawn again
        stays = law[y] - sum(flow[y, x] for x in leaves if x != y)
        assert stays >= 0 and stays + sum(flow[x, y] for x in leaves if x != y) == pytest.approx(law[y], rel=1e-12)
    assert min(flow.values()) > 0  # any completion can be reached, so there is no other such law


def test_a_step_goes_where_the_formula_says():
    """From every completion, with the draws of many chains."""
    num, decoder = 1500, Prefixed([TABLE])
    for now in TABLE.leaves():
        found = chains_of(TABLE, num, decoder=decoder).step(at(TABLE, now, num), 3, power=4.0)
        counts = Counter(leaves_of(found))
        assert set(counts) <= set(TABLE.leaves())
        for new in TABLE.leaves():
            if new != now:
                share = moved(TABLE, now, new, 4.0)
                assert abs(counts[new] - num * share) < 4 * math.sqrt(num * share * (1 - share)) + 1, (now, new)


def test_chains_begin_with_samples_and_keep_the_log_probabilities_of_their_tokens():
    num = 1000
    chains = chains_of(TABLE, num)
    found = chains.begin()
    counts = Counter(leaves_of(found))
    for leaf in TABLE.leaves():
        share = math.exp(TABLE.log_pi(leaf))
        assert abs(counts[leaf] - num * share) < 4 * math.sqrt(num * share * (1 - share)) + 1
    for number in (1, 2):
        found = chains.step(found, number)
        for start in (0, 1):
            own = found.since(torch.full((num,), start)).tolist()
            wanted = [TABLE.log_pi(leaf, start) for leaf in leaves_of(found)]
            assert own == pytest.approx(wanted, abs=1e-12)


def test_every_token_that_the_decoder_steps_is_counted_and_rows_may_be_split():
    found = {}
    for max_rows in (3, 100):
        decoder = Prefixed([LARGER])
        chains = chains_of(LARGER, 20, max_rows, decoder)
        now = chains.begin()
        assert now.num_tokens == decoder.num_stepped == int((now.length - 1).sum()) > 0
        before, now = now, chains.step(now, 1)
        assert before.num_tokens < now.num_tokens == decoder.num_stepped
        found[max_rows] = leaves_of(now)
    assert found[3] == found[100] and len(set(found[3])) > 2


class Scripted:
    """Chains that decode as many tokens in total as a list says."""

    def __init__(self, *totals):
        self.totals = totals

    def begin(self):
        return self.step(None, 0)

    def step(self, now, number):
        nothing = torch.zeros(2, 1)
        return Completions(nothing.long(), nothing.double(), torch.ones(2, dtype=torch.int64), self.totals[number])


@pytest.mark.parametrize(
    ("totals", "budget", "steps"),
    [
        ((10, 14, 20), 13, 1),  # 14 is closer than 10
        ((10, 14, 20), 11, 0),
        ((10, 14, 20), 12, 0),  # as close, so the cheaper one
        ((10, 14, 20), 16, 1),
        ((10, 14, 20), 18, 2),
        ((10,), 4, 0),  # the first completion alone costs more
        ((0, 0, 0, 0, 0), 7, 4),  # no more steps than tokens per problem, 3.5, or chains might never end
    ],
)
def test_the_steps_spend_what_is_closest_to_the_budget(totals, budget, steps):
    found, number = spend(Scripted(*totals), budget)
    assert (found.num_tokens, number) == (totals[steps], steps)
