"""The architecture, read from the syntax trees, with who may import whom, and what nobody may write.

Folders stand on floors. A module imports from its own folder, from lower floors, and from other folders of its
floor as long as no loop arises. Nor may modules import each other in a loop. The checkers are plain functions of
source text, so that each rule is also tested on a planted violation.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "tinyzero_astar"

# From the ground up. "" is the package's own files but api, which stands for itself, and __main__, the command line's.
FLOORS = (
    {""},
    {"search", "data", "engine", "loggers"},
    {"rollout"},
    {"model"},
    {"training", "eval", "metrics", "resources"},
    {"run"},
    {"report", "api"},
    {"study"},
    {"cli"},
)
# These import torch, the standard library and the package, nothing else.
PURE = (
    "interfaces",
    "search.*",
    "metrics.*",
    "rollout.astar_search",
    "rollout.thinning",
    "training.advantages",
    "training.losses",
    "training.reward",
    "training.trees",
    "model.token_logp",
    "data.answers",
    "data.expression",
)
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
DYNAMIC_CODE = {"eval", "exec", "__import__", "import_module"}
# The user's own tasks and reward functions are classes and functions in files that the user names.
ALLOWED = {"tinyzero_astar/data/own.py": ["importlib.import_module()"]}


def folder_of(module: str) -> str:
    """`search.gumbel` -> `search`, or "" for the package's own files."""
    named = {"__main__": "cli", "api": "api"}
    return named[module] if module in named else module.rpartition(".")[0].split(".")[0]


def floor_of(module: str) -> int | None:
    """The floor that a module stands on, None when no floor has its folder."""
    return next((number for number, folders in enumerate(FLOORS) if folder_of(module) in folders), None)


def module_name(path: Path) -> str:
    """`tinyzero_astar/search/gumbel.py` -> `search.gumbel`."""
    return ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)


def package_modules() -> dict[str, Path]:
    """Every module file of the package except `__init__`."""
    return {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py")) if path.stem != "__init__"}


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
    """(module, imported name or None) of each import at any depth, with relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{PACKAGE}.{module}".split(".")[: -node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((origin, alias.name) for alias in node.names)


def package_imports(source: str, module: str, known: set[str]) -> Iterator[str]:
    """Modules of the package that `source` imports. `from <folder> import <module>` too."""
    for origin, name in imports(source, module):
        if origin.split(".")[0] != PACKAGE or (origin, name) == (PACKAGE, "__version__"):
            continue
        target = origin.removeprefix(PACKAGE).lstrip(".")
        if target not in known and name is not None:  # a folder, and a module in it
            target = f"{target}.{name}".lstrip(".")
        yield target


def floor_faults(source: str, module: str, known: set[str]) -> list[str]:
    """Imports of `module` that run up, or lead nowhere."""
    own = floor_of(module)
    if own is None:
        return [f"the folder of {module} is on no floor: give it one"]
    faults = []
    for target in package_imports(source, module, known):
        floor = floor_of(target)
        if target not in known or floor is None:
            faults.append(f"{module} imports {target or PACKAGE}, which is no module")
        elif floor > own:
            faults.append(f"{module} (floor {own}) imports {target} (floor {floor})")
    return faults


def loop(arrows: Mapping[str, set[str]]) -> list[str]:
    """A loop among imports, as names in its order, empty when there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def between_folders(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """From imports between modules to those between folders."""
    found: dict[str, set[str]] = {}
    for module, targets in arrows.items():
        others = {folder_of(target) for target in targets} - {folder_of(module)}
        found.setdefault(folder_of(module), set()).update(others)
    return found


def impure_imports(source: str, module: str) -> list[str]:
    """Third-party packages other than torch, and Triton in files of its kernels."""
    allowed = sys.stdlib_module_names | {"torch", PACKAGE} | ({"triton"} if module.endswith("_kernels") else set())
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


MODULES = package_modules()
SOURCES = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
ARROWS = {module: set(package_imports(source, module, set(MODULES))) for module, source in SOURCES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_up(module: str):
    assert not floor_faults(SOURCES[module], module, set(MODULES))


def test_neither_modules_nor_folders_import_each_other_in_a_loop():
    assert loop(ARROWS) == []
    assert loop(between_folders(ARROWS)) == []


def test_every_folder_stands_on_one_floor_and_no_floor_is_empty():
    folders = sorted(folder for floor in FLOORS for folder in floor)
    assert folders == sorted({folder_of(module) for module in MODULES})


@pytest.mark.parametrize("module", [m for m in MODULES if any(fnmatchcase(m, pattern) for pattern in PURE)])
def test_pure_module_imports_only_torch_and_standard_library(module: str):
    assert not impure_imports(SOURCES[module], module)


def test_init_files_import_nothing():
    """Otherwise importing one module would import others, unseen by the rules above.

    That of the package hands out what `api` has, when it is asked for it.
    """
    files = {p: p.read_text(encoding="utf-8") for p in (ROOT / PACKAGE).rglob("__init__.py")}
    found = {origin for source in files.values() for origin, _ in imports(source, "__init__")}
    assert found == {"typing", f"{PACKAGE}.api"}
    assert [p for p, source in files.items() if list(imports(source, "x"))] == [ROOT / PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in product_files()])
def test_file_has_no_unsafe_construct(path: str):
    faults = unsafe_constructs((ROOT / path).read_text(encoding="utf-8"))
    assert [fault for fault in faults if fault.partition(": ")[2] not in ALLOWED.get(path, ())] == []


@pytest.mark.parametrize(
    "module", [PACKAGE, f"{PACKAGE}.config", f"{PACKAGE}.cli.commands", f"{PACKAGE}.cli.train", "train"]
)
def test_entry_point_imports_torch_lazily(module: str):
    """`--help` has to answer before torch (2 s) and transformers (3 to 7 s) could be imported."""
    code = f"import sys, {module}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


KNOWN = {"config", "search.gumbel", "search.lock_step", "rollout.records", "training.losses", "run.loop"}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("search.gumbel", "from tinyzero_astar.rollout.records import x", "floor 2"),
        ("search.gumbel", "from ..training.losses import clipped", "floor 4"),
        ("config", "def f():\n    import tinyzero_astar.run.loop", "floor 5"),
        ("rollout.records", "from tinyzero_astar.run import loop", "floor 5"),
        ("run.loop", "from tinyzero_astar.data import nonsense", "is no module"),
        ("run.loop", "import tinyzero_astar", "is no module"),
        ("newcomers.first", "", "on no floor"),
    ],
)
def test_floor_rule_finds_planted_fault(module: str, source: str, fault: str):
    faults = floor_faults(source, module, KNOWN)
    assert len(faults) == 1
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rollout.records", "from tinyzero_astar.search.gumbel import children"),
        ("rollout.records", "from tinyzero_astar.search import gumbel"),
        ("search.lock_step", "from .gumbel import children"),
        ("rollout.records", "from tinyzero_astar import config"),
        ("__main__", "from tinyzero_astar.run import loop"),
    ],
)
def test_floor_rule_accepts_what_does_not_run_up(module: str, source: str):
    assert floor_faults(source, module, KNOWN) == []


def test_loops_are_found_among_modules_and_among_folders():
    straight = {"a.x": {"b.y"}, "b.y": {"a.z"}, "a.z": set()}
    assert loop(straight) == []  # of modules, but their folders need each other
    assert set(loop(between_folders(straight))) == {"a", "b"}
    assert set(loop({"a.x": {"a.y"}, "a.y": {"a.x"}})) == {"a.x", "a.y"}


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
