"""A record's maps: `(b, h, w)`, raw float32, one per image.

A *construction* turns attention `(b, heads, q, k)` or a gate into a map of places. On
one and the same image two constructions can correlate at .99 or at .01, so a map is always shown
with the construction's name. Nothing here is normalised; resizing is stated and nothing else.

* of one record's weights: `received`, `query_row`, `key_column`, `rows_inside`, `class_row`,
  `head_mean`, `head_max`, `head_min`
* of words, through layers and forward passes: `token_map` (where a word of the answer or the prompt
  attends), `key_map` (where a word is used, in diffusion)
* of a detector's object queries, with their boxes: `object_maps`
* through the layers: `rollout`, `gradient_weighted`
* weighed by a gradient: `gradient_weighted`, `attention_gradcam`
* of gates: `gate_map`, `channel_gated`

Each takes a record of `attnviz.watch`, anything that looks like one, or the bare tensor.
`constructions` is their table: `maps_of(capture)` draws the maps of a capture, `primary(record)`
selects the main map of one record, `@construction(...)` registers a custom map.
"""

from attnviz.maps.across_layers import attention_gradcam, gradient_weighted, rollout
from attnviz.maps.constructions import (
    CONSTRUCTIONS,
    Construction,
    Drawing,
    DrawnMaps,
    construction,
    drawings,
    maps_of,
    primary,
    watch_options,
)
from attnviz.maps.gates import channel_gated, gate_map
from attnviz.maps.geometry import Watched, resized
from attnviz.maps.key_maps import key_map
from attnviz.maps.object_maps import ObjectMaps, object_maps
from attnviz.maps.single_record import (
    class_row,
    head_max,
    head_mean,
    head_min,
    key_column,
    query_row,
    received,
    rows_inside,
)
from attnviz.maps.token_maps import token_map

__all__ = [
    "CONSTRUCTIONS",
    "Construction",
    "Drawing",
    "DrawnMaps",
    "ObjectMaps",
    "Watched",
    "attention_gradcam",
    "channel_gated",
    "class_row",
    "construction",
    "drawings",
    "gate_map",
    "gradient_weighted",
    "head_max",
    "head_mean",
    "head_min",
    "key_column",
    "key_map",
    "maps_of",
    "object_maps",
    "primary",
    "query_row",
    "received",
    "resized",
    "rollout",
    "rows_inside",
    "token_map",
    "watch_options",
]
