"""Places of tokens: the grid cell of each token of a sequence.

A token is a place if it belongs to one cell of a grid over the image. Class and register tokens,
words, learned queries, padding and sampling points are no places and have the cell −1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from attnviz.errors import InputError

Sides: TypeAlias = tuple[int, ...]
"""The sides of a grid: `(h, w)`, `(t, h, w)` or `(n,)`."""

Role: TypeAlias = Literal[
    "place", "class", "register", "word", "query", "padding", "point", "global", "other"
]
"""Role of a token.

`"place"` a cell of the grid; `"class"` a token that the head reads;
`"register"` a token of parameters that it does not read; `"word"` a token of another input than the
image; `"query"` a learned query; `"padding"` a token that fills up; `"point"` a sampling point of
deformable attention; `"global"` a token made of the whole image; `"other"` a token that is no
place, of which no more is known.
"""

Status: TypeAlias = Literal["proven", "measured", "given", "unknown"]
"""How places are known: read off the ops that made the tokens, measured by `locate`, given by the
caller, or not."""

_PLACE: Role = "place"
_NO_PLACE: Role = "other"

NO_QUERIES = "a gate has no queries"
"""Why the queries of a gate are unknown; its keys are the places of what it multiplies."""

REMEDY = "call av.locate(model, images) and pass layout="
"""What to do where places are unknown."""


@dataclass(frozen=True)
class Places:
    """Which token is which place, for the queries or for the keys of one record.

    Attributes:
        grid: The sides of the grid over the image; None where no token is a place, where images
            lie on different grids (see `grids`), and where it is unknown.
        cell: For each token the number of its cell, counted row by row, or −1. Windows of one
            image follow each other.
        role: For each token what it is.
        image: For each token the number of its image, −1 for none. None where all
            images have their tokens in the same order, one image after the other; `cell` and
            `role` then describe one of them.
        grids: The grid of each image, where they differ.
        status: `"proven"`, `"measured"`, `"given"` or `"unknown"`.
        reason: Why places are unknown, or how they are known.
        error: The largest distance between a token's measured position and the centre of its cell,
            in cells; 0 for proven places, NaN where unknown.
    """

    grid: Sides | None = None
    cell: tuple[int, ...] = ()
    role: tuple[Role, ...] = ()
    image: tuple[int, ...] | None = None
    grids: tuple[Sides | None, ...] = ()
    status: Status = "unknown"
    reason: str = ""
    error: float = float("nan")

    def __post_init__(self) -> None:
        lengths = {len(self.cell), len(self.role)}
        if self.image is not None:
            lengths.add(len(self.image))
        if len(lengths) > 1:
            raise InputError(
                f"Places: expected one cell, role and image per token, got {len(self.cell)} cells "
                f"and {len(self.role)} roles"
            )
        cells = _product(self.grid) if self.grid is not None else None
        if cells is not None and any(c >= cells or c < -1 for c in self.cell):
            raise InputError(
                f"Places: expected cells from −1 to {cells - 1} for a grid {self.grid}"
            )

    def __len__(self) -> int:
        return len(self.cell)

    @property
    def known(self) -> bool:
        """Whether places are proven, measured or given."""
        return self.status != "unknown"

    def row_by_row_from(self, lead: int) -> bool:
        """Whether the tokens after some leading ones lie row by row; True where it is unknown."""
        if not self.known or self.grid is None:
            return True
        first = [c >= 0 for c in self.cell].index(True) if max(self.cell, default=-1) >= 0 else 0
        own = self.cell[first:]
        return first in (0, lead) and own == tuple(range(len(own)))

    @property
    def images(self) -> int | None:
        """How many images the tokens belong to; None where they describe any one image."""
        if self.image is None:
            return None
        return max(len(self.grids), 1 + max(self.image, default=-1))

    def of(self, image: int) -> Places:
        """The places of one image alone; tokens of the others become `"other"`.

        Raises:
            InputError: There is no such image.
        """
        if self.image is None:
            return self
        count = self.images or 0
        if not 0 <= image < count:
            raise InputError(f"Places.of: expected an image below {count}, got {image}")
        own, none = [i == image for i in self.image], _NO_PLACE
        return replace(
            self,
            grid=self.grids[image] if self.grids else self.grid,
            cell=tuple(c if mine else -1 for c, mine in zip(self.cell, own, strict=True)),
            role=tuple(
                r if mine or i < 0 else none
                for r, mine, i in zip(self.role, own, self.image, strict=True)
            ),
            image=tuple(0 if mine else -1 for mine in own),
            grids=(),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain lists, numbers and strings, for JSON."""
        return {
            "grid": None if self.grid is None else list(self.grid),
            "cell": list(self.cell),
            "role": list(self.role),
            "image": None if self.image is None else list(self.image),
            "grids": [None if grid is None else list(grid) for grid in self.grids],
            "status": self.status,
            "reason": self.reason,
            "error": None if self.error != self.error else self.error,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Places:
        """Places from what `to_dict` returned."""
        grid, image, error = values["grid"], values["image"], values["error"]
        return cls(
            None if grid is None else tuple(grid),
            tuple(values["cell"]),
            tuple(values["role"]),
            None if image is None else tuple(image),
            tuple(None if sides is None else tuple(sides) for sides in values["grids"]),
            values["status"],
            values["reason"],
            float("nan") if error is None else float(error),
        )

    @classmethod
    def row_by_row(
        cls, grid: Sequence[int], before: Sequence[Role] = (), *, status: Status = "proven",
        reason: str = "",
    ) -> Places:  # fmt: skip
        """Tokens that lie on a grid row by row, after some that are no places.

        Args:
            grid: `(h, w)` or `(t, h, w)`.
            before: The roles of leading tokens.
            status: How this is known.
            reason: From where.
        """
        sides = tuple(int(side) for side in grid)
        cells = _product(sides)
        return cls(
            sides,
            (*(-1 for _ in before), *range(cells)),
            (*before, *([_PLACE] * cells)),
            status=status,
            reason=reason,
            error=0.0,
        )

    def __str__(self) -> str:
        if not self.known:
            return f"unknown: {self.reason}"
        grid = "×".join(map(str, self.grid)) if self.grid else "no grid"
        if self.grids:
            grid = ", ".join("×".join(map(str, one)) if one else "–" for one in self.grids)
        counts = {role: self.role.count(role) for role in dict.fromkeys(self.role)}
        told = ", ".join(f"{n} {_plural(role, n)}" for role, n in counts.items())
        return f"{grid} ({told})"


@dataclass(frozen=True)
class RecordPlaces:
    """The places of one record.

    Attributes:
        queries: Of its queries.
        keys: Of its keys.
    """

    queries: Places
    keys: Places

    def to_dict(self) -> dict[str, Any]:
        """The same as plain lists, numbers and strings, for JSON."""
        return {"queries": self.queries.to_dict(), "keys": self.keys.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecordPlaces:
        """Places from what `to_dict` returned."""
        return cls(*(Places.from_dict(values[side]) for side in ("queries", "keys")))


def _plural(role: str, count: int) -> str:
    if role in ("padding", "global", "other") or count == 1:
        return role
    return {"class": "class", "query": "queries"}.get(role, f"{role}s")


def _product(sides: Sides) -> int:
    total = 1
    for side in sides:
        total *= side
    return total
