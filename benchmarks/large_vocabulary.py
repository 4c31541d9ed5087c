"""A random model with the vocabulary of Qwen 2.5, for `benchmarks.throughput --model FOLDER`.

`python -m benchmarks.large_vocabulary FOLDER --hidden 128` writes it. The model is a Qwen2 of two layers with 151,936
tokens, tied, 20 million parameters. Its tokenizer has as many, the characters of the problems and made-up ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

NUM_TOKENS = 151_936
END = "<|endoftext|>"
_CHARACTERS = [*(chr(i) for i in range(33, 127)), "Ġ", "Ċ"]  # as Qwen writes the space and the line break


def write_model(folder: Path, hidden_size: int, num_layers: int) -> None:
    """A random model and its tokenizer, in a folder that need not exist."""
    torch.manual_seed(0)
    end = NUM_TOKENS - 1
    config = Qwen2Config(
        vocab_size=NUM_TOKENS,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words = [*_CHARACTERS, *(f"<{i}>" for i in range(NUM_TOKENS - len(_CHARACTERS) - 1)), END]
    tokenizer = Tokenizer(BPE({word: i for i, word in enumerate(words)}, merges=[]))  # characters, and nothing to merge
    tokenizer.decoder = Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    write_model(args.folder, args.hidden, args.layers)


if __name__ == "__main__":
    main()
