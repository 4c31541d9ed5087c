"""Plain sentences in the documents: few are joined by a semicolon or a colon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.words import count, sentences_of

ROOT = Path(__file__).resolve().parents[1]
MOST = 0.12  # share of joined sentences; well-liked READMEs of the field have 0.05 to 0.09
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_few_sentences_of_a_document_are_joined(page):
    found = count(page.read_text("utf-8"))
    assert found.share < MOST, "\n".join(found.joined)


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

The colon before a block:
"""
    prose = ["Before a list:", "One item ends here", "code and a link", "**Another** item", "The colon before a block:"]
    assert sentences_of(text) == prose and count(text).joined == []
