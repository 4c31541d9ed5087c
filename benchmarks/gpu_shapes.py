"""The shapes of Qwen2.5 with random weights, without a network, for `benchmarks.gpu` and `benchmarks.gpu_run`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config

VOCABULARY = 151_936
SHAPES = {  # hidden, intermediate, layers, heads, key heads, vocabulary
    "tiny": (64, 160, 2, 4, 2, 512),
    "0.5B": (896, 4864, 24, 14, 2, VOCABULARY),
    "1.5B": (1536, 8960, 28, 12, 2, VOCABULARY),
    "3B": (2048, 11008, 36, 16, 2, VOCABULARY),
}
END = "<|endoftext|>"
EOS = 1  # of models without a tokenizer


def config_of(name: str, eos: int = EOS) -> Qwen2Config:
    """Of Qwen2.5's published sizes, and a tiny one."""
    hidden, intermediate, layers, heads, key_heads, vocabulary = SHAPES[name]
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=eos,
    )


LOGIT_SCALE = 10.0  # see `random_model`


def random_model(
    config: Qwen2Config, dtype: torch.dtype, device: torch.device, logit_scale: float = LOGIT_SCALE
) -> PreTrainedModel:
    """Its weights are drawn on the device.

    The larger `logit_scale`, the more certain it is, as a trained policy. Where all tokens are alike no prefix of a
    search has two children that matter.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
    with torch.no_grad():
        model.base_model.norm.weight.fill_(logit_scale)
    return model.eval()


def make_tokenizer(texts: Iterable[str], num_tokens: int) -> PreTrainedTokenizerFast:
    """Bytes and the words of some texts, as in a real vocabulary, then made-up tokens up to the wanted number."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = min(4096, num_tokens - 1)
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    found = json.loads(trained.to_str())["model"]
    words = dict(found["vocab"])
    words |= {f"<{i}>": i for i in range(len(words), num_tokens - 1)} | {END: num_tokens - 1}
    tokenizer = Tokenizer(models.BPE(words, merges=[tuple(pair) for pair in found["merges"]]))
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def write_stand_in(folder: Path, name: str, texts: Iterable[str], dtype: torch.dtype, device: torch.device) -> None:
    """A folder that loads like a downloaded model, with random weights.

    Args:
        folder: need not exist.
        name: of the shape.
        texts: whose words are tokens.
        dtype: of the weights.
        device: that they are drawn on.
    """
    config = config_of(name)
    tokenizer = make_tokenizer(texts, config.vocab_size)
    random_model(config_of(name, tokenizer.eos_token_id), dtype, device).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
