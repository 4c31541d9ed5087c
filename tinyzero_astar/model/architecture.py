"""Which Hugging Face architectures can be trained here, decided from config.json before any weights are read.

The slot cache forks a prefix by copying keys and values, and one mask serves all layers. So every layer must attend to
all earlier tokens. A state that is not a list of keys and values cannot be forked. A window shorter than the sequences
would need masks of its own. What a config does not tell is found by `model.model.check_decoding`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

SUPPORTED = "use a model with full attention in every layer, such as those of Qwen2, Qwen3, Llama, Mistral or Gemma"
_FULL, _SLIDING = "full_attention", "sliding_attention"
_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
)


def check_architecture(config: PreTrainedConfig, max_length: int | None) -> None:
    """Refuse what the slot cache cannot serve.

    Args:
        config: of the checkpoint.
        max_length: tokens of the longest sequence. A sliding window of at least that many hides nothing and is allowed.
            None means that it is not known, and then no window is allowed.

    Raises:
        ValueError: names the architecture, the property and the remedy.
    """
    for rule in _RULES:
        if (reason := rule(config, max_length)) is not None:
            raise ValueError(f"{architecture_name(config)} {reason}")


def check_causal(model: PreTrainedModel) -> None:
    """Refuse attention to later tokens. Some architectures do not read what a config says of it in `is_decoder`.

    Args:
        model: of the architecture, possibly without storage.

    Raises:
        ValueError: names the architecture and the remedy.
    """
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise ValueError(f"{architecture_name(model.config)} is no causal language model; {SUPPORTED}")


def architecture_name(config: PreTrainedConfig) -> str:
    """The class that config.json names, else the model type."""
    return str((config.architectures or [config.model_type])[0])


def _classes(config: PreTrainedConfig) -> tuple[Any, ...]:
    """The model classes of a causal language model's config, nearly always one."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found if isinstance(found, tuple) else (found,)


def _not_causal(config: PreTrainedConfig, max_length: int | None) -> str | None:
    if config.is_encoder_decoder:
        return f"is an encoder-decoder; {SUPPORTED}"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"is no causal language model; {SUPPORTED}"
    if config.get_text_config() is not config:
        return f"is more than a language model (its config has parts); {SUPPORTED}"
    return None


def _impossible_sizes(config: PreTrainedConfig, max_length: int | None) -> str | None:
    for name in _SIZES:
        size = getattr(config, name, None)
        if size is not None and (type(size) is not int or size < 1):
            return f"has {name} {size!r} in its config.json, which must be a whole number of at least 1"
    heads, pad = getattr(config, "num_attention_heads", None), getattr(config, "pad_token_id", None)
    groups = getattr(config, "num_key_value_heads", None) or heads
    if heads is not None and heads % groups:
        return f"has num_attention_heads {heads} in its config.json, no multiple of num_key_value_heads {groups}"
    if pad is not None and pad >= config.vocab_size:
        return f"has pad_token_id {pad} in its config.json, outside of its vocabulary of {config.vocab_size} tokens"
    return None


def _recurrent(config: PreTrainedConfig, max_length: int | None) -> str | None:
    others = sorted(set(getattr(config, "layer_types", None) or ()) - {_FULL, _SLIDING})
    is_stateful = any(kind._is_stateful for kind in _classes(config))
    if not others and not is_stateful:
        return None
    named = f" ({', '.join(others)})" if others else ""
    kind = "recurrent" if is_stateful else "special"
    return f"has {kind} layers{named}, whose state is no list of keys and values; {SUPPORTED}"


def _sliding(config: PreTrainedConfig, max_length: int | None) -> str | None:
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    is_used = _SLIDING in layers if layers else getattr(config, "use_sliding_window", True)
    if not is_used or window is None or (max_length is not None and window >= max_length):
        return None
    if max_length is None:
        return f"has layers with a sliding window of {window} tokens; {SUPPORTED}"
    return (
        f"has layers with a sliding window of {window} tokens, shorter than max_seq_length {max_length}: lower that"
        f" with --model.max-seq-length {window}, or {SUPPORTED}"
    )


def _capped_scores(config: PreTrainedConfig, max_length: int | None) -> str | None:
    cap = getattr(config, "attn_logit_softcapping", None)
    return f"caps its attention scores (attn_logit_softcapping {cap:g}); {SUPPORTED}" if cap is not None else None


def _without_sdpa(config: PreTrainedConfig, max_length: int | None) -> str | None:
    if all(kind._supports_sdpa for kind in _classes(config)):
        return None
    return f"has no scaled-dot-product attention, whose boolean masks are needed; {SUPPORTED}"


def _quantized(config: PreTrainedConfig, max_length: int | None) -> str | None:
    if getattr(config, "quantization_config", None) is None:
        return None
    return "is quantized (quantization_config), so its weights cannot be trained; use the original checkpoint"


def _short_positions(config: PreTrainedConfig, max_length: int | None) -> str | None:
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None or max_length is None or longest >= max_length:
        return None
    return (
        f"knows {longest} positions (max_position_embeddings), less than max_seq_length {max_length}: lower that"
        f" with --model.max-seq-length {longest}"
    )


_RULES: tuple[Callable[[PreTrainedConfig, int | None], str | None], ...] = (
    _not_causal,
    _recurrent,
    _impossible_sizes,
    _sliding,
    _capped_scores,
    _without_sdpa,
    _quantized,
    _short_positions,
)
