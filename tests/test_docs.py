"""The pages that are written by scripts are what those scripts write."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import attnviz
from attnviz import faithfulness, maps
from attnviz.models import variants
from tests.dashboard.test_pages import opened

DOCS = Path(__file__).parent.parent / "docs"


def test_the_reference_pages_are_up_to_date() -> None:
    written = runpy.run_path(str(DOCS / "write_reference.py"))
    for name, page in written["PAGES"].items():
        assert (DOCS / name).read_text() == page(), f"run python docs/write_reference.py ({name})"


def test_every_reference_model_has_its_line_among_the_systems() -> None:
    written = runpy.run_path(str(DOCS / "write_systems.py"))
    told = [name for systems in written["GROUPS"].values() for name in systems]
    assert sorted(told) == sorted(variants())
    page = (DOCS / "systems.md").read_text().splitlines()
    rows = [line.split("|")[1].strip(" `") for line in page if line.startswith("| `")]
    assert rows == told


def test_every_public_name_appears_in_the_docs() -> None:
    text = "\n".join(page.read_text() for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")])
    missing = [name for name in attnviz.__all__ if name not in text]
    assert not missing, missing


def test_sections_of_examples_have_the_name_that_the_reference_reads() -> None:
    for path in DOCS.parent.glob("attnviz/**/*.py"):
        assert not re.search(r"^ +Example:$", path.read_text(), re.MULTILINE), path


def test_every_public_name_is_there_and_documented() -> None:
    for name in attnviz.__all__:
        assert getattr(attnviz, name).__doc__, name


def _described(name: str, functions: dict[str, Callable[..., object]]) -> set[str]:
    """The arguments that a function describes, itself or by naming the function that does."""
    text = inspect.getdoc(functions[name]) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
    own = set(re.findall(r"^    (\w+): \S", section[1], re.M)) if section else set()
    named = re.search(r"[Aa]rguments(?: that are not listed)? are those of `(\w+)`", text)
    return own | (_described(named[1], functions) if named else set())


@pytest.mark.parametrize("package", [faithfulness, maps])
def test_every_argument_is_described_by_its_function_or_the_one_it_names(package: Any) -> None:
    functions = {
        name: value
        for name in package.__all__
        if inspect.isfunction(value := getattr(package, name))
    }
    for name in set(functions) - {"infidelity", "sensitivity"}:
        arguments = set(inspect.signature(functions[name]).parameters) - {"options", "draw"}
        described = _described(name, functions)
        assert not described or arguments <= described, (name, arguments - described)


def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = json.loads((DOCS / "tutorial.ipynb").read_text())
    names: dict[str, object] = {"__name__": "notebook"}
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert len(cells) > 5
    assert {"seen", "received", "scores"} <= set(names)


def test_the_ten_lines_are_ten() -> None:
    tutorial = (DOCS / "tutorial.md").read_text()
    _, after = tutorial.split("## In ten lines")
    code = after.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    pages = {page.name for page in [*DOCS.glob("*.md"), *DOCS.glob("*.ipynb")]} - {"README.md"}
    missing = [name for name in sorted(pages) if f"]({name})" not in index]
    assert not missing, missing
    assert "](doctor/README.md)" in index


def test_the_commands_of_the_evaluation_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnviz.cli import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = (DOCS / "evaluate.md").read_text()
    made, models, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {"__name__": "page"}
    for code in (made, models):
        exec(compile(code, "evaluate.md", "exec"), names)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
             for line in unrolled(block)]  # fmt: skip
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "attnviz"
        if words[0] != "dashboard":
            assert run(words) == 0, line
    assert attnviz.open_run("cli/cbam-0").maps("saliency").shape[0] == 12
    for root in ("cli", "cli-coco"):
        assert f"attnviz dashboard {root}" in lines
        ranked = attnviz.compare(root, resamples=50)
        assert set(ranked.variants) == {"vit", "cbam", "resnet"}
        assert set(ranked.table["seeds"]) == {3}
        at = opened(monkeypatch, "compare", root)
        assert not at.error
        assert "energy" in at.header[0].value


def unrolled(block: str) -> list[str]:
    """The commands of a block, those of a loop once for each value of its variable."""
    lines: list[str] = []
    for loop, variable, values, body, line in re.findall(
        r"(for (\w+) in (.*?); do\n(.*?)done)\n|(.+)\n", block, re.DOTALL
    ):
        inside = [one.strip().replace(f"${variable}", value)
                  for value in values.split() for one in body.splitlines()]  # fmt: skip
        lines += inside if loop else line.splitlines()
    return lines


def test_the_sections_of_the_evaluation_page_take_twelve_lines() -> None:
    """From a trained model to the printed ranking: imports, data, evaluation, table, comparison."""
    page = (DOCS / "evaluate.md").read_text()
    _, _, vit, cbam, resnet = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shared = [line for line in vit.splitlines() if "transform" in line.lower()]
    for code, others in ((vit, []), (cbam, [*vit.splitlines()[:2], *shared]), (resnet, shared)):
        lines = [line for line in code.splitlines() if line.strip()]
        assert "evaluate" in code
        assert "compare" in code
        assert len(lines) + len(others) <= 12


def test_the_commands_for_programs_print_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from attnviz.cli import run

    monkeypatch.chdir(DOCS.parent)
    (block,) = re.findall(r"```sh\n(.*?)```", (DOCS / "assistants.md").read_text(), re.DOTALL)
    for line in block.splitlines():
        assert run(shlex.split(line)[1:]) == (1 if "doctor" in line else 0), line
        json.loads(capsys.readouterr().out)


def test_the_examples_from_a_prompt_to_a_heatmap_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "prompts.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "prompts.md", "exec"), names)
    assert names["heat"].shape == (1, 4, 56, 56)
    assert names["where"].shape == (1, 8, 12)
    assert names["found"].points.shape == (1, 2, 2, 12, 2)
    assert names["picture"].shape == (512, 768, 3)
    run = attnviz.open_run("answers/llava")
    assert run.maps("answer").shape == (1, len(run.about("maps/answer")["words"]), 4, 4)


def test_twelve_lines_lead_from_a_model_to_a_ranking() -> None:
    page = (DOCS / "evaluate.md").read_text()
    blocks = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
              if "av.evaluate" in code]  # fmt: skip
    assert len(blocks) == 3
    for code in blocks:
        assert len([line for line in code.splitlines() if line.strip()]) <= 12


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "build_site.py"))


def test_the_site_holds_every_page_of_the_repository_with_links_between_them(
    tmp_path: Path, site: dict[str, Any]
) -> None:
    site["gathered"](tmp_path)
    sections = site["navigation"](tmp_path)
    site["_listed"](tmp_path, sections)
    assert [*sections] == ["Start", "How to", "Reference", "Doctor", "Evidence", "Design"]
    assert "](results/README.md)" in (tmp_path / "README.md").read_text()
    assert "](../own-data.md#the-photos-data-set)" in (tmp_path / "results/README.md").read_text()
    for page in tmp_path.rglob("*.md"):
        links = re.findall(r"\]\((?!https?://|#)([^)#\s:]+)", page.read_text())
        assert all((page.parent / link).exists() for link in links), page
    listed = site["llms"](sections)
    assert "- [Metrics](metrics.html): definition, range," in listed
    assert listed.count("](doctor/") == len([*(DOCS / "doctor").glob("*.md")])


def test_a_link_of_the_site_that_leads_nowhere_is_refused(site: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"docs/maps.md: the link to none.md leads to no page"):
        site["_led"]("[x](none.md)", "docs/maps.md", {"docs/maps.md": "maps.md"})


def test_a_page_that_the_index_does_not_list_is_refused(
    tmp_path: Path, site: dict[str, Any]
) -> None:
    (tmp_path / "README.md").write_text("| Start | |\n| --- | --- |\n")
    (tmp_path / "new.md").write_text("# New")
    with pytest.raises(SystemExit, match=r"lists these pages in no section: \['README.md', 'new"):
        site["_listed"](tmp_path, {"Start": []})


def test_the_newest_version_of_the_site_comes_first(tmp_path: Path, site: dict[str, Any]) -> None:
    for version in ("0.9", "0.10", "0.2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "index.html").touch()
    site["list_versions"](tmp_path)
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert [one["version"] for one in versions] == ["0.10", "0.9", "0.2"]
    assert "url=0.10/" in (tmp_path / "index.html").read_text()
