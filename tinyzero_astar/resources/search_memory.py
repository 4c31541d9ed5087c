"""Memory of work without gradients, in a search, an evaluation, and the forward that both share."""

from __future__ import annotations

from tinyzero_astar.engine.cuda_graphs import BLOCK
from tinyzero_astar.engine.shared_prompt import length_read_apart
from tinyzero_astar.resources.standing import FLOAT, Memory, kv_bytes, largest
from tinyzero_astar.resources.workload import Shapes, Work
from tinyzero_astar.search.gumbel import MANY_TOKENS

DOUBLE = 8  # bytes
# Bytes per row and token of the vocabulary while the next tokens are chosen. They hold logits, their log-probabilities,
# q and its running sums, and values of children where they are read. 28 more are not counted for prefixes whose further
# children are drawn one by one, which are few after the first steps.
_PER_LOGIT = {"greedy": 10, "best_first": 68}
_LOCK_STEP = 20  # the modes that draw all rows' next tokens at once
_GUIDED = 4  # more
# Less from MANY_TOKENS on, where no running sums are made of all. In a guided search, where q and its parts need the
# most, it is _GUIDED less.
_SUMMED = DOUBLE
_LOOKED_AT = 64  # rows whose further children a recorded step draws at once, if there are not more


def search(shapes: Shapes, work: Work) -> Memory:
    """The search of an iteration."""
    if work.mode == "best_first":
        return _decoding(
            shapes, work, work.mode, work.num_problems, work.num_problems * work.beam_width, work.is_guided
        )
    num_prompts = min(work.num_problems, work.num_leaves)  # a problem without a row is not evaluated
    return _decoding(shapes, work, work.mode, num_prompts, work.num_leaves, work.is_guided)


def reference_samples(shapes: Shapes, work: Work) -> Memory:
    """The first policy's completions of an iteration's problems, if they are all new."""
    return _decoding(shapes, work, "sample", work.num_problems, work.num_problems * work.num_reference_samples, False)


def evaluation(shapes: Shapes, work: Work) -> Memory:
    """The arm of an evaluation that needs most."""
    greedy = min(work.eval_rows, work.eval_problems)
    sampled = min(max(1, work.eval_rows // work.eval_samples), work.eval_problems)
    arms = [
        _decoding(shapes, work, "greedy", greedy, greedy, False),
        _decoding(shapes, work, "sample", sampled, sampled * work.eval_samples, False),
    ]
    if work.eval_beam_width is not None:
        searched = min(max(1, work.eval_rows // work.eval_beam_width), work.eval_problems)
        arms.append(_decoding(shapes, work, "best_first", searched, searched * work.eval_beam_width, False))
    return largest(arms)


def _decoding(shapes: Shapes, work: Work, mode: str, num_problems: int, num_slots: int, is_guided: bool) -> Memory:
    """The slots, the copies that `engine.fast_decode` makes, and the largest of what comes one after another."""
    rows = num_problems if mode == "best_first" else num_slots
    is_recorded = work.cuda_graphs and mode != "best_first"  # as whole steps, whose kernels choose without tensors
    chosen = num_problems if is_recorded else rows  # of which the next tokens are chosen by operators
    apart = length_read_apart(work.shared_length, num_problems)
    vocab, slots = shapes.vocab_size, kv_bytes(shapes, work, num_slots)
    held: list[Memory] = [
        {"activations": forward(shapes, work, num_problems * (work.prompt_length - apart))},
        {"slot copies": slots * work.prompt_length // (work.length + 1)},  # every slot gets its prompt
        {"logits": vocab * (chosen * _per_logit(mode, vocab, is_guided) + 2 * DOUBLE)},  # and all tokens' hashes
        {"activations": forward(shapes, work, rows), "logits": rows * vocab * FLOAT},  # a step, with the last output
    ]
    if is_recorded:
        replayed = _replayed(mode, chosen, rows, is_guided)
        held.append({"activations": forward(shapes, work, rows), "logits": vocab * replayed})
    if mode == "best_first":  # every pop may fork
        held.append({"slot copies": slots * rows // num_slots, "logits": rows * vocab * FLOAT})
    copies = shapes.num_layers * shapes.linear_parameters * FLOAT
    is_copied = shapes.has_fast_decode and work.dtype_bytes == FLOAT and not work.lora_rank
    found = {"KV slots": slots, "decoding copies": copies * is_copied}
    if work.cuda_graphs and not is_recorded:  # a recording of a forward has all slots and keeps its outputs
        blocks = 1 if shapes.has_fast_decode else work.length // BLOCK - work.prompt_length // BLOCK + 1
        outputs = blocks * num_slots * vocab * FLOAT
        found["recorded steps"] = outputs + forward(shapes, work, num_slots)
    return found | largest(held)


def _replayed(mode: str, num_problems: int, rows: int, is_guided: bool) -> int:
    """Bytes per token of the vocabulary while recorded steps are replayed.

    The logits of the prompts and their log-probabilities are still there, and those of the rows. A guided step makes
    the children's values for its kernels. Where further children are drawn, their masses are made, and their values
    once more. More than _LOOKED_AT rows need this at once only where a policy is hardly certain of anything.
    """
    looked_at = 0 if mode in ("sample", "greedy") else min(rows, _LOOKED_AT)
    drawn = max(rows, 2 * looked_at) if is_guided else looked_at
    return FLOAT * (2 * num_problems + rows + drawn)


def _per_logit(mode: str, vocab_size: int, is_guided: bool) -> int:
    size = _PER_LOGIT.get(mode, _LOCK_STEP) + _GUIDED * is_guided
    if mode not in _PER_LOGIT and vocab_size >= MANY_TOKENS:
        size -= _GUIDED if is_guided else _SUMMED
    return size


def forward(shapes: Shapes, work: Work, num_tokens: int) -> int:
    """Peak of one layer's forward without gradients, beside nothing but its input."""
    s, d, q, kv, i = work.dtype_bytes, shapes.hidden_size, shapes.query_size, shapes.kv_size, shapes.intermediate_size
    outer = 2 * s * d  # the embeddings and the layer's input, which the callers hold
    norm = outer + s * d + 2 * FLOAT * d
    attention = outer + s * (d + 4 * q + 2 * kv)  # input normed, q, q cos, turned, turned sin, k, v
    # Residual, normed, silu(gate), up, their product, and what the adapter of `up` adds.
    mlp = outer + s * (2 * d + (4 if work.lora_rank else 3) * i)
    angles = 2 * s * shapes.head_dim + 2 * 8  # cos and sin, ids and positions
    return num_tokens * (max(norm, attention, mlp) + angles)
