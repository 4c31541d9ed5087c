"""Memory of an update, in divergence from the base, micro-batches, optimizer steps, and the value model's training."""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

from tinyzero_astar.model.token_logp import BLOCK_ELEMENTS, CHUNK_ELEMENTS, MIN_BLOCK
from tinyzero_astar.resources.search_memory import forward
from tinyzero_astar.resources.standing import FLOAT, Memory, gathered, largest, resident
from tinyzero_astar.resources.workload import (
    Shapes,
    Work,
    is_worth_joining,
    trainable_parameters,
    value_parameters,
)
from tinyzero_astar.rollout.value_model import CHILD_RANK, PATH_SIZE


class _Trees(NamedTuple):
    """Trees of a micro-batch, padded to the largest."""

    num_trees: int
    size: int  # positions of the largest
    scored: int  # tokens of all

    @property
    def positions(self) -> int:
        return self.num_trees * self.size


class _Held(NamedTuple):
    """Bytes by part at the times of a micro-batch when most may be held, in order of time."""

    scoring: Memory  # forward to the log-probabilities of the tokens, block by block
    logp_backward: Memory
    hidden_backward: Memory  # from the hidden states that are scored to those of all positions
    last_layer: Memory  # backward of the decoder's layers begins
    first_layer: Memory  # and ends


def divergence(shapes: Shapes, work: Work) -> Memory:
    """Divergence from the base, which only adapters have, in two forwards, then logits of both in chunks."""
    if not work.lora_rank:
        return {}
    hidden, held = work.dtype_bytes * shapes.hidden_size, list[Memory]()
    for trees in set(_micro_batches(shapes, work, work.num_rows)):
        chunk = min(trees.scored, max(1, CHUNK_ELEMENTS // shapes.vocab_size))
        mask = trees.num_trees * trees.size**2 * (work.dtype_bytes + 1)
        held += [
            {"activations": mask + trees.scored * hidden + forward(shapes, work, trees.positions)},
            # both logits, both log-probabilities and three for the sum
            {"activations": 2 * trees.scored * hidden, "logits": chunk * shapes.vocab_size * 7 * FLOAT},
        ]
    return resident(shapes, work) | gathered(shapes, work) | largest(held)


def reference_scores(shapes: Shapes, work: Work) -> Memory:
    """The first policy's forward over an iteration's completions, with hidden states, then logits in blocks."""
    hidden = work.dtype_bytes * shapes.hidden_size
    held = list[Memory]()
    for trees in set(_micro_batches(shapes, work, work.num_rows)):
        mask = trees.num_trees * trees.size**2 * (work.dtype_bytes + 1)
        held += [
            {"activations": mask + trees.scored * hidden + forward(shapes, work, trees.positions)},
            {"activations": trees.scored * hidden, "logits": 3 * _block(shapes, work, trees.scored)},
        ]
    return max(held, key=lambda parts: sum(parts.values()))


def gradients(shapes: Shapes, work: Work) -> Memory:
    """The most that is held during the first micro-batch, a later one beside earlier gradients, or at the end."""
    own = trainable_parameters(shapes, work.lora_rank) * FLOAT // work.num_shards
    head = shapes.embedding_parameters * work.dtype_bytes if work.lora_rank == 0 else 0
    first, *others = _micro_batches(shapes, work, work.step_rows)
    held = [*_held_during(first, shapes, work, head)]
    # the embedding's gradient is added to the head's, and their sum to what earlier micro-batches left
    held.append({"gradients": own, "temporary": (2 if others or work.dtype_bytes == FLOAT else 1) * head})
    if work.is_sharded and work.dtype_bytes < FLOAT:  # the sum is sent in float32
        held.append({"gradients": own, "temporary": head + head * FLOAT // work.dtype_bytes})
    for other in set(others):
        kept = _kept(shapes, work, work.step_rows * work.depth - other.scored)
        held += [parts | {"gradients": own, "step's states": kept} for parts in _held_during(other, shapes, work, head)]
    waiting = _kept(shapes, work, (work.kept_updates - 1) * work.step_rows * work.depth)
    return resident(shapes, work) | _gathered_in_step(shapes, work) | {"visited states": waiting} | largest(held)


def optimizer_step(shapes: Shapes, work: Work) -> Memory:
    """The policy's step. Unless it is fused, there are the root of a tensor's second moments, and its quotient."""
    own = trainable_parameters(shapes, work.lora_rank) // work.num_shards
    widest = max(shapes.hidden_size, shapes.intermediate_size)
    matrix = max(shapes.embedding_parameters, shapes.hidden_size * widest)
    tensor = (work.lora_rank * widest if work.lora_rank else matrix) // work.num_shards
    policy = {"gradients": own * FLOAT, "temporary": 0 if work.is_fused else 2 * tensor * FLOAT}
    return resident(shapes, work) | _waiting(shapes, work) | policy


def value_training(shapes: Shapes, work: Work) -> Memory:
    """A gradient step of the value model on what was visited, one micro-batch after another, or the step's end."""
    if work.kept_updates == 0:
        return {}
    whole, parts = value_parameters(shapes, work.value_hidden_size), resident(shapes, work)
    own = whole // work.num_shards
    tensor = max(shapes.vocab_size * CHILD_RANK, shapes.hidden_size * work.value_hidden_size) // work.num_shards
    held: list[Memory] = [{"temporary": 0 if work.is_fused else 2 * tensor * FLOAT}]
    for trees in set(_micro_batches(shapes, work, work.step_rows)):
        trunk = trees.scored * (work.value_hidden_size + CHILD_RANK) * FLOAT
        seen = trees.scored * (shapes.hidden_size + PATH_SIZE) * FLOAT
        held.append({"activations": 4 * trunk + 2 * trees.scored * (CHILD_RANK + 1) * FLOAT + seen})
    if work.is_sharded:  # its gradients, whole, and the copy that is sent
        held.append({"temporary": 2 * whole * FLOAT})
    parts["value model"] += own * FLOAT  # gradients
    gathered_weights = {"gathered weights": whole * FLOAT} if work.is_sharded else {}
    return parts | gathered_weights | _waiting(shapes, work) | largest(held)


def _waiting(shapes: Shapes, work: Work) -> Memory:
    """Of all updates since the value model was trained."""
    return {"visited states": _kept(shapes, work, work.kept_updates * work.step_rows * work.depth)}


def _kept(shapes: Shapes, work: Work, num_tokens: int) -> int:
    """Bytes that wait for the value model, for a hidden state, a path, a log-probability, a token and its number."""
    each = work.dtype_bytes * shapes.hidden_size + (PATH_SIZE + 1) * FLOAT + 2 * 8 + 1  # and whether it is one
    return max(0, num_tokens) * each * (work.kept_updates > 0)


def _micro_batches(shapes: Shapes, work: Work, num_rows: int) -> list[_Trees]:
    """Those of so many completions of full length that share nothing but their prompts, see `training.trees`.

    Problems whose completions all fit in one tree share trees as far as their prompts begin alike. The micro-batches
    stand in their order, and two stand for many equal ones.
    """
    longer = max(1, work.depth - 1)  # positions that a completion adds, as its last token has none
    linear_cost = shapes.layer_parameters / (2 * shapes.hidden_size)
    leaves, prompt = 1, work.prompt_length
    while leaves < work.num_rollouts and prompt + (leaves + 1) * longer <= work.micro_batch_tokens:
        if not is_worth_joining(longer, prompt + leaves * longer, prompt, linear_cost):
            break
        leaves += 1
    num_whole, rest = divmod(work.num_rollouts, leaves)
    num_problems = -(-num_rows // work.num_rollouts)
    if leaves == work.num_rollouts:
        together = _problems_together(work, leaves * longer, longer, linear_cost)
        num_full, rest = divmod(num_problems, together)
        sizes = [(int(rest > 0), rest, leaves), (num_full, together, leaves)]
    else:
        sizes = [(num_problems if rest else 0, 1, rest), (num_problems * num_whole, 1, leaves)]
    groups: list[_Trees] = []
    for num_trees, problems, count in filter(itemgetter(0), sizes):  # the smallest first
        size = work.shared_length + problems * (prompt - work.shared_length + count * longer)
        scored = problems * count * work.depth
        most = max(1, work.micro_batch_tokens // size)
        joined = min(num_trees, max(0, most - groups[-1].num_trees)) if groups else 0
        if joined:
            groups[-1] = _Trees(groups[-1].num_trees + joined, size, groups[-1].scored + joined * scored)
        whole, last = divmod(num_trees - joined, most)
        groups += [_Trees(most, size, most * scored)] * min(whole, 2) + [_Trees(last, size, last * scored)] * (last > 0)
    return groups


def _problems_together(work: Work, completions: int, longer: int, linear_cost: float) -> int:
    """How many problems a tree holds whose completions have so many positions each."""
    own, shared = work.prompt_length - work.shared_length, work.shared_length
    count, size = 1, work.prompt_length + completions
    while size + own + completions <= work.micro_batch_tokens:
        if not is_worth_joining(own + longer, size, shared, linear_cost):
            break
        count, size = count + 1, size + own + completions
    return count


def _held_during(trees: _Trees, shapes: Shapes, work: Work, head: int) -> _Held:
    """What one micro-batch needs. `head` is the bytes of the gradient of the head."""
    s, d = work.dtype_bytes, shapes.hidden_size
    layer = saved_by_layer(shapes, work)
    mask = trees.num_trees * trees.size**2 * (s + 1)  # and a boolean one that it is made of
    saved = mask + trees.positions * shapes.num_layers * (s * d if work.gradient_checkpointing else layer)
    before = trees.scored * s * d  # hidden states that are scored
    final = saved + trees.positions * _saved_by_norm(work) * d + before
    block, wide = _block(shapes, work, trees.scored), trees.scored * d * FLOAT
    recomputed = trees.positions * (layer - (s * d if s == FLOAT else 0)) * work.gradient_checkpointing
    own_head = shapes.embedding_parameters * FLOAT // work.num_shards if head and not shapes.is_tied else 0
    kept = 0 if own_head else head  # a tied head's waits for the embedding's
    in_layer = recomputed + trees.positions * (2 * s * shapes.intermediate_size + 2 * s * d)
    per_layer = shapes.linear_sizes * work.lora_rank or shapes.layer_parameters
    gradients_of_layers = shapes.num_layers * per_layer * FLOAT // work.num_shards
    return _Held(
        # A block and the one before it, and what is made of one. The kernels of a GPU need less, and round the slopes.
        scoring={"activations": final, "logits": (3 if work.is_host else 2) * block},
        logp_backward={
            "activations": final + wide,
            "logits": 2 * block if work.is_host else 2 * block + block * s // FLOAT,
            "temporary": head,
        },
        hidden_backward={"activations": final - before + trees.positions * s * d, "temporary": head},
        last_layer={"activations": saved + in_layer, "gradients": own_head, "temporary": kept},
        first_layer={
            "activations": mask + (saved - mask) // shapes.num_layers + in_layer,
            "gradients": own_head + gradients_of_layers * (shapes.num_layers - 1) // shapes.num_layers,
            "temporary": kept,
        },
    )


def saved_by_layer(shapes: Shapes, work: Work) -> int:
    """Bytes per position that one decoder layer keeps for its backward."""
    s, d, q, i = work.dtype_bytes, shapes.hidden_size, shapes.query_size, shapes.intermediate_size
    norms = 2 * d * _saved_by_norm(work)
    attention = s * 4 * q + FLOAT * shapes.num_heads  # q, k and v repeated for each query, output, log-sum-exp
    adapters = 7 * s * work.lora_rank
    mlp = (3 if work.has_liger else 4) * s * i  # gate, silu(gate), up, their product
    return norms + attention + mlp + adapters


def _saved_by_norm(work: Work) -> int:
    """Bytes per number for the input in float32, normed for the weight's gradient, and times the weight.

    Liger's kernel keeps its input and its output.
    """
    if work.has_liger:
        return 2 * work.dtype_bytes
    return FLOAT + work.dtype_bytes * (1 if work.lora_rank else 2)


def _block(shapes: Shapes, work: Work, num_positions: int) -> int:
    """Bytes of the logits of a block of the vocabulary."""
    elements = BLOCK_ELEMENTS["cpu" if work.is_host else "cuda"]
    return (
        num_positions
        * min(shapes.vocab_size, max(MIN_BLOCK, elements // max(num_positions, shapes.hidden_size)))
        * FLOAT
    )


def _gathered_in_step(shapes: Shapes, work: Work) -> Memory:
    if not work.is_sharded:
        return {}
    embeddings = shapes.embedding_parameters * (1 if shapes.is_tied else 2)
    return {"gathered weights": work.dtype_bytes * (embeddings + 2 * shapes.layer_parameters)}
