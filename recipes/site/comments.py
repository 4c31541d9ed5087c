"""An extension of griffe. The comment behind a field of a record is its description in the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from griffe import Attribute, Docstring, Extension


class Comments(Extension):
    """Gives fields without a docstring the comment on their last line."""

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        """Called for each attribute that griffe finds."""
        if attr.docstring is None and attr.endlineno is not None and isinstance(attr.filepath, Path):
            line = attr.filepath.read_text(encoding="utf-8").splitlines()[attr.endlineno - 1]
            _, mark, comment = line.partition("  # ")
            if mark:
                attr.docstring = Docstring(f"{comment[0].upper()}{comment[1:]}.", lineno=attr.endlineno, parent=attr)
