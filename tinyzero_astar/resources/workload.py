"""The shapes of a language model and the work of one process, from which memory and time are predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyzero_astar.modes import SearchMode
from tinyzero_astar.rollout.value_model import CHILD_RANK, PATH_SIZE


@dataclass(frozen=True)
class Shapes:
    """What memory depends on of a decoder-only language model, counted by `resources.shapes`."""

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
    has_fast_decode: bool  # the search decodes float32 weights on copies, see `engine.fast_decode`
    linear_sizes: int  # of one layer, sum of inputs + outputs over its linear projections, which LoRA adapts
    linear_parameters: int  # of one layer, those matrices themselves

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
    shared_length: int  # tokens that all prompts begin with
    depth: int  # most generated tokens
    mode: SearchMode
    is_guided: bool
    num_problems: int  # of one process in an iteration's search
    num_rollouts: int  # K, rounded up
    num_leaves: int  # of all these problems
    beam_width: int
    eval_problems: int  # of one process
    eval_samples: int
    eval_rows: int  # sequences decoded at once
    eval_beam_width: int | None  # of A* at test time, None means greedy evaluation only
    num_rows: int  # completions of an iteration that one process scores
    step_rows: int  # completions of an optimizer step that one process trains on
    micro_batch_tokens: int
    value_hidden_size: int
    kept_updates: int  # updates of the policy whose hidden states wait for the value model, 0 without one
    num_shards: int = 1  # that weights are split over
    is_fused: bool = False  # AdamW's step allocates nothing, as on CUDA
    is_host: bool = False  # the device's memory is the machine's
    gradient_checkpointing: bool = False
    lora_rank: int = 0  # 0 means full fine-tuning
    has_liger: bool = False  # norms and MLPs are kernels of Liger, which keep less for their backward
    cuda_graphs: bool = False  # decode steps are recorded
    num_reference_samples: int = 0  # per problem, 0 if the algorithm needs no reference policy

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_length + self.depth

    @property
    def has_copy(self) -> bool:
        """Whether the first policy is kept as a copy. Adapters can be left off instead."""
        return self.num_reference_samples > 0 and self.lora_rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether weights must be gathered."""
        return self.num_shards > 1


def value_parameters(shapes: Shapes, hidden_size: int) -> int:
    """Of the value model (`rollout.value_model`)."""
    width, vocab = shapes.hidden_size, shapes.vocab_size
    seen = width + PATH_SIZE + 1
    return seen * (hidden_size + CHILD_RANK) + 3 * (hidden_size + 1) + vocab * CHILD_RANK


def trainable_parameters(shapes: Shapes, lora_rank: int) -> int:
    """Parameters of the language model that are trained, all or the adapters' two factors per matrix."""
    if lora_rank == 0:
        return shapes.num_parameters
    return shapes.num_layers * shapes.linear_sizes * lora_rank


def is_worth_joining(growth: int, size: int, shared: int, linear_cost: float) -> bool:
    """Whether a completion is cheaper in a tree of prefixes than in one of its own.

    In the tree its new positions attend to all others, masked or not. These are (size + growth)^2 - size^2 pairs more.
    On its own it has (shared + growth)^2 pairs, and the shared positions go through the model's matrices once more.

    Args:
        growth: positions that it would add to the tree.
        size: positions of the tree.
        shared: positions of the tree that it shares, its prompt's included.
        linear_cost: operations of a layer's matrices at a position, over those of its attention between two.
    """
    return 2 * growth * (size - shared) <= shared * (shared + linear_cost)
