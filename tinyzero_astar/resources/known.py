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


def _qwen2(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int) -> Shapes:
    """A Qwen2 with two heads of keys and values, 151,936 tokens and one matrix for embedding and head."""
    d, i, kv_heads, vocab = hidden_size, intermediate_size, 2, 151_936
    head_dim = d // num_heads
    kv = kv_heads * head_dim
    linear = 2 * d * d + 2 * d * kv + 3 * d * i  # q and output, k and v, gate and up and down
    layer = linear + (d + 2 * kv) + 2 * d  # and the biases of q, k and v, and two norms
    return Shapes(
        num_parameters=num_layers * layer + vocab * d + d,
        layer_parameters=layer,
        num_layers=num_layers,
        hidden_size=d,
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=i,
        vocab_size=vocab,
        is_tied=True,
        has_fast_decode=False,  # too large
        linear_sizes=4 * d + 2 * (d + kv) + 3 * (d + i),
        linear_parameters=linear,
    )


_KNOWN = {  # and the most positions
    "Qwen/Qwen2.5-1.5B": (_qwen2(1536, 8960, 28, 12), 131_072),
    "Qwen/Qwen2.5-3B": (_qwen2(2048, 11008, 36, 16), 32_768),
}
