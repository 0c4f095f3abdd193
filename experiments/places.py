"""Places of tokens as the published maps draw them, for models whose tokens are no places too."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import attnviz as av
from attnviz.model_state import frozen
from attnviz.places import Layout
from attnviz.token_places import Places, RecordPlaces

DRAWN = "as the published map draws it: the tokens row by row"


def published_layout(model: nn.Module, images: Tensor) -> Layout:
    """Measured places, and for square attention without them the grid of the published map.

    A `reshape` where a transpose belongs leaves tokens that are no places. The author drew them
    row by row on a square all the same, and it is this map that is to be scored.

    Args:
        model: In any mode, on any device.
        images: `(b, c, h, w)`; one is enough.
    """
    images = images[:1].to(next(model.parameters()).device)
    layout = av.locate(model, images)
    without = [name for name, one in layout.items() if not any(c >= 0 for c in one.keys.cell)]
    if not without:
        return layout
    with torch.no_grad(), frozen(model), av.watch(model, empty=True, reduce="received") as seen:
        model(images)
    drawn = {}
    for name in without:
        tokens = seen[name].shape[-1]
        side = math.isqrt(tokens)
        if seen[name].shape[-2] == tokens == side * side:
            places = Places.row_by_row((side, side), status="given", reason=DRAWN)
            drawn[name] = RecordPlaces(places, places)
    return Layout({**layout, **drawn}, layout.passes)
