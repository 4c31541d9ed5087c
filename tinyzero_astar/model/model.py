"""The policy: a Hugging Face causal language model with a value model on its last hidden state.

The embedded base model, a folder, or a name all load through the same call. Safetensors only, and never code
from a checkpoint. Token log-probabilities are computed in chunks of positions, so that a full [B, T, V] float32
tensor never exists; with gradients each chunk is recomputed in the backward pass.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tinyzero_astar.interfaces import StepOutput
from tinyzero_astar.rollout.value_model import ValueModel

EMBEDDED = "embedded"  # the name of the base model that comes with the package
_CHUNK_ELEMENTS = 1 << 24  # positions * vocabulary per chunk: 64 MiB of float32 logits


class TokenScores(NamedTuple):
    """Per generated token, [B, T] each; see the alignment rule in `interfaces`."""

    logp: Tensor  # natural log-probability of the token
    entropy: Tensor  # nats, of the distribution that the token was drawn from; no gradient
    value_logit: Tensor  # accuracy, of the prefix before the token
    format_logit: Tensor
    child_logit: Tensor  # accuracy, of the prefix with the token


def resolve_model(name: str) -> str:
    """The folder of the embedded base for "embedded", else the name as it is."""
    if name == EMBEDDED:
        return str(resources.files("tinyzero_astar") / "assets" / "embedded_base")
    return name


def load_language_model(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, from the package, a folder, or the hub.

    Raises:
        ValueError: nothing can be loaded under that name; says what was looked for and where.
    """
    source = resolve_model(name)
    if not (Path(source) / "config.json").is_file() and (os.sep in name or name.startswith(".")):
        raise ValueError(
            f"model_name {name!r}: no folder with a config.json there; give the name of a Hugging Face model"
            f" or a folder that holds config.json, model.safetensors and the tokenizer"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # what damaged files raise
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        if Path(source).is_dir():
            raise ValueError(f"model_name {name!r}: a file in that folder cannot be used ({cause})") from error
        raise ValueError(
            f"model_name {name!r} could not be loaded, neither from the local cache nor from the hub; download it"
            f" elsewhere and give its folder: --model.model-name PATH ({cause})"
        ) from error
    if missing := sorted(info["missing_keys"]):  # from_pretrained would draw them at random
        raise ValueError(f"model_name {name!r}: {len(missing)} of its weights are missing, first {missing[0]}")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model_name {name!r}: its tokenizer has no end-of-sequence token")
    if not tokenizer("1")["input_ids"]:  # what from_pretrained makes of a folder without tokenizer.json
        raise ValueError(f"model_name {name!r}: its tokenizer knows no digits; is tokenizer.json missing?")
    return model, tokenizer


class Policy(nn.Module):
    """pi and its value model; implements `model.decoder.Network`.

    Args:
        language_model: any Hugging Face causal language model with full attention.
        eos_id: the token that ends a completion.
        value_hidden_size: width of the value model's MLP.
    """

    def __init__(self, language_model: PreTrainedModel, eos_id: int, value_hidden_size: int) -> None:
        super().__init__()
        self.language_model = language_model
        self.eos_id = eos_id
        config = language_model.config.get_text_config()
        self.vocab_size = language_model.get_output_embeddings().weight.shape[0]
        self.value_model = ValueModel(config.hidden_size, value_hidden_size, self.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where the language model's weights live."""
        weight: Tensor = self.language_model.get_input_embeddings().weight
        return weight.device

    def hidden(self, ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None, cache: Any) -> Tensor:
        """Last hidden states [N, Q, D]; see `model.decoder.Network.hidden`. A mask of None means causal."""
        output = self.language_model.base_model(
            input_ids=ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def score(self, hidden: Tensor) -> StepOutput:
        """Next-token logits and values at hidden states [N, D], in float32."""
        value = self.value_model(hidden)
        child = self.value_model.child_logits(hidden, value.accuracy)
        return StepOutput(self._logits(hidden), value.accuracy.float(), child.float())

    def token_scores(self, ids: Tensor, prompt_length: Tensor, tokens: Tensor) -> TokenScores:
        """Scores of generated tokens by one full forward.

        Args:
            ids: [B, L] prompt and completion, padded on the right.
            prompt_length: [B] tokens before the completion.
            tokens: [B, T] the completions, padded.
        """
        position = torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids)
        hidden = self.hidden(ids, position, None, None)
        where = prompt_length[:, None] - 1 + torch.arange(tokens.shape[1], device=ids.device)
        where = where.clamp(max=ids.shape[1] - 1)  # beyond the row's end only padding is asked for
        before = hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1]))
        logp, entropy = self._chunked_logp(before.flatten(0, 1), tokens.flatten())
        value = self.value_model(before)
        child = self.value_model.child_logit_of(before, value.accuracy, tokens)
        shape = tokens.shape
        return TokenScores(logp.view(shape), entropy.view(shape), value.accuracy, value.format, child)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.language_model.get_output_embeddings()(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _chunked_logp(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        size = max(1, _CHUNK_ELEMENTS // self.vocab_size)
        pairs = list(zip(hidden.split(size), tokens.split(size), strict=True))
        if len(pairs) == 1 or not torch.is_grad_enabled():
            scored = [self._logp(h, t) for h, t in pairs]
        else:
            scored = [checkpoint(self._logp, h, t, use_reentrant=False) for h, t in pairs]
        return torch.cat([logp for logp, _ in scored]), torch.cat([entropy for _, entropy in scored])

    def _logp(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logp = torch.log_softmax(self._logits(hidden), -1)
        with torch.no_grad():
            entropy = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)
        return logp.gather(-1, tokens[:, None])[:, 0], entropy
