"""The site that `make docs` builds of README.md, CONTRIBUTING.md and docs/, and the page of a real run in it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyzero_astar
from tests.pages import Elements
from tests.test_browser import CHROMIUM, DESK, PHONE
from tinyzero_astar.config import Config

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "docs/demo.html"
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}  # by a page on its own


def loaded_by(page: str) -> list[str]:
    """Addresses that a browser asks for when it opens the page. `rel` of a link may only point somewhere."""
    pointers = {"canonical", "next", "prev", "alternate"}
    found = [
        attrs.get(LOADED[tag]) or ""
        for tag, attrs in Elements(page).found
        if tag in LOADED and not pointers & set((attrs.get("rel") or "").split())
    ]
    return [address for address in found if address and not address.startswith("data:")]


def test_every_page_is_in_the_navigation_once():
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    pages = re.findall(r"([\w-]+\.md)$", nav, re.MULTILINE)
    outside = ["CONTRIBUTING.md", "README.md"]
    assert sorted(pages) == sorted([*outside, *(path.name for path in (ROOT / "docs").glob("*.md"))])


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs/reference.md").read_text("utf-8")
    named = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    assert {name for name in tinyzero_astar.__all__ if not name.startswith("__")} <= named


def test_the_settings_have_every_section():
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    shown = re.findall(r"^## (\w+)\n\n::: tinyzero_astar\.config\.(\w+)$", page, re.MULTILINE)
    assert shown == [(field.name, str(field.type)) for field in dataclasses.fields(Config)]


def test_the_demo_is_small_and_tells_nothing_of_its_machine():
    page = DEMO.read_text("utf-8")
    assert 300_000 < DEMO.stat().st_size < 1_000_000
    assert loaded_by(page) == [] and "multiplication" in page and "97.8 %" in page
    assert re.findall(r"/(?:home|root|tmp|work|Users|opt|mnt)/", page) == []


def test_loaded_addresses_are_found():
    page = '<link rel="stylesheet" href="a"><link rel="next" href="b"><img src="c"><img src="data:,"><a href="d">'
    assert loaded_by(page) == ["a", "c"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built strictly. A link or an anchor that leads nowhere is an error."""
    if not importlib.util.find_spec("material") or not importlib.util.find_spec("mkdocstrings_handlers"):
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_a_network(site):
    pages = {path.name: path.read_text("utf-8") for path in site.glob("*.html")}
    assert len(pages) > 15 and pages["demo.html"] == DEMO.read_text("utf-8")
    outer = [(name, link) for name, page in pages.items() for link in loaded_by(page) if re.match("(https?:)?//", link)]
    assert outer == []
    for name in ("load", "Model.search", "Leaf.weight"):
        assert f'id="tinyzero_astar.api.{name}"' in pages["reference.html"]
    assert "Inclusion weight" in pages["reference.html"]  # the comment behind a field
    assert "Tokens of prompt and completion together" in pages["settings.html"]
    assert '<a href="tutorial.html' in pages["index.html"] and '<a href="demo.html' in pages["index.html"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_site_works_from_a_folder_at_every_width(site):
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install -e '.[browser]'")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for size in (DESK, PHONE):
            page, said = browser.new_page(viewport=size), []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, said=said: said.append(request.url))
            for path in sorted(set(site.glob("*.html")) - {site / "404.html"}):  # which only a server shows
                page.goto(f"file://{path}")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path.name, size)
            assert [x for x in said if not re.match("file:|data:|blob:", x)] == []
            page.close()
        page = browser.new_page(viewport=DESK)
        page.goto(f"file://{site}/index.html")
        page.keyboard.press("/")
        page.keyboard.type("admissible")
        page.locator(".md-search-result__item a[href*='algorithm.html']").first.wait_for()
        browser.close()
