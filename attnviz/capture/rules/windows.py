"""Rules for what happens to a feature map before it is cut into windows: a roll, a padding."""

from __future__ import annotations

from typing import Any

from attnviz.capture.provenance import Tag
from attnviz.capture.registry import rule
from attnviz.capture.session import Session
from attnviz.capture.windows import Move


@rule("aten.roll.default")
def roll(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Remember by how much a feature map `(b, h, w, c)` was rolled; a rolled gate is one."""
    out = func(*args, **kwargs)
    shifts, dims = args[1], args[2] if len(args) > 2 else ()
    x = args[0]
    known = session.tags.get(x)
    if known is not None and known.kind == "gate":
        session.tags.carry(known, x, out)
    elif x.dim() == 4 and sorted(d % 4 for d in dims) in ([1, 2], [2, 3]):
        tag = session.tags.get(x)
        before = tag.extra if tag is not None and tag.kind == "moved" else Move()
        by = dict(zip((d % 4 for d in dims), shifts, strict=True))
        shift = (int(by[min(by)]), int(by[max(by)]))
        move = Move(shift, before.grid, before.grid is None)
        session.tags.put(out, Tag("moved", extra=move))
    return out


@rule("aten.constant_pad_nd.default")
def pad(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """Remember the size of a feature map that is padded below and to the right."""
    out = func(*args, **kwargs)
    x, by = args[0], list(args[1])
    tag = session.tags.get(x)
    if x.dim() == 4 and len(by) >= 4 and not any(by[::2]):
        if len(by) == 6 and not by[1]:
            grid = (x.shape[1], x.shape[2])
        elif len(by) == 4:
            grid = (x.shape[2], x.shape[3])
        else:
            return out
        before = tag.extra if tag is not None and tag.kind == "moved" else Move()
        session.tags.put(out, Tag("moved", extra=Move(before.shift, grid, before.shift != (0, 0))))
    return out
