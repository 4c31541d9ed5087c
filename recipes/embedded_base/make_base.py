"""Makes the embedded base model, by `make base`, and others like it from the same or another corpus.

The tokenizer is byte-level BPE with Qwen's split pattern, so that AutoTokenizer reloads it unchanged. The model is a
Qwen2-shaped decoder with next-token training on the synthetic corpus. Then a measurement shows what the base model can
and cannot do. Nothing here trains it to follow the task.

`--begin-with` goes on from the weights of another model, with its tokenizer. The base models in `recipes/bases`
go on from the embedded one, and the last of them from `long`:

    make base ARGS="--begin-with embedded --worked-share 0.005 --tokens 2000000 --learning-rate 1e-3 \
        --seed 1 --float16 --output recipes/bases/rare"
    make base ARGS="--corpus countdown --begin-with embedded --worked-share 0.015 --tokens 7000000 \
        --learning-rate 3e-3 --seed 2 --float16 --output recipes/bases/countdown"
    make base ARGS="--corpus long --begin-with embedded --worked-share 0.05 --tokens 4000000 \
        --learning-rate 2e-3 --seed 3 --float16 --output recipes/bases/long"
    make base ARGS="--corpus easy --begin-with embedded --worked-share 0.06 --tokens 1500000 \
        --learning-rate 2e-3 --seed 4 --float16 --output recipes/bases/easy"
    make base ARGS="--corpus longer --begin-with recipes/bases/long --worked-share 0.05 --tokens 5000000 \
        --learning-rate 2e-3 --seed 5 --float16 --output recipes/bases/longer"

`python -m recipes.embedded_base.measure --model FOLDER --corpus NAME` measures one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from recipes.embedded_base.corpora import CORPORA, Corpus
from tinyzero_astar.model.loading import load_language_model
from tinyzero_astar.model.model_folder import resolve_model

EOS = "<|endoftext|>"
RECORDED = ("corpus", "begin_with", "tokens", "learning_rate", "worked_share", "seed")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(vocab_size: int, seed: int, worked_share: float) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a sample of the corpus. Digits stay single, and the four tags are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS) - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = itertools.islice(CORPORA["multiplication"].documents(seed + 1, worked_share), 5000)
    plain = (text.translate(str.maketrans("<>", "  ")) for text in sample)
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer.add_special_tokens([EOS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def rows(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, seed: int, worked_share: float, length: int
) -> Iterator[list[int]]:
    """Rows of `length` tokens that start where a document starts. The last document is cut."""
    source = corpus.documents(seed, worked_share)
    while True:
        texts = list(itertools.islice(source, 512))
        for text in texts:
            assert not corpus.held_out_leaks(text), f"held-out question in the corpus: {text!r}"
        row: list[int] = []
        for ids in tokenizer(texts)["input_ids"]:
            row += [*ids, tokenizer.eos_token_id]
            if len(row) >= length:
                yield row[:length]
                row = []


def train(model: PreTrainedModel, batches: Iterator[Tensor], steps: int, peak_lr: float) -> None:
    """AdamW with a short warm-up and cosine decay, bf16 autocast."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.95),
    )
    began, tokens = time.time(), 0
    for step in range(steps):
        progress = step / steps
        scale = min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * scale
        ids = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += ids.numel()
        if step % 50 == 0 or step == steps - 1:
            rate = tokens / (time.time() - began)
            print(
                f"step {step:5d}/{steps}  loss {loss.item():.4f}  tokens {tokens:,}  {rate:,.0f} tokens/s", flush=True
            )


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Four layers of width 128, with weights drawn from PyTorch's seed."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("tinyzero_astar/assets/embedded_base"))
    parser.add_argument("--corpus", choices=tuple(CORPORA), default="multiplication")
    parser.add_argument("--tokens", type=int, default=11_000_000)
    parser.add_argument("--worked-share", type=float, default=0.036, help="share of transcripts worked out right")
    parser.add_argument("--begin-with", default="", metavar="FOLDER", help="whose weights and tokenizer are taken over")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="its peak")
    parser.add_argument("--float16", action="store_true", help="save half as many bytes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    if args.begin_with:
        model = load_language_model(args.begin_with, torch.float32)[0].train()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(resolve_model(args.begin_with))
    else:
        tokenizer = make_tokenizer(320, args.seed, args.worked_share)
        model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}", flush=True)
    length, batch = 128, 32
    stream = rows(CORPORA[args.corpus], tokenizer, args.seed, args.worked_share, length)
    batches = (torch.tensor(list(itertools.islice(stream, batch))) for _ in itertools.count())
    train(model, batches, args.tokens // (length * batch), args.learning_rate)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    (model.half() if args.float16 else model).save_pretrained(args.output, safe_serialization=True)
    tokenizer.save_pretrained(args.output)
    recipe = {name: getattr(args, name) for name in RECORDED}
    (args.output / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")


if __name__ == "__main__":
    main()
