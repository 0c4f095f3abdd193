"""Words by their text: maps of words, and rows of attention of which one side is words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import streamlit as st

from attnviz.figures.packing import MapLayer, Settings, Tile, pack
from attnviz.runs.datasets import Cut
from attnviz.runs.words import texts_in
from dashboard.address import plain
from dashboard.gallery import gallery
from dashboard.table import Cell, Column, Row, table

_MOST = 48  # words that are shown

KEYS, QUERIES = "key_words", "query_words"
"""What `about` of rows may name: the text of each key, or of each query."""


def texts(about: Mapping[str, Any], name: str, count: int) -> list[str]:
    """The words that a run notes beside its rows; none where they do not fit."""
    found = texts_in(about.get(name))
    return [] if found is None or len(found) != count else found


def words_of(rows: np.ndarray, about: Mapping[str, Any], held: Cut, image: int) -> bool:
    """Show attention of which one side is words; whether it was.

    Args:
        rows: `(heads, queries, keys)` of one image.
        about: What the run noted beside them.
        held: The image.
        image: Its number.
    """
    to, of = texts(about, KEYS, rows.shape[2]), texts(about, QUERIES, rows.shape[1])
    if to:
        _to_words(rows, to)
    elif of:
        _of_words(rows, of, tuple(about.get("key_grid") or ()), held, image)
    return bool(to or of)


def to_tokens(rows: np.ndarray) -> None:
    """How much attention each token takes that is no known place, by its number."""
    _to_words(rows, [f"token {k}" for k in range(rows.shape[2])], "token")


def _to_words(rows: np.ndarray, words: Sequence[str], kind: str = "word") -> None:
    """How much attention each word takes, head by head, the most first."""
    shares = rows.mean(axis=1)
    order = np.argsort(-shares.mean(axis=0), kind="stable")[:_MOST]
    heads = range(len(shares))
    columns = [Column("word", kind, sorts=False)]
    columns += [Column(str(h), f"head {h + 1}", number=True, sorts=False) for h in heads]
    listed = [
        Row(str(k), (Cell(words[k] or "–"), *(Cell(f"{shares[h, k]:.3f}") for h in heads)))
        for k in order
    ]
    table(columns, listed, label=f"Attention by {kind}, mean over queries", key="words")
    left = f" {len(words) - len(order)} more take less." if len(words) > len(order) else ""
    st.caption(f"Attention that each {kind} takes: mean over queries, head by head.{left}")


def _of_words(
    rows: np.ndarray, words: Sequence[str], grid: tuple[int, ...], held: Cut, image: int
) -> None:
    """Where each word's attention lies in the image: a tile per word, mean over heads."""
    shown = words[:_MOST]
    places = int(np.prod(grid)) if len(grid) == 2 else 0
    if not places or places > rows.shape[2]:
        st.caption("The keys' grid was not noted, so these words have no maps: " + ", ".join(
            plain(one) for one in shown))  # fmt: skip
        return
    maps = rows.mean(axis=0)[: len(shown), -places:].reshape(len(shown), *grid)
    _tiles(maps, shown, held, image, key="words")
    st.caption("Where each word attends to: mean over heads, each map from 0 to its maximum.")


def maps_of_words(maps: np.ndarray, words: Sequence[str], held: Cut, image: int, key: str) -> None:
    """A tile for each word's map of the image.

    Args:
        maps: `(words, h, w)`.
        words: The text of each of the first maps.
        held: The image.
        image: Its number.
        key: Of the component.
    """
    shown = words[:_MOST]
    _tiles(maps[: len(shown)], shown, held, image, key=key)
    left = f" {len(words) - len(shown)} more are not shown." if len(words) > len(shown) else ""
    st.caption(f"The map of each word, from 0 to its maximum.{left}")


def _tiles(maps: np.ndarray, words: Sequence[str], held: Cut, image: int, key: str) -> None:
    tiles = [
        Tile(str(k), word or "–", (), f"Map of {word or 'an empty word'} on image {image}", 0)
        for k, word in enumerate(words)
    ]
    gallery(
        pack(
            held.images, tiles, [MapLayer("map", "map", maps, from_zero=True)], None,
            settings=Settings(threshold=0.0), label=f"Maps of words, image {image}",
            controls=False, opens=False, arrows=False, title=f"words, image {image}",
        ),
        key=key,
    )  # fmt: skip
