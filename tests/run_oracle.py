"""What a run must write, in plain loops from its config.json.

It covers problems, noise, leaves, weights, losses, steps and metrics. It is written from docs/algorithm.md and
docs/metrics.md (equation numbers are those of the former). Nothing of the package is in it but Hugging Face's own
forward, one sequence without padding at a time. All is in float64, and hashes are Python integers. What no document
says stands in the docstrings that are named where it is used.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import random
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

Tokens = tuple[int, ...]
INF, NAN = math.inf, math.nan

# ------------------------------------------------------------------------------------------------------------- noise

MASK = (1 << 64) - 1
GOLDEN, FOLD = 0x9E3779B97F4A7C15, 0x632BE59BD9B4E019
WHICH, WHEN = 0x2545F4914F6CDD1D, 0x1B873593CC9E2D51
UNGUIDED, THINNING, CHOICE = 0x5EED, 0x7417, 0x600D  # noise apart from the search's
POSITION, ACCEPTANCE = 0x9057, 0xACC3  # of power sampling
EVALUATION, DECODING, REFERENCE = 1 << 40, 1 << 41, 1 << 42
DECODING_INVERSE_BETA, POWER = 3.0, 4.0


def finalised(x: int) -> int:
    """Splitmix64's last step (Steele et al. 2014)."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def mix(x: int) -> int:
    return finalised(x + GOLDEN)


def fold(state: int, number: int) -> int:
    return mix(state ^ mix(number + FOLD))


def uniform(bits: int) -> float:
    """The upper 52 bits as a signed number around one half."""
    signed = bits - (1 << 64) if bits >> 63 else bits
    return (signed >> 12) * 2.0**-52 + (0.5 + 2.0**-53)


def exponential(bits: int) -> float:
    return -math.log(uniform(bits))


def problem_seed(seed: int, iteration: int, number: int) -> int:
    return fold(fold(mix(seed), iteration), number)


# ---------------------------------------------------------------------------------------------------------- problems

PROMPTS = {  # preface and question
    "compact": ("", "{a}*{b}=?\n<think>"),
    "conversation": (
        "The user asks a question about arithmetic and the assistant works it out. The assistant"
        " first writes down its reasoning, step by step, between <think> and </think>, then states"
        " nothing but the final integer between <answer> and </answer>, as in <answer>42</answer>,"
        " and stops.\n",
        "User: What is {a} * {b}?\nAssistant: <think>",
    ),
}


def is_held_out(a: int, b: int) -> bool:
    """20 % of the unordered pairs, by a hash (data/generation.py)."""
    digest = hashlib.blake2b(f"multiply {min(a, b)} {max(a, b)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < 20


def drawn_pairs(name: str, data: Mapping[str, Any]) -> list[tuple[int, int]]:
    """All pairs of up to two digits, by exponential clocks, where every number of digits is equally likely."""
    assert all(most <= 2 for _, most in digits(data)), "larger factors are drawn, not listed"
    rng = random.Random(name)
    first, second = (range(10 ** (fewest - 1), 10**most) for fewest, most in digits(data))
    clock = {(a, b): rng.expovariate(10.0 ** -len(f"{a}{b}")) for a in first for b in second}
    return sorted(clock, key=clock.__getitem__)


def digits(data: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Fewest and most digits of either factor."""
    first = data["min_digits"], data["max_digits"]
    own = (data["second_min_digits"], data["second_max_digits"])
    second = tuple(of_first if of_second is None else of_second for of_first, of_second in zip(first, own, strict=True))
    return first, (second[0], second[1])


def held_out_name(data: Mapping[str, Any]) -> str:
    first, second = digits(data)
    return f"held out {first[0]} {first[1]}" + ("" if first == second else f" by {second[0]} {second[1]}")


def training_pairs(config: Mapping[str, Any], iteration: int) -> list[tuple[int, int]]:
    data, seed, count = config["data"], config["run"]["seed"], config["train"]["problems_per_iteration"]
    pairs = drawn_pairs(f"{seed} training set", data)
    order = [p for p in pairs if not is_held_out(*p)][: data["num_problems"]]
    random.Random(f"{seed} epoch 0").shuffle(order)
    assert (iteration + 1) * count <= len(order), "later epochs: tests/test_generation.py"
    return order[iteration * count : (iteration + 1) * count]


def held_out_pairs(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    data, found = config["data"], {}
    for a, b in drawn_pairs(held_out_name(data), data):
        if is_held_out(a, b):
            low, high = min(a, b), max(a, b)
            is_turned = hashlib.blake2b(f"order {low} {high}".encode(), digest_size=1).digest()[0] % 2 == 0
            asked = (high, low) if is_turned else (low, high)
            fits = all(fewest <= len(str(n)) <= most for n, (fewest, most) in zip(asked, digits(data), strict=True))
            found.setdefault(frozenset((a, b)), asked if fits else (a, b))
    return list(found.values())[: config["eval"]["num_problems"]]


def prompt(pair: tuple[int, int], data: Mapping[str, Any], eos: str) -> str:
    """The question after worked examples from the training side, none of which is the question."""
    (preface, template), wanted = PROMPTS[data["template"]], data["num_shots"]
    examples: dict[frozenset[int], tuple[int, int]] = {}
    for a, b in drawn_pairs(f"{held_out_name(data)} examples", data) if wanted else []:
        if not is_held_out(a, b) and len(examples) <= wanted:
            examples.setdefault(frozenset((a, b)), (a, b))
    shown = [p for p in examples.values() if frozenset(p) != frozenset(pair)][:wanted]
    worked = (f"{template.format(a=a, b=b)}{a}*{b}={a * b}</think><answer>{a * b}</answer>{eos}\n\n" for a, b in shown)
    return f"{preface}{''.join(worked)}{template.format(a=pair[0], b=pair[1])}"


# ---------------------------------------------------------------------------------------------------------- verifier

_RIGHT = re.compile(r"(.*)</think>[ \n\t\r]*<answer>[ \n\t\r]*(0|-?[1-9][0-9]*)[ \n\t\r]*</answer>[ \n\t\r]*", re.S)
_TAG = re.compile(r"</?think>|</?answer>", re.I)


def judged(text: str, is_finished: bool, answer: int) -> tuple[float, float]:
    """Accuracy and format of a completion, 0 or 1 (the grammar is that of data/answers.py)."""
    match = _RIGHT.fullmatch(text)
    if not is_finished or match is None or _TAG.search(match[1]) is not None:
        return 0.0, 0.0
    return float(int(match[2]) == answer), 1.0


def said(text: str, is_finished: bool) -> str | None:
    """The answer of a well-formed completion."""
    match = _RIGHT.fullmatch(text)
    return match[2] if match is not None and judged(text, is_finished, 0)[1] else None


# ----------------------------------------------------------------------------------------------------------- network


class Network:
    """The language model and the value model in float64. What they say of a prefix is kept while weights stay.

    Args:
        model: trained in place, or the frozen base of adapters.
        value: parameters of the value model.
        adapters: matrices A and B by the name of their projection. Without them the model itself is trained.
        num_tokens: the tokenizer's. The model may have more rows, which are never generated.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        value: Mapping[str, torch.Tensor],
        adapters: Mapping[str, torch.Tensor],
        num_tokens: int,
    ) -> None:
        self.model, self.num_tokens = model, num_tokens
        self.value, self.adapters = (
            {name: x.detach().double().requires_grad_() for name, x in part.items()} for part in (value, adapters)
        )
        self.policy = self.adapters or dict(model.named_parameters())
        self.seen: dict[Tokens, Seen] = {}

    def merged(self) -> dict[str, torch.Tensor]:
        """W + 32 / rank B A (Hu et al. 2021, eq. 3, and model/adapters.py)."""
        found = {}
        for name, a in self.adapters.items():
            if ".lora_A." in name:
                b, place = self.adapters[name.replace("lora_A", "lora_B")], name.partition(".lora_A.")[0] + ".weight"
                found[place] = self.model.get_parameter(place).detach() + 32 / len(a) * (b @ a)
        return found

    def hidden_and_logits(self, ids: Tokens, is_base: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = {"input_ids": torch.tensor([ids]), "output_hidden_states": True, "use_cache": False}
        output = torch.func.functional_call(self.model, {} if is_base else self.merged(), (), inputs)
        return output.hidden_states[-1][0], output.logits[0, :, : self.num_tokens]

    def values(
        self, hidden: torch.Tensor, path: Sequence[float], logp: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The logit of accuracy, the baseline, and the logit of accuracy at every child (rollout/value_model.py).

        Args:
            hidden: [D] of a prefix.
            path: log pi of its tokens.
            logp: [V] log pi of the next.
        """
        v = self.value
        doubts = [path[-1], sum(path), min(path)] if path else [0.0, 0.0, 0.0]
        own = torch.tensor([math.log(1 - min(x, 0.0)) for x in doubts], dtype=torch.float64)
        trunk = v["trunk.weight"] @ torch.cat([hidden.detach(), own]) + v["trunk.bias"]
        trunk = trunk * torch.sigmoid(trunk)
        width = v["output.weight"].shape[1]
        accuracy, baseline, slope = v["output.weight"] @ trunk[:width] + v["output.bias"]
        children = accuracy + v["up.weight"][: self.num_tokens] @ trunk[width:] + slope * logp.detach().clamp(min=-30.0)
        return accuracy, baseline, children

    @torch.no_grad()
    def at(self, prompt: Tokens, tokens: Tokens = ()) -> Seen:
        """Of a prompt and some tokens that were generated."""
        ids, num_prompt = prompt + tokens, len(prompt)
        if ids not in self.seen:
            hidden, logits = self.hidden_and_logits(ids)
            every = torch.log_softmax(logits, -1)
            path = [float(every[t - 1, ids[t]]) for t in range(num_prompt, len(ids))]
            logp = every[-1]
            accuracy, baseline, children = self.values(hidden[-1], path, logp)
            self.seen[ids] = Seen(logp.tolist(), float(accuracy), float(baseline), children.tolist())
        return self.seen[ids]


@dataclass(frozen=True)
class Seen:
    """What the network says of a prefix."""

    logp: list[float]
    value_logit: float
    baseline: float
    child_logit: list[float]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def soft_value(logit: float, inverse_beta: float) -> float:
    """Equation 3."""
    return math.log1p(sigmoid(logit) * math.expm1(inverse_beta))


# ------------------------------------------------------------------------------------------------------------ search


@dataclass
class Node:
    """A prefix of one problem."""

    tokens: Tokens  # generated
    state: int  # of its noise
    priority: float
    logp: list[float]  # by token, as the two below
    logq: list[float]
    before: list[Seen]
    depth_limit: int
    ends: frozenset[int]  # tokens after which nothing comes
    is_first: bool = True  # the child that its prefix's own time of arrival belongs to
    problem: int = 0  # in its search
    log_tilt: float = 0.0  # log(M q) of that

    @property
    def phi(self) -> float:
        return self.log_tilt + sum(self.logq)

    @property
    def is_finished(self) -> bool:
        return bool(self.tokens) and self.tokens[-1] in self.ends

    @property
    def is_leaf(self) -> bool:
        return self.is_finished or len(self.tokens) == self.depth_limit

    def child(self, seen: Seen, token: int, priority: float, logq: float, is_first: bool) -> Node:
        return Node(
            (*self.tokens, token),
            mix(self.state) ^ mix(token + FOLD),
            priority,
            [*self.logp, seen.logp[token]],
            [*self.logq, logq],
            [*self.before, seen],
            self.depth_limit,
            self.ends,
            is_first,
            self.problem,
            self.log_tilt,
        )


@dataclass
class Found:
    """The leaves of one problem, best first, and what the search counted. `kappa` and `max_open` are the search's."""

    prompt: Tokens
    leaves: list[Node] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    kappa: float = -INF
    num_expanded: int = 0
    num_forks: int = 0
    max_open: int = 1
    num_open_final: int = 0
    num_pruned: int = 0
    num_capped: int = 0
    accuracy: list[float] = field(default_factory=list)
    format: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Visit:
    """A prefix that an update of the policy passed through, the token after it, and how its completion ended."""

    hidden: torch.Tensor
    path: list[float]  # log pi of its tokens
    logp: torch.Tensor  # [V] of the next
    token: int
    weight: float
    accuracy: float
    reward: float
    logp_old: float

    @property
    def noise(self) -> float:
        return self.weight * (1 - math.exp(self.logp_old)) ** 2


@dataclass(frozen=True)
class Guide:
    """How h bends one problem's search."""

    strength: float
    inverse_beta: float
    cap: float | None

    def proposal(self, seen: Seen, log_weight: float) -> tuple[list[float], bool]:
        """log q of every child, equations 5 and 9, and whether the budget lowered tau. `log_weight` is log(pi/q)."""
        if self.strength == 0:
            return seen.logp, False
        h = [soft_value(x, self.inverse_beta) for x in seen.child_logit]
        lowest = min(self.inverse_beta, 0.0)
        pairs = list(zip(seen.logp, h, strict=True))

        def worst(tau: float) -> float:
            return math.log(sum(math.exp(lp + tau * (x - lowest)) for lp, x in pairs))

        most, share = worst(self.strength), 1.0
        if self.cap is not None and most > 0:
            share = min(1.0, max(0.0, math.log(self.cap) - log_weight) / most)
        tau = self.strength * share
        norm = worst(tau)
        return [lp + tau * (x - lowest) - norm for lp, x in pairs], share < 1


def drawn(logq: Sequence[float], u: float) -> int:
    """The first token at which the running sum of probabilities reaches the share u of all."""
    total = list(itertools.accumulate(math.exp(x) for x in logq))
    return next(a for a, x in enumerate(total) if x >= u * total[-1])


def later(g: float, wait: float, phi: float) -> float:
    """Equation 8, -log(e^-g + wait e^-phi), with the larger exponent taken out."""
    if wait == 0:
        return g
    if wait == INF:
        return -INF
    one, other = -g, math.log(wait) - phi
    top = max(one, other)
    return -(top + math.log(math.exp(one - top) + math.exp(other - top)))


def children_without_replacement(node: Node, seen: Seen, logq: list[float], worst: float) -> tuple[list[Node], float]:
    """Children with their G, and the largest G of those that are not listed because none is better than `worst`."""
    q, phi = [math.exp(x) for x in logq], node.phi
    token = drawn(logq, uniform(mix(node.state ^ WHICH)))
    best = node.child(seen, token, node.priority, logq[token], True)
    rate = sum(q[:token]) + sum(q[token + 1 :])
    second = later(node.priority, exponential(mix(node.state ^ WHEN)) / rate if rate else INF, phi)
    if second <= worst:
        return [best], second
    own = mix(node.state)
    arrival = {b: exponential(finalised(own + (b + 1) * GOLDEN)) / q[b] for b in range(len(q)) if b != token and q[b]}
    first = min(arrival.values())
    rest = [node.child(seen, b, later(second, t - first, phi), logq[b], False) for b, t in arrival.items()]
    return [best, *rest], -INF


@dataclass(frozen=True)
class Start:
    """One of the problems that share a search."""

    prompt: Tokens
    root: Node
    guide: Guide
    log_tilt: float = 0.0  # log(M q)

    def node(self, problem: int) -> Node:
        return replace(self.root, problem=problem, log_tilt=self.log_tilt)


def search_without_replacement(net: Network, starts: Sequence[Start], k: int) -> list[Found]:
    """The K largest G of every depth. Kappa is the largest ever left out. Equations 6 and 21 weigh the leaves."""
    found = [Found(start.prompt) for start in starts]
    roots = [start.node(i) for i, start in enumerate(starts)]
    for root in roots:
        root.priority = root.log_tilt - math.log(exponential(mix(mix(root.state) ^ FOLD)))
    roots.sort(key=lambda n: -n.priority)
    beam, kappa, most = roots[:k], max([-INF, *(n.priority for n in roots[k : k + 1])]), 1
    for root in beam:
        found[root.problem].num_expanded = 1
    for _ in range(roots[0].depth_limit):
        pool = [n for n in beam if n.is_leaf and n.tokens]
        worst = beam[-1].priority if len(beam) == k else -INF
        for node in beam:
            if node.is_leaf and node.tokens:
                continue
            seen = net.at(starts[node.problem].prompt, node.tokens)
            logq, is_capped = starts[node.problem].guide.proposal(seen, sum(node.logp) - node.phi)
            found[node.problem].num_capped += is_capped
            own, best_unlisted = children_without_replacement(node, seen, logq, worst)
            kappa = max(kappa, best_unlisted)
            pool += own
        pool.sort(key=lambda n: -n.priority)
        beam, left_out = pool[:k], pool[k:]
        kappa = max([kappa, *(n.priority for n in left_out[:1])])
        is_open = [n for n in beam if not n.is_leaf]
        most = max(most, len(is_open))
        for node in is_open:
            found[node.problem].num_expanded += 1
            found[node.problem].num_forks += not node.is_first  # a first child goes on in its prefix's slot
    for leaf in beam:
        inclusion = -math.expm1(-math.exp(leaf.phi - kappa)) if kappa > -INF else 1.0
        found[leaf.problem].leaves.append(leaf)
        found[leaf.problem].weight.append(math.exp(sum(leaf.logp)) / inclusion)
    for own in found:
        own.kappa, own.max_open = kappa, most
    return found


def search_samples(
    net: Network, starts: Sequence[Start], per_problem: float, seeds: Sequence[int] = (), has_noise: bool = True
) -> list[Found]:
    """Independent draws from the policy. Without noise its likeliest token.

    Where draws per problem are no whole number, those that get one more are the first by a signed hash of their seeds.
    """
    found = [Found(start.prompt) for start in starts]
    each, extra = divmod(round(per_problem * len(starts)), len(starts))
    hashes = [fold(seed, CHOICE) for seed in seeds]
    order = sorted(range(len(seeds)), key=lambda i: hashes[i] - (hashes[i] >> 63 << 64))
    num_open: list[int] = [1] + [0] * starts[0].root.depth_limit
    for i, (start, own) in enumerate(zip(starts, found, strict=True)):
        leaves, root = [], start.root
        own.num_expanded = min(1, each + (i in order[:extra]))
        for stream in range(each + (i in order[:extra])):
            node = replace(root, state=mix(root.state) ^ mix(stream + FOLD))
            while not node.is_leaf or not node.tokens:
                seen = net.at(start.prompt, node.tokens)
                likeliest = max(range(len(seen.logp)), key=seen.logp.__getitem__)
                token = drawn(seen.logp, uniform(mix(node.state ^ WHICH))) if has_noise else likeliest
                node = node.child(seen, token, node.priority + seen.logp[token], seen.logp[token], True)
                num_open[len(node.tokens)] += not node.is_leaf
                own.num_expanded += not node.is_leaf
                own.num_forks += len(node.tokens) == 1 and stream > 0 and not node.is_leaf  # the prompt is in slot 0
            leaves.append(node)
        own.leaves = sorted(leaves, key=lambda n: -n.priority)
        own.weight = [1 / per_problem] * len(leaves)
    for own in found:
        own.max_open = max(num_open)
    return found


def search_best_first(net: Network, starts: Sequence[Start], k: int, width: int) -> list[Found]:
    """The largest f = g + strength h first, until K leaves are as good as all that is open. Limits are counted.

    The prompts of problems that share a search are expanded one after another, in their order.
    """
    found, leaves, open_list, most = [Found(start.prompt) for start in starts], [], list[Node](), 0
    waiting = [start.node(i) for i, start in enumerate(starts)]
    popped = [0] * (waiting[0].depth_limit + 1)
    is_running = True
    while is_running:
        is_prompt = bool(waiting)
        node = waiting.pop(0) if is_prompt else open_list.pop(0)
        own, guide = found[node.problem], starts[node.problem].guide
        own.num_expanded += 1
        if not is_prompt:
            popped[len(node.tokens)] += 1
            # a sibling needs the slot
            own.num_forks += any((n.problem, n.tokens[:-1]) == (node.problem, node.tokens[:-1]) for n in open_list)
        seen = net.at(own.prompt, node.tokens)
        children = []
        for token, logit in enumerate(seen.child_logit):
            f = sum(node.logp) + seen.logp[token] + guide.strength * soft_value(logit, guide.inverse_beta)
            children.append(node.child(seen, token, f, seen.logp[token], False))
        by_f = sorted(children, key=lambda n: -n.priority)
        leaves = sorted([*leaves, *(n for n in by_f if n.is_leaf)], key=lambda n: -n.priority)[:k]
        joined = sorted([*open_list, *(n for n in by_f if not n.is_leaf)], key=lambda n: -n.priority)
        open_list = joined[:width]
        most = max(most, len(open_list))
        is_spent = [popped[len(n.tokens)] >= width for n in open_list]
        for lost in [*joined[width:], *(n for n, spent in zip(open_list, is_spent, strict=True) if spent)]:
            found[lost.problem].num_pruned += 1
        open_list = [n for n, spent in zip(open_list, is_spent, strict=True) if not spent]
        enough = bool(open_list) and sum(x.priority >= open_list[0].priority for x in leaves) >= k
        is_running = bool(waiting) or (bool(open_list) and not enough)
    for i, own in enumerate(found):
        own.leaves = [leaf for leaf in leaves if leaf.problem == i]
        own.weight = [1 / len(own.leaves)] * len(own.leaves)
        own.num_open_final, own.max_open = sum(n.problem == i for n in open_list), most
    return found


# --------------------------------------------------------------------------------------------------------------- run


@dataclass
class Row:
    """A leaf that is trained on."""

    ids: Tokens
    num_prompt: int
    problem: int
    weight: float
    accuracy: float
    reward: float
    value: list[float]
    logp_old: list[float]
    advantage: list[float] = field(default_factory=list)
    logp_ref: list[float] = field(default_factory=list)  # of the reference, if there is one
    best_value: float = 0.0  # V* of its problem, by the reference


class Oracle:
    """A run from its configuration, its base and the value model that it begins with.

    Args:
        config: what config.json holds.
        model: the base, float64, trained in place.
        value: the value model's parameters.
        tokenizer: of the base.
        history: records of iterations before the first, for the gate.
        adapters: what is trained instead of the base's weights, if anything.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        model: torch.nn.Module,
        value: Mapping[str, torch.Tensor],
        tokenizer: Any,
        history: Sequence[Mapping[str, Any]] = (),
        adapters: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.algorithm = config["train"]["algorithm"]
        self.has_critic = self.algorithm == "astar_po"
        self.first = Network(copy.deepcopy(model), value, {}, len(tokenizer))  # as it will stay
        self.best_values: dict[tuple[int, int], float] = {}  # V* by problem
        self.net = Network(model, value, adapters or {}, len(tokenizer))
        self.history = list(history)
        declared = [tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id]
        self.ends = frozenset(i for x in declared for i in (x if isinstance(x, list) else [x]))
        data, search = config["data"], config["search"]
        self.prompt_of = lambda pair: tuple(tokenizer(prompt(pair, data, tokenizer.eos_token))["input_ids"])
        pairs = drawn_pairs(f"{config['run']['seed']} training set", data)
        asked = [p for p in pairs if not is_held_out(*p)][: data["num_problems"]]
        longest = max(len(self.prompt_of(p)) for p in [*asked, *held_out_pairs(config)])
        self.depth = min(search["max_search_depth"], config["model"]["max_seq_length"] - longest)
        self.searched_pairs: dict[tuple[int, int], bool] = {}  # those that came up, and whether with a leaf
        self.num_updates = self.num_value_updates = 0
        self.unlearnt: list[Visit] = []  # what the value model has not been trained on yet
        self.num_waiting = 0  # updates of the policy since it was
        self.moments: dict[str, list[torch.Tensor]] = {}
        self.doubt: dict[str, torch.Tensor] = {}  # see `adamw`

    # ---- search

    def searched(self, pairs: Sequence[tuple[int, int]], iteration: int) -> list[Found]:
        """The problems that share a search."""
        search, (is_open, is_root_open) = self.config["search"], self.gates()
        seeds = [problem_seed(self.config["run"]["seed"], iteration, a * 10**6 + b) for a, b in pairs]
        prompts = [self.prompt_of(pair) for pair in pairs]
        share = search["root_tilt"] if is_root_open and len(pairs) > 1 else 0.0
        tilts = self.log_tilts(prompts, search["weight_cap"] ** share) if share else [0.0] * len(pairs)
        starts = []
        for prompt, seed, tilt in zip(prompts, seeds, tilts, strict=True):
            is_unguided = uniform(fold(seed, UNGUIDED)) < search["unguided_fraction"]
            strength = search["guidance_strength"] if is_open and not is_unguided else 0.0
            guide = Guide(strength, self.inverse_beta(self.net.at(prompt)), search["weight_cap"])
            starts.append(Start(prompt, self.root(seed), guide, tilt))
        per_problem = search["num_rollouts_per_problem"]
        k = round(per_problem * len(pairs))
        if search["mode"] == "gumbel":
            found = search_without_replacement(self.net, starts, k)
        elif search["mode"] == "sample":
            found = search_samples(self.net, starts, per_problem, seeds)
        else:
            found = search_best_first(self.net, starts, k, search["beam_width"] * len(pairs))
        return [self.rewarded(own, pair) for own, pair in zip(found, pairs, strict=True)]

    def log_tilts(self, prompts: Sequence[Tokens], bound: float) -> list[float]:
        """Equation 22."""
        ps = [sigmoid(self.net.at(prompt).value_logit) for prompt in prompts]
        mean = sum(p * (1 - p) for p in ps) / len(ps)
        return [math.log(1 / bound + (1 - 1 / bound) * p * (1 - p) / mean) for p in ps]

    def alone(self, pair: tuple[int, int], root: Node, guide: Guide | None = None) -> list[Start]:
        """A problem with a search of its own, for evaluations."""
        return [Start(self.prompt_of(pair), root, guide or Guide(0.0, 0.0, None))]

    def root(self, seed: int) -> Node:
        return Node((), seed, 0.0, [], [], [], self.depth, self.ends)

    def inverse_beta(self, seen: Seen) -> float:
        """Equation 7, or the number that is given."""
        search = self.config["search"]
        bound = search["max_inverse_beta"]
        p = sigmoid(seen.value_logit)
        balanced = min(max(math.log((1 - p) / p), -bound), bound)
        return balanced if search["inverse_beta"] == "balanced" else search["inverse_beta"]

    def rewarded(self, found: Found, pair: tuple[int, int]) -> Found:
        prices = self.config["reward"]
        for leaf in found.leaves:
            shown = leaf.tokens[:-1] if leaf.is_finished else leaf.tokens
            accuracy, form = judged(self.tokenizer.decode(list(shown)), leaf.is_finished, pair[0] * pair[1])
            found.accuracy.append(accuracy)
            found.format.append(form)
            found.reward.append(prices["accuracy"] * accuracy + prices["format"] * form)
        return found

    def rows(self, pairs: Sequence[tuple[int, int]], results: Sequence[Found], iteration: int) -> list[Row]:
        """Equation 14, where weights differ. A leaf's uniform number is a hash of its problem's noise and its place."""
        search = self.config["search"]
        floor = search["min_weight"] if search["mode"] == "gumbel" else 0.0
        rows = []
        for i, (pair, found) in enumerate(zip(pairs, results, strict=True)):
            seed = problem_seed(self.config["run"]["seed"], iteration, pair[0] * 10**6 + pair[1])
            for k, (leaf, weight) in enumerate(zip(found.leaves, found.weight, strict=True)):
                if weight < floor:
                    weight = floor if uniform(fold(seed, k + THINNING)) < weight / floor else 0.0
                if weight == 0:
                    continue
                promised = [seen.baseline for seen in leaf.before]
                rewards = found.accuracy[k], found.reward[k]
                ids = found.prompt + leaf.tokens
                rows.append(Row(ids, len(found.prompt), i, weight, *rewards, promised, leaf.logp))
        return rows

    # ---- update

    def referred(self, rows: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
        """V* by equation 18, once for every problem, and log pi_ref of every token, with what that cost."""
        train, seed = self.config["train"], self.config["run"]["seed"]
        beta, num = train["optimal_value_beta"], train["num_reference_samples"]
        new, tokens = [pair for pair in pairs if pair not in self.best_values], 0
        read = tokens_read([self.prompt_of(pair) for pair in new])
        for pair in new:
            root = self.root(problem_seed(seed, REFERENCE, pair[0] * 10**6 + pair[1]))
            found = self.rewarded(search_samples(self.first, self.alone(pair, root), num)[0], pair)
            self.best_values[pair] = beta * math.log(sum(math.exp(r / beta) for r in found.reward) / num)
            tokens += found.num_expanded - 1
        for row in rows:
            row.best_value = self.best_values[pairs[row.problem]]
            prompt, own = row.ids[: row.num_prompt], row.ids[row.num_prompt :]
            row.logp_ref = [self.first.at(prompt, own[:t]).logp[token] for t, token in enumerate(own)]
        return {
            "reference/num_problems": len(new),
            "reference/num_decoded_tokens": tokens,
            "reference/num_prompt_tokens": read,
        }

    def prepare(self, rows: Sequence[Row]) -> dict[str, float]:
        """One number for every token of a completion, by equations 15, 17, 19 or 20, but for A*PO."""
        train, measures = self.config["train"], {}
        if self.has_critic:
            return self.prepare_critic(rows)
        for row in rows:
            group = [other for other in rows if other.problem == row.problem]
            rewards = [other.reward for other in group]
            mean = sum(rewards) / len(rewards)
            if self.algorithm == "rloo":
                a = row.reward - (sum(rewards) - row.reward) / (len(rewards) - 1)
            elif self.algorithm == "grpo":
                deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) + 1e-4
                a = (row.reward - mean) / (1.0 if train["group_loss"] == "dr_grpo" else deviation)
            elif self.algorithm == "rejection":
                right = [other.reward for other in group if other.accuracy > 0]
                kept = [other for other in group if other.accuracy > 0 and other.reward == max(right)]
                a = row.weight / sum(other.weight for other in kept) if any(row is other for other in kept) else 0.0
            else:
                a = row.reward - row.best_value
            row.advantage = [a] * len(row.value)
        if self.algorithm == "rejection":
            return {"rejection/kept": sum(row.advantage[0] for row in rows) / train["problems_per_iteration"]}
        if self.algorithm == "optimal_advantage":
            whole = sum(row.weight for row in rows)
            gaps = [sum(row.logp_old) - sum(row.logp_ref) for row in rows]
            measures = {
                "reference/value": sum(row.weight * row.best_value for row in rows) / whole,
                "reference/divergence": sum(row.weight * x for row, x in zip(rows, gaps, strict=True)) / whole,
            }
        mass = sum(row.weight * len(row.value) for row in rows)
        every = [row.advantage[0] for row in rows]
        return measures | {
            "advantage/mean": sum(row.weight * sum(row.advantage) for row in rows) / mass,
            "advantage/rms": math.sqrt(sum(row.weight * sum(x * x for x in row.advantage) for row in rows) / mass),
            "advantage/max": max(every),
            "advantage/min": min(every),
        }

    def prepare_critic(self, rows: Sequence[Row]) -> dict[str, float]:
        """Equations 11 and 12."""
        train = self.config["train"]
        raw = []
        for row in rows:
            n, lam = len(row.value), train["gae_lambda"]
            after = [*row.value[1:], 0.0]
            delta = [(row.reward if t == n - 1 else 0.0) + after[t] - row.value[t] for t in range(n)]
            raw.append([sum(lam**j * delta[t + j] for j in range(n - t)) for t in range(n)])
        mass = sum(row.weight * len(row.value) for row in rows)
        mean = sum(row.weight * sum(a) for row, a in zip(rows, raw, strict=True)) / mass
        square = sum(row.weight * sum(x * x for x in a) for row, a in zip(rows, raw, strict=True)) / mass
        rms = math.sqrt(square)
        for row, a in zip(rows, raw, strict=True):
            row.advantage = [x / max(rms, train["advantage_floor"]) for x in a]
        every = [x for a in raw for x in a]
        return {
            "advantage/mean": mean,
            "advantage/rms": rms,
            "advantage/max": max(every),
            "advantage/min": min(every),
        }

    def update(self, rows: list[Row], iteration: int) -> dict[str, float]:
        train = self.config["train"]
        rate = train["learning_rate"] * self.schedule(iteration)
        if not rows:  # docs/metrics.md: every name is there, null where nothing could be measured
            names = [f"train/{name}" for name in ("policy_loss", "value_loss", "ratio_deviation", "grad_norm")]
            names += [f"advantage/{name}" for name in ("mean", "rms", "max", "min")] + ["policy/entropy"]
            assert self.has_critic  # the others are not tried with this
            names += ["policy/kl_to_base"] if self.net.adapters else []
            return dict.fromkeys(names, NAN) | {"train/learning_rate": rate, "train/num_updates": self.num_updates}
        metrics = self.prepare(rows)
        if self.net.adapters:
            metrics["policy/kl_to_base"] = self.kl_to_base(rows)
        groups = []
        for first in range(0, train["problems_per_iteration"], train["batch_size"]):
            last = min(first + train["batch_size"], train["problems_per_iteration"])
            own = [row for row in rows if first <= row.problem < last]
            groups += [(own, last - first)] if own else []
        steps, value_losses = [], []
        for number, (own, num_problems) in enumerate(groups * train["num_epochs"], start=1):
            steps.append(self.step(own, num_problems, rate))
            is_last = number == len(groups) * train["num_epochs"]
            if self.has_critic and (is_last or self.num_waiting == self.config["value"]["update_frequency"]):
                value_losses.append(self.train_value())
            self.net.seen = {}
        metrics |= {name: sum(s[name] for s in steps) / len(steps) for name in steps[0]}
        metrics["train/value_loss"] = sum(value_losses) / len(value_losses) if value_losses else NAN
        return metrics | {"train/learning_rate": rate, "train/num_updates": self.num_updates}

    def schedule(self, iteration: int) -> float:
        """Linear warm-up over the first iterations, 1 right after them, then linearly to 0 after the last."""
        train = self.config["train"]
        num, warm = train["num_iterations"], train["warmup_iterations"]
        return (iteration + 1) / (warm + 1) if iteration < warm else (num - iteration) / max(1, num - warm)

    @torch.no_grad()
    def kl_to_base(self, rows: Sequence[Row]) -> float:
        total = mass = 0.0
        for row in rows:
            base = torch.log_softmax(self.net.hidden_and_logits(row.ids, is_base=True)[1], -1).tolist()
            prompt = row.ids[: row.num_prompt]
            for t in range(row.num_prompt, len(row.ids)):
                pairs = zip(self.net.at(prompt, row.ids[row.num_prompt : t]).logp, base[t - 1], strict=True)
                total += row.weight * sum(math.exp(x) * (x - y) for x, y in pairs)
                mass += row.weight
        return total / mass

    def loss(self, rows: Sequence[Row], logps: Sequence[torch.Tensor], num_problems: int) -> torch.Tensor:
        """Of one step, by equation 10, 16, 17, 19 or 20. `logps` are those of the tokens of each row."""
        train, total = self.config["train"], torch.zeros((), dtype=torch.float64)

        def clipped(log_ratio: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
            ratio = log_ratio.exp()
            return torch.minimum(ratio * a, ratio.clamp(1 - train["clip_low"], 1 + train["clip_high"]) * a)

        for row, logp in zip(rows, logps, strict=True):
            a, old = (torch.tensor(x, dtype=torch.float64) for x in (row.advantage, row.logp_old))
            if self.algorithm == "astar_po":
                total = total - row.weight * clipped(logp - old, a).sum() / num_problems
            elif self.algorithm == "rloo":
                total = total - clipped((logp - old).sum(), a[0]) / len(rows)
            elif self.algorithm == "optimal_advantage":
                gap = train["regression_beta"] * (logp.sum() - sum(row.logp_ref)) - a[0]
                total = total + row.weight * gap**2 / num_problems
            elif self.algorithm == "rejection":
                total = total - row.advantage[0] * logp.sum() / max(1.0, sum(sum(r.advantage) for r in rows))
            else:
                divisor = {
                    "grpo": len(rows) * len(row.value),
                    "dapo": sum(len(r.value) for r in rows),
                    "dr_grpo": len(rows) * self.config["search"]["max_search_depth"],
                }[train["group_loss"]]
                total = total - clipped(logp - old, a).sum() / divisor
        return total

    def step(self, rows: Sequence[Row], num_problems: int, rate: float) -> dict[str, float]:
        """One optimizer step of the policy, with its loss and AdamW. What it visited is kept for the value model."""
        train, net = self.config["train"], self.net
        logps: list[torch.Tensor] = []
        deviation = entropy = torch.zeros((), dtype=torch.float64)
        num_tokens = 0
        for row in rows:
            hidden, logits = net.hidden_and_logits(row.ids)
            own = []
            for t, old in enumerate(row.logp_old):
                place, token = row.num_prompt - 1 + t, row.ids[row.num_prompt + t]
                logp = torch.log_softmax(logits[place], -1)
                entropy = entropy - row.weight * (logp.exp() * logp).sum()
                path = [x.item() for x in own]
                own.append(logp[token])
                seen = hidden[place].detach(), path, logp.detach()
                self.unlearnt.append(Visit(*seen, token, row.weight, row.accuracy, row.reward, row.logp_old[t]))
                deviation = deviation + (torch.exp(logp[token].detach() - old) - 1).abs()
                num_tokens += 1
            logps.append(torch.stack(own))
        policy_loss = self.loss(rows, logps, num_problems)
        mass = sum(row.weight * len(row.value) for row in rows)
        wanted = policy_loss - train["entropy_bonus"] * entropy / mass  # equation 25
        norm = self.adamw("policy", net.policy, wanted, rate, train["weight_decay"], self.num_updates + 1)
        self.num_updates += 1
        self.num_waiting += 1
        return {
            "train/policy_loss": policy_loss.item(),
            "train/ratio_deviation": deviation.item() / num_tokens,
            "train/grad_norm": norm,
            "policy/entropy": entropy.item() / mass,
        }

    def train_value(self) -> float:
        """Equation 13 on every visit since the last time, again and again. Returns the loss before the first step."""
        value, net, losses = self.config["value"], self.net, []
        mass, noise = (sum(getattr(visit, name) for visit in self.unlearnt) for name in ("weight", "noise"))
        if self.num_value_updates == 0:  # it begins at the rate of success
            rate = (sum(visit.weight * visit.accuracy for visit in self.unlearnt) + 1) / (mass + 2)
            rate = min(max(rate, 0.01), 0.99)
            with torch.no_grad():
                net.value["output.bias"][0] = math.log(rate / (1 - rate))
        for _ in range(value["num_steps"]):
            loss = torch.zeros((), dtype=torch.float64)
            for visit in self.unlearnt:
                accuracy, baseline, children = net.values(visit.hidden, visit.path, visit.logp)
                child = children[visit.token]
                errors = (torch.sigmoid(accuracy) - visit.accuracy) ** 2 + (torch.sigmoid(child) - visit.accuracy) ** 2
                loss = loss + visit.weight * errors / mass + visit.noise * (baseline - visit.reward) ** 2 / noise
            losses.append(loss.item())
            self.num_value_updates += 1
            self.adamw("value", net.value, loss, value["learning_rate"], 0.0, self.num_value_updates)
        self.unlearnt, self.num_waiting = [], 0
        return losses[0]

    @torch.no_grad()
    def adamw(
        self, name: str, parameters: Mapping[str, torch.Tensor], loss: torch.Tensor, rate: float, decay: float, t: int
    ) -> float:
        """Loshchilov and Hutter 2019 with betas 0.9 and 0.95, matrices decayed. Returns the norm before clipping.

        Where an entry's gradient is small beside the largest, so is what float32 leaves of it, but AdamW's step is as
        long. `doubt` adds up over the steps how much longer an entry's rounding becomes than the largest one's.
        """
        with torch.enable_grad():
            found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        pairs = zip(parameters.items(), found, strict=True)
        gradient = {key: torch.zeros_like(p) if g is None else g for (key, p), g in pairs}
        norm = math.sqrt(sum(float((g * g).sum()) for g in gradient.values()))
        shrink = min(1.0, self.config["train"]["max_grad_norm"] / norm) if norm > 0 else 1.0
        for key, p in parameters.items():
            g = gradient[key] * shrink
            m, v = self.moments.setdefault(f"{name}.{key}", [torch.zeros_like(g), torch.zeros_like(g)])
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.95).add_(0.05 * g * g)
            if p.ndim > 1:
                p.mul_(1 - rate * decay)
            size = (v / (1 - 0.95**t)).sqrt() + 1e-8
            p.sub_(rate * (m / (1 - 0.9**t)) / size)
            doubt = torch.where(v > 0, g.abs().max() / size, 0.0)
            self.doubt[f"{name}.{key}"] = self.doubt.get(f"{name}.{key}", 0.0) + doubt
        return norm

    # ---- an iteration, an evaluation, a run

    def gates(self) -> tuple[bool, bool]:
        """The gates of docs/metrics.md, by the last three iterations that measured a number."""

        def recent(name: str) -> list[float]:
            known = [r[name] for r in self.history if r.get(name) is not None and math.isfinite(r[name])]
            return known[-3:]

        measures = [recent(f"value/auc_depth_{q}") for q in (1, 2, 3, 4)]
        sibling = recent("value/sibling_accuracy_later")
        error, auc = recent("value/root_calibration_error"), recent("value/auc_root")
        is_open = self.has_critic and min(len(x) for x in [*measures, sibling]) == 3
        is_root_open = self.has_critic and min(len(error), len(auc)) == 3
        return (
            is_open and sum(sum(x) for x in measures) / 12 > 0.60 and sum(sibling) / 3 > 0.55,
            is_root_open and sum(error) / 3 < 0.10 and sum(auc) / 3 > 0.55,
        )

    def search_size(self) -> int:
        """As many problems as may share a search and divide those of a step and of an iteration (config.py)."""
        search, train = self.config["search"], self.config["train"]
        if search["mode"] == "sample" and search["num_rollouts_per_problem"] % 1 == 0:
            return 1
        both = train["batch_size"], train["problems_per_iteration"]
        return max(m for m in range(1, search["problems_per_search"] + 1) if all(n % m == 0 for n in both))

    def iterate(self, iteration: int) -> tuple[dict[str, Any], list[Found]]:
        pairs, (is_open, is_root_open) = training_pairs(self.config, iteration), self.gates()
        size = self.search_size()
        groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        by_search = [self.searched(group, iteration) for group in groups]
        results = [found for group in by_search for found in group]
        self.searched_pairs |= {pair: self.searched_pairs.get(pair, False) for pair in pairs}
        self.searched_pairs |= {pair: True for pair, found in zip(pairs, results, strict=True) if found.leaves}
        rows = self.rows(pairs, results, iteration)
        metrics = rollout_metrics(by_search, self.config["search"]["mode"]) | self.value_metrics(results)
        if not self.has_critic:  # docs/metrics.md: nothing is known of a value model that nobody trains
            of_value = [name for name in metrics if name.split("/")[0] in ("value", "heuristic")]
            metrics |= dict.fromkeys([*of_value, "weight/variance_ratio"], NAN)
        if self.algorithm == "optimal_advantage":
            metrics |= self.referred(rows, pairs)
        metrics |= self.costs(by_search, rows, metrics, is_open, is_root_open)
        metrics |= self.update(rows, iteration)
        metrics |= {
            "guidance/is_open": float(is_open),
            "guidance/is_root_open": float(is_root_open),
            "search/unsearched_fraction": sum(not found.leaves for found in results) / len(results),
            "search/never_searched_fraction": sum(not x for x in self.searched_pairs.values())
            / len(self.searched_pairs),
            "train/num_rows": len(rows),
            "train/num_tokens": sum(len(row.ids) for row in rows),
        }
        self.history.append(metrics)
        return metrics, results

    def costs(
        self,
        by_search: Sequence[Sequence[Found]],
        rows: Sequence[Row],
        metrics: Mapping[str, Any],
        is_open: bool,
        is_root_open: bool,
    ) -> dict[str, float]:
        """Two operations for each weight of a matrix and token, and four for each position attended to and width."""
        search, train, value, model = (*(self.config[n] for n in ("search", "train", "value")), self.net.model.config)
        results = [found for own in by_search for found in own]
        read = tokens_read([found.prompt for found in results if found.num_expanded])
        if is_root_open and search["root_tilt"] > 0 and search["mode"] == "gumbel" and len(by_search[0]) > 1:
            read += sum(tokens_read([found.prompt for found in own]) for own in by_search)
        tokens = read + metrics["search/num_decoded_tokens"]
        tokens += metrics.get("reference/num_decoded_tokens", 0) + metrics.get("reference/num_prompt_tokens", 0)
        lengths = [len(leaf.tokens) for found in results for leaf in found.leaves]
        prompt = sum(len(found.prompt) for found in results) / len(results)
        attended = (prompt + sum(lengths) / len(lengths)) / 2
        heads = model.num_attention_heads * (
            getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
        )
        layers = sum(p.numel() for name, p in self.net.model.named_parameters() if ".layers." in name)
        head = self.net.model.get_output_embeddings().weight.numel()
        token = 2 * (layers + head) + 4 * model.num_hidden_layers * heads * attended
        own = 2 * (self.net.value["trunk.weight"].numel() + self.net.value["output.weight"].numel())
        rank = self.net.value["up.weight"].shape[1]
        one, every = (own + 2 * rank, own + 2 * rank * head // model.hidden_size) if self.has_critic else (0, 0)
        is_guided = is_open and search["mode"] != "sample" and search["guidance_strength"] > 0
        trained = sum(len(row.ids) for row in rows) * train["num_epochs"]
        generated = trained - len(rows) * prompt * train["num_epochs"]
        passes = (2 if self.net.adapters else 3) + train["gradient_checkpointing"]
        update = passes * trained * token + 3 * value["num_steps"] * generated * one
        if self.algorithm == "optimal_advantage":
            update += trained / train["num_epochs"] * token
        return {
            "search/num_prompt_tokens": read,
            "cost/tokens": tokens,
            "cost/search_flops": tokens * (token + (every if is_guided else one)),
            "cost/update_flops": update,
        }

    def value_metrics(self, results: Sequence[Found]) -> dict[str, Any]:
        results = [found for found in results if found.leaves]
        cells = []  # weight, V, R, position in the leaf, h, log pi and R/beta of the rest
        root = []
        for found in results:
            inverse_beta = self.inverse_beta(found.leaves[0].before[0])
            for leaf, weight, right in zip(found.leaves, found.weight, found.accuracy, strict=True):
                n = len(leaf.tokens)
                root.append((weight, sigmoid(leaf.before[0].value_logit), right))
                for t, seen in enumerate(leaf.before):
                    h = soft_value(seen.value_logit, inverse_beta)
                    cells.append(
                        (weight, sigmoid(seen.value_logit), right, t / n, h - sum(leaf.logp[t:]) - right * inverse_beta)
                    )
        mass = sum(w for w, *_ in cells)
        metrics = calibration(cells) | {
            "value/brier": sum(w * (v - r) ** 2 for w, v, r, *_ in cells) / mass,
            "value/explained_variance": explained_variance([(w, v, r) for w, v, r, *_ in cells]),
            "value/auc_root": auc(root),
            "value/root_calibration_error": calibration(root)["value/calibration_error"],
            "heuristic/overestimate_nats": sum(w * max(gap, 0.0) for w, _, _, _, gap in cells) / mass,
            # a thousandth of a nat is allowed for rounding
            "heuristic/inadmissible_fraction": sum(w for w, _, _, _, gap in cells if gap < -1e-3) / mass,
            "heuristic/bellman_residual": self.bellman_residual(results[:8]),
        }
        for q in range(4):
            inside = [(w, v, r) for w, v, r, place, _ in cells if q / 4 <= place < (q + 1) / 4]
            metrics[f"value/auc_depth_{q + 1}"] = auc(inside)
        return metrics | sibling_ranking(results)

    def bellman_residual(self, results: Sequence[Found]) -> float:
        totals = []
        for found in results:
            inverse_beta, total = self.inverse_beta(found.leaves[0].before[0]), 0.0
            for seen in found.leaves[0].before:
                pairs = zip(seen.logp, seen.child_logit, strict=True)
                flow = sum(math.exp(lp + soft_value(x, inverse_beta)) for lp, x in pairs)
                total += math.log(flow) - soft_value(seen.value_logit, inverse_beta)
            totals.append(abs(total))
        return sum(totals) / len(totals)

    def evaluate(self, num_problems: int, num_samples: int) -> dict[str, float]:
        """Of a greedy completion and some sampled ones per problem."""
        pairs, num = held_out_pairs(self.config)[:num_problems], num_samples
        greedy, sampled = [], []
        for pair in pairs:
            root = self.root(problem_seed(0, EVALUATION, pair[0] * 10**6 + pair[1]))
            likeliest = search_samples(self.net, self.alone(pair, root), 1, has_noise=False)
            greedy.append(self.rewarded(likeliest[0], pair))
            if num > 0:
                sampled.append(self.rewarded(search_samples(self.net, self.alone(pair, root), num)[0], pair))
        shares = {
            "eval/greedy_accuracy": [f.accuracy[0] for f in greedy],
            "eval/greedy_format": [f.format[0] for f in greedy],
        }
        if num > 0:
            shares["eval/sampled_format"] = [sum(f.format) / num for f in sampled]
        for k in (2**j for j in range(num.bit_length())):
            wrong = [num - sum(f.accuracy) for f in sampled]
            shares[f"eval/pass_at_{k}"] = [1 - math.comb(int(w), k) / math.comb(num, k) for w in wrong]
        lengths = [len(leaf.tokens) for f in sampled for leaf in f.leaves]
        metrics: dict[str, float] = {"eval/num_problems": len(pairs)}
        if num > 0:
            metrics["eval/mean_length"] = sum(lengths) / len(lengths)
        for name, values in shares.items():
            metrics |= interval(name, sum(values) / len(values), len(values))
        return metrics | (self.decode(pairs) if self.config["eval"]["search"] == "best_first" else {})

    def decode(self, pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
        """Greedy, the literal A*, and what costs as much in decoded tokens (eval/decoding.py), but for beams."""
        guide, width = Guide(1.0, DECODING_INVERSE_BETA, None), self.config["eval"]["beam_width"]
        alone = [self.alone(pair, self.root(self.decoding_seed(pair)), guide) for pair in pairs]

        def cost(results: Sequence[Found]) -> int:
            return sum(f.num_expanded - 1 for f in results)

        greedy = [f for starts in alone for f in search_samples(self.net, starts, 1, has_noise=False)]
        literal = [f for starts in alone for f in search_best_first(self.net, starts, 1, width)]
        budget = cost(literal)

        def closest(search: Callable[..., list[Found]]) -> list[Found]:
            """Of as many leaves as bring the cost closest to the budget, where more of them cost more."""
            tried: list[list[Found]] = []
            while not tried or cost(tried[-1]) < budget:
                tried.append([f for starts in alone for f in search(self.net, starts, len(tried) + 1)])
            return min(tried, key=lambda results: abs(cost(results) - budget))

        sampled, found = closest(search_samples), closest(search_without_replacement)
        best = [max(f.leaves, key=lambda n: (n.is_finished, n.before[-1].value_logit)) for f in sampled]
        leaves = {
            "greedy": ([f.leaves[0] for f in greedy], greedy),
            "best_first": ([f.leaves[0] for f in literal], literal),
            "gumbel": ([max(f.leaves, key=lambda n: (n.is_finished, n.before[-1].value_logit)) for f in found], found),
            "best_of_n": (best, sampled),
            "majority": ([self.majority(f.leaves) for f in sampled], sampled),
        }
        powered, num_tokens = self.powered(pairs, budget)
        right = {
            name: [self.is_right(n, p) for n, p in zip(own, pairs, strict=True)] for name, (own, _) in leaves.items()
        }
        right["power"] = [self.is_right(n, p) for n, p in zip(powered, pairs, strict=True)]
        metrics: dict[str, float] = {"decode/power_tokens": num_tokens / len(pairs)}
        metrics |= {"decode/power_expanded": NAN, "decode/power_forks": NAN}
        for name, own in right.items():
            metrics |= interval(f"decode/{name}_accuracy", sum(own) / len(own), len(own))
            if name != "greedy":
                metrics |= paired(f"decode/{name}_gain", own, right["greedy"])
        for name, (_, results) in leaves.items():
            metrics[f"decode/{name}_expanded"] = sum(f.num_expanded for f in results) / len(results)
            metrics[f"decode/{name}_tokens"] = cost(results) / len(results)
            metrics[f"decode/{name}_forks"] = sum(f.num_forks for f in results) / len(results)
        return metrics

    def decoding_seed(self, pair: tuple[int, int]) -> int:
        return problem_seed(0, DECODING, pair[0] * 10**6 + pair[1])

    def is_right(self, leaf: Node, pair: tuple[int, int]) -> float:
        return self.rewarded(Found((), [leaf], []), pair).accuracy[0]

    def majority(self, leaves: Sequence[Node]) -> Node:
        """The likeliest leaf of the answer that most give, ties by the sum of probabilities. Only the formed vote."""
        answers = [said(self.tokenizer.decode(list(n.tokens[:-1])), n.is_finished) for n in leaves]
        votes = [(leaf, answer) for leaf, answer in zip(leaves, answers, strict=True) if answer is not None]
        votes = votes or [(leaf, str(leaf.tokens)) for leaf in leaves]

        def strength(answer: str) -> tuple[int, float]:
            own = [math.exp(sum(leaf.logp)) for leaf, other in votes if other == answer]
            return len(own), sum(own)

        return max(votes, key=lambda vote: (strength(vote[1]), sum(vote[0].logp)))[0]

    def powered(self, pairs: Sequence[tuple[int, int]], budget: int) -> tuple[list[Node], int]:
        """Metropolis-Hastings for pi^4 (eval/power.py). The steps are those closest to the budget."""
        seeds, prompts = [self.decoding_seed(pair) for pair in pairs], [self.prompt_of(pair) for pair in pairs]
        now = [
            self.redrawn(prompt, self.root(seed), 0, fold(seed, 0)) for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        spent, number, before = sum(len(n.tokens) - 1 for n in now), 0, (now, 0)
        while spent < budget and number * len(pairs) < budget:
            before, number, now = (now, spent), number + 1, list(now)
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                noise, old = fold(seed, number), now[i]
                start = int(uniform(fold(noise, POSITION)) * len(old.tokens))
                new = self.redrawn(prompt, old, start, noise)
                spent += len(new.tokens) - start - 1
                # the ratio of pi^4, and of the ways back and forth by the one position
                ratio = math.exp(POWER * (sum(new.logp) - sum(old.logp)))
                ratio *= math.exp(sum(old.logp[start:])) / len(new.tokens)
                ratio /= math.exp(sum(new.logp[start:])) / len(old.tokens)
                now[i] = new if uniform(fold(noise, ACCEPTANCE)) < ratio else old
        return before if number > 0 and budget - before[1] <= spent - budget else (now, spent)

    def redrawn(self, prompt: Tokens, leaf: Node, start: int, noise: int) -> Node:
        """A leaf whose tokens from a position on are drawn anew."""
        node = replace(leaf, tokens=leaf.tokens[:start], logp=leaf.logp[:start], logq=[], before=leaf.before[:start])
        while not node.is_leaf or not node.tokens:
            seen = self.net.at(prompt, node.tokens)
            node = node.child(seen, drawn(seen.logp, uniform(fold(noise, len(node.tokens)))), 0.0, 0.0, True)
        return node

    def run(self) -> tuple[list[dict[str, Any]], list[list[Found]]]:
        """What metrics.jsonl holds, and the leaves of every iteration."""
        last, every = self.config["train"]["num_iterations"], self.config["eval"]["eval_frequency"]
        settings = self.config["eval"]
        whole = {"num_problems": settings["num_problems"], "num_samples": settings["num_samples"]}
        between = {"num_problems": min(settings["num_problems"], settings["num_problems_between"]), "num_samples": 0}
        records, found = [{"iteration": 0, **self.evaluate(**whole)}], []
        for iteration in range(last):
            metrics, results = self.iterate(iteration)
            found.append(results)
            if iteration + 1 == last:
                metrics = metrics | self.evaluate(**whole)
            elif (iteration + 1) % every == 0:
                metrics = metrics | self.evaluate(**between)
            records.append({"iteration": iteration + 1, **metrics})
        return records, found


# ----------------------------------------------------------------------------------------------------------- metrics


def interval(name: str, p: float, n: int) -> dict[str, float]:
    """Wilson 1927, at 95 %."""
    z2 = 1.959963984540054**2
    centre, half = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    low, high = ((centre + sign * half) / (1 + z2 / n) for sign in (-1, 1))
    return {name: p, f"{name}_low": low, f"{name}_high": high}


def paired(name: str, one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Agresti and Min 2005, at 95 %: of the differences, and of half a problem of each of the four kinds."""
    kinds = [0.0, 0.0, 1.0, -1.0]
    cells = [(1.0, x - y) for x, y in zip(one, other, strict=True)] + [(0.5, kind) for kind in kinds]
    mass = sum(w for w, _ in cells)
    mean = sum(w * d for w, d in cells) / mass
    half = 1.959963984540054 * math.sqrt(sum(w * (d - mean) ** 2 for w, d in cells)) / mass
    value = sum(x - y for x, y in zip(one, other, strict=True)) / len(one)
    return {name: value, f"{name}_low": max(-1.0, mean - half), f"{name}_high": min(1.0, mean + half)}


def effective_sample_size(group: Sequence[Found]) -> float:
    """Of one search (Kish 1965)."""
    weight = [w for f in group for w in f.weight]
    return sum(weight) ** 2 / sum(w * w for w in weight)


def variance_ratio(groups: Sequence[Sequence[Found]]) -> float:
    """Equation 23 by sums over leaves, and over pairs of leaves of a problem."""
    searched = sampled = 0.0
    for group in groups:
        rate = sum(len(f.leaves) for f in group) / len(group)
        for f in group:
            own = list(zip(f.leaves, f.weight, f.accuracy, strict=True))
            for leaf, w, right in own:
                inclusion = math.exp(sum(leaf.logp)) / w
                searched += w * w * (1 - inclusion) * (right - sigmoid(leaf.before[0].value_logit)) ** 2
            for (_, w, right), (_, other_w, other_right) in itertools.combinations(own, 2):
                sampled += w * other_w * (right - other_right) ** 2 / rate
    return searched / sampled if sampled > 1e-12 else NAN


def rollout_metrics(groups: Sequence[Sequence[Found]], mode: str) -> dict[str, float]:
    results = [f for group in groups for f in group]
    leaves = [leaf for f in results for leaf in f.leaves]
    accuracy, form, reward = ([x for f in results for x in getattr(f, n)] for n in ("accuracy", "format", "reward"))
    weight = [w for f in results for w in f.weight]
    lengths = [len(leaf.tokens) for leaf in leaves]
    num, num_problems = len(leaves), len(results)
    estimates = [sum(w * r for w, r in zip(f.weight, f.accuracy, strict=True)) for f in results]
    mean = sum(estimates) / num_problems
    spread = sum((x - mean) ** 2 for x in estimates) / max(1, num_problems - 1)
    is_weighted = mode != "best_first"
    tokens = sum(f.num_expanded - 1 for f in results if f.num_expanded)
    return {
        "rollout/accuracy": sum(accuracy) / num,
        "rollout/format": sum(form) / num,
        "rollout/reward": sum(reward) / num,
        "rollout/policy_accuracy": mean if is_weighted else NAN,
        "rollout/policy_accuracy_stderr": math.sqrt(spread / num_problems) if is_weighted else NAN,
        "rollout/mixed_fraction": mean_of([len(set(f.accuracy)) > 1 for f in results if len(f.leaves) > 1]),
        "rollout/length": sum(lengths) / num,
        "rollout/finished_fraction": sum(leaf.is_finished for leaf in leaves) / num,
        "rollout/unique_fraction": sum(len({n.tokens for n in f.leaves}) / len(f.leaves) for f in results if f.leaves)
        / sum(len(f.leaves) > 0 for f in results),
        "rollout/shared_prefix_fraction": shared_prefix_fraction(results),
        "reward/length_correlation": correlation(reward, lengths),
        "reward/accuracy_correlation": correlation(reward, accuracy),
        "weight/sum": sum(weight) / num_problems,
        "weight/max": max(weight),
        "weight/variance_ratio": {"sample": 1.0, "best_first": NAN}.get(mode, variance_ratio(groups)),
        "weight/capped_fraction": sum(f.num_capped > 0 for f in results) / num_problems,
        "weight/effective_sample_size": sum(effective_sample_size(group) for group in groups) / len(groups),
        "search/num_expanded": sum(f.num_expanded for f in results),
        "search/num_forks": sum(f.num_forks for f in results),
        "search/num_decoded_tokens": tokens,
        "search/max_open": max(f.max_open for f in results),
        "search/num_open_final": sum(f.num_open_final for f in results),
        "search/num_pruned": sum(f.num_pruned for f in results),
        "search/tokens_per_leaf": tokens / num,
    }


def tokens_read(prompts: Sequence[Tokens]) -> int:
    """What all prompts begin with is read once where that saves 512 positions or more. Each has its last token."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    alike = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    saved = alike * (len(prompts) - 1)
    return sum(map(len, prompts)) - (saved if saved >= 512 else 0)


def mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else NAN


def shared_prefix_fraction(results: Sequence[Found]) -> float:
    shares = []
    for found in results:
        for one, other in itertools.combinations([leaf.tokens for leaf in found.leaves], 2):
            common = sum(1 for _ in itertools.takewhile(lambda ab: ab[0] == ab[1], zip(one, other, strict=False)))
            shares.append(common / min(len(one), len(other)))
    return sum(shares) / len(shares) if shares else 0.0


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    bottom = math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))
    return top / bottom if bottom > 1e-12 else NAN


def explained_variance(cells: Sequence[tuple[float, float, float]]) -> float:
    mass = sum(w for w, _, _ in cells)

    def variance(values: Sequence[float]) -> float:
        pairs = [(w / mass, x) for (w, _, _), x in zip(cells, values, strict=True)]
        mean = sum(w * x for w, x in pairs)
        return sum(w * (x - mean) ** 2 for w, x in pairs)

    total = variance([r for _, _, r in cells])
    return 1 - variance([r - v for _, v, r in cells]) / total if total > 1e-12 else NAN


def calibration(cells: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    """Ten equal bins of V (Naeini et al. 2015)."""
    error, bins, mass = 0.0, [], sum(w for w, *_ in cells)
    for b in range(10):
        inside = [(w, v, r) for w, v, r, *_ in cells if min(9, int(10 * v)) == b]
        own = sum(w for w, _, _ in inside)
        if own > 0:
            predicted, observed = (sum(x[0] * x[i] for x in inside) / own for i in (1, 2))
            error += own / mass * abs(predicted - observed)
            bins.append([predicted, observed, own / mass])
    return {"value/calibration_error": error, "value/calibration_bins": bins}


def single(x: float) -> float:
    """To float32, in which scores are compared, as leaves of one problem share their prompt's."""
    return struct.unpack("f", struct.pack("f", x))[0]


def auc(cells: Sequence[tuple[float, float, float]]) -> float:
    """Chance that a success scores above a failure, ties half, every pair by the product of its weights."""
    won = pairs = 0.0
    for w, v, r in cells:
        for w2, v2, r2 in cells:
            if r > r2:
                pairs += w * w2
                won += w * w2 * (1.0 if single(v) > single(v2) else 0.5 if single(v) == single(v2) else 0.0)
    return won / pairs if pairs else NAN


def sibling_ranking(results: Sequence[Found]) -> dict[str, float]:
    """Right and wrong leaves of a problem by what their common prefix foresees of the two children where they part."""
    points = []
    for found in results:
        for i, j in itertools.product(range(len(found.leaves)), repeat=2):
            if not found.accuracy[i] > found.accuracy[j]:
                continue
            one, other = found.leaves[i], found.leaves[j]
            pairs = zip(one.tokens, other.tokens, strict=False)
            fork = sum(1 for _ in itertools.takewhile(lambda ab: ab[0] == ab[1], pairs))
            mine, theirs = (leaf.before[fork].child_logit[leaf.tokens[fork]] for leaf in (one, other))
            points.append((fork, 1.0 if mine > theirs else 0.5 if mine == theirs else 0.0))
    metrics: dict[str, Any] = {}
    forks = range(max((fork for fork, _ in points), default=0) + 1)
    for name, meant in (("", forks), ("_first", forks[:1]), ("_later", forks[1:])):
        own = [x for fork, x in points if fork in meant]
        metrics[f"value/sibling_accuracy{name}"] = sum(own) / len(own) if own else NAN
        metrics[f"value/sibling_pairs{name}"] = len(own)
    return metrics
