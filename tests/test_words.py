"""Plain sentences. Few are joined by a semicolon or a colon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.words import count, count_docstrings, prose_of_docstring, sentences_of

ROOT = Path(__file__).resolve().parents[1]
MOST = 0.12  # share of joined sentences. Well-liked READMEs of the field have 0.05 to 0.09
FOLDERS = [
    *("tests", "benchmarks", "recipes/embedded_base", "recipes/lm_eval", "tinyzero_astar"),
    *(f"tinyzero_astar/{name}" for name in ("search", "rollout", "training", "engine", "metrics", "eval", "model")),
    *(f"tinyzero_astar/{name}" for name in ("resources", "loggers", "cli", "data", "run", "report", "study")),
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_few_sentences_of_a_document_are_joined(page):
    found = count(page.read_text("utf-8"))
    assert found.share < MOST, "\n".join(found.joined)


@pytest.mark.parametrize("folder", FOLDERS)
def test_few_sentences_of_the_docstrings_of_a_folder_are_joined(folder):
    found = count_docstrings(sorted((ROOT / folder).glob("*.py")))
    assert found.share < MOST, "\n".join(found.joined)


def test_every_folder_of_the_package_is_counted():
    package = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tinyzero_astar").rglob("*.py")}
    assert package <= set(FOLDERS)


def test_labels_and_formulas_of_docstrings_are_not_counted():
    text = """Mean; or median.

    m = a: b; c

Source: Kish 1965.

Args:
    a: [N] a number.
    b: one; or two.

Raises:
    ValueError: it is wrong.
"""
    found = count(prose_of_docstring(text))
    assert found.joined == ["Mean; or median", "one; or two"] and found.sentences == 5


def test_joined_sentences_are_counted():
    text = "One idea. Two ideas; joined. A third: it is joined too. Kool et al. 2019 is one sentence (eq. 6), see 3:1."
    found = count(text)
    assert found.sentences == 4 and len(found.joined) == 2 and found.share == 0.5


def test_what_is_no_prose_is_not_counted():
    text = """# A heading: with a colon

| a; b | c |

Before a list:

- One item ends here. `code; in: it` and [a link](x:;y).
- **Another** item

```text
a: b; c
```

::: a.module; of docstrings
    options:
      c: d

The colon before a block:
"""
    prose = ["Before a list:", "One item ends here", "code and a link", "**Another** item", "The colon before a block:"]
    assert sentences_of(text) == prose and count(text).joined == []
