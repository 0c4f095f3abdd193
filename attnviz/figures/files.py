"""Write images atomically."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from attnviz.errors import unknown_name
from attnviz.figures.colour import pixels


def png_bytes(picture: Any, *, dpi: int = 200) -> bytes:
    """A picture, a Pillow image or a matplotlib figure as PNG.

    Args:
        picture: What `pixels` takes, or a `matplotlib.figure.Figure`.
        dpi: Dots per inch of a figure.

    Returns:
        The file's bytes; the same picture gives the same bytes.
    """
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        # Without this, the file names matplotlib's version and would change with it.
        picture.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    else:
        Image.fromarray(pixels(picture)).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def figure_bytes(figure: Any, kind: str, *, dpi: int = 200) -> bytes:
    """A matplotlib figure as PNG, SVG or PDF; the same figure gives the same bytes.

    Args:
        figure: The `matplotlib.figure.Figure`.
        kind: "png", "svg" or "pdf".
        dpi: Dots per inch, of a PNG.

    Raises:
        InputError: Another kind.
    """
    if kind == "png":
        return png_bytes(figure, dpi=dpi)
    unnamed = {"svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator", "Producer")}
    if kind not in unnamed:
        raise unknown_name("kind of figure", kind, ("png", *unnamed))
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "attnviz"}):
        figure.savefig(buffer, format=kind, metadata=dict.fromkeys(unnamed[kind]))
    return buffer.getvalue()


def save_png(picture: Any, path: str | os.PathLike[str], *, dpi: int = 200) -> Path:
    """Write a PNG atomically: to a temporary file, then renamed.

    Args:
        picture: As for `png_bytes`.
        path: Where to; its folder is made if need be.
        dpi: Dots per inch of a figure.

    Returns:
        The path.

    Raises:
        InputError: The path is inside a run's folder.
        RunError: It cannot be written; what was there before is untouched.
    """
    from attnviz.runs.outputs import write_output

    write_output(Path(path), png_bytes(picture, dpi=dpi))
    return Path(path)
