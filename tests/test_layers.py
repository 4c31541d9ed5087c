"""The architecture, read from the syntax trees: who may import whom, and what nobody may write.

A module imports only from lower layers and none from its own. The checkers are plain functions of
source text, so that each rule is also tested on a planted violation.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "tinyzero_astar"

# Module (without the package's name) -> layer. Entries may be ahead of their files.
LAYER = {
    "interfaces": 0,
    "terminal": 0,
    "rollout.gumbel": 0,
    "data.answers": 1,
    "data.expression": 1,
    "loggers.*": 1,
    "model.architecture": 1,
    "allocator": 1,
    "machine": 1,
    "model.fsdp_utils": 1,
    "model.memory": 2,
    "model.recording": 1,
    "model.layers": 1,
    "model.liger": 1,
    "model.slot_cache": 1,
    "rollout.statistics": 1,
    "rollout.value_model": 1,
    "run_folder": 1,
    "training.advantages": 1,
    "training.losses": 1,
    "training.optimizer": 2,
    "training.reward": 1,
    "training.thinning": 1,
    "training.trees": 2,
    "rollout.heuristic": 1,
    "data.order": 1,
    "data.questions": 3,
    "data.countdown": 4,
    "data.generation": 4,
    "data.own": 4,
    "data.tasks": 5,
    "model.adapters": 2,
    "model.decoder": 2,
    "model.fast_decode": 2,
    "rollout.best_first": 2,
    "rollout.choosers": 2,
    "rollout.quality": 2,
    "model.loading": 2,
    "training.astar_po": 2,
    "training.grpo": 2,
    "training.optimal_advantage": 2,
    "training.rloo": 2,
    "model.model": 3,
    "model.token_logp": 1,
    "model.shapes": 3,
    "model.known": 2,
    "model.workload": 1,
    "rollout.lock_step": 3,
    "rollout.astar_search": 4,
    "model.checkpoint": 4,
    "rollout.generator": 5,
    "training.update": 4,
    "config": 2,
    "eval.evaluate": 6,
    "fit": 6,
    "eval.test_time": 7,
    "report.*": 6,
    "solve": 7,
    "session": 7,
    "stopping": 2,
    "writing": 2,
    "trainer": 8,
    "train": 9,
    "doctor": 10,
}
# These import torch, the standard library and lower layers, nothing else.
PURE = {
    "interfaces",
    "rollout.gumbel",
    "rollout.heuristic",
    "rollout.best_first",
    "rollout.choosers",
    "rollout.lock_step",
    "rollout.quality",
    "rollout.statistics",
    "rollout.astar_search",
    "training.advantages",
    "training.losses",
    "training.reward",
    "data.answers",
    "data.order",
    "training.thinning",
    "training.trees",
    "model.token_logp",
    "data.expression",
}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
DYNAMIC_CODE = {"eval", "exec", "__import__", "import_module"}


def layer_of(module: str) -> int | None:
    """The layer of a module, None when the table doesn't know it."""
    return next((layer for name, layer in LAYER.items() if fnmatchcase(module, name)), None)


def module_name(path: Path) -> str:
    """`tinyzero_astar/rollout/gumbel.py` -> `rollout.gumbel`."""
    return ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)


def package_modules() -> dict[str, Path]:
    """Every module file of the package except `__init__` and `__main__`."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {module_name(path): path for path in files if not path.stem.startswith("__")}


def product_files() -> list[Path]:
    """Every Python file outside tests, hidden folders and what builds and runs leave behind."""
    files = []
    for folder, subfolders, names in os.walk(ROOT):
        if Path(folder) == ROOT:
            skipped = {"tests", "runs", "build", "dist"}
            subfolders[:] = [name for name in subfolders if name not in skipped]
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files)


def imports(source: str, module: str) -> Iterator[tuple[str, str | None]]:
    """(module, imported name or None) of each import at any depth; relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{PACKAGE}.{module}".split(".")[: -node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((origin, alias.name) for alias in node.names)


def package_imports(source: str, module: str) -> Iterator[str]:
    """Modules of the package that `source` imports; `from <folder> import <module>` too."""
    for origin, name in imports(source, module):
        if origin.split(".")[0] != PACKAGE:
            continue
        target = origin.removeprefix(PACKAGE).lstrip(".")
        if layer_of(target) is None and name is not None:  # a folder, and a module in it
            target = f"{target}.{name}".lstrip(".")
        yield target


def layer_faults(source: str, module: str) -> list[str]:
    """Imports of `module` that do not go strictly downwards."""
    own = layer_of(module)
    if own is None:
        return [f"{module} is not in LAYER: give it a layer"]
    faults = []
    for target in package_imports(source, module):
        layer = layer_of(target)
        if layer is None:
            faults.append(f"{module} imports {target or PACKAGE}, which is no module in LAYER")
        elif layer >= own:
            faults.append(f"{module} (layer {own}) imports {target} (layer {layer})")
    return faults


def impure_imports(source: str, module: str) -> list[str]:
    """Third-party packages other than torch."""
    allowed = sys.stdlib_module_names | {"torch", PACKAGE}
    origins = {origin for origin, _ in imports(source, module)}
    return sorted(origin for origin in origins if origin.split(".")[0] not in allowed)


def _is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(k).split(".")[-1] in {"Exception", "BaseException"} for k in kinds)


def _flag_fault(name: object, value: ast.expr) -> str | None:
    """`trust_remote_code=` and `weights_only=` may only say the safe thing, literally."""
    safe = {"trust_remote_code": False, "weights_only": True}
    if not isinstance(name, str) or name not in safe:
        return None
    is_safe = isinstance(value, ast.Constant) and value.value is safe[name]
    return None if is_safe else f"{name}={ast.unparse(value)}"


def _call_faults(call: ast.Call) -> Iterator[str | None]:
    called = call.func
    if isinstance(called, ast.Name) and called.id in DYNAMIC_CODE:
        yield f"{called.id}()"
    is_library = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name)
    if is_library and called.value.id in {"builtins", "importlib"} and called.attr in DYNAMIC_CODE:
        yield f"{called.value.id}.{called.attr}()"
    yield from (_flag_fault(keyword.arg, keyword.value) for keyword in call.keywords)


def unsafe_constructs(source: str) -> list[str]:
    """Unpickling, code from strings, broad excepts and code from model hubs, with line numbers."""
    faults = []
    for origin, _ in imports(source, ""):
        if origin.split(".")[0] in UNPICKLERS:
            faults.append(f"import of {origin}")
    for node in ast.walk(ast.parse(source)):
        found: list[str | None] = []
        if isinstance(node, ast.ExceptHandler) and _is_broad(node):
            found = ["broad except: name the error that you expect"]
        elif isinstance(node, ast.Call):
            found = list(_call_faults(node))
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found = [_flag_fault(getattr(key, "value", None), value) for key, value in pairs]
        faults += [f"line {node.lineno}: {fault}" for fault in found if fault]
    return faults


@pytest.mark.parametrize("module", package_modules())
def test_module_imports_only_lower_layers(module: str):
    source = package_modules()[module].read_text(encoding="utf-8")
    assert not layer_faults(source, module)


@pytest.mark.parametrize("module", sorted(PURE & package_modules().keys()))
def test_pure_module_imports_only_torch_and_standard_library(module: str):
    source = package_modules()[module].read_text(encoding="utf-8")
    assert not impure_imports(source, module)


def test_init_files_import_nothing():
    """Otherwise importing one module would import others, unseen by the rules above."""
    files = (ROOT / PACKAGE).rglob("__init__.py")
    assert not [p for p in files if list(imports(p.read_text(encoding="utf-8"), module_name(p)))]


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in product_files()])
def test_file_has_no_unsafe_construct(path: str):
    assert not unsafe_constructs((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", [f"{PACKAGE}.config", f"{PACKAGE}.train", "train"])
def test_entry_point_imports_torch_lazily(module: str):
    """`--help` has to answer before torch (2 s) and transformers (3 to 7 s) could be imported."""
    code = f"import sys, {module}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("training.losses", "from tinyzero_astar.training.update import update", "layer 4"),
        ("training.losses", "from tinyzero_astar.training import advantages", "layer 1"),
        ("training.losses", "from . import advantages", "layer 1"),
        ("rollout.gumbel", "from ..training.losses import clipped", "layer 1"),
        ("model.memory", "def f():\n    import tinyzero_astar.config", "layer 2"),
        ("model.memory", "from tinyzero_astar import config", "layer 2"),
        ("loggers.console", "from tinyzero_astar.loggers.jsonl import x", "layer 1"),
        ("model.model", "from tinyzero_astar.data import nonsense", "no module in LAYER"),
        ("model.model", "import tinyzero_astar", "no module in LAYER"),
        ("newcomer", "", "not in LAYER"),
    ],
)
def test_layer_rule_finds_planted_fault(module: str, source: str, fault: str):
    faults = layer_faults(source, module)
    assert len(faults) == 1
    assert fault in faults[0]


@pytest.mark.parametrize(
    "source",
    [
        "from tinyzero_astar.rollout.gumbel import children",
        "from tinyzero_astar.rollout import gumbel",
        "from .gumbel import children",
        "from tinyzero_astar import interfaces",
    ],
)
def test_layer_rule_accepts_downward_import(source: str):
    assert layer_faults(source, "rollout.astar_search") == []


def test_purity_rule_finds_planted_fault():
    source = "import math, torch.nn\nfrom torch import Tensor\ndef f():\n    import numpy.random"
    assert impure_imports(source, "training.losses") == ["numpy.random"]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import dill",
        "eval('1')",
        "builtins.exec('x = 1')",
        "importlib.import_module(name)",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept Exception as error:\n    raise",
        "try:\n    f()\nexcept (ValueError, builtins.BaseException):\n    pass",
        "load(name, trust_remote_code=True)",
        "load(name, trust_remote_code=flag)",
        "load(name, **{'trust_remote_code': True})",
        "torch.load(path, weights_only=False)",
    ],
)
def test_safety_rule_finds_planted_fault(source: str):
    assert len(unsafe_constructs(source)) == 1


def test_safety_rule_accepts_safe_code():
    source = "model.eval()\nload(x, trust_remote_code=False)\ntorch.load(p, weights_only=True)\n"
    source += "try:\n    f()\nexcept (OSError, ValueError):\n    pass\nd = {**a, 1: 2}"
    assert unsafe_constructs(source) == []
