"""The pages that are written by scripts are what those scripts write."""

from __future__ import annotations

import runpy
from pathlib import Path

import attnviz

DOCS = Path(__file__).parent.parent / "docs"


def test_the_reference_pages_are_up_to_date() -> None:
    written = runpy.run_path(str(DOCS / "write_reference.py"))
    for name, page in written["PAGES"].items():
        assert (DOCS / name).read_text() == page(), f"run python docs/write_reference.py ({name})"


def test_every_public_name_appears_in_the_docs() -> None:
    text = "\n".join(page.read_text() for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")])
    missing = [name for name in attnviz.__all__ if name not in text]
    assert not missing, missing


def test_every_public_name_is_there_and_documented() -> None:
    for name in attnviz.__all__:
        assert getattr(attnviz, name).__doc__, name
