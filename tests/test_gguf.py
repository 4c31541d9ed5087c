"""A .gguf file as a model. Its weights, its tokenizer and its end tokens come out right and can be saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from tests.test_run import OPTIONS
from tinyzero_astar.cli.doctor import doctor_main
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.model import gguf as reader
from tinyzero_astar.model.loading import load_language_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[gguf]'")

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = ["12*3=?\n<think>4</think> <answer>0123456789</answer>", " a  b\n\n", "12345"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def original(tiny_base):
    """A random Qwen2 and its tokenizer."""
    from transformers import Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
        **SHAPE,
    )
    return Qwen2ForCausalLM(config), tokenizer


def write_file(path, original, quantization=None, architecture="qwen2", **ends):
    """What llama.cpp's converter writes of a model, with as many blocks as it has."""
    model, tokenizer = original
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    inside = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in inside["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[i in special] for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in inside["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for kind, token in ends.items():
        writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", token)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        array = weight.detach().numpy()
        if quantization is not None and array.ndim > 1:
            array = gguf.quants.quantize(array, quantization)
        writer.add_tensor(
            names.get_name(name, (".weight", ".bias")), array, raw_dtype=quantization if array.ndim > 1 else None
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.fixture(scope="module")
def file(original, tmp_path_factory):
    return write_file(tmp_path_factory.mktemp("gguf") / "base.gguf", original)


def loaded(name, dtype=torch.float32):
    said = []
    model, tokenizer = load_language_model(name, dtype, max_length=64, say=said.append)
    return model, tokenizer, said


def test_weights_and_tokenizer_are_those_of_the_model_that_was_written(file, original):
    model, tokenizer, said = loaded(file)
    expected = original[0].state_dict()
    assert model.state_dict().keys() == expected.keys() and said == []
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [original[1](text)["input_ids"] for text in TEXTS]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == original[1].eos_token_id
    ids = torch.tensor([original[1](TEXTS[0])["input_ids"]])
    assert torch.allclose(model(ids).logits, original[0](ids).logits, atol=1e-5)


def test_it_is_saved_as_an_ordinary_model(file, elsewhere):
    model, tokenizer, _ = loaded(file, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    model.save_pretrained("saved")
    tokenizer.save_pretrained("saved")
    again, its_tokenizer, said = loaded("saved", torch.bfloat16)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items()) and said == []
    assert [its_tokenizer(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert its_tokenizer.eos_token_id == tokenizer.eos_token_id
    assert "quantization_config" not in json.loads((elsewhere / "saved/config.json").read_text())


def test_quantized_weights_are_near(original, elsewhere):
    """Q8_0 keeps 32 weights as whole numbers to 127 and the largest in float16, half a step each, and its rounding."""
    model, _, _ = loaded(write_file(elsewhere / "q8.gguf", original, gguf.GGMLQuantizationType.Q8_0))
    for name, weight in original[0].named_parameters():
        gap = (model.get_parameter(name) - weight).detach().abs()
        bound = (0.5 + 127 / 2**11) / 127 if weight.ndim > 1 else 0.0
        assert float(gap.max()) <= bound * float(weight.detach().abs().max())


def test_the_random_state_is_left_alone(file):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    loaded(file)
    assert torch.equal(torch.rand(2), expected)


def test_every_end_that_the_file_declares_ends_a_text(original, elsewhere):
    eos = original[1].eos_token_id
    model, tokenizer, said = loaded(write_file(elsewhere / "two.gguf", original, eot=eos - 1, eom=eos))
    assert model.generation_config.eos_token_id == [eos, eos - 1] and tokenizer.eos_token_id == eos
    assert "declare 2 end tokens" in said[0]
    with pytest.raises(ValueError, match=r"declares the end token 9999 \(tokenizer.ggml.eot_token_id\), which"):
        loaded(write_file(elsewhere / "bad.gguf", original, eot=9999))


def test_a_run_begins_with_it_and_its_checkpoint_is_an_ordinary_folder(file, capsys):
    options = ["--model.model-name", file, *OPTIONS.split(), "--train.num-iterations", "1"]
    assert doctor_main(options) == 0
    assert main([*options, "--eval.num-problems", "2", "--output-dir", "r"]) == 0
    assert solve_main(["3*4", "--checkpoint", "r", "--json"]) == 0


# ---------------------------------------------------------------------------------------------- what is refused


def refusal(name):
    with pytest.raises(ValueError) as refused:
        loaded(name)
    text = str(refused.value)
    assert text.startswith(f"model_name {name!r}") and "\n" not in text
    return text


def test_a_missing_file_or_package_is_told(file, monkeypatch):
    assert "there is no such file; a .gguf file must lie on this machine" in refusal("nowhere/x.gguf")
    for package in ("accelerate", "gguf"):
        monkeypatch.setattr(reader, f"is_{package}_available", lambda: False)
        assert f"needs the package {package}, which is not installed or too old: pip install -e '.[gguf]'" in refusal(
            file
        )


@pytest.mark.parametrize("kept", [0, 3, 40, 2000, -100])
def test_a_damaged_file_is_one_sentence(kept, file, elsewhere):
    content = Path(file).read_bytes()
    (elsewhere / "cut.gguf").write_bytes(content[:kept])
    assert "that file cannot be used (" in refusal("cut.gguf")


def test_other_files_and_architectures_are_one_sentence(original, elsewhere):
    (elsewhere / "text.gguf").write_text("no model\n" * 100)
    assert "that file cannot be used (" in refusal("text.gguf")
    assert "mamba" in refusal(write_file(elsewhere / "mamba.gguf", original, architecture="mamba"))


def test_missing_weights_are_one_sentence(original, elsewhere):
    path = elsewhere / "shallow.gguf"
    content = Path(write_file(path, original)).read_bytes()
    assert content.count(b"blk.1.attn_q.weight") == 1
    path.write_bytes(content.replace(b"blk.1.attn_q.weight", b"blk.7.attn_q.weight"))
    assert "1 of its weights are missing, first model.layers.1.self_attn.q_proj.weight" in refusal(str(path))
