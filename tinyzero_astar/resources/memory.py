"""Memory of a run by part and phase, predicted from shapes alone: arithmetic, no tensors and no GPU.

The parts mirror what the code keeps alive; where a number is not obvious the comment names the tensors it counts.
Phases follow each other, so that a run needs the largest of their sums. tests/test_memory.py holds every phase
against the live tensor bytes of real runs; docs/scaling.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tinyzero_astar.resources.workload import (
    CHILD_RANK,
    Shapes,
    Work,
    is_worth_joining,
    trainable_parameters,
    value_parameters,
)

FLOAT, DOUBLE = 4, 8  # bytes
CHUNK_ELEMENTS = 1 << 24  # positions * vocabulary of a chunk of logits: 64 MiB in float32
BLOCK_ELEMENTS, MIN_BLOCK = {"cpu": 1 << 19, "cuda": 1 << 26}, 256  # positions * tokens of a block; its tokens

Memory = dict[str, int]  # bytes by part


def phases(shapes: Shapes, work: Work) -> dict[str, Memory]:
    """Bytes by part at the peak of each phase; the phases' names are those of the docs."""
    found = {
        "search": resident(shapes, work) | _gathered(shapes, work) | _search(shapes, work),
        "evaluation": resident(shapes, work) | _gathered(shapes, work) | _evaluation(shapes, work),
        "divergence": _divergence(shapes, work),
        "gradients": _gradients(shapes, work),
        "optimizer step": _optimizer_step(shapes, work),
    }
    if work.is_sharded:
        found = {"loading": _loading(shapes, work)} | found
    if work.is_host:
        found["checkpoint"] = resident(shapes, work) | {"file copies": checkpoint_copies(shapes, work)}
    return {name: {part: n for part, n in parts.items() if n} for name, parts in found.items() if parts}


def peak(found: Mapping[str, Memory]) -> tuple[str, int]:
    """The phase that needs most, and its bytes."""
    name = max(found, key=lambda phase: sum(found[phase].values()))
    return name, sum(found[name].values())


def resident(shapes: Shapes, work: Work) -> Memory:
    """What lives from the first update to the end of the run."""
    own = trainable_parameters(shapes, work.lora_rank)
    adapters = own if work.lora_rank else 0
    is_rounded = work.dtype_bytes < FLOAT
    parts = {
        "weights": (shapes.num_parameters + adapters) * work.dtype_bytes,
        "master weights": own * FLOAT if is_rounded else 0,
        "Adam moments": own * 2 * FLOAT,
        "value model": value_parameters(shapes, work.value_hidden_size) * 3 * FLOAT,  # weights and moments
    }
    if work.is_sharded:
        if is_rounded:  # what is trained lies in the shards as master weights alone
            parts["weights"] -= own * work.dtype_bytes
        parts = {part: n // work.num_shards for part, n in parts.items()}
    return parts


def kv_bytes(shapes: Shapes, work: Work, num_slots: int) -> int:
    """Of the slot cache: one column more than the longest sequence."""
    return num_slots * (work.length + 1) * shapes.num_layers * 2 * shapes.kv_size * work.dtype_bytes


def trainer_file_bytes(shapes: Shapes, work: Work) -> int:
    """Of a checkpoint's trainer.safetensors: optimizer state, value model, and with adapters what merging loses."""
    own = trainable_parameters(shapes, work.lora_rank)
    state = own * (3 if work.dtype_bytes < FLOAT else 2) * FLOAT
    state += value_parameters(shapes, work.value_hidden_size) * 3 * FLOAT
    if work.lora_rank:
        state += (own + shapes.num_layers * shapes.linear_parameters) * work.dtype_bytes
    return state


def checkpoint_bytes(shapes: Shapes, work: Work) -> int:
    """On disk: model.safetensors, with adapters merged, and trainer.safetensors."""
    return shapes.num_parameters * work.dtype_bytes + trainer_file_bytes(shapes, work)


def checkpoint_copies(shapes: Shapes, work: Work) -> int:
    """Host memory while a checkpoint is written: what goes to trainer.safetensors, and weights put together."""
    size = trainer_file_bytes(shapes, work)
    if work.lora_rank:
        size += shapes.num_layers * shapes.linear_parameters * work.dtype_bytes
    return size + (shapes.num_parameters * (FLOAT + work.dtype_bytes) if work.is_sharded else 0)


def _loading(shapes: Shapes, work: Work) -> Memory:
    """All weights on every process, what is trained as master weights, before they are split."""
    own = trainable_parameters(shapes, work.lora_rank)
    is_rounded = work.dtype_bytes < FLOAT
    frozen = shapes.num_parameters if work.lora_rank else 0
    value = value_parameters(shapes, work.value_hidden_size) * FLOAT
    layer = shapes.layer_parameters * (work.dtype_bytes if work.lora_rank else FLOAT)
    return {
        "weights": (frozen + (0 if is_rounded else own)) * work.dtype_bytes,
        "master weights": own * FLOAT if is_rounded else 0,
        "value model": value,
        "temporary": max(layer, value) // work.num_shards,  # the first part's shard, while the whole is there
    }


def _gathered(shapes: Shapes, work: Work) -> Memory:
    """All weights on every process, for work without gradients."""
    if not work.is_sharded:
        return {}
    value = value_parameters(shapes, work.value_hidden_size)
    return {"gathered weights": shapes.num_parameters * work.dtype_bytes + value * FLOAT}


# ------------------------------------------------------------------------------------------------- without gradients


def _forward(shapes: Shapes, work: Work, num_tokens: int) -> int:
    """Peak of one layer's forward without gradients, beside nothing but its input."""
    s, d, q, kv, i = work.dtype_bytes, shapes.hidden_size, shapes.query_size, shapes.kv_size, shapes.intermediate_size
    outer = 2 * s * d  # the embeddings and the layer's input, which the callers hold
    norm = outer + s * d + 2 * FLOAT * d
    attention = outer + s * (d + 4 * q + 2 * kv)  # input normed; q, q cos, turned, turned sin; k, v
    # residual, normed; silu(gate), up, their product; and what the adapter of `up` adds
    mlp = outer + s * (2 * d + (4 if work.lora_rank else 3) * i)
    angles = 2 * s * shapes.head_dim + 2 * 8  # cos, sin; ids, positions
    return num_tokens * (max(norm, attention, mlp) + angles)


def _search(shapes: Shapes, work: Work) -> Memory:
    slots = work.num_problems * (work.beam_width if work.mode == "best_first" else work.num_rollouts)
    return _decoding(shapes, work, work.mode, work.num_problems, slots, work.is_guided)


def _evaluation(shapes: Shapes, work: Work) -> Memory:
    greedy = min(work.eval_rows, work.eval_problems)
    sampled = min(max(1, work.eval_rows // work.eval_samples), work.eval_problems)
    arms = [
        _decoding(shapes, work, "greedy", greedy, greedy, False),
        _decoding(shapes, work, "sample", sampled, sampled * work.eval_samples, False),
    ]
    if work.eval_beam_width is not None:
        searched = min(max(1, work.eval_rows // work.eval_beam_width), work.eval_problems)
        arms.append(_decoding(shapes, work, "best_first", searched, searched * work.eval_beam_width, False))
    return max(arms, key=lambda parts: sum(parts.values()))


# bytes per row and token of the vocabulary while the next tokens are chosen: logits, their log-probabilities, q and
# its running sums; values of children where they are read. Not counted: 28 for prefixes whose further children are
# drawn one by one, which are few after the first steps
_PER_LOGIT = {"greedy": 10, "sample": 20, "gumbel": 20, "best_first": 68}
_GUIDED = 4  # more
_MANY_TOKENS = 1 << 14  # from there no running sums are made of all tokens: `search.gumbel`
_SUMMED = DOUBLE  # less then; in a guided search q and what it is made of are the most, 4 less
_BLOCK = 128  # columns: `engine.decoder.BLOCK`


def _per_logit(mode: str, vocab_size: int, is_guided: bool) -> int:
    size = _PER_LOGIT[mode] + _GUIDED * is_guided
    if mode in ("sample", "gumbel") and vocab_size >= _MANY_TOKENS:
        size -= _GUIDED if is_guided else _SUMMED
    return size


def _decoding(shapes: Shapes, work: Work, mode: str, num_problems: int, num_slots: int, is_guided: bool) -> Memory:
    """The slots, the copies that `engine.fast_decode` makes, and the largest of what comes one after another."""
    rows = num_problems if mode == "best_first" else num_slots
    vocab, slots = shapes.vocab_size, kv_bytes(shapes, work, num_slots)
    moments: list[Memory] = [
        {"activations": _forward(shapes, work, num_problems * work.prompt_length)},
        {"slot copies": slots * work.prompt_length // (work.length + 1)},  # every slot gets its prompt
        {"logits": vocab * (rows * _per_logit(mode, vocab, is_guided) + 2 * DOUBLE)},  # and all tokens' hashes
        {"activations": _forward(shapes, work, rows), "logits": rows * vocab * FLOAT},  # a step; the last output
    ]
    if mode == "best_first":  # every pop may fork
        moments.append({"slot copies": slots * rows // num_slots, "logits": rows * vocab * FLOAT})
    copies = shapes.num_layers * shapes.linear_parameters * FLOAT
    is_copied = shapes.has_fast_decode and work.dtype_bytes == FLOAT and not work.lora_rank
    found = {"KV slots": slots, "decoding copies": copies * is_copied}
    if work.cuda_graphs:  # one recording per block of columns, all slots in each; its outputs are kept
        blocks = work.length // _BLOCK - work.prompt_length // _BLOCK + 1
        outputs = blocks * num_slots * vocab * FLOAT
        found["recorded steps"] = outputs + _forward(shapes, work, num_slots)
    return found | max(moments, key=lambda parts: sum(parts.values()))


# ----------------------------------------------------------------------------------------------------- with gradients


class _Trees(NamedTuple):
    """Trees of a micro-batch, padded to the largest."""

    num_trees: int
    size: int  # positions of the largest
    scored: int  # tokens of all

    @property
    def positions(self) -> int:
        return self.num_trees * self.size


def _micro_batches(shapes: Shapes, work: Work, num_rows: int) -> list[_Trees]:
    """Those of so many completions of full length that share nothing but their prompts; see `training.trees`."""
    longer = max(1, work.depth - 1)  # positions that a completion adds: its last token has none
    linear_cost = shapes.layer_parameters / (2 * shapes.hidden_size)
    leaves, prompt = 1, work.prompt_length
    while leaves < work.num_rollouts and prompt + (leaves + 1) * longer <= work.micro_batch_tokens:
        if not is_worth_joining(longer, prompt + leaves * longer, prompt, linear_cost):
            break
        leaves += 1
    num_whole, rest = divmod(work.num_rollouts, leaves)
    num_problems = -(-num_rows // work.num_rollouts)
    groups: list[_Trees] = []
    for count in [rest] * (num_problems if rest else 0) + [leaves] * (num_problems * num_whole):  # the smallest first
        size, scored = prompt + count * longer, count * work.depth
        if groups and (groups[-1].num_trees + 1) * size <= work.micro_batch_tokens:
            groups[-1] = _Trees(groups[-1].num_trees + 1, size, groups[-1].scored + scored)
        else:
            groups.append(_Trees(1, size, scored))
    return groups


def saved_by_layer(shapes: Shapes, work: Work) -> int:
    """Bytes per position that one decoder layer keeps for its backward."""
    s, d, q, i = work.dtype_bytes, shapes.hidden_size, shapes.query_size, shapes.intermediate_size
    norms = 2 * d * _saved_by_norm(work)
    attention = s * 4 * q + FLOAT * shapes.num_heads  # q; k and v, repeated for each query; output; log-sum-exp
    adapters = 7 * s * work.lora_rank
    return norms + attention + 4 * s * i + adapters  # gate, silu(gate), up, their product


def _saved_by_norm(work: Work) -> int:
    """Bytes per number: the input in float32, normed for the weight's gradient, and times the weight."""
    return FLOAT + work.dtype_bytes * (1 if work.lora_rank else 2)


def _gradients(shapes: Shapes, work: Work) -> Memory:
    """The largest moment of the first micro-batch, of the second one beside the first one's gradients, or the end."""
    own = trainable_parameters(shapes, work.lora_rank) * FLOAT // work.num_shards
    head = shapes.embedding_parameters * work.dtype_bytes if work.lora_rank == 0 else 0
    first, *others = _micro_batches(shapes, work, work.step_rows)
    moments = _moments(shapes, work, first, head)
    # the embedding's gradient is added to the head's, and their sum to what earlier micro-batches left
    moments.append({"gradients": own, "temporary": (2 if others or work.dtype_bytes == FLOAT else 1) * head})
    if work.is_sharded and work.dtype_bytes < FLOAT:  # the sum is sent in float32
        moments.append({"gradients": own, "temporary": head + 2 * head * FLOAT // work.dtype_bytes})
    for other in set(others):
        moments += [parts | {"gradients": own} for parts in _moments(shapes, work, other, head)]
    parts = max(moments, key=lambda found: sum(found.values()))
    return _with_value_gradients(shapes, work) | _gathered_in_step(shapes, work) | parts


def _moments(shapes: Shapes, work: Work, trees: _Trees, head: int) -> list[Memory]:
    """Where forward and backward of a micro-batch may need most, in order; `head`: bytes of its gradient."""
    s, d = work.dtype_bytes, shapes.hidden_size
    layer = saved_by_layer(shapes, work)
    mask = trees.num_trees * trees.size**2 * (s + 1)  # and a boolean one that it is made of
    saved = mask + trees.positions * shapes.num_layers * (s * d if work.gradient_checkpointing else layer)
    before = trees.scored * s * d  # hidden states that are scored
    final = saved + trees.positions * _saved_by_norm(work) * d + before
    trunk = trees.scored * (work.value_hidden_size + CHILD_RANK) * FLOAT
    value = 2 * trunk + trees.scored * (CHILD_RANK * FLOAT + (d * FLOAT if s < FLOAT else 0))
    block, wide = _block(shapes, work, trees.scored), trees.scored * d * FLOAT
    recomputed = trees.positions * (layer - (s * d if s == FLOAT else 0)) * work.gradient_checkpointing
    own_head = shapes.embedding_parameters * FLOAT // work.num_shards if head and not shapes.is_tied else 0
    kept = 0 if own_head else head  # a tied head's waits for the embedding's
    in_layer = recomputed + trees.positions * (2 * s * shapes.intermediate_size + 2 * s * d)
    per_layer = shapes.linear_sizes * work.lora_rank or shapes.layer_parameters
    gradients_of_layers = shapes.num_layers * per_layer * FLOAT // work.num_shards
    return [
        {"activations": final, "logits": 3 * block},
        {"activations": final + value + 2 * trunk},  # the value model's backward
        {"activations": final + wide, "logits": 2 * block, "temporary": head},  # that of the log-probabilities
        {"activations": final - before + trees.positions * s * d, "temporary": head},
        {"activations": saved + in_layer, "gradients": own_head, "temporary": kept},  # the last layer
        {  # the first one
            "activations": mask + (saved - mask) // shapes.num_layers + in_layer,
            "gradients": own_head + gradients_of_layers * (shapes.num_layers - 1) // shapes.num_layers,
            "temporary": kept,
        },
    ]


def _block(shapes: Shapes, work: Work, num_positions: int) -> int:
    """Bytes of the logits of a block of the vocabulary."""
    elements = BLOCK_ELEMENTS["cpu" if work.is_host else "cuda"]
    return (
        num_positions
        * min(shapes.vocab_size, max(MIN_BLOCK, elements // max(num_positions, shapes.hidden_size)))
        * FLOAT
    )


def _divergence(shapes: Shapes, work: Work) -> Memory:
    """Of the policy from its base, which only adapters have: two forwards, then logits of both in chunks."""
    if not work.lora_rank:
        return {}
    hidden, moments = work.dtype_bytes * shapes.hidden_size, list[Memory]()
    for trees in set(_micro_batches(shapes, work, work.num_rows)):
        chunk = min(trees.scored, max(1, CHUNK_ELEMENTS // shapes.vocab_size))
        mask = trees.num_trees * trees.size**2 * (work.dtype_bytes + 1)
        moments += [
            {"activations": mask + trees.scored * hidden + _forward(shapes, work, trees.positions)},
            # both logits, both log-probabilities and three for the sum
            {"activations": 2 * trees.scored * hidden, "logits": chunk * shapes.vocab_size * 7 * FLOAT},
        ]
    parts = max(moments, key=lambda found: sum(found.values()))
    return resident(shapes, work) | _gathered(shapes, work) | parts


def _with_value_gradients(shapes: Shapes, work: Work) -> Memory:
    parts = resident(shapes, work)
    parts["value model"] += value_parameters(shapes, work.value_hidden_size) * FLOAT // work.num_shards
    return parts


def _gathered_in_step(shapes: Shapes, work: Work) -> Memory:
    if not work.is_sharded:
        return {}
    embeddings = shapes.embedding_parameters * (1 if shapes.is_tied else 2)
    return {"gathered weights": work.dtype_bytes * (embeddings + 2 * shapes.layer_parameters)}


def _optimizer_step(shapes: Shapes, work: Work) -> Memory:
    """The policy's step, or the value model's, which follows when the policy's gradients are freed."""
    own = trainable_parameters(shapes, work.lora_rank) // work.num_shards
    value = value_parameters(shapes, work.value_hidden_size) // work.num_shards
    widest = max(shapes.hidden_size, shapes.intermediate_size)
    matrix = max(shapes.embedding_parameters, shapes.hidden_size * widest)
    largest = (work.lora_rank * widest if work.lora_rank else matrix) // work.num_shards
    largest_value = max(shapes.vocab_size * CHILD_RANK, shapes.hidden_size * work.value_hidden_size) // work.num_shards
    # the root of the second moments, all at once, or one tensor's and its quotient
    policy = {"gradients": own * FLOAT, "temporary": FLOAT * (own if work.is_foreach else 2 * largest)}
    after = {"temporary": FLOAT * (value if work.is_foreach else 2 * largest_value)}
    return _with_value_gradients(shapes, work) | max(policy, after, key=lambda parts: sum(parts.values()))
