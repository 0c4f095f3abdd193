"""Components: what they show before their script has run, and what a browser may send."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import dashboard
from benchmarks.dashboard_readers import Reader, Seen

MARKUP = sorted(Path(dashboard.__file__).parent.glob("*/*.html"))


class _Names(HTMLParser):
    """The names of buttons and pictures: the attribute, or the text of a button."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[bool] = []
        self._button = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "button" or given.get("role") == "img":
            self.named.append(bool(given.get("aria-label")))
        self._button = self._button or tag == "button"

    def handle_endtag(self, tag: str) -> None:
        self._button = self._button and tag != "button"

    def handle_data(self, data: str) -> None:
        if self._button and data.strip():
            self.named[-1] = True


def names(markup: str) -> list[bool]:
    parser = _Names()
    parser.feed(markup)
    return parser.named


@pytest.mark.parametrize("file", MARKUP, ids=lambda file: file.stem)
def test_buttons_and_pictures_have_names_before_the_script_runs(file: Path):
    assert all(names(file.read_text("utf-8")))


def test_a_button_without_a_name_is_seen():
    unnamed = '<button></button><button>Rest</button><i role="img"></i>'
    assert names(unnamed) == [False, True, False]
    assert sum(len(names(file.read_text("utf-8"))) for file in MARKUP) >= 5


@pytest.mark.parametrize(
    ("page", "sent"),
    [
        ("heads", {"opened": "A" * 2000}),
        ("heads", {"page": "heads"}),
        ("explore", {"brushed": {"x": [0, 1], "y": [0, 0.5]}}),
        ("runs", {"sorted": "variant"}),
        ("runs", {"ticked": {"ticked": ["mha-0"], "shown": ["mha-0", "cnn-0"]}}),
    ],
)
def test_what_stays_in_a_browser_is_read_once(page: str, sent: dict[str, Any], address: str):
    """No browser sends an event as a state; a page that ran again for it would never end."""
    pytest.importorskip("websockets")
    seen = Seen()
    reader = Reader(address, seen, 0, 120.0)
    reader.visit(page, run="mha-0")
    assert reader.components
    reader.visit(page, dict.fromkeys(reader.components, sent), run="mha-0")
    reader.close()
    assert not seen.faults
    assert seen.pages == 2
