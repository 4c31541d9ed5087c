"""How the texts of a task become tokens, and what a tokenizer must do with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tinyzero_astar.interfaces import END_OF_EXAMPLE
from tinyzero_astar.terminal import shortened

_HALF = re.compile("[\ud800-\udfff]")

if TYPE_CHECKING:  # seconds
    from transformers import PreTrainedTokenizerBase


def continued(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The text that the model continues. Each worked example ends with its end token, as a completion would."""
    return prompt.replace(END_OF_EXAMPLE, str(tokenizer.eos_token))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Prompts as tokens, see `continued`."""
    texts = [continued(tokenizer, prompt) for prompt in prompts]
    return [list(ids) for ids in tokenizer(texts)["input_ids"]]


def room_after(prompt_length: int, max_seq_length: int, max_search_depth: int) -> int:
    """Tokens that a completion may have after a prompt of `prompt_length` tokens, up to `max_search_depth`.

    Raises:
        ValueError: there is no room.
    """
    if prompt_length >= max_seq_length:
        raise ValueError(
            f"max_seq_length {max_seq_length} leaves no room after a prompt of {prompt_length} tokens:"
            f" raise it to {prompt_length + max_search_depth} for completions of max_search_depth tokens"
        )
    return min(max_search_depth, max_seq_length - prompt_length)


def text_fault(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> str | None:
    """What is wrong with a tokenizer that does not give texts back, in words. None when it does.

    The place where a worked example ends is left out, since it holds no text.
    """
    pieces = list(dict.fromkeys(piece for text in texts for piece in text.split(END_OF_EXAMPLE)))
    if (half := next(filter(_HALF.search, pieces), None)) is not None:
        return f"tokenizer cannot read half of a character, as in {shortened(half)}"
    ids = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    for piece, back in zip(pieces, tokenizer.batch_decode(ids), strict=True):
        if back != piece:
            return _difference(piece, back)
    return None


def _difference(text: str, back: str) -> str:
    """What a tokenizer did to a text, in words."""
    first = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    around = slice(max(0, first - 20), first + 20)
    lost = [repr(character) for character in dict.fromkeys(text) if character not in back][:10]
    why = f" (it has no {', '.join(lost)})" if lost else ""
    return (
        f"tokenizer does not give texts back as they were: {text[around]!r} becomes {back[around]!r}"
        f"{why}; use a model whose tokenizer does"
    )
