"""What a tokenizer must do with the texts of a task."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def text_fault(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """What is wrong with a tokenizer that does not give a text back, in words; None when it does."""
    back = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    if back == text:
        return None
    return (
        f"tokenizer does not give texts back as they were: {text!r} becomes {back!r}; use a model whose tokenizer does"
    )
