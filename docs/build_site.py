"""Build the documentation site.

    uv run --group docs python docs/build_site.py [--out site] [--version 0.1]

Gathers the pages that docs/README.md lists, in its order: those of docs/, and the README, results,
CONTRIBUTING and CHANGELOG from where they are edited. One page of reference per package is drawn
from its docstrings. Links between files of the repository become links between pages. A link that
leads nowhere, a page that is not listed, or a warning fails the build. With `--version` the site
goes below `OUT/VERSION/`, and `OUT/versions.json` lists the versions, newest first, for the
selector. `llms.txt` lists every page for programs. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import ast
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/tutorial.ipynb": "tutorial.md",
    "docs/doctor": "doctor/README.md",
}
"""Path in the repository → its page, where that is not its path below docs/."""

PACKAGES = sorted(
    path.parent.name
    for path in (ROOT / "attnviz").glob("*/__init__.py")
    if "__all__" in path.read_text()
)
"""Those that export names."""

_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)]*)?\))")


def gathered(pages: Path) -> None:
    """Write every page, with its links led to the other pages."""
    sources = {path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md")}
    pictures = (*DOCS.rglob("*.png"), *DOCS.rglob("*.webp"))
    sources |= {path.relative_to(ROOT).as_posix() for path in pictures}
    results = (ROOT / "experiments" / "results").iterdir()
    sources |= {path.relative_to(ROOT).as_posix() for path in results}
    sources |= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    targets = {source: place(source) for source in sources} | ELSEWHERE
    for source in sorted(sources):
        target = pages / targets[source]
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".md":
            target.write_text(_led((ROOT / source).read_text(), source, targets))
        else:
            shutil.copyfile(ROOT / source, target)
    for name in PACKAGES:
        target = pages / "api" / f"{name}.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(_reference(name))


def place(source: str) -> str:
    """Where a file of the repository goes on the site."""
    if source in ELSEWHERE:
        return ELSEWHERE[source]
    return source.removeprefix("docs/").replace("experiments/results/", "results/")


def _led(text: str, source: str, targets: dict[str, str]) -> str:
    """A page's text with its links to files of the repository led to their pages."""
    here = posixpath.dirname(targets[source])

    def led(link: re.Match[str]) -> str:
        before, path, after = link.groups()
        found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if found not in targets:
            raise SystemExit(f"{source}: the link to {path} leads to no page of the site")
        return f"{before}{posixpath.relpath(targets[found], here or '.')}{after}"

    return _LINK.sub(led, text)


def _reference(name: str) -> str:
    """A page of a package: its docstring, then every name that it exports, from its own module."""
    package = f"attnviz.{name}"
    tree = ast.parse((ROOT / "attnviz" / name / "__init__.py").read_text())
    exported, origin = [], {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            origin |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            exported = sorted(ast.literal_eval(node.value), key=str.lower)
    parts = [f"# {package}", f"::: {package}\n    options: {{members: false}}"]
    for one in exported:
        path = origin.get(one, f"{package}.{one}")
        parts.append(f"::: {path}\n    options: {{show_root_heading: true}}")
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Page:
    """A page as the index lists it.

    Attributes:
        title: In the navigation; empty for a section's first page.
        path: Below the folder of pages.
        about: What it holds, in a line.
    """

    title: str
    path: str
    about: str = ""


def navigation(pages: Path) -> dict[str, list[Page]]:
    """Section → pages, as docs/README.md lists them; those of findings and packages added."""
    sections: dict[str, list[Page]] = {}
    for line in (pages / "README.md").read_text().splitlines():
        if heading := re.fullmatch(r"\| (\w[\w ]*) \| \|", line):
            sections[heading[1]] = []
        elif row := re.match(r"\| \[[^]]*\]\(([^)]+)\).*\| (.*) \|$", line):
            found = Page(_title(pages / row[1]), row[1], row[2])
            list(sections.values())[-1].append(found)
    findings = sorted(path for path in (pages / "doctor").glob("*.md") if path.stem != "README")
    sections["Doctor"] += [Page(path.stem, f"doctor/{path.name}") for path in findings]
    sections["Reference"] += [Page(f"attnviz.{name}", f"api/{name}.md") for name in PACKAGES]
    sections[next(iter(sections))].insert(0, Page("All pages", "README.md"))
    return sections


def _title(page: Path) -> str:
    heading = re.search(r"^# (.+)$", page.read_text(), re.MULTILINE)
    return heading[1] if heading else page.stem


def _listed(pages: Path, sections: dict[str, list[Page]]) -> None:
    """Refuse a page that the index does not list."""
    there = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    if missing := there - {page.path for section in sections.values() for page in section}:
        raise SystemExit(f"docs/README.md lists these pages in no section: {sorted(missing)}")


def configuration(sections: dict[str, list[Page]], *, versioned: bool = False) -> str:
    """The configuration with the order of the pages, and with the selector of versions."""
    lines = []
    for name, pages in sections.items():
        entries = (f"{{ {json.dumps(page.title)} = {json.dumps(page.path)} }}" for page in pages)
        lines.append(f"  {{ {json.dumps(name)} = [{', '.join(entries)}] }},")
    nav = "\n".join(["[project]", "nav = [", *lines, "]"])
    text = (DOCS / "zensical.toml").read_text()
    text += '\n[project.extra.version]\nprovider = "mike"\n' if versioned else ""
    return text.replace("[project]", nav, 1).replace('"ROOT"', json.dumps(str(ROOT)))


def llms(sections: dict[str, list[Page]]) -> str:
    """`llms.txt`: every page with its title and what it holds, as llmstxt.org describes it."""
    about = tomllib.loads((DOCS / "zensical.toml").read_text())["project"]["site_description"]
    lines = ["# attnviz", "", f"> {about}"]
    for section, pages in sections.items():
        lines += ["", f"## {section}", ""]
        for page in pages:
            address = page.path.removesuffix(".md").replace("README", "index")
            lines.append(f"- [{page.title}]({address}.html){page.about and ': '}{page.about}")
    return "\n".join(lines) + "\n"


def build(out: Path, *, versioned: bool = False) -> None:
    """Build the site into a folder that is replaced."""
    with TemporaryDirectory() as scratch:
        home = Path(scratch)
        gathered(home / "pages")
        sections = navigation(home / "pages")
        _listed(home / "pages", sections)
        (home / "zensical.toml").write_text(configuration(sections, versioned=versioned))
        done = subprocess.run(
            ["zensical", "build", "--strict"], cwd=home, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}")
        (home / "site" / "llms.txt").write_text(llms(sections))
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(home / "site", out)


def list_versions(out: Path) -> None:
    """Write `versions.json` from the versions that are there, and lead to the newest."""

    def key(name: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", name)))

    names = sorted((path.parent.name for path in out.glob("*/index.html")), key=key, reverse=True)
    entries = [{"version": name, "title": name, "aliases": []} for name in names]
    (out / "versions.json").write_text(json.dumps(entries, indent=1))
    (out / "index.html").write_text(
        f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={names[0]}/">'
    )


def main() -> None:
    """Build, and say where it lies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site")
    parser.add_argument("--version", help="build below OUT/VERSION/ and list the versions")
    args = parser.parse_args()
    build(args.out / (args.version or ""), versioned=args.version is not None)
    if args.version:
        list_versions(args.out)
    print(f"{args.out / (args.version or '')}/index.html")


if __name__ == "__main__":
    sys.exit(main())
