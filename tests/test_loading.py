"""Any Hugging Face causal language model by name or folder. What is loaded decodes right, the rest is one sentence.

Tiny random checkpoints of each architecture are saved with a tokenizer and loaded as a user's would be. A hub is
played by a local server. Nothing here needs a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM
from transformers.utils import logging

from tests.decoding import (
    LED,
    assert_forks_swaps_and_uneven_lengths_equal_recomputation,
    assert_recorded_scores_equal_one_full_forward,
    shake_value_model,
)
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import ModelConfig
from tinyzero_astar.model.loading import load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.policy_loading import check_decoding, load_policy
from tinyzero_astar.resources.machine import choose_device

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
SUPPORTED = {  # name -> model type, what differs from SHAPE
    "Qwen2": ("qwen2", {}),
    "Qwen2, tied, ungrouped": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "Qwen3": ("qwen3", {"head_dim": 16}),
    "Llama": ("llama", {}),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Mistral, long window": ("mistral", {"sliding_window": 64}),
    "Gemma": ("gemma", {"head_dim": 8}),
    "Gemma 3, long window, capped logits": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": 64, "sliding_window_pattern": 2, "final_logit_softcapping": 2.0},
    ),
    "Phi 3": ("phi3", {"pad_token_id": 0}),
    "OLMo 2": ("olmo2", {}),
    "GPT-2": ("gpt2", GPT2),
}
MAX_LENGTH = 64


def make_config(tiny_base, model_type, **different):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    shape["pad_token_id"] = tokenizer.eos_token_id
    return AutoConfig.for_model(model_type, **{**shape, **different})


def save_checkpoint(folder, tiny_base, config, **options):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder, **options)
    copy_tokenizer(tiny_base, folder)
    return folder


def copy_tokenizer(source, folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)


def load(folder, dtype=torch.float32, max_length=MAX_LENGTH):
    policy, tokenizer = load_policy(
        str(folder), dtype=dtype, device=torch.device("cpu"), value_hidden_size=16, max_length=max_length
    )
    return shake_value_model(policy), tokenizer


def refusal(folder, max_length=MAX_LENGTH):
    """The sentence, without its beginning."""
    with pytest.raises(ValueError) as refused:
        load(folder, max_length=max_length)
    sentence = str(refused.value)
    assert "\n" not in sentence and sentence.startswith(f"model_name '{folder}'")
    return sentence.removeprefix(f"model_name '{folder}'").lstrip(": ")


# ------------------------------------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_supported_architecture_decodes_through_forks_as_by_full_forwards(name, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyzero_astar.engine.shared_prompt.MIN_SAVED", 1)
    model_type, different = SUPPORTED[name]
    folder = save_checkpoint(tmp_path / "model", tiny_base, make_config(tiny_base, model_type, **different))
    policy, tokenizer = load(folder)
    assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy)
    assert_recorded_scores_equal_one_full_forward(policy, "gumbel", LED)  # begin alike
    text = "23*45=?\n<think>  é 漢</think><answer>1035</answer>"
    wanted = AutoTokenizer.from_pretrained(tiny_base)(text)["input_ids"]
    assert tokenizer(text)["input_ids"] == wanted and tokenizer.decode(wanted) == text
    assert load(folder, torch.bfloat16)[0].language_model.dtype == torch.bfloat16  # passes check_decoding as well


def test_the_logits_of_the_model_are_capped_by_its_config_alone(tiny_base, tmp_path):
    model_type, different = SUPPORTED["Gemma 3, long window, capped logits"]
    config = make_config(tiny_base, model_type, **different)
    policy, _ = load(save_checkpoint(tmp_path / "capped", tiny_base, config))
    hidden = torch.randn(3, 32) * 10
    assert 1.5 < policy.score(hidden, torch.zeros(3, 3)).logits.abs().max() <= 2.0
    config.final_logit_softcapping = None
    policy, _ = load(save_checkpoint(tmp_path / "free", tiny_base, config))
    assert policy.score(hidden, torch.zeros(3, 3)).logits.abs().max() > 10


def test_a_checkpoint_in_several_files_is_loaded_and_a_missing_one_named(tiny_base, tmp_path):
    config = make_config(tiny_base, "qwen2")
    folder = save_checkpoint(tmp_path / "model", tiny_base, config, max_shard_size="40KB")
    shards = sorted(p.name for p in folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    whole = save_checkpoint(tmp_path / "whole", tiny_base, config)
    ours, theirs = (load(f)[0].language_model.state_dict() for f in (folder, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    (folder / shards[-1]).unlink()
    assert refusal(folder) == f"lacks 1 of its {len(shards)} weight files, first {shards[-1]}"


# --------------------------------------------------------------------- what config.json alone decides

WINDOW = "has layers with a sliding window of 16 tokens, shorter than max_seq_length 64: lower that"
REFUSED = {  # name -> model type, config, how the sentence begins after the class
    "Gemma 2, short window": ("gemma2", {"sliding_window": 16}, f"Gemma2ForCausalLM {WINDOW}"),
    "Gemma 2, long window": ("gemma2", {}, "Gemma2ForCausalLM caps its attention scores (attn_logit_softcapping 50)"),
    "Bloom": ("bloom", {}, "BloomForCausalLM has no scaled-dot-product attention, whose boolean masks are needed"),
    "Gemma 3": ("gemma3_text", {"sliding_window": 16, "sliding_window_pattern": 2}, f"Gemma3ForCausalLM {WINDOW}"),
    "Mistral": ("mistral", {"sliding_window": 16}, f"MistralForCausalLM {WINDOW}"),
    "Qwen2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        f"Qwen2ForCausalLM {WINDOW}",
    ),
    "Mamba": ("mamba", {}, "MambaForCausalLM has recurrent layers (linear_attention), whose state is no list"),
    "RecurrentGemma": ("recurrent_gemma", {}, "RecurrentGemmaForCausalLM has recurrent layers"),
    "RWKV": ("rwkv", {}, "RwkvForCausalLM has recurrent layers, whose state is no list of keys and values"),
    "Qwen3-Next": ("qwen3_next", {}, "Qwen3NextForCausalLM has recurrent layers (linear_attention)"),
    "LFM 2": ("lfm2", {"layer_types": ["conv", "full_attention"]}, "Lfm2ForCausalLM has special layers (conv)"),
    "BART": ("bart", {}, "BartForCausalLM is an encoder-decoder"),
    "T5": ("t5", {}, "T5ForConditionalGeneration is an encoder-decoder"),
    "BERT": ("bert", {}, "BertLMHeadModel is no causal language model"),
    "CLIP": ("clip", {}, "CLIPModel is no causal language model"),
    "Gemma 3 with eyes": ("gemma3", {}, "Gemma3ForConditionalGeneration is more than a language model"),
    "quantized": (
        "llama",
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "LlamaForCausalLM is quantized (quantization_config), so its weights cannot be trained",
    ),
    "short": (
        "llama",
        {"max_position_embeddings": 32},
        "LlamaForCausalLM knows 32 positions (max_position_embeddings), less than max_seq_length 64: lower that",
    ),
}


def save_config(folder, tiny_base, name):
    """config.json and a tokenizer, no weights. Who gets as far as those fails differently."""
    model_type, different, sentence = REFUSED[name]
    config = make_config(tiny_base, model_type, **different)
    config.architectures = [sentence.split()[0]]
    config.save_pretrained(folder)
    copy_tokenizer(tiny_base, folder)
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_cannot_work_is_refused_by_name_before_weights_are_read(name, tiny_base, tmp_path):
    sentence = refusal(save_config(tmp_path / "model", tiny_base, name))
    assert sentence.startswith(REFUSED[name][2])
    assert "Qwen2, Qwen3, Llama, Mistral or Gemma" in sentence or name in ("quantized", "short")


@pytest.mark.parametrize(("window", "is_allowed"), [(63, False), (64, True)])
def test_a_window_is_allowed_from_the_length_of_the_longest_sequence(window, is_allowed, tiny_base, tmp_path):
    config = make_config(tiny_base, "mistral", sliding_window=window)
    folder = save_checkpoint(tmp_path / "model", tiny_base, config)
    if not is_allowed:
        assert f"--model.max-seq-length {window}, or use" in refusal(folder, max_length=64)
        assert load(folder, max_length=window)
        return
    policy, _ = load(folder, max_length=64)
    free, _ = load(save_checkpoint(tmp_path / "free", tiny_base, make_config(tiny_base, "mistral")), max_length=64)
    ids = torch.arange(1, 66)[None]
    logits = [p.language_model(ids).logits for p in (policy, free)]
    torch.testing.assert_close(logits[0][:, :64], logits[1][:, :64])
    assert (logits[0] - logits[1])[:, 64].abs().max() > 1e-3  # one token more and the window would be felt
    with pytest.raises(ValueError, match="has layers with a sliding window of 64 tokens; use a model with full"):
        load_language_model(str(folder), torch.float32)  # how long sequences get is not known


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, "architecture 'mine' is unknown to the"),
        ({"model_type": "mine"}, "architecture 'mine' is unknown to the installed transformers, or its config.json"),
        ({"model_type": None}, "architecture None is unknown to the installed transformers"),
        ({"hidden_size": "wide"}, "a file in that folder cannot be used ("),
        ({"vocab_size": 3}, "Qwen2ForCausalLM has pad_token_id 319 in its config.json, outside of its vocabulary of 3"),
        ({"num_attention_heads": 0}, "Qwen2ForCausalLM has num_attention_heads 0 in its config.json, which must be"),
        ({"layer_types": ["full_attention"]}, "a file in that folder cannot be used ("),
        ({"layer_types": ["full_attention", "sideways"]}, "a file in that folder cannot be used ("),
        ({"rope_parameters": {"rope_type": "mine"}}, "Qwen2ForCausalLM cannot be built from its config.json (KeyError"),
    ],
)
def test_a_config_that_transformers_does_not_understand_is_one_sentence(change, sentence, tiny_base, tmp_path):
    folder = save_checkpoint(tmp_path / "model", tiny_base, make_config(tiny_base, "qwen2"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (folder / "mine.py").write_text("raise SystemExit('code from a checkpoint was run')")
    assert refusal(folder).startswith(sentence)


def test_code_in_a_checkpoint_of_a_known_architecture_is_not_run(tiny_base, tmp_path):
    folder = save_checkpoint(tmp_path / "model", tiny_base, make_config(tiny_base, "qwen2"))
    code = {
        "config.json": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
        "tokenizer_config.json": {"AutoTokenizer": ["mine.Tokenizer", None]},
    }
    for name, auto_map in code.items():
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))
    (folder / "mine.py").write_text("raise SystemExit('code from a checkpoint was run')")
    assert type(load(folder)[0].language_model) is Qwen2ForCausalLM


def test_nobody_is_asked_whether_code_of_a_tokenizer_may_be_run(tiny_base, tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path / "model", tiny_base, make_config(tiny_base, "qwen2"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tokenizer_class": "Mine"}))
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "mine.py").write_text("raise SystemExit('code from a checkpoint was run')")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    tokenizer = load(folder)[1]  # by tokenizer.json alone
    assert asked == [] and tokenizer.decode(tokenizer("12*3")["input_ids"]) == "12*3"


# ------------------------------------------------------------------------- what only the weights decide


@pytest.mark.parametrize(
    ("model_type", "different", "sentence"),
    [
        ("cohere", {"logit_scale": 0.25}, "CohereForCausalLM scores tokens differently through the slot cache than in"),
        ("granite", {"logits_scaling": 8.0}, "GraniteForCausalLM scores tokens differently through the slot cache"),
        ("falcon", {"alibi": True}, "FalconForCausalLM cannot be decoded through the slot cache (too many values"),
    ],
)
def test_what_no_config_rule_knows_is_found_by_decoding(model_type, different, sentence, tiny_base, tmp_path):
    folder = save_checkpoint(tmp_path / "model", tiny_base, make_config(tiny_base, model_type, **different))
    assert refusal(folder).startswith(sentence)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_masks_that_are_added_instead_of_applied_are_found(dtype, tiny_base, tmp_path):
    folder = save_checkpoint(tmp_path / "model", tiny_base, make_config(tiny_base, "qwen2"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    with pytest.raises(ValueError, match="Qwen2ForCausalLM scores tokens differently through the slot cache"):
        check_decoding(Policy(model, (0,), 16))


# ---------------------------------------------------------------------------------------- damaged folders


@pytest.fixture
def folder(tiny_base, tmp_path):
    return save_checkpoint(tmp_path / "model", tiny_base, make_config(tiny_base, "qwen2"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"3"),
        ("config.json", b"\xff\xfe"),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b""),
        ("tokenizer.json", b'{"version": "1.0", "added_tokens": [], "model": {"type": "Newer", "vocab": {}}}'),
        ("tokenizer_config.json", b'{"model_max_length": "long"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 64),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_sentence(name, content, folder):
    (folder / name).write_bytes(content)
    is_found_by_use = content.startswith(b'{"')  # by transformers, which does not say which file
    assert refusal(folder).startswith(f"{'a file' if is_found_by_use else name} in that folder cannot be used (")


@pytest.mark.parametrize("keep", [7, 1000, 20000, -1])
def test_truncated_weights_are_one_sentence(keep, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(folder).startswith("model.safetensors in that folder cannot be used (")


def test_a_folder_without_weights_or_tokenizer_says_what_it_lacks(folder):
    (folder / "model.safetensors").rename(folder / "kept")
    assert refusal(folder) == "lacks model.safetensors"
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    assert refusal(folder).startswith("lacks model.safetensors: its pytorch_model.bin is a pickle,")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert refusal(folder).startswith("a file in that folder cannot be used (")
    (folder / "kept").rename(folder / "model.safetensors")
    assert load(folder)
    (folder / "tokenizer.json").unlink()
    assert refusal(folder) == "lacks a tokenizer (tokenizer.json)"


def test_missing_weights_are_our_sentence_and_no_table(folder, caplog):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    verbosity = logging.get_verbosity()
    assert refusal(folder) == "1 of its weights are missing, first model.norm.weight"
    assert caplog.text == "" and logging.get_verbosity() == verbosity


def test_a_tokenizer_of_another_model_is_refused(folder, tiny_base, tmp_path):
    small = save_checkpoint(
        tmp_path / "small", tiny_base, make_config(tiny_base, "qwen2", vocab_size=300, pad_token_id=0)
    )
    assert refusal(small) == "its tokenizer has 320 tokens, the model 300; they do not belong together"
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    assert refusal(folder) == "its tokenizer has no end-of-sequence token"


def test_a_tokenizer_that_ends_every_prompt_is_refused(folder):
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    eos = next(t for t in data["added_tokens"] if t["content"] == "<|endoftext|>")
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": eos["content"], "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {eos["content"]: {"id": eos["content"], "ids": [eos["id"]], "tokens": [eos["content"]]}},
    }
    path.write_text(json.dumps(data))
    for name in ("config.json", "tokenizer_config.json"):  # Qwen2's own tokenizer class makes its post-processor itself
        other = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**other, "tokenizer_class": "PreTrainedTokenizerFast"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert "its tokenizer ends every text with <|endoftext|>" in refusal(folder)


# ------------------------------------------------------------------------------------- names, cache, hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache. The hub is out of reach (HF_HUB_OFFLINE)."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Hub:
    """A server with one model, whose files are those of a folder. `requested` lists the files asked for."""

    def __init__(self, name, folder):
        self.requested, self.folder = [], folder
        sha = "a" * 40

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(handler, status, body=b"", **headers):
                handler.send_response(status)
                for key, value in {"X-Repo-Commit": sha, "Content-Length": str(len(body)), **headers}.items():
                    handler.send_header(key.replace("_", "-"), value)
                handler.end_headers()
                if handler.command == "GET":
                    handler.wfile.write(body)

            def do_GET(handler):
                path = handler.path.split("?")[0]
                files = {p.name: p.read_bytes() for p in self.folder.iterdir()}
                if path.startswith(f"/api/models/{name}/tree"):
                    listed = [{"type": "file", "path": n, "size": len(b), "oid": n} for n, b in files.items()]
                    handler.answer(200, json.dumps(listed).encode())
                elif path.startswith(f"/api/models/{name}"):
                    listed = [{"rfilename": n, "size": len(b), "blobId": n} for n, b in files.items()]
                    handler.answer(200, json.dumps({"id": name, "sha": sha, "siblings": listed}).encode())
                elif path.startswith(f"/{name}/resolve") and (file := path.rsplit("/", 1)[1]) in files:
                    if handler.command == "GET":
                        self.requested.append(file)
                    handler.answer(200, files[file], ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"')
                else:
                    handler.answer(404, X_Error_Code="RepoNotFound")

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(tmp_path, cache, monkeypatch):
    """A hub whose only model is mine/tiny. Its files are put into the folder `hub.folder`."""
    (tmp_path / "hub").mkdir()
    hub = Hub("mine/tiny", tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def test_a_download_is_announced_with_its_size_and_not_repeated(hub, folder, monkeypatch, cache):
    for file in folder.iterdir():
        shutil.copy(file, hub.folder)
    for stray in ("pytorch_model.bin", "consolidated.safetensors", "model-00001-of-00001.safetensors", "README.md"):
        (hub.folder / stray).write_bytes(b"x" * 10**6)
    said: list[str] = []
    model, _ = load_language_model("mine/tiny", torch.float32, say=said.append)
    wanted = {p.name: p.stat().st_size for p in folder.iterdir()}
    assert sorted(hub.requested) == sorted(wanted)
    rest = sum(wanted.values()) - wanted["config.json"]
    assert said == [
        f"downloading config.json of mine/tiny ({wanted['config.json']} bytes) from {hub.address} to {cache}",
        f"downloading {len(wanted) - 1} more files of mine/tiny ({rest / 1000:.3g} kB) from {hub.address} to {cache}",
    ]
    theirs = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(x, theirs[k]) for k, x in model.state_dict().items())

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requested.clear()
    load_language_model("mine/tiny", torch.float32, say=said.append)
    assert len(said) == 2 and hub.requested == []
    next((cache / "models--mine--tiny" / "snapshots").glob("*/model.safetensors")).unlink()
    with pytest.raises(ValueError, match=rf"not complete in the cache {cache}, and the hub {hub.address} gave nothing"):
        load_language_model("mine/tiny", torch.float32, say=said.append)


def test_an_unsupported_architecture_is_refused_before_its_weights_are_downloaded(hub, tiny_base):
    save_config(hub.folder, tiny_base, "Mamba")
    (hub.folder / "model.safetensors").write_bytes(b"gigabytes")
    said: list[str] = []
    with pytest.raises(ValueError, match="model_name 'mine/tiny': MambaForCausalLM has recurrent layers"):
        load_language_model("mine/tiny", torch.float32, say=said.append)
    assert hub.requested == ["config.json"] and len(said) == 1


def test_a_model_without_safetensors_is_not_downloaded(hub, folder):
    shutil.copy(folder / "config.json", hub.folder)
    (hub.folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=f"{hub.address}/mine/tiny has no config.json with weights in safetensors"):
        load_language_model("mine/tiny", torch.float32, say=print)
    assert set(hub.requested) <= {"config.json"}


def test_a_name_that_the_hub_does_not_know_is_one_sentence(hub):
    with pytest.raises(ValueError) as refused:
        load_language_model("mine/other", torch.float32)
    sentence = str(refused.value)
    assert f"{hub.address} has no public model of that name: correct it" in sentence and "\n" not in sentence


@pytest.mark.parametrize("command", [[], ["--eval-only"]])
def test_preset_local_without_a_network_says_what_was_looked_for_where_and_what_to_do(
    command, cache, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)  # whether this machine has 22 GB free is not the question
    assert main(["--config", "local", "--run.num-threads", "1", *command]) == 2
    out, err = capsys.readouterr()
    *warnings, error = err.splitlines()
    assert error.startswith(
        "error: model_name 'Qwen/Qwen2.5-1.5B': no folder of that name here, not complete in the cache "
    )
    assert str(cache) in error and constants.ENDPOINT in error and "--model.model-name PATH" in error
    assert [w for w in warnings if not w.startswith("warning: memory: ")] == []  # as much as this machine has free
    assert "Traceback" not in out + err and "downloading" not in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/where", "a/b/c", "../up", "with space/x", "", "~nobody-of-that-name/x", "a\\b"]
)
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(name, hub):
    with pytest.raises(ValueError, match=r"no folder with a config\.json there"):
        load_language_model(name, torch.float32)


def test_a_folder_without_a_config_is_not_looked_for_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine/tiny").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no folder with a config\.json there"):
        load_language_model("mine/tiny", torch.float32)


def test_a_hub_out_of_reach_is_one_sentence(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        ValueError, match=r"the hub http://127\.0\.0\.1:9 gave nothing \(.+\): download it elsewhere; a"
    ):
        load_language_model("mine/tiny", torch.float32)


def test_a_folder_may_be_given_from_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/model")


def test_a_relative_folder_comes_before_the_hub(hub, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "mine/tiny")
    load_language_model("mine/tiny", torch.float32)
    assert hub.requested == []


# -------------------------------------------------------------------------------------------------- device


def test_a_gpu_that_is_not_there_is_one_sentence(tiny_base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--model.model-name", str(tiny_base), "--model.device", "cuda", "--run.num-threads", "1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: device cuda: PyTorch ") and "--model.device cpu" in err and err.count("\n") == 1


def test_the_device_is_the_gpu_if_there_is_one(monkeypatch):
    assert ModelConfig().device == "auto"
    for has_gpu, wanted in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=has_gpu: found)
        assert choose_device("auto") == torch.device(wanted)
        assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda") == torch.device("cuda")
