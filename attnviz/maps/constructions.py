"""The table of map constructions: what each one draws, what it needs, when it is primary.

A construction is a function from a record (or from the records of all layers) to maps `(b, h, w)`.
`@construction(...)` above the function enters it here, and everything that chooses, names or
explains a map reads this table: `maps_of`, `primary`, evaluation, the command line, the doctor and
the dashboard. Other packages register their maps the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from torch import Tensor

from attnviz.display import html_of
from attnviz.errors import InputError, unknown_name
from attnviz.maps.geometry import Grid, Interpolation, listed

Subject: TypeAlias = Literal["attention", "layers", "spatial gate", "channel gate"]
"""What a construction reads: one attention record, those of all layers, or one gate."""

_RANK: dict[str, int] = {"attention": 0, "spatial gate": 1, "channel gate": 2}
"""Preference of record kinds for a model's primary map: the lowest that has a map."""

Function = TypeVar("Function", bound=Callable[..., Tensor])


@dataclass(frozen=True)
class Construction:
    """One way to draw maps.

    Attributes:
        key: The function's name, and the map's name in scores and runs.
        title: What it is called in a sentence, such as `"attention received"`.
        meaning: What it computes, in a few words, such as `"mean over queries"`.
        source: The publication it comes from, or empty.
        subject: What it reads.
        draw: `(record, size=, interpolation=, …) -> (b, h, w)`; for `"layers"` the first argument
            is a sequence of records.
        primary: Whether it is the map to show of this record; None where it never is.
        reduce: The reduction of `watch` that keeps all it needs, in place of whole weights.
        features: Whether the watch must keep what a gate multiplies (`features=True`).
        gradient: Whether it needs `keep_graph=True` and the model's outputs.
        per_head: Whether it takes `heads="each"` and returns `(b, heads, h, w)`.
    """

    key: str
    title: str
    meaning: str
    source: str
    subject: Subject
    draw: Callable[..., Tensor]
    primary: Callable[[Any], bool] | None = None
    reduce: str | None = None
    features: bool = False
    gradient: bool = False
    per_head: bool = False

    def __str__(self) -> str:
        return f"{self.title}: {self.meaning}"


CONSTRUCTIONS: dict[str, Construction] = {}
"""Every construction by its key, in the order in which they are preferred."""


def construction(
    *,
    title: str,
    meaning: str,
    subject: Subject,
    source: str = "",
    primary: Callable[[Any], bool] | None = None,
    reduce: str | None = None,
    features: bool = False,
    gradient: bool = False,
    per_head: bool = False,
) -> Callable[[Function], Function]:
    """Register the decorated function as a construction; it is returned unchanged.

    Args:
        title: What the map is called in a sentence.
        meaning: What it computes, in a few words.
        subject: What it reads: `"attention"`, `"layers"`, `"spatial gate"` or `"channel gate"`.
        source: The publication it comes from.
        primary: Predicate: whether this is the map to show of a record. Of several, the one
            registered first is taken.
        reduce: The reduction of `watch` that keeps all it needs.
        features: It needs `watch(features=True)`.
        gradient: It needs `watch(keep_graph=True)`, `outputs=` and `target=`.
        per_head: It takes `heads="each"`.

    Raises:
        InputError: A construction of this name exists, or the subject is unknown.

    Examples:
        >>> import attnviz as av
        >>> from attnviz.maps import construction
        >>> @construction(title="strongest query", meaning="max over queries", subject="attention")
        ... def strongest_query(record, size=None, interpolation="bilinear"):
        ...     return av.received(record.weights.amax(2, keepdim=True), size, interpolation,
        ...                        grid=record.key_grid)
    """
    if subject not in (*_RANK, "layers"):
        raise unknown_name("construction: subject", subject, [*_RANK, "layers"])

    def enter(draw: Function) -> Function:
        key = draw.__name__
        if key in CONSTRUCTIONS:
            raise InputError(f"construction: {key!r} is registered already; choose another name")
        CONSTRUCTIONS[key] = Construction(
            key,
            title,
            meaning,
            source,
            subject,
            draw,
            primary,
            reduce,
            features,
            gradient,
            per_head,
        )
        return draw

    return enter


def named(key: str) -> Construction:
    """The construction of this name.

    Raises:
        InputError: There is none; the message lists those there are.
    """
    if key not in CONSTRUCTIONS:
        raise unknown_name("map", key, list(CONSTRUCTIONS))
    return CONSTRUCTIONS[key]


def subject_of(record: Any) -> Subject | None:
    """The subject kind of a record; None for a gate without places or channels."""
    if record.kind == "attention":
        return "attention"
    axis = getattr(record, "axis", None)
    if axis == "channel" or _one_by_one(record):
        return "channel gate"
    return "spatial gate" if axis in ("spatial", "element", "rows", "columns", None) else None


def _one_by_one(record: Any) -> bool:
    return record.scale is not None and tuple(record.scale.shape[-2:]) == (1, 1)


def primary(record: Any) -> Construction | None:
    """The primary construction of one record.

    Attention gives its class token's row where it has one, and what each place receives where it
    has none; a spatial gate its values; a channel gate the channels that it prefers.

    Args:
        record: A record of `attnviz.watch`.

    Returns:
        The construction, or None where the record has no map (a gate over branches or images).
    """
    (record,) = listed([record], "primary", tensors=False)
    subject = subject_of(record)
    for one in CONSTRUCTIONS.values():
        if one.subject == subject and one.primary is not None and one.primary(record):
            return one
    return None


@dataclass(frozen=True)
class Drawing:
    """One map that a capture can give, before it is drawn.

    Attributes:
        name: The construction's key; with the layer's name behind it (`received.blocks.3.attn`)
            where a later layer has the same construction.
        construction: How it is drawn.
        layer: The dotted name of the layer; of several layers that of the last.
        records: What it is drawn from.
    """

    name: str
    construction: Construction
    layer: str
    records: tuple[Any, ...]

    def draw(self, **options: Any) -> Tensor:
        """The maps `(b, h, w)`; options are those of the construction.

        Raises:
            InputError: The construction's error for records that it cannot draw.
        """
        subject = self.records if self.construction.subject == "layers" else self.records[0]
        return self.construction.draw(subject, **options)


@dataclass(frozen=True)
class DrawnMaps(Mapping[str, Tensor]):
    """The maps of a capture by name, and why others are missing.

    Attributes:
        maps: Name → `(b, h, w)`.
        drawings: Name → how and from which layer it was drawn.
        left_out: Name → why there is no such map, and what helps.
        primary: The name of the model's primary map; None where there is no map.
    """

    maps: dict[str, Tensor]
    drawings: dict[str, Drawing]
    left_out: dict[str, str] = field(default_factory=dict)
    primary: str | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name in self.left_out:
            raise InputError(f"no map {name!r}: {self.left_out[name]}")
        if name not in self.maps:
            raise unknown_name("map", name, list(self.maps))
        return self.maps[name]

    def __contains__(self, name: object) -> bool:
        return name in self.maps

    def __iter__(self) -> Iterator[str]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)

    def _repr_html_(self) -> str:
        return html_of(self)

    def __str__(self) -> str:
        lines = [
            f"{'*' if name == self.primary else ' '} {name} {tuple(one.shape)}  "
            f"{self.drawings[name].construction}"
            for name, one in self.maps.items()
        ]
        lines += [f"  no {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines) or "no maps"


def drawings(capture: Mapping[str, Any], names: Sequence[str] | None = None) -> list[Drawing]:
    """The maps that a capture can give, the model's primary one first.

    The last layer of a kind has the construction's plain name, the earlier ones carry theirs.
    Attention comes before spatial gates, and these before channel gates.

    Args:
        capture: What `watch` yields, or records by name.
        names: Keys of constructions; None takes the primary one of each record, and `rollout`
            where the layers have a class token.

    Raises:
        InputError: An unknown construction.
    """
    chosen = None if names is None else [named(key) for key in names]
    records = listed(capture, "maps_of", tensors=False)
    found: list[Drawing] = []
    for record in reversed(records):
        for one in _for_record(record, chosen):
            plain = all(other.construction is not one for other in found)
            name = one.key if plain else f"{one.key}.{record.name}"
            found.append(Drawing(name, one, record.name, (record,)))
    found.sort(key=lambda drawing: _RANK[drawing.construction.subject])
    return found + _through_layers(records, chosen, found)


def _for_record(record: Any, chosen: list[Construction] | None) -> list[Construction]:
    if chosen is None:
        one = primary(record)
        return [] if one is None else [one]
    subject = subject_of(record)
    return [one for one in chosen if one.subject == subject]


def _through_layers(
    records: Iterable[Any], chosen: list[Construction] | None, found: Sequence[Drawing]
) -> list[Drawing]:
    attending = tuple(record for record in records if record.kind == "attention")
    if chosen is None:
        with_class_token = any(drawing.construction.key == "class_row" for drawing in found)
        chosen = [CONSTRUCTIONS["rollout"]] if with_class_token else []
    return [
        Drawing(one.key, one, attending[-1].name, attending)
        for one in chosen
        if one.subject == "layers" and attending
    ]


def maps_of(
    capture: Mapping[str, Any],
    names: Sequence[str] | None = None,
    *,
    only: Container[str] | None = None,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    outputs: Tensor | None = None,
    target: Any = None,
) -> DrawnMaps:
    """Draw the maps of all records of a watch.

    Args:
        capture: What `watch` yields, or records by name.
        names: Keys of `CONSTRUCTIONS`, drawn of every record that they fit; None takes the primary
            one of each record, and `rollout` where there is a class token.
        only: Names of maps, such as `"received"` or `"received.blocks.3.attn"`; others are not
            drawn.
        size: `(h, w)` of the maps; None keeps each record's own grid.
        interpolation: How they are resized.
        outputs: The model's outputs with their graph, for constructions that need a gradient.
        target: Which output these explain.

    Returns:
        Maps by name; `left_out` has the reason for each record without one, `primary` the name of
        the model's primary map.

    Raises:
        InputError: An unknown construction.
    """
    maps: dict[str, Tensor] = {}
    drawn: dict[str, Drawing] = {}
    left_out: dict[str, str] = {}
    first: str | None = None
    for drawing in drawings(capture, names):
        if only is not None and drawing.name not in only:
            continue
        gradient = {"outputs": outputs, "target": target} if drawing.construction.gradient else {}
        try:
            maps[drawing.name] = drawing.draw(size=size, interpolation=interpolation, **gradient)
        except InputError as error:
            left_out[drawing.name] = str(error)
            continue
        drawn[drawing.name] = drawing
        first = first or drawing.name
    return DrawnMaps(maps, drawn, left_out, first)


def watch_options(chosen: Iterable[Construction]) -> dict[str, Any]:
    """The options of `watch` with which these constructions can be drawn, and no more is kept.

    Args:
        chosen: Constructions that are drawn of one forward pass.

    Returns:
        Keyword arguments: `reduce` where every construction reads a reduction, `features` and
        `keep_graph` where one needs them.
    """
    listed = list(chosen)
    attention = [one for one in listed if one.subject in ("attention", "layers")]
    options: dict[str, Any] = {}
    if any(one.gradient for one in listed):
        options["keep_graph"] = True
    elif attention and all(one.reduce for one in attention):
        options["reduce"] = tuple(dict.fromkeys(str(one.reduce) for one in attention))
    if any(one.features for one in listed):
        options["features"] = True
    return options
