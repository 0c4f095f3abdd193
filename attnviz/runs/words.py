"""Words of maps: the text of each map of an image, where maps are of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnviz.errors import InputError

WORDS = "words"
"""The note beside maps `(n, words, h, w)` that holds the text of each word."""


def check_words(name: str, words: Any, shape: Sequence[int]) -> None:
    """Check that words fit the maps that they name.

    Args:
        name: The maps' name.
        words: One list for all images, or a list for each.
        shape: Of the maps: `(n, words, h, w)`.

    Raises:
        InputError: They do not.
    """
    for_all = texts_in(words)
    each = (
        [] if for_all or not isinstance(words, list | tuple) else [texts_in(one) for one in words]
    )
    if len(shape) == 4 and (
        (for_all is not None and len(for_all) == shape[1])
        or (len(each) == shape[0] and all(one is not None and len(one) <= shape[1] for one in each))
    ):
        return
    raise InputError(
        f"maps {name!r}: expected maps (n, words, h, w) and the text of each word, a list for all "
        f"images or one for each, got maps {tuple(shape)} and {_counted(words, for_all, each)}"
    )


def words_of_maps(about: Mapping[str, Any], image: int, count: int) -> list[str]:
    """The texts of an image's maps, one for each of the first; empty where none are noted.

    Args:
        about: What a run notes beside the maps.
        image: Its number.
        count: How many maps it has.
    """
    words = about.get(WORDS)
    found = texts_in(words)
    if found is None and isinstance(words, list) and image < len(words):
        found = texts_in(words[image])
    return [] if found is None or len(found) > count else found


def texts_in(value: Any) -> list[str] | None:
    """What a document holds as a list of texts; None for anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        return None
    return list(value)


def _counted(words: Any, for_all: list[str] | None, each: Sequence[Any]) -> str:
    if for_all is not None:
        return f"{len(for_all)} words"
    return f"words of {len(each)} images" if each else type(words).__name__
