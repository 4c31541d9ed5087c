"""Model folders that contradict themselves or are damaged, used rightly, or one sentence before any weight is read."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.test_end_tokens import edited
from tests.test_loading import copy_tokenizer, make_config, refusal, save_checkpoint
from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import ModelConfig
from tinyzero_astar.manifest import write_manifest
from tinyzero_astar.model import damage
from tinyzero_astar.model.adapters import unadapted
from tinyzero_astar.model.policy_loading import load_policy
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.resources.model import read_model
from tinyzero_astar.run import checkpoint

IDS = torch.tensor([[18, 9, 19, 28, 5, 40], [7, 8, 200, 310, 12, 3]])
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
MOE = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 16}


def load(folder, lora_rank=0, say=lambda text: None):
    options = {"value_hidden_size": 8, "max_length": 64, "lora_rank": lora_rank, "say": say}
    return load_policy(str(folder), dtype=torch.float32, device=torch.device("cpu"), **options)


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ------------------------------------------------------------------------------ what is saved is what was trained


@pytest.fixture
def one_process():
    """A process group of this process alone, for sharding."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def own_head(weights):
    weights[HEAD] = torch.randn(weights[EMBEDDING].shape, generator=torch.Generator().manual_seed(5))


TIES = {  # config's tie_word_embeddings, what is done to the file, tie_word_embeddings of a checkpoint
    "tied": (True, lambda w: None, True),
    "says tied, has a head of its own": (True, own_head, False),
    "tied, holds both": (True, lambda w: w.update({HEAD: w[EMBEDDING].clone()}), True),
    "tied, holds the head alone": (True, lambda w: w.update({HEAD: w.pop(EMBEDDING)}), True),
    "not tied": (False, lambda w: None, False),
    "not tied, but equal": (False, lambda w: w.update({HEAD: w[EMBEDDING].clone()}), False),
}


@pytest.mark.parametrize("way", ["plain", "adapted", "sharded"])
@pytest.mark.parametrize("name", TIES)
@torch.no_grad()
def test_a_checkpoint_has_the_logits_of_the_trained_model(name, way, tiny_base, tmp_path, one_process):
    tied, change, saved_as_tied = TIES[name]
    config = make_config(tiny_base, "qwen2", tie_word_embeddings=tied)
    folder = save_checkpoint(tmp_path / "model", tiny_base, config)
    change_weights(folder, change)
    held = load_file(folder / "model.safetensors")
    said: list[str] = []
    policy, tokenizer = load(folder, 2 if way == "adapted" else 0, said.append)
    assert len(said) == (name == "says tied, has a head of its own")
    head = policy.language_model.get_output_embeddings().weight
    assert torch.equal(head, held.get(HEAD, held.get(EMBEDDING)))  # what was loaded is what the file holds
    generator = torch.Generator().manual_seed(2)
    for p in policy.parameters():
        if p.requires_grad:
            p += 0.1 * torch.randn(p.shape, generator=generator)
    wanted = policy.language_model(IDS).logits
    if way == "sharded":
        policy.shard("full")
    checkpoint.save_checkpoint(tmp_path / "c", policy, tokenizer, {}, {})
    assert json.loads((tmp_path / "c" / "config.json").read_text())["tie_word_embeddings"] == saved_as_tied
    for model in (load(tmp_path / "c")[0].language_model, AutoModelForCausalLM.from_pretrained(tmp_path / "c")):
        torch.testing.assert_close(model(IDS).logits, wanted, atol=1e-4 if way == "adapted" else 0, rtol=0)


@pytest.mark.parametrize("missing", [HEAD, EMBEDDING])
def test_an_untied_model_without_one_of_its_two_matrices_is_refused(missing, tiny_base, tmp_path):
    folder = save_checkpoint(tmp_path / "model", tiny_base, make_config(tiny_base, "qwen2", tie_word_embeddings=False))
    change_weights(folder, lambda w: w.pop(missing))
    assert refusal(folder) == f"1 of its weights are missing, first {missing}"


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9},
        {"do_sample": False, "top_p": 0.9, "top_k": 7},
        {"num_return_sequences": 3},
        {"early_stopping": True, "length_penalty": 2.0},
        {"output_scores": True},
        {"pad_token_id": -1},
        {"cache_implementation": "mine"},
    ],
)
def test_a_checkpoint_has_a_valid_generation_config_whatever_the_base_has(settings, tiny_base, tmp_path):
    """Transformers refuses to save some of these, and to load some. None of them is about what is trained."""
    base = edited(tmp_path / "model", tiny_base, generation=settings)
    checkpoint.save_checkpoint(tmp_path / "c", *load(base), {}, {})
    found = json.loads((tmp_path / "c" / "generation_config.json").read_text())
    assert found == {"eos_token_id": 319, "pad_token_id": 319, "transformers_version": found["transformers_version"]}
    AutoModelForCausalLM.from_pretrained(tmp_path / "c").generation_config.validate(strict=True)


def test_settings_of_generation_in_config_json_do_not_keep_a_checkpoint_from_being_saved(tiny_base, tmp_path):
    legacy = {"temperature": 0.9, "do_sample": True, "repetition_penalty": 1.2, "max_length": 20}
    base = edited(tmp_path / "model", tiny_base, config=legacy)
    (base / "generation_config.json").unlink()
    checkpoint.save_checkpoint(tmp_path / "c", *load(base), {}, {})
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "c").generation_config.temperature is None


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_files_of_a_checkpoint_have_the_modes_that_the_umask_says(umask, tiny_base, tmp_path):
    policy, tokenizer = load(tiny_base)
    before = os.umask(umask)
    try:
        checkpoint.save_checkpoint(tmp_path / "c", policy, tokenizer, {}, {})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "c").iterdir()} == {0o666 & ~umask}


# ------------------------------------------------------------------------------------------------ architectures


def test_gpt_neox_is_a_causal_language_model_though_its_config_has_is_decoder_false(tiny_base, tmp_path):
    config = make_config(tiny_base, "gpt_neox", rotary_pct=0.5)
    assert config.is_decoder is False
    policy, _ = load(save_checkpoint(tmp_path / "model", tiny_base, config))
    shifted = policy.language_model(torch.cat([IDS[:, :4], IDS[:, :2]], 1)).logits[:, :4]
    torch.testing.assert_close(shifted, policy.language_model(IDS).logits[:, :4])  # later tokens change nothing


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "bert-generation"])
def test_encoders_are_refused_and_their_decoders_are_judged_by_the_rest(model_type, tiny_base, tmp_path):
    config = make_config(tiny_base, model_type, pad_token_id=0)
    config.save_pretrained(tmp_path / "model")
    copy_tokenizer(tiny_base, tmp_path / "model")
    assert "is no causal language model" in refusal(tmp_path / "model")
    change_json(tmp_path / "model" / "config.json", is_decoder=True)
    assert refusal(tmp_path / "model") == "lacks model.safetensors"


@pytest.mark.parametrize(("model_type", "different"), [("mixtral", {"sliding_window": None}), ("olmoe", {})])
def test_experts_without_adapters_are_named_with_their_share(model_type, different, tiny_base, tmp_path):
    config = make_config(tiny_base, model_type, **MOE, **different)
    policy, _ = load(save_checkpoint(tmp_path / "model", tiny_base, config), lora_rank=2)
    layer = policy.language_model.model.layers[0]
    adapted = 2 * 32 * 32 + 2 * 32 * 16  # queries and outputs, keys and values
    rest = 4 * 3 * 32 * (64 if model_type == "mixtral" else 16) + 4 * 32  # experts, and the router
    if model_type == "olmoe":
        rest = sum(p.numel() for n, p in layer.named_parameters() if "experts" in n or "gate" in n)
    norms = sum(p.numel() for n, p in layer.named_parameters() if p.ndim == 1)
    text = unadapted(policy.language_model)
    assert f" {rest / (adapted + rest + norms):.0%} of the layers' weights (" in text
    assert "Experts" in text and "Router" in text and text.endswith("--model.lora-rank 0 trains all weights")


def test_a_dense_model_is_adapted_as_a_whole(tiny_base):
    assert unadapted(load(tiny_base, lora_rank=2)[0].language_model) is None


# ------------------------------------------------------------------------------------------------ damaged folders

CONFIGS = [  # what is changed in config.json, what the sentence says (None: it works)
    ({"attn_implementation": "flash_attention_2"}, None),
    ({"_attn_implementation": "flash_attention_3"}, None),
    ({"num_attention_heads": 0}, "num_attention_heads 0"),
    ({"num_attention_heads": -2}, "num_attention_heads -2"),
    ({"num_attention_heads": True}, "num_attention_heads"),
    ({"num_attention_heads": 3}, "num_attention_heads 3 in its config.json, no multiple of num_key_value_heads 2"),
    ({"num_key_value_heads": 0}, "num_key_value_heads 0"),
    ({"num_key_value_heads": -1}, "num_key_value_heads -1"),
    ({"hidden_size": 0}, "hidden_size 0"),
    ({"hidden_size": -32}, "hidden_size -32"),
    ({"intermediate_size": 0}, "intermediate_size 0"),
    ({"intermediate_size": -1}, "intermediate_size -1"),
    ({"head_dim": 0}, "head_dim 0"),
    ({"vocab_size": 0}, "vocab_size 0"),
    ({"vocab_size": -5}, "vocab_size -5"),
    ({"vocab_size": 319, "pad_token_id": 0}, "its tokenizer has 320 tokens, the model 319"),
    ({"num_hidden_layers": 0, "layer_types": []}, "num_hidden_layers 0"),
    ({"num_hidden_layers": -1, "layer_types": None}, "num_hidden_layers"),
    ({"hidden_act": "gleu"}, "cannot be built from its config.json (KeyError"),
    ({"hidden_act": 3}, ""),
    ({"rope_parameters": {"rope_type": "spiral"}}, "cannot be built from its config.json (KeyError"),
    ({"rope_parameters": "long"}, ""),
    ({"pad_token_id": 320}, "pad_token_id 320 in its config.json, outside of its vocabulary of 320 tokens"),
    ({"pad_token_id": 10**12}, "pad_token_id 1000000000000"),
    ({"pad_token_id": -321}, ""),
    ({"dtype": "float7"}, ""),
    ({"max_position_embeddings": -1}, "max_position_embeddings"),
    ({"rms_norm_eps": "small"}, ""),
    ({"layer_types": ["full_attention"]}, ""),
]


@pytest.fixture(scope="module")
def sound(tiny_base, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("sound") / "m", tiny_base, make_config(tiny_base, "qwen2"))


@pytest.mark.parametrize(("change", "wanted"), CONFIGS, ids=[json.dumps(c) for c, _ in CONFIGS])
def test_a_damaged_config_is_one_sentence_to_those_who_train_and_those_who_ask(change, wanted, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "m")
    change_json(folder / "config.json", **change)
    config = PRESETS["tiny"]
    model = ModelConfig(model_name=str(folder), max_seq_length=64)
    config = type(config)(**{**vars(config), "model": model})
    if wanted is None:
        assert read_model(config).shapes.num_heads == 4 and load(folder)
        return
    sentence = refusal(folder)
    assert wanted in sentence
    with pytest.raises(ValueError) as refused:
        read_model(config)
    assert str(refused.value) == f"model_name '{folder}': {sentence}"


def test_train_doctor_and_solve_end_with_status_2_and_that_sentence(sound, tmp_path, capsys):
    from tinyzero_astar.cli.doctor import doctor_main

    folder = shutil.copytree(sound, tmp_path / "m")
    change_json(folder / "config.json", hidden_act="gleu")
    (folder / "trainer.json").write_text('{"iteration": 1, "num_updates": 1, "config": {}}')
    shutil.copy(folder / "model.safetensors", folder / "trainer.safetensors")
    write_manifest(folder)
    argv = ["--model.model-name", str(folder), "--run.num-threads", "1"]
    commands = (
        lambda: main([*argv, "--output-dir", str(tmp_path / "r")]),
        lambda: main([*argv, "--eval-only"]),
        lambda: doctor_main(argv),
        lambda: solve_main(["2*3", "--checkpoint", str(folder)]),
    )
    for command in commands:
        assert command() == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: model_name '{folder}': Qwen2ForCausalLM cannot be built from its config.json (")
        assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("digit", "0123456789")
def test_a_tokenizer_that_loses_a_digit_is_refused(digit, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "m")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"] = {k: v for k, v in data["model"]["vocab"].items() if k != digit}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    sentence = refusal(folder)
    assert re.fullmatch(
        "its tokenizer does not give texts back as they were:"
        rf" '.{{,20}}{digit}.*' becomes '.*' \(it has no '{digit}'\); use a model whose tokenizer does",
        sentence,
    )


def test_a_tokenizer_that_loses_a_letter_of_the_prompts_is_refused_before_the_run(sound, tmp_path, capsys):
    folder = shutil.copytree(sound, tmp_path / "m")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"] = {"Ω" if k == "W" else k: v for k, v in data["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    argv = ["--model.model-name", str(folder), "--run.num-threads", "1", "--data.template", "conversation"]
    argv += ["--model.max-seq-length", "600", "--data.num-problems", "64", "--eval.num-problems", "5"]
    change_json(folder / "config.json", max_position_embeddings=600)
    assert main([*argv, "--output-dir", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert "the tokenizer does not give texts back as they were: " in err and "(it has no 'W')" in err
    assert not (tmp_path / "r").exists()


def test_ids_of_the_tokenizer_beyond_the_model_are_refused_however_few_tokens_there_are(sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "m")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"]["!"] = 400
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("!") == 400
    assert refusal(folder) == "its tokenizer has 401 tokens, the model 320; they do not belong together"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_in_no_floating_point_format_are_refused(dtype, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "m")
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(folder, lambda w: w.update({name: w[name].to(dtype)}))
    sentence = refusal(folder)
    assert sentence.startswith(f"1 of its weights are in no floating-point format, first {name} (")
    assert sentence.endswith("; use the original checkpoint")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_in_any_floating_point_format_are_read(dtype, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "m")
    change_weights(folder, lambda w: w.update({k: v.to(dtype) for k, v in w.items()}))
    assert load(folder)[0].language_model.dtype == torch.float32


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "sub/secret.safetensors", ".."])
def test_an_index_that_names_files_outside_of_the_folder_is_refused(shard, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "m")
    (folder / "sub").mkdir()
    weights = folder / "model.safetensors"
    names = dict.fromkeys(load_file(weights), shard)
    for place in ("sub/secret.safetensors", "../secret.safetensors"):
        shutil.copy(weights, folder / place)
    weights.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert f"its model.safetensors.index.json names '{shard}'" in refusal(folder)


def test_an_index_of_anything_but_names_is_one_sentence(sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3, "b": null}}')
    assert refusal(folder) == "lacks 2 of its 2 weight files, first 3"


@pytest.mark.parametrize("has_weights", [True, False])
def test_adapters_in_a_model_folder_are_refused(has_weights, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "m")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    if not has_weights:
        (folder / "config.json").unlink()
    assert "adapters (adapter_config.json)" in refusal(folder) and "merge" in refusal(folder)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("unable to mmap 9 bytes from file </m>: Cannot allocate memory (12)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nsecond line"),
    ],
)
@pytest.mark.parametrize("place", ["weights", "device"])
def test_a_model_larger_than_memory_is_one_sentence(error, place, sound, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    target, name = (AutoModelForCausalLM, "from_pretrained") if place == "weights" else (torch.nn.Module, "to")
    monkeypatch.setattr(target, name, fail)
    sentence = refusal(sound)
    assert sentence.startswith("there is not enough memory to load it (") and "doctor" in sentence


def test_other_errors_of_a_device_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="a mistake"), damage.enough_memory("m"):
        raise RuntimeError("a mistake")


OURS = (
    "model_config.read_object",
    "model_config.check_architecture",
    "model_config.check_causal",
    "tokenizer.text_fault",
    "tokenizer.read_object",
    "weights.weight_files",
    "weights._not_floating",
)


@pytest.mark.parametrize("place", OURS)
@pytest.mark.parametrize("error", [TypeError("a mistake"), AttributeError("a mistake"), KeyError("a mistake")])
def test_a_mistake_of_ours_is_not_taken_for_a_damaged_file(error, place, sound, monkeypatch):
    assert raised_by_loading(error, f"tinyzero_astar.model.{place}", sound, monkeypatch) is error


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("AutoConfig.from_pretrained", ZeroDivisionError("new")),
        ("AutoModelForCausalLM.from_config", NameError("new")),
        ("AutoTokenizer.from_pretrained", ZeroDivisionError("new")),
        ("AutoModelForCausalLM.from_pretrained", TypeError("got an unexpected keyword argument")),
    ],
)
def test_what_a_library_is_not_known_to_raise_for_damage_comes_through(call, error, sound, monkeypatch):
    assert raised_by_loading(error, f"transformers.{call}", sound, monkeypatch) is error


def raised_by_loading(error, place, folder, monkeypatch):
    """What comes out when `place` raises that error."""

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises((type(error), ValueError)) as raised:
        load(folder)
    return raised.value
