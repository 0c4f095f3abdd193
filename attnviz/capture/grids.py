"""Which token is which place: grids of queries and keys, and the class tokens before them.

Nothing here knows an architecture. The shapes that the running modules were called with say how
many tokens there are, and the image's own shape says how they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnviz.capture.places import Call
from attnviz.capture.record import Grid

_MOST_PREFIX = 16


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the shapes of the running modules tell.

    Attributes:
        images: The batch size of the model's input.
        image: Its height and width; None if the model was not given images.
        query: The queries' grid.
        key: The keys' grid.
        prefix: Leading tokens that are no places.
    """

    images: int | None = None
    image: Grid | None = None
    query: Grid | None = None
    key: Grid | None = None
    prefix: int = 0


def geometry(calls: Sequence[Call], queries: int, keys: int) -> Geometry:
    """Read grids off the modules that are running, innermost first."""
    images, image = model_input(calls)
    if image is None:
        return Geometry(images)
    tokens, known = token_counts(calls), _prefix_tokens(calls)
    prefix, key = _grid(keys, tokens, image, known)
    if queries == keys:
        return Geometry(images, image, key, key, prefix)
    own, query = _grid(queries, tokens, image, known) if queries > 1 else (0, None)
    if key is None and query is not None:
        # reduced keys: no module was called with as many tokens, but they lie as the image does
        key, prefix = by_aspect(keys - own, image), own
    if query is not None and own != prefix:
        query = by_aspect(queries - prefix, image)
    return Geometry(images, image, query, key, prefix)


def _prefix_tokens(calls: Sequence[Call]) -> int | None:
    """The number of class and register tokens, where a module says it."""
    for call in reversed(calls):
        count = getattr(call.module, "num_prefix_tokens", None)
        if isinstance(count, int):
            return count
    return None


def model_input(calls: Sequence[Call]) -> tuple[int | None, Grid | None]:
    """The batch size of the outermost module's input, and an image's height and width."""
    if not calls:
        return None, None
    shapes = calls[-1].shapes
    for shape in shapes:
        if len(shape) == 4:
            return shape[0], (shape[2], shape[3])
    for shape in shapes:
        if len(shape) == 5:
            return shape[0], None
    return (shapes[0][0] if shapes and shapes[0] else None), None


def by_aspect(count: int, image: Grid) -> Grid | None:
    """The grid of `count` places that an image is cut into by square strides."""
    if count < 1:
        return None
    height, width = image
    h = max(1, round((count * height / width) ** 0.5))
    for rows in (h, h + 1, h - 1):
        if rows < 1 or count % rows:
            continue
        columns = count // rows
        if any(
            rows in (height // s, -(-height // s)) and columns in (width // s, -(-width // s))
            for s in {max(1, height // rows), -(-height // rows), max(1, width // columns)}
        ):
            return rows, columns
    return None


def _grid(count: int, tokens: set[int], image: Grid, known: int | None) -> tuple[int, Grid | None]:
    order = range(_MOST_PREFIX + 1) if known is None else (known, *range(_MOST_PREFIX + 1))
    for prefix in order:
        if count in tokens or count - prefix in tokens:
            grid = by_aspect(count - prefix, image)
            if grid is not None:
                return prefix, grid
    return 0, None


def token_counts(calls: Sequence[Call]) -> set[int]:
    """The numbers of tokens that the running modules' inputs could hold."""
    found: set[int] = set()
    for call in calls:
        for shape in call.shapes:
            found.update(shape[:-1])
            found.update(a * b for a, b in zip(shape[1:], shape[2:], strict=False))
    return found
