"""Shapes of the presets' models, known without their config.json. A prediction then needs no network."""

from __future__ import annotations

from tinyzero_astar.resources.workload import Shapes


def known_shapes(name: str, max_length: int) -> Shapes | None:
    """The shapes of a model of that name on the hub, or None.

    Args:
        name: of the model.
        max_length: tokens of the longest sequence. None is returned for more than the model knows.
    """
    shapes, max_positions = _KNOWN.get(name, (None, 0))
    return shapes if max_length <= max_positions else None


def _shapes(
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    vocab_size: int,
    has_biases: bool,
) -> Shapes:
    """A Qwen2 or Llama, with one matrix for embedding and head. `has_biases` tells whether q, k and v have some."""
    d, i, vocab = hidden_size, intermediate_size, vocab_size
    head_dim = d // num_heads
    kv = num_kv_heads * head_dim
    linear = 2 * d * d + 2 * d * kv + 3 * d * i  # q and output, k and v, gate and up and down
    layer = linear + (d + 2 * kv) * has_biases + 2 * d  # and two norms
    return Shapes(
        num_parameters=num_layers * layer + vocab * d + d,
        layer_parameters=layer,
        num_layers=num_layers,
        hidden_size=d,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=i,
        vocab_size=vocab,
        is_tied=True,
        has_fast_decode=False,  # too large
        linear_sizes=4 * d + 2 * (d + kv) + 3 * (d + i),
        linear_parameters=linear,
    )


_KNOWN = {  # and the most positions
    "HuggingFaceTB/SmolLM2-135M": (_shapes(576, 1536, 30, 9, 3, 49_152, has_biases=False), 8192),
    "Qwen/Qwen2.5-1.5B": (_shapes(1536, 8960, 28, 12, 2, 151_936, has_biases=True), 131_072),
    "Qwen/Qwen2.5-3B": (_shapes(2048, 11008, 36, 16, 2, 151_936, has_biases=True), 32_768),
}
