"""The pages of docs/doctor are what docs/write_doctor.py writes."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from attnviz.diagnosis import RULES

ROOT = Path(__file__).parents[2]
PAGES = runpy.run_path(str(ROOT / "docs" / "write_doctor.py"))["pages"]()


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_current(path: str) -> None:
    assert (ROOT / path).read_text() == PAGES[path], "run python docs/write_doctor.py"


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "doctor").glob("*.md")} - {"README"}
    assert pages == set(RULES)


@pytest.mark.parametrize("code", RULES)
def test_a_page_has_evidence_cause_a_faulty_and_a_mended_example_and_the_method(code: str) -> None:
    text = PAGES[RULES[code].page]
    for section in ("## As a heatmap", "## Why it happens", "## The fix", "## How it is found"):
        assert section in text
    assert text.index("Faulty:") < text.index("Mended:")
    assert text.count("```python") == 2
    assert f"**{RULES[code].severity}**" in text
    assert all(f"`{name}`" in text for name in RULES[code].evidence)
