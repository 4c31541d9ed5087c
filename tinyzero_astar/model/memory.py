"""Memory of a run by part and phase, predicted from shapes alone: arithmetic, no tensors and no GPU.

The parts mirror what the code keeps alive; where a number is not obvious the comment names the tensors it counts.
Phases follow each other, so that a run needs the largest of their sums. tests/test_memory.py holds every phase
against the live tensor bytes of real runs; docs/scaling.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FLOAT, DOUBLE = 4, 8  # bytes
CHUNK_ELEMENTS = 1 << 24  # positions * vocabulary of a chunk of logits: 64 MiB in float32
CHILD_RANK = 64  # of the value model's child term

Memory = dict[str, int]  # bytes by part


@dataclass(frozen=True)
class Shapes:
    """What memory depends on of a decoder-only language model; see `doctor.shapes_of`."""

    num_parameters: int  # tied ones once
    layer_parameters: int  # of one decoder layer
    num_layers: int
    hidden_size: int  # D
    num_heads: int  # of queries
    num_kv_heads: int
    head_dim: int
    intermediate_size: int  # I
    vocab_size: int  # V, rows of the embedding
    is_tied: bool  # embedding and head are one matrix
    has_fast_decode: bool  # the search decodes float32 weights on copies: `model.fast_decode`
    adapter_sizes: int = 0  # of one layer: sum of inputs + outputs over the matrices that LoRA adapts
    adapted_parameters: int = 0  # of one layer: those matrices themselves

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all keys (or values) of one token in one layer."""
        return self.num_kv_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """Of one [V, D] matrix."""
        return self.vocab_size * self.hidden_size


@dataclass(frozen=True)
class Work:
    """How much is done at once by one process, and how."""

    dtype_bytes: Literal[2, 4]  # of the language model
    prompt_length: int  # tokens of the longest prompt
    depth: int  # most generated tokens
    mode: Literal["sample", "gumbel", "best_first"]
    is_guided: bool
    num_problems: int  # of one process in an iteration's search
    num_rollouts: int  # K
    beam_width: int
    eval_problems: int  # of one process
    eval_samples: int
    eval_rows: int  # sequences decoded at once
    eval_beam_width: int | None  # of A* at test time; None: greedy evaluation only
    num_rows: int  # completions of an iteration that one process scores
    step_rows: int  # completions of an optimizer step that one process trains on
    micro_batch_tokens: int
    value_hidden_size: int
    num_shards: int = 1  # that weights are split over
    is_foreach: bool = False  # AdamW steps all parameters at once, as on GPUs
    is_host: bool = False  # the device's memory is the machine's
    gradient_checkpointing: bool = False
    lora_rank: int = 0  # 0: full fine-tuning

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_length + self.depth

    @property
    def is_sharded(self) -> bool:
        """Whether weights must be gathered."""
        return self.num_shards > 1


def value_parameters(shapes: Shapes, hidden_size: int) -> int:
    """Of the value model (`rollout.value_model`)."""
    width, vocab = shapes.hidden_size, shapes.vocab_size
    return (width + 1) * hidden_size + 2 * (hidden_size + 1) + (width + 1) * CHILD_RANK + vocab * CHILD_RANK


def trainable_parameters(shapes: Shapes, lora_rank: int) -> int:
    """Of the language model: all, or the adapters' two factors per matrix."""
    if lora_rank == 0:
        return shapes.num_parameters
    return shapes.num_layers * shapes.adapter_sizes * lora_rank


def phases(shapes: Shapes, work: Work) -> dict[str, Memory]:
    """Bytes by part at the peak of each phase; the phases' names are those of the docs."""
    found = {
        "search": resident(shapes, work) | _gathered(shapes, work) | _search(shapes, work),
        "evaluation": resident(shapes, work) | _gathered(shapes, work) | _evaluation(shapes, work),
        "scoring": resident(shapes, work) | _gathered(shapes, work) | _scoring(shapes, work),
        "gradients": _gradients(shapes, work),
        "optimizer step": _optimizer_step(shapes, work),
    }
    if work.is_host:
        found["checkpoint"] = resident(shapes, work) | {"file copies": checkpoint_copies(shapes, work)}
    return {name: {part: n for part, n in parts.items() if n} for name, parts in found.items()}


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
        state += (own + shapes.num_layers * shapes.adapted_parameters) * work.dtype_bytes
    return state


def checkpoint_bytes(shapes: Shapes, work: Work) -> int:
    """On disk: model.safetensors, with adapters merged, and trainer.safetensors."""
    return shapes.num_parameters * work.dtype_bytes + trainer_file_bytes(shapes, work)


def checkpoint_copies(shapes: Shapes, work: Work) -> int:
    """Host memory while a checkpoint is written: what goes to trainer.safetensors, and weights put together."""
    size = trainer_file_bytes(shapes, work)
    if work.lora_rank:
        size += shapes.num_layers * shapes.adapted_parameters * work.dtype_bytes
    return size + (shapes.num_parameters * (FLOAT + work.dtype_bytes) if work.is_sharded else 0)


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
    mlp = outer + s * (2 * d + 3 * i)  # residual, normed; silu(gate), up, their product
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


# bytes per row and token of the vocabulary while the next tokens are chosen
_PER_LOGIT = {
    "greedy": 16,
    "sample": 36,
    "gumbel": 36,
    "best_first": 68,
}
_GUIDED = 4


def _decoding(shapes: Shapes, work: Work, mode: str, num_problems: int, num_slots: int, is_guided: bool) -> Memory:
    rows = num_problems if mode == "best_first" else num_slots
    logits = shapes.vocab_size * (rows * (_PER_LOGIT[mode] + _GUIDED * is_guided) + DOUBLE)  # and one count of tokens
    prompts = _forward(shapes, work, num_problems * work.prompt_length)
    step = _forward(shapes, work, rows)
    copies = 0
    if shapes.has_fast_decode and work.dtype_bytes == FLOAT and not work.lora_rank:
        matrices = shapes.query_size + 2 * shapes.kv_size + 2 * shapes.intermediate_size
        copies = shapes.num_layers * matrices * shapes.hidden_size * FLOAT
    return {
        "KV slots": kv_bytes(shapes, work, num_slots),
        "logits": logits,
        "activations": max(prompts, step),
        "decoding copies": copies,
    }


def _rows_of(work: Work, num_rows: int) -> int:
    """Completions of a micro-batch at full length."""
    return max(1, min(num_rows, work.micro_batch_tokens // work.length))


def _scoring(shapes: Shapes, work: Work) -> Memory:
    rows = _rows_of(work, work.num_rows)
    chunk = _chunk(shapes, rows * work.depth)
    hidden = work.dtype_bytes * shapes.hidden_size
    at_head = rows * (work.length + work.depth) * hidden
    forward = _forward(shapes, work, rows * work.length)
    # log-probabilities and three for the entropy; both logits, both log-probabilities and three for KL(policy | base)
    logits = chunk * shapes.vocab_size * (7 if work.lora_rank else 4) * FLOAT
    if forward >= at_head + logits:
        return {"activations": forward}
    return {"activations": at_head, "logits": logits}


def _chunk(shapes: Shapes, num_positions: int) -> int:
    return min(num_positions, max(1, CHUNK_ELEMENTS // shapes.vocab_size))


# ----------------------------------------------------------------------------------------------------- with gradients


def saved_by_layer(shapes: Shapes, work: Work) -> int:
    """Bytes per token that one decoder layer keeps for its backward."""
    s, d, q, kv, i = work.dtype_bytes, shapes.hidden_size, shapes.query_size, shapes.kv_size, shapes.intermediate_size
    norms = 2 * d * _saved_by_norm(work)
    attention = s * (2 * q + 2 * kv) + FLOAT * shapes.num_heads  # q, k, v, output; log-sum-exp
    adapters = 7 * s * work.lora_rank
    return norms + attention + 4 * s * i + adapters  # gate, silu(gate), up, their product


def _saved_by_norm(work: Work) -> int:
    """Bytes per number: the input in float32, normed for the weight's gradient, and times the weight."""
    return FLOAT + work.dtype_bytes * (1 if work.lora_rank else 2)


def _gradients(shapes: Shapes, work: Work) -> Memory:
    """The largest moment of the first micro-batch, of the second one beside the first one's gradients, or the end."""
    rows = _rows_of(work, work.step_rows)
    own = trainable_parameters(shapes, work.lora_rank) * FLOAT // work.num_shards
    head = shapes.embedding_parameters * work.dtype_bytes if work.lora_rank == 0 else 0
    moments = _moments(shapes, work, rows, head)
    moments.append({"gradients": own, "temporary": 2 * head})  # the embedding's gradient is added to the head's
    if (others := min(rows, work.step_rows - rows)) > 0:
        moments += [parts | {"gradients": own} for parts in _moments(shapes, work, others, head)]
    parts = max(moments, key=lambda found: sum(found.values()))
    return _with_value_gradients(shapes, work) | _gathered_in_step(shapes, work) | parts


def _moments(shapes: Shapes, work: Work, rows: int, head: int) -> list[Memory]:
    """Where forward and backward of `rows` completions may need most, in order; `head`: bytes of its gradient."""
    s, d = work.dtype_bytes, shapes.hidden_size
    tokens, positions = rows * work.length, rows * work.depth
    layer = saved_by_layer(shapes, work)
    saved = tokens * shapes.num_layers * (s * d if work.gradient_checkpointing else layer)
    final = saved + tokens * _saved_by_norm(work) * d + positions * s * d  # the norm; hidden states that are scored
    chunk = _chunk(shapes, positions)
    logits = chunk * shapes.vocab_size
    rounded = logits * (s if s < FLOAT else 0)
    num_before = 1 if chunk < positions else 0  # gradients of the head that earlier chunks have left
    recomputed = tokens * (layer - (s * d if s == FLOAT else 0)) * work.gradient_checkpointing
    own_head = shapes.embedding_parameters * FLOAT // work.num_shards if head and not shapes.is_tied else 0
    kept = 0 if own_head else head  # a tied head's waits for the embedding's
    in_layer = recomputed + tokens * (2 * s * shapes.intermediate_size + 2 * s * d)
    per_layer = shapes.adapter_sizes * work.lora_rank or shapes.layer_parameters
    gradients_of_layers = shapes.num_layers * per_layer * FLOAT // work.num_shards
    return [
        {"activations": final, "logits": 4 * FLOAT * logits},  # logp, and three for the entropy
        {
            "activations": final - tokens * s * d,
            "logits": (4 if num_before else 3) * FLOAT * logits,
            "temporary": num_before * head,
        },
        {
            "activations": final - tokens * s * d,
            "logits": FLOAT * logits + rounded,
            "temporary": (num_before + 1) * head,
        },
        {"activations": saved + in_layer, "gradients": own_head, "temporary": kept},  # the last layer
        {  # the first one
            "activations": saved // shapes.num_layers + in_layer,
            "gradients": own_head + gradients_of_layers * (shapes.num_layers - 1) // shapes.num_layers,
            "temporary": kept,
        },
    ]


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
