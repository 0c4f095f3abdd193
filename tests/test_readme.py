"""The README: its code runs, its links lead somewhere, its commands are the ones there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PACKAGES = {"text-recogniser.md": "onnx2torch"}
"""What a page needs and the tests do without."""

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page.parent.name != "doctor"  # whose code is before and after
        and page.name not in ("training.md", "prompts.md")  # tests/training and test_docs run them
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # onnx2torch's own
def test_the_code_of_every_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.name in PACKAGES:
        pytest.importorskip(PACKAGES[page.name], reason="needs uv sync --group onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # where a page writes a module
    names: dict[str, object] = {"__name__": "page"}
    for code in blocks(page.read_text(), "python"):
        exec(compile(code, str(page), "exec"), names)


def test_the_readme_has_ten_lines_of_python() -> None:
    (code,) = blocks(README, "python")
    assert 10 <= len([line for line in code.splitlines() if line.strip()]) <= 14


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert all((page.parent / link).exists() for link in links), links


def test_the_first_command_is_the_demo_and_the_others_are_those_that_ci_runs() -> None:
    (commands,) = blocks(README, "sh")
    first, *_ = commands.splitlines()
    assert first.startswith("pip install uv && uv run --no-dev attnviz demo ")
    assert "uv run --no-dev python -m experiments quickstart" in commands
    assert "uv run pytest -n auto" in commands
    assert "uv run pytest -n auto" in (ROOT / ".ci" / "run").read_text()
