"""What is installed, pinned and shipped. The lists agree, and the source distribution lacks no file."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".ci", "benchmarks", "docs", "recipes", "tests", "tinyzero_astar")
FILES = (
    ".gitignore",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "constraints.txt",
    "mkdocs.yml",
    "pyproject.toml",
    "requirements.txt",
    "train.py",
)
VERSIONS = runpy.run_path(str(ROOT / ".ci/versions.py"))


def lines_of(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def names(requirements: list[str]) -> list[str]:
    return [VERSIONS["normal"](re.match(r"[\w.-]+", line)[0]) for line in requirements]


def required(project: dict) -> list[str]:
    extras = project["optional-dependencies"]
    own = ("plot", "lora", "gguf", "browser", "reasoning-gym", "tensorboard", "docs")
    return names([*project["dependencies"], *(name for extra in own for name in extras[extra]), *extras["dev"][1:]])


def test_requirements_and_constraints_name_what_pyproject_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned, *asked = lines_of("requirements.txt")
    assert pinned == "-c constraints.txt"
    assert asked == names(project["dependencies"])
    assert set(required(project)) <= set(names(lines_of("constraints.txt")))


def test_constraints_are_plain_pins_of_one_version_each():
    lines = lines_of("constraints.txt")
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9.]*", line)] == []
    assert len(set(names(lines))) == len(lines)


def test_versions_other_than_the_tested_ones_are_told():
    tested = VERSIONS["pins"]("# torch\nPyYAML==6.0.3\nast_serialize==0.13.1\n\ntorch==2.13.0\n")
    assert tested == {"pyyaml": "6.0.3", "ast-serialize": "0.13.1", "torch": "2.13.0"}
    installed = {"torch": "2.13.0", "pyyaml": "6.0.4", "ast-serialize": "0.13.1", "attrs": "26.1"}
    assert VERSIONS["differences"](tested, installed) == [
        "  attrs 26.1 (constraints.txt: not listed)",
        "  pyyaml 6.0.4 (constraints.txt: 6.0.3)",
        "  2 packages at the versions of constraints.txt",
    ]


def test_the_source_distribution_holds_every_file(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    held = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    build = "import setuptools.build_meta as backend, sys; print(backend.build_sdist(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    assert sorted(held - shipped) == []
