"""One thread and no network in every test, set before anything imports torch or transformers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

torch.set_num_threads(1)
COLUMNS = os.environ.pop("COLUMNS", None)  # a pipe's lines are not broken. The tests' own processes may be told a width


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """COLUMNS is meant for the lines of pytest itself, which tests/mutants.py reads whole."""
    if COLUMNS is not None:
        config.get_terminal_writer().fullwidth = int(COLUMNS)


@pytest.fixture(scope="session", autouse=True)
def no_width():
    """A pipe's lines are not broken; the tests' own processes may be told a width. pytest's summary keeps its own."""
    width = os.environ.pop("COLUMNS", None)
    yield
    if width is not None:
        os.environ["COLUMNS"] = width


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a random Qwen2 model, width 16, with a tokenizer made like the embedded base's."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from recipes.embedded_base.make_base import make_tokenizer

    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = make_tokenizer(320, 0, 0.03)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
