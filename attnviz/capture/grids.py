"""What the shapes of the running modules tell: how many images there are, and how large they are.

Which token is which place is not read off shapes, but followed in `attnviz.capture.lineage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnviz.capture.call_stack import Call
from attnviz.capture.record import Grid


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes from the shapes of the running modules.

    Attributes:
        images: The batch size of the model's input.
        image: Its height and width; None if the model was not given images.
    """

    images: int | None = None
    image: Grid | None = None


def geometry(calls: Sequence[Call]) -> Geometry:
    """Read the number and the size of images off the modules that are running, innermost first."""
    images, image = model_input(calls)
    own = next((shape for call in calls[:1] for shape in call.shapes if len(shape) == 3), None)
    if images and own is not None and own[0] % images and images not in own[:2]:
        images = own[0]  # several images of one sequence, as in a prompt
    return Geometry(images, image)


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
