"""The fused decode step gives the scores of the model's own forward, in plain functions and in Triton's kernels."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from tests.decode_kernel_cases import CASES, attend_errors, inputs
from tests.decoding import (
    LED,
    PROMPTS,
    Tape,
    assert_forks_swaps_and_uneven_lengths_equal_recomputation,
    assert_recorded_scores_equal_one_full_forward,
    shake_value_model,
)
from tests.test_fast_decode import MODELS, make
from tinyzero_astar.engine import decode_operations
from tinyzero_astar.engine.fused_decode import FusedDecode, adjacent, can_fuse
from tinyzero_astar.engine.slot_cache import SlotCache, Visible
from tinyzero_astar.model.model import Policy

OPERATIONS = "rms_norm", "attend", "products", "add_rms_norm", "silu_mul"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def fused(monkeypatch):
    """Every policy decodes by the fused step in plain functions. What all prompts begin with is read once."""

    def made(policy, num_positions):
        return FusedDecode(policy.language_model, num_positions, policy.hidden, decode_operations)

    monkeypatch.setattr(Policy, "decoding_fn", made)
    monkeypatch.setattr("tinyzero_astar.engine.shared_prompt.MIN_SAVED", 1)


def policy_of(name, dtype=torch.float32):
    return shake_value_model(Policy(make(MODELS[name], dtype), (0,), value_hidden_size=16))


@pytest.mark.parametrize("prompts", [PROMPTS, LED], ids=["unlike", "alike"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_full_forward(name, prompts, fused):
    assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy_of(name), prompts)


def test_searches_find_the_scores_of_the_full_forward(fused):
    policy = policy_of("qwen3")
    for mode in ("sample", "gumbel", "best_first"):
        assert_recorded_scores_equal_one_full_forward(policy, mode, LED)


@pytest.mark.parametrize("prompts", [PROMPTS, LED], ids=["unlike", "alike"])
def test_one_recording_serves_every_step(fused, monkeypatch, prompts):
    monkeypatch.setattr("tinyzero_astar.engine.decoder.BLOCK", 4)
    policy = policy_of("qwen2")
    policy.recorder = Tape()
    assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy, prompts)
    assert policy.recorder.num_recorded == 1 < policy.recorder.num_replayed


def test_it_is_for_cuda_where_triton_is(monkeypatch):
    model = make(MODELS["qwen2"])
    assert not can_fuse(model)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    for is_there in (True, False):
        monkeypatch.setattr("tinyzero_astar.engine.fused_decode.HAS_TRITON", is_there)
        assert can_fuse(model) == can_fuse(model.bfloat16()) == is_there
    monkeypatch.setattr("tinyzero_astar.engine.fused_decode.HAS_TRITON", True)
    assert not can_fuse(model.double()) and not can_fuse(model.half())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_norm_rounds_as_the_models_do(dtype):
    torch.manual_seed(0)
    norm = Qwen2RMSNorm(48, eps=0.05)
    torch.nn.init.normal_(norm.weight)
    norm, x = norm.to(dtype), 2 * torch.randn(5, 48, dtype=torch.float64)
    found = decode_operations.rms_norm(x.to(dtype), norm.weight, 0.05)
    assert found.dtype == dtype
    if dtype != torch.float64:  # for which the models take the mean in float32
        assert torch.equal(found, norm(x.to(dtype)))
    for row, wanted in zip(x.to(dtype).tolist(), found.tolist(), strict=True):
        length = math.sqrt(sum(y * y for y in row) / 48 + 0.05)
        for y, gain, own in zip(row, norm.weight.tolist(), wanted, strict=True):
            assert own == pytest.approx(y / length * gain, rel=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("float32")])
def test_attention_equals_loops(name):
    case = CASES[name]._replace(dtype="float64")
    given = inputs(case, "cpu", 0.0)
    cells, seen = given["cells"].clone(), given["seen"]
    num_queries = case.num_keys * case.group * case.width
    queries, keys_and_values = given["heads"][:, :num_queries], given["heads"][:, num_queries:]
    found = decode_operations.attend(**given).view(len(seen.padding), case.num_keys, case.group, case.width)

    def unit(x, gain):
        if gain is None:
            return x
        length = math.sqrt(sum(y * y for y in x) / len(x) + given["norm"].eps)
        return [y / length * g for y, g in zip(x, gain.tolist(), strict=True)]

    def turned(x, position):
        half = len(x) // 2
        cos, sin = (y[position].tolist() for y in given["rotation"])
        first = [x[i] * cos[i] - x[half + i] * sin[i] for i in range(half)]
        return first + [x[half + i] * cos[i] + x[i] * sin[i] for i in range(half)]

    norm = given["norm"] or (None, None, 0.0)
    for row, (skipped, last) in enumerate(zip(seen.padding.tolist(), seen.column.tolist(), strict=True)):
        columns = [c for c in range(last + 1) if c < case.lead or c >= case.lead + skipped]
        for head in range(case.num_keys):
            key, value = keys_and_values[row].view(2, case.num_keys, -1)[:, head].tolist()
            key = turned(unit(key, norm[1]), last - skipped)
            assert given["cells"][0, row, head, last].tolist() == pytest.approx(key)
            assert given["cells"][1, row, head, last].tolist() == pytest.approx(value)
            keys = [key if c == last else cells[0, row, head, c].tolist() for c in columns]
            values = [value if c == last else cells[1, row, head, c].tolist() for c in columns]
            for n in range(case.group):
                query = queries[row].view(case.num_keys, case.group, -1)[head, n].tolist()
                query = turned(unit(query, norm[0]), last - skipped)
                score = [given["scale"] * sum(a * b for a, b in zip(query, k, strict=True)) for k in keys]
                weight = [math.exp(x - max(score)) for x in score]
                for i in (0, 1, case.width // 2, case.width - 1):
                    wanted = sum(w * v[i] for w, v in zip(weight, values, strict=True)) / sum(weight)
                    assert float(found[row, head, n, i]) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


class Counted(TorchDispatchMode):
    """Counts what starts a kernel on a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.overloadpacket is not torch.ops.aten.detach:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_step_is_eight_kernels_a_layer():
    model = make(MODELS["qwen2"])
    policy = Policy(model, (0,), value_hidden_size=16)
    counted = Counted()

    def one(result):
        def operation(*args):
            counted.names.append("kernel")
            with torch.utils._python_dispatch._disable_current_modes():
                return result(*args)

        return operation

    kernels = SimpleNamespace(**{name: one(getattr(decode_operations, name)) for name in OPERATIONS})
    cache = SlotCache(2, 3, 8)
    mask = torch.ones(3, 1, 4, 4, dtype=torch.bool).tril()
    cache.plan_prompts(torch.arange(3), 0, 4)
    decode = FusedDecode(model, 9, policy.hidden, kernels)
    decode(torch.ones(3, 4, dtype=torch.int64), torch.arange(4)[None], mask, cache)
    column = torch.tensor([4, 4, 4])
    cache.plan_tokens(3, column, 8)
    seen = Visible(0, torch.zeros(3, dtype=torch.int64), column, False)
    with counted:
        decode(column[:, None], column[:, None], seen, cache)
    layer = ["addmm", "kernel", "kernel", "kernel", "mm", "kernel", "kernel", "kernel"]
    assert counted.names == ["embedding", "kernel", *layer, *layer]


def test_weights_are_moved_once_and_stay_what_they_were():
    model = make(MODELS["qwen2"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    held = dict(model.named_parameters())
    attention = model.model.layers[1].self_attn
    projections = attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight
    joined = adjacent(projections)
    assert adjacent(projections).data_ptr() == joined.data_ptr() == attention.q_proj.weight.data_ptr()
    FusedDecode(model, 9, None, decode_operations)
    assert adjacent(projections).data_ptr() == joined.data_ptr()
    for name, p in model.named_parameters():
        assert p is held[name] and p.is_contiguous() and torch.equal(p, before[name])
    with torch.no_grad():
        attention.k_proj.weight.fill_(3.0)
    again = adjacent(projections)
    assert torch.equal(again, joined) and torch.equal(joined, torch.cat(projections)) and (joined == 3).any()
    with torch.no_grad():
        attention.k_proj.weight.data = attention.k_proj.weight.clone()  # as a change of dtype does
    assert torch.equal(adjacent(projections), torch.cat(projections)) and again.data_ptr() != projections[0].data_ptr()
    ends = projections[0], projections[2]  # in one memory, but no neighbours
    assert torch.equal(adjacent(ends), torch.cat(ends))


def test_moved_weights_are_saved_and_loaded(tmp_path):
    model = make(MODELS["llama"])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    FusedDecode(model, 9, None, decode_operations)
    model.save_pretrained(tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert found.keys() == before.keys() and all(torch.equal(x, before[name]) for name, x in found.items())


def test_silu_times_up():
    gate, up = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([5.0, 7.0, -1.0])
    wanted = [g / (1 + math.exp(-g)) * u for g, u in zip(gate.tolist(), up.tolist(), strict=True)]
    assert decode_operations.silu_mul(torch.cat((gate, up))[None])[0].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("name", CASES)
def test_plain_functions_are_as_exact_as_their_dtype(name):
    for what, error in attend_errors(decode_operations, CASES[name], "cpu", unseen=0.0).items():
        assert error <= 1, what


@pytest.fixture(scope="module")
def interpreted():
    """Errors of all kernels in Triton's interpreter, which a process has from its start or not at all."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.decode_kernel_cases"]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_of_attention_equals_the_plain_function(interpreted, name):
    found = {what: error for what, error in interpreted.items() if what.startswith(f"attend {name} ")}
    assert len(found) == 3 and all(error <= 1 for error in found.values()), found


@pytest.mark.parametrize(
    ("operation", "count"), [("rms_norm", 10), ("silu_mul", 10), ("add_rms_norm", 20), ("products", 4)]
)
def test_the_kernels_of_rows_equal_the_plain_functions(interpreted, operation, count):
    found = {what: error for what, error in interpreted.items() if what.startswith(f"{operation} ")}
    assert len(found) == count and all(error <= 1 for error in found.values()), found


def test_products_are_cut_until_the_multiprocessors_are_busy():
    pytest.importorskip("triton")
    from tinyzero_astar.engine.decode_kernels import _num_parts

    assert _num_parts(256, 1536, 8960) == _num_parts(64, 1536, 8960) == 4  # 96 and 48 programs
    assert _num_parts(1024, 1536, 8960) == 1 and _num_parts(256, 1536, 1536) == 1  # 96 and 24
    assert _num_parts(8, 64, 40) == _num_parts(4096, 4096, 8192) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_sum_and_its_norm(dtype):
    torch.manual_seed(0)
    x, parts, gain = torch.randn(3, 8).to(dtype), torch.randn(2, 3, 8).double(), torch.randn(8).to(dtype)
    rows, found = x.tolist(), decode_operations.add_rms_norm(x, parts, gain, 0.05)
    for n, row in enumerate(rows):
        total = [a + b + c for a, b, c in zip(row, parts[0, n].tolist(), parts[1, n].tolist(), strict=True)]
        assert x[n].tolist() == pytest.approx(total, rel=torch.finfo(dtype).eps)
        length = math.sqrt(sum(y * y for y in x[n].tolist()) / 8 + 0.05)
        wanted = [y / length * g for y, g in zip(x[n].tolist(), gain.tolist(), strict=True)]
        assert found[n].tolist() == pytest.approx(wanted, rel=2 * torch.finfo(dtype).eps)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_kernels_compile_for_an_h100(dtype, tmp_path, monkeypatch):
    """The interpreter knows no limits of a GPU. `ptxas` counts what a program takes of a multiprocessor."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tinyzero_astar.engine import decode_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compiled(function, integers, floats, constants, **options):
        names = function.arg_names
        kinds = dict.fromkeys(names, f"*{dtype}") | dict.fromkeys(integers, "i32") | dict.fromkeys(floats, "fp32")
        kinds |= dict.fromkeys({"padding", "column"} & set(names), "*i64") | dict.fromkeys(constants, "constexpr")
        values = {(names.index(name),): x for name, x in constants.items()}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if kinds[name][0] == "*"}
        source = ASTSource(function, {name: kinds[name] for name in names}, values, aligned)
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata

    strides = ["value_stride", "row_stride", "head_stride", "lead"]
    for group, width in ((6, 128), (7, 64)):  # of Qwen2.5-1.5B and 0.5B
        constants = {
            **{"IS_NORMED": width == 64, "GROUP": group, "WIDTH": width, "BLOCK_GROUP": 16, "BLOCK_WIDTH": width},
            "BLOCK_COLUMNS": kernels._BLOCK_COLUMNS,
        }
        options = {"num_warps": kernels._NUM_WARPS, "num_stages": kernels._NUM_STAGES}
        found = compiled(kernels._attend, strides, ["eps", "scale"], constants, **options)
        assert found.shared <= 228 * 1024 // (4 if dtype == "bf16" else 2)  # as many programs at once
    compiled(kernels._rms_norm, ["width"], ["eps"], {"BLOCK": 2048})
    compiled(kernels._add_rms_norm, ["width", "part_stride"], ["eps"], {"BLOCK": 2048, "NUM_PARTS": 5})
    compiled(kernels._silu_mul, ["width"], [], {"BLOCK": kernels._BLOCK_ELEMENTS})
