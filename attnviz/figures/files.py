"""A picture written whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from attnviz.errors import RunError
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


def save_png(picture: Any, path: str | os.PathLike[str], *, dpi: int = 200) -> Path:
    """Write a picture as PNG: aside first, then renamed, so that no reader meets a half.

    Args:
        picture: As for `png_bytes`.
        path: Where to; its folder is made if need be.
        dpi: Dots per inch of a figure.

    Returns:
        The path.

    Raises:
        RunError: It cannot be written; what was there before is untouched.
    """
    return write_whole(Path(path), png_bytes(picture, dpi=dpi))


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file aside, on to the disk, then rename it into place.

    Raises:
        RunError: It cannot be written; what was there before is untouched.
    """
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644 & ~_umask())
        os.replace(aside, path)
    except OSError as error:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _umask() -> int:
    """The process's mask; there is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
