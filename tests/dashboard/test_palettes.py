"""Colours that can be told apart, on both pages."""

from __future__ import annotations

import tomllib

import matplotlib
import numpy as np
import pytest

from attnviz import figures
from attnviz.figures.packing import PALETTES
from dashboard.palettes import DARK, DASHES, LIGHT, Ink
from tests.dashboard.conftest import APP

PAGES = {"light": (LIGHT, "#ffffff"), "dark": (DARK, "#14161a")}


def channels(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def luminance(colour: str) -> float:
    linear = channels(colour)
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", PALETTES)
def test_the_anchors_follow_matplotlibs_colour_map(name):
    anchors = np.array([[(c >> 16) & 255, (c >> 8) & 255, c & 255] for c in PALETTES[name]])
    places = np.linspace(0, 1, 256)
    ours = np.stack(
        [np.interp(places, np.linspace(0, 1, len(anchors)), anchors[:, i]) for i in range(3)], 1
    )
    theirs = matplotlib.colormaps[name](places)[:, :3] * 255
    assert abs(ours - theirs).max() < 12


def test_every_colour_map_is_one_that_downloads_can_draw():
    assert set(PALETTES) <= set(figures.COLOUR_MAPS)


@pytest.mark.parametrize("page", PAGES)
def test_text_has_the_contrast_of_wcag_aa(page):
    ink, paper = PAGES[page]
    for colour in (ink.text, ink.chance, ink.redrawn):
        assert contrast(colour, paper) >= 4.5


@pytest.mark.parametrize("page", PAGES)
def test_primary_buttons_can_be_read(page):
    ink, _ = PAGES[page]
    told = tomllib.loads((APP.parent / ".streamlit" / "config.toml").read_text())
    assert told["theme"][page]["primaryColor"] == ink.mark
    assert contrast(ink.on_mark, ink.mark) >= 4.5


@pytest.mark.parametrize("page", PAGES)
def test_lines_and_dots_have_a_contrast_of_three(page):
    ink, paper = PAGES[page]
    for colour in (ink.mark, *ink.series):
        assert contrast(colour, paper) >= 3


@pytest.mark.parametrize("ink", [LIGHT, DARK])
def test_no_two_series_share_colour_or_dash(ink: Ink):
    assert len(set(ink.series)) == len(ink.series)
    assert len({tuple(dash) for dash in DASHES}) == len(DASHES) == len(ink.series)
