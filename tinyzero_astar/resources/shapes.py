"""Shapes of a language model from its config, counted on a model without storage."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from tinyzero_astar.engine.fast_decode import is_supported
from tinyzero_astar.model.decoder_layers import decoder_layers
from tinyzero_astar.model.model_config import skeleton_of
from tinyzero_astar.resources.workload import Shapes


def shapes_of(config: PreTrainedConfig) -> Shapes:
    """What the memory of a run depends on. It takes no memory itself.

    Args:
        config: of an architecture that `model.architecture` allows.
    """
    model = skeleton_of(config)
    layer = decoder_layers(model)[0]
    head = model.get_output_embeddings().weight
    width, heads = config.hidden_size, config.num_attention_heads
    matrices = [m.weight for m in layer.modules() if type(m) is nn.Linear]
    return Shapes(
        num_parameters=sum(p.numel() for p in model.parameters()),
        layer_parameters=sum(p.numel() for p in layer.parameters()),
        num_layers=config.num_hidden_layers,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or width // heads,
        # GPT-2 and its like say nothing where it is four times the width
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * width,
        vocab_size=head.shape[0],
        is_tied=head is model.get_input_embeddings().weight,
        has_fast_decode=is_supported(model),
        linear_sizes=sum(sum(w.shape) for w in matrices),
        linear_parameters=sum(w.numel() for w in matrices),
    )
