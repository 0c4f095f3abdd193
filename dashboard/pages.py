"""The pages of the dashboard: every file of `views/` with a constant `PAGE`."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VIEWS = Path(__file__).parent / "views"


@dataclass(frozen=True)
class PageInfo:
    """A page as its file describes it.

    Attributes:
        name: The file's name, and the page's address.
        title: The link's text.
        icon: The link's icon.
        order: Where the link stands; the first page opens first.
    """

    name: str
    title: str
    icon: str
    order: float


@cache
def listed() -> tuple[PageInfo, ...]:
    """The pages in their order, read from the files without running them.

    Raises:
        ValueError: A file has no `PAGE = {"title": …, "icon": …, "order": …}`.
    """
    found = [_described(path) for path in sorted(VIEWS.glob("[!_]*.py"))]
    return tuple(sorted(found, key=lambda page: page.order))


def _described(path: Path) -> PageInfo:
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAGE":
            return PageInfo(path.stem, **ast.literal_eval(node.value))
    raise ValueError(f"{path}: expected PAGE = {{'title': …, 'icon': …, 'order': …}}, got none")
