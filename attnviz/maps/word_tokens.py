"""Which tokens spell a word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from attnviz.errors import InputError


def spelled(word: str, ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The numbers of the tokens that spell a word or several words in a row.

    Args:
        word: What to look for, as it is written in the text; upper and lower case differ.
        ids: The ids of the text.
        tokenizer: Anything with `decode(ids) -> str`, such as a tokenizer or a processor of
            transformers.

    Returns:
        Numbers into `ids`, in order.

    Raises:
        InputError: No tokenizer, a word that is not there, or is there more than once.
    """
    if not hasattr(tokenizer, "decode"):
        raise InputError(
            f"to find the word {word!r}: expected tokenizer= with a method decode(ids), got "
            f"{type(tokenizer).__name__}; or pass the numbers of its tokens"
        )
    sought = word.strip()
    if not sought:
        raise InputError("expected a word, got an empty text")
    ends = [len(tokenizer.decode(list(ids[: i + 1]))) for i in range(len(ids))]
    text = tokenizer.decode(list(ids))
    found = _occurrences(text, sought)
    if len(found) == 1:
        return _covering(found[0], len(sought), ends)
    if not found:
        near = _near(sought, text)
        raise InputError(f"the word {word!r} is not in the text {_cut(text)!r}{near}")
    tokens = ", ".join(str(_covering(at, len(sought), ends)) for at in found)
    raise InputError(
        f"the word {word!r} is in the text {len(found)} times, as tokens {tokens}: pass the "
        "numbers of one of them"
    )


def _occurrences(text: str, word: str) -> list[int]:
    """Where a word begins; parts of longer words do not count, unless there is nothing else."""
    at = [i for i in range(len(text)) if text.startswith(word, i)]
    whole = [
        i
        for i in at
        if not (i and text[i - 1].isalnum() and word[0].isalnum())
        and not text[i + len(word) : i + len(word) + 1].isalnum()
    ]
    return whole or at


def _covering(start: int, length: int, ends: Sequence[int]) -> list[int]:
    begins = [0, *ends[:-1]]
    return [
        i
        for i, (begin, end) in enumerate(zip(begins, ends, strict=True))
        if begin < start + length and end > start
    ]


def _near(word: str, text: str) -> str:
    """The words of a text that a word may be meant to be."""
    known = {one.lower(): one for one in re.findall(r"\w[\w'’-]*", text)}
    found = difflib.get_close_matches(word.lower(), list(known), n=3, cutoff=0.6)
    return f": did you mean {', '.join(repr(known[one]) for one in found)}?" if found else ""


def _cut(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
