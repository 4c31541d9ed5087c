"""The tokenizer of a model, read and tried out, and the tokens that end a text."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from tinyzero_astar.data.text import text_fault
from tinyzero_astar.model.damage import DamageInOneSentence, read_object
from tinyzero_astar.model.model_folder import CONFIG, GENERATION

_PROBE = "12*3=?\n<think>4</think> <answer>0123456789</answer>"  # letters of problems, tags and answers
# What transformers and tokenizers raise for damage. For tokenizer.json it is ValueError, TypeError (an entry of another
# kind) and RecursionError. For tokenizer_config.json it is TypeError and AttributeError (a field of another kind),
# KeyError (an unknown name, a missing entry), and ImportError (a package that an old tokenizer needs).
_KNOWN = (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError, RecursionError)


def read_tokenizer(name: str, folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, which gives texts back and has an end token.

    Raises:
        ValueError: it is damaged, does not, has none, or has more tokens than the model.
    """
    with DamageInOneSentence(name, folder, *_KNOWN):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    check_tokenizer(name, folder, config, tokenizer)
    return tokenizer


def check_tokenizer(name: str, source: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Try a tokenizer from some files out, with the config of its model.

    Raises:
        ValueError: as for `read_tokenizer`.
    """
    with DamageInOneSentence(name, source, *_KNOWN):
        tokenizer.decode(tokenizer(_PROBE)["input_ids"])  # some damage shows in the first use
        size, ids = len(tokenizer), tokenizer.get_vocab().values()
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model_name {name!r}: its tokenizer has no end-of-sequence token")
    if (fault := text_fault(tokenizer, [_PROBE])) is not None:
        raise ValueError(f"model_name {name!r}: its {fault}")
    count = max(size, 1 + max(ids))
    if count > config.vocab_size:
        raise ValueError(
            f"model_name {name!r}: its tokenizer has {count} tokens, the model {config.vocab_size}; they do not belong"
            " together"
        )


def declared_ends(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer, config.json and generation_config.json say, as it stands there, without defaults."""
    known, ends = set(tokenizer.get_vocab().values()), [tokenizer.eos_token_id]
    for file in (CONFIG, GENERATION):
        said = read_object(name, folder, file) if (folder / file).is_file() else {}
        declared = said.get("eos_token_id")
        ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
        for i in ids:
            if type(i) is not int or i not in known:
                raise ValueError(
                    f"model_name {name!r}: its {file} declares the end token {i!r} (eos_token_id), and its tokenizer"
                    f" has no token of that id; correct {file}"
                )
        ends += ids
    return tuple(dict.fromkeys(ends))


def textless_ids(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> set[int]:
    """Ids of an embedding of `num_rows` rows for which the tokenizer has no token. They would be decoded to nothing.

    Embeddings are often padded to a round number of rows. A verifier cannot see what such an id adds to a completion.
    """
    return set(range(num_rows)).difference(tokenizer.get_vocab().values())
