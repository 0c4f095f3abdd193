"""Maps of gates: gate values by place, and gated activations."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from attnviz.errors import InputError
from attnviz.maps.constructions import construction
from attnviz.maps.geometry import Grid, Interpolation, Watched, name_of, not_one_record, resized
from attnviz.maps.placement import Given, Known, laid, places_of, side_of
from attnviz.shapes import Images, Maps
from attnviz.token_places import REMEDY


@construction(
    title="spatial gate",
    meaning="mean over channels of the gate",
    subject="spatial gate",
    primary=lambda record: True,
)
def gate_map(
    record: Watched | Float[Tensor, "b c h w"],
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    layout: Known = None,
) -> Maps:
    """How far a spatial gate is open at each place: `M[y, x] = mean_c g[c, y, x]`.

    A spatial gate (CBAM, BAM) has one channel, and the mean is its value; a gate with its own
    value per channel and place is averaged over channels.

    Args:
        record: A gate's record, or its scale `(b, 1, h, w)`.
        size: `(h, w)` of the map; None keeps the grid of places.
        interpolation: How it is resized: `bilinear` (pixel centres aligned), `nearest`, `bicubic`.
        layout: Where the gate's cells lie, as `locate` returns it; the record's own places if not
            given. Cells of a feature map that ends before the image does, or that was cut out of
            it, are drawn where they lie, and the rest of the map is zero.

    Returns:
        `(b, h, w)`, raw float32, in the gate's own range (0 to 1 after a sigmoid).

    Raises:
        InputError: An attention record, a channel gate, which has no places, or a watched gate
            whose places are unknown.
    """
    scale = _scale_of(record)
    if scale.shape[-2:] == (1, 1):
        raise InputError(
            f"gate_map: {name_of(record)} is a channel gate {tuple(scale.shape)} and has no "
            "places; use channel_gated(record, features), the features being what it multiplies"
        )
    values = scale.float().mean(1)
    return resized(_laid(record, values, layout), size, interpolation)


@construction(
    title="channel-gated features",
    meaning="features weighted by the centred gate",
    subject="channel gate",
    primary=lambda record: True,
    features=True,
)
def channel_gated(
    record: Watched | Float[Tensor, "b c 1 1"],
    features: Images | None = None,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    layout: Known = None,
) -> Maps:
    """Activation of the channels that a gate prefers: `M[y, x] = mean_c (g_c − mean g) x_c[y, x]`.

    A channel gate has no places of its own. Centring its scales takes away what a gate that is
    equally open everywhere would show (the plain activation), so that the map is zero for a gate
    without a preference, positive where preferred channels are active and negative where the
    suppressed ones are.

    Args:
        record: A channel gate's record, or its scale `(b, c, 1, 1)`.
        features: `(b, c, h, w)`, the tensor that the gate multiplies; None takes the record's own,
            where the watch kept it.
        size: `(h, w)` of the map; None keeps the grid of places.
        interpolation: How it is resized.
        layout: Where the features' cells lie, as for `gate_map`.

    Returns:
        `(b, h, w)`, raw float32, signed, in the features' unit.

    Raises:
        InputError: An attention record, a spatial gate, no features, features that do not fit, or
            whose places are unknown.
    """
    scale = _scale_of(record)
    if scale.shape[-2:] != (1, 1):
        raise InputError(
            f"channel_gated: {name_of(record)} is a spatial gate {tuple(scale.shape)}; use gate_map"
        )
    own = getattr(record, "features", None)
    if features is None:
        features = own
    if features is None:
        raise InputError(
            f"channel_gated: {name_of(record)} kept no features: watch with features=True, or "
            "pass features=(b, c, h, w), the tensor that the gate multiplies"
        )
    if features.ndim != 4 or features.shape[:2] != scale.shape[:2]:
        raise InputError(
            f"channel_gated: expected features (b, c, h, w) with (b, c) = {tuple(scale.shape[:2])} "
            f"like the gate {name_of(record)}, got {tuple(features.shape)}"
        )
    scale = scale.float()
    preference = scale - scale.mean(1, keepdim=True)
    values = (preference * features.float()).mean(1)
    fits = own is not None and own.shape[-2:] == features.shape[-2:]
    return resized(_laid(record if fits else scale, values, layout), size, interpolation)


def _laid(record: Watched | Tensor, values: Tensor, layout: Known) -> Tensor:
    """Values `(b, h, w)` of a feature map's cells, where these lie on the image."""
    own = None if isinstance(record, Tensor) else getattr(record, "places", None)
    if own is None and layout is None:
        return values
    if isinstance(layout, Mapping) and not isinstance(record, Tensor) and record.name not in layout:
        layout = None  # a layout of attention, and of gates that were not followed
    known = places_of(record, "keys", values.shape[1:].numel(), Given(layout=layout))
    if not known.known:
        raise InputError(
            f"{name_of(record)}: where the feature map that it gates lies on the image is unknown "
            f"({known.reason}); {REMEDY}"
        )
    if known.image is None and (1 in values.shape[1:]):
        h, w = values.shape[1:]
        rest = len(known.cell) // (h * w)
        values = values.expand(-1, h * rest if h == 1 else h, w * rest if w == 1 and h > 1 else w)
    if known.grid == tuple(values.shape[1:]) and known.cell == tuple(range(len(known.cell))):
        return values
    flat = values.flatten(1)
    return laid(flat[:, None], side_of(record, "keys", len(flat), flat.shape[1], known))[:, 0]


def _scale_of(record: Watched | Tensor) -> Tensor:
    if not isinstance(record, Tensor) and not hasattr(record, "scale"):
        raise not_one_record(record)
    scale = record if isinstance(record, Tensor) else record.scale
    if scale is None:
        kind = getattr(record, "kind", "tensor")
        raise InputError(
            f"{name_of(record)} is {kind} and has no scale: "
            "this map is made of gates; for attention use received, query_row or class_row"
        )
    if scale.ndim != 4:
        raise InputError(
            f"{name_of(record)}: expected a gate (b, c, 1, 1) or (b, 1, h, w), "
            f"got {tuple(scale.shape)}"
        )
    return scale
