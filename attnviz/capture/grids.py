"""Which token is which place: grids of queries and keys, and the class tokens before them.

Nothing here knows an architecture. The shapes that the running modules were called with say how
many tokens there are, and the image's own shape says how they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnviz.capture.call_stack import Call
from attnviz.capture.record import Grid

MOST_PREFIX = 8


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


def geometry(
    calls: Sequence[Call],
    queries: int,
    keys: int,
    *,
    maps: Iterable[Grid] = (),
    width: int | None = None,
) -> Geometry:
    """Read grids off the modules that are running, innermost first.

    Args:
        calls: The running modules.
        queries: How many queries there are.
        keys: How many keys.
        maps: Sizes of feature maps that were convolved so far. A model that attends in its own
            `forward` hands its tokens to no module; but it made them of such a map.
        width: The width of queries and keys. Where it is larger than their number, attention runs
            over channels, and no feature map tells anything.
    """
    images, image = model_input(calls)
    if image is None:
        return Geometry(images)
    counts, known = token_counts(calls), _prefix_tokens(calls)
    if width is None or width <= keys:
        counts[0].update(h * w for h, w in maps)
    prefix, key = _grid(keys, counts, image, known)
    if queries == keys:
        return Geometry(images, image, key, key, prefix)
    own, query = _grid(queries, counts, image, known) if queries > 1 else (0, None)
    if key is None and query is not None and keys < queries:
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
    """The grid of `count` places that has the image's proportions, up to rounding."""
    if count < 1:
        return None
    height, width = image
    near = round((count * height / width) ** 0.5)
    for rows in (near, near + 1, near - 1):
        if rows > 0 and count % rows == 0:
            columns = count // rows
            if (
                abs(rows * width / height - columns) < 1
                and abs(columns * height / width - rows) < 1
            ):
                return rows, columns
    return None


def _grid(
    count: int, counts: tuple[set[int], set[int]], image: Grid, known: int | None
) -> tuple[int, Grid | None]:
    """Leading tokens and grid of so many tokens; (0, None) if they are no places."""
    places, sequences = counts
    for prefix in range(MOST_PREFIX + 1) if known is None else (known, 0):
        if count in sequences or count - prefix in places:
            grid = by_aspect(count - prefix, image)
            if grid is not None:
                return prefix, grid
    return 0, None


def token_counts(calls: Sequence[Call]) -> tuple[set[int], set[int]]:
    """How many places, and how long sequences, the running modules were given."""
    places: set[int] = set()
    sequences: set[int] = set()
    for call in calls:
        for shape in call.shapes:
            if len(shape) == 4:
                places.update((shape[1] * shape[2], shape[2] * shape[3]))
            elif len(shape) == 3:
                sequences.update(shape[:2])
        if sum(len(shape) == 4 for shape in call.shapes) > 2:  # queries, keys and values by head
            sequences.update(shape[2] for shape in call.shapes if len(shape) == 4)
    return places, sequences
