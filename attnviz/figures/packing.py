"""One block of bytes for the gallery: images, maps and masks, in the order the browser reads.

The block is a little-endian header length, a checksum, a JSON header, and the parts it names. The
images travel as one WebP picture, the maps as 16-bit numbers each scaled to its own range, the
masks as bits. Nothing in it is parsed as HTML. The dashboard's components and the notebook's widget
read the same blocks.

Each palette is its matplotlib namesake at 17 anchors, so that the browser interpolates it without a
table of its own.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image

_ANCHORS = {
    "inferno": "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
    "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4",
    "viridis": "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
    "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725",
    "magma": "000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 "
    "d0416f e75263 f56b5c fc8961 fea772 fec488 fde2a3 fcfdbf",
    "cividis": "00224e 002e6a 1a386f 32436d 434e6c 535a6d 61656f 6f7073 7d7c78 "
    "8c8878 9b9476 aba072 bcae6c cdbb63 dec958 f0d846 fee838",
    "gray": "000000 101010 202020 303030 404040 505050 606060 707070 808080 "
    "909090 a0a0a0 b0b0b0 c0c0c0 d0d0d0 e0e0e0 f0f0f0 ffffff",
}
PALETTES = {name: [int(c, 16) for c in text.split()] for name, text in _ANCHORS.items()}
"""Name → anchors from low to high, each a packed 0xRRGGBB."""

ATLAS_COLUMNS = 8
_WIDE = 2_000_000  # bytes of 16-bit maps; beyond it they travel in 8 bits


@dataclass(frozen=True)
class Tile:
    """One picture of the gallery.

    Attributes:
        key: The value returned when the tile is opened.
        title: The bold line below the picture.
        lines: The further lines.
        alt: The picture in words, with its number.
        image: Its place among the images of the block.
        box: `(x0, y0, x1, y1)` with x1 and y1 outside, or None where there is none.
    """

    key: str
    title: str
    lines: tuple[str, ...]
    alt: str
    image: int
    box: tuple[int, ...] | None = None


@dataclass(frozen=True)
class MapLayer:
    """One map of every tile.

    Attributes:
        name: Its key in the address.
        label: Its name for the reader.
        values: `(n, h, w)`.
        threshold: The threshold calibrated on the validation images.
        words: One line per tile that is shown while this map is.
        from_zero: Whether colours begin at zero, as the energy counts, and what is negative is
            left out; else at the map's least value, as the IoU's threshold counts.
        shared: Whether all tiles have one scale, from zero to the greatest value of all.
    """

    name: str
    label: str
    values: np.ndarray = field(repr=False)
    threshold: float = 0.5
    words: tuple[str, ...] = ()
    from_zero: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Settings:
    """What a reader can change in the browser; `map` counts the layers."""

    map: int = 0
    threshold: float = 0.5
    opacity: float = 0.6
    colours: str = "inferno"
    box: bool = True


def pack(
    images: np.ndarray,
    tiles: Sequence[Tile],
    layers: Sequence[MapLayer],
    masks: np.ndarray | None,
    *,
    settings: Settings,
    label: str,
    controls: bool = True,
    opens: bool = True,
    arrows: bool = True,
    steps: str = "",
    counted: str = "images",
    tile: float = 7.0,
    pairs: bool = False,
    title: str = "",
    remembers: bool = False,
    scale: tuple[str, str] | None = None,
    iou: bool = True,
    columns: int = 0,
) -> bytes:
    """Pack the content of a gallery as bytes.

    Args:
        images: `(k, h, w, 3)` uint8, each once, however many tiles show it.
        tiles: What is shown, in order.
        layers: The maps, each with one entry per tile.
        masks: `(tiles, h, w)` bool; None leaves outlines and the IoU out.
        settings: Where the controls stand at first.
        label: Description of this list, for a screen reader.
        controls: Whether threshold, opacity, box and colours can be changed.
        opens: Whether a tile can be opened.
        arrows: Whether the arrow keys walk from tile to tile.
        steps: If given, the layers are steps of this name, under a slider.
        counted: What the tiles are, in the line with the mean.
        tile: The least width of a tile, in rem.
        pairs: Whether two and two belong together and stay on one line.
        title: What the tiles are, as the heading of a file; empty where none can be saved.
        remembers: Whether settings are sent to the server and kept in the address.
        scale: What the ends of the colour bar are, in words.
        iou: Whether the IoU with the masks is shown; else they are outlined only.
        columns: How many tiles stand in a row; 0 for as many as fit.
    """
    h, w = images.shape[1:3]
    parts: list[bytes] = []
    atlas = _part(parts, _atlas(images))
    small = sum(layer.values.size * 2 for layer in layers) <= _WIDE
    maps = [_layer(parts, layer, 16 if small else 8) for layer in layers]
    bits = None if masks is None else _part(parts, np.packbits(masks).tobytes())
    head = {
        "tiles": [asdict(t) for t in tiles],
        "side": [int(w), int(h)],
        "atlas": atlas,
        "pictures": len(images),
        "maps": maps,
        "masks": bits,
        "columns": columns,
        "iou": iou and masks is not None,
        "settings": asdict(settings),
        "palettes": PALETTES,
        "label": label,
        "controls": controls,
        "opens": opens,
        "arrows": arrows,
        "steps": steps,
        "counted": counted,
        "tile": tile,
        "pairs": pairs,
        "title": title,
        "remembers": remembers,
        "scale": list(scale or _ends(layers)),
    }
    return _block(head, parts)


def _ends(layers: Sequence[MapLayer]) -> tuple[str, str]:
    """The ends of the colour bar: of one scale with its numbers, of each map's own in words."""
    if layers and layers[0].shared:
        finite = layers[0].values[np.isfinite(layers[0].values)]
        return "0", f"{finite.max() if finite.size else 0:.3g}, the greatest of all"
    if layers and layers[0].from_zero:
        return "0", "each map's greatest value"
    return "each map's least value", "its greatest"


def with_settings(block: bytes, settings: Settings, *, change: int = 0) -> bytes:
    """The same tiles with other settings; the browser keeps what it has painted.

    Args:
        block: What `pack` returned.
        settings: Where the controls stand.
        change: Number of the last change by the reader that the settings hold.
    """
    length, checksum = struct.unpack("<II", block[:8])
    head = json.loads(block[8 : 8 + length]) | {"settings": asdict(settings), "change": change}
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    return struct.pack("<II", len(text), checksum) + text + block[8 + length :]


def pack_rows(
    image: np.ndarray,
    rows: np.ndarray,
    *,
    query_grid: tuple[int, int],
    key_grid: tuple[int, int],
    prefix: int = 0,
    box: tuple[int, int, int, int] | None = None,
    colours: str = "inferno",
    names: Sequence[str] = (),
    linked: str = "",
    shared: bool = False,
) -> bytes:
    """One image's full attention for the picker.

    Args:
        image: `(h, w, 3)` uint8.
        rows: `(heads, q, keys)`, each row summing to one.
        query_grid: How many rows and columns of places the queries are.
        key_grid: The same of the keys.
        prefix: How many class and register tokens come before the places, among both.
        box: `(x0, y0, x1, y1)` with x1 and y1 outside, or None where there is none.
        colours: The colour map.
        names: What the heads are called; "head 1" and so on unless given.
        linked: Pickers of one name move together.
        shared: Whether all heads have one colour scale.

    Raises:
        ValueError: The grids do not account for the queries and keys.
    """
    heads, queries, keys = rows.shape
    extra_q = queries - query_grid[0] * query_grid[1]
    extra_k = keys - key_grid[0] * key_grid[1]
    if extra_q not in (0, prefix) or extra_k not in (0, prefix):
        raise ValueError(
            f"attention of {queries} places to {keys} does not fit the grids {query_grid} and "
            f"{key_grid} with {prefix} leading tokens"
        )
    parts: list[bytes] = []
    cover = coverage(box, image.shape[:2], key_grid)
    inside = np.flatnonzero(coverage(box, image.shape[:2], query_grid).ravel() >= 0.5)
    outside = np.setdiff1d(np.arange(query_grid[0] * query_grid[1]), inside)
    top = rows.max(axis=-1, keepdims=True)
    small = np.rint(255 * np.divide(rows, top, out=np.zeros_like(rows), where=top > 0))
    head = {
        "image": _part(parts, _atlas(image[None])),
        "rows": _part(parts, small.astype(np.uint8).tobytes()),
        "tops": _part(parts, (top[..., 0] / 255).astype("<f4").tobytes()),
        "names": list(names) or [f"head {i}" for i in range(1, heads + 1)],
        "linked": linked,
        "shared": shared,
        "shares": _part(parts, _shares(rows[..., extra_k:], cover).astype("<f4").tobytes()),
        "heads": heads,
        "queries": queries,
        "keys": keys,
        "prefix": extra_k,
        "prefix_q": extra_q,
        "query": list(query_grid),
        "key": list(key_grid),
        "box": None if box is None else list(box),
        "inside": [] if box is None else (inside + extra_q).tolist(),
        "outside": [] if box is None else (outside + extra_q).tolist(),
        "chance": float(cover.mean()),
        "place": _middle(box, image.shape[:2], query_grid),
        "palette": PALETTES[colours],
    }
    return _block(head, parts)


def _shares(rows: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """How much of each row lies in the box, `(heads, q)`, before rows are rounded to bytes."""
    total = rows.sum(axis=-1)
    inside = rows @ cover.ravel()
    return np.asarray(np.divide(inside, total, out=np.zeros_like(total), where=total > 0))


def pack_image(image: np.ndarray, *, x: int, y: int, size: int) -> bytes:
    """One image `(h, w, 3)` for the pointer, with a square of `size` pixels at `(x, y)`."""
    parts: list[bytes] = []
    head = {"image": _part(parts, _atlas(image[None])), "x": x, "y": y, "size": size}
    return _block(head, parts)


def pack_points(
    x: np.ndarray,
    y: np.ndarray,
    wrong: np.ndarray,
    *,
    names: tuple[str, str],
    brush: tuple[tuple[float, float] | None, tuple[float, float] | None],
    label: str,
) -> bytes:
    """Dots for the explorer: two finite values per image, and whether its answer was wrong."""
    parts: list[bytes] = []
    head: dict[str, object] = {
        "x": _part(parts, x.astype("<f4").tobytes()),
        "y": _part(parts, y.astype("<f4").tobytes()),
        "wrong": _part(parts, wrong.astype(np.uint8).tobytes()),
        "names": list(names),
        "across": _range(x),
        "up": _range(y),
        "brush": [None if one is None else list(one) for one in brush],
        "label": label,
    }
    return _block(head, parts)


def _range(values: np.ndarray) -> list[float]:
    """From the least to the greatest value, never of no length."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return [low, high] if high > low else [low - 0.5, high + 0.5]


def coverage(
    box: tuple[int, int, int, int] | None, size: tuple[int, int], grid: tuple[int, int]
) -> np.ndarray:
    """How much of each place of a grid a box covers, `(rows, columns)` from 0 to 1."""
    if box is None:
        return np.zeros(grid)
    edges = [np.linspace(0, length, cells + 1) for length, cells in zip(size, grid, strict=True)]
    x0, y0, x1, y1 = box
    shares = []
    for (low, high), edge in zip(((y0, y1), (x0, x1)), edges, strict=True):
        overlap = np.minimum(high, edge[1:]) - np.maximum(low, edge[:-1])
        shares.append(np.clip(overlap, 0, None) / np.diff(edge))
    return np.outer(*shares)


def _middle(
    box: tuple[int, int, int, int] | None, size: tuple[int, int], grid: tuple[int, int]
) -> list[int]:
    """The place in the middle of the box, or of the image."""
    x0, y0, x1, y1 = box or (0, 0, size[1], size[0])
    centre = ((y0 + y1) / 2 / size[0], (x0 + x1) / 2 / size[1])
    return [min(int(at * cells), cells - 1) for at, cells in zip(centre, grid, strict=True)]


def _block(head: dict[str, object], parts: list[bytes]) -> bytes:
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    body = b"".join(parts)
    shown = {name: value for name, value in head.items() if name != "settings"}
    checksum = zlib.crc32(json.dumps(shown).encode() + body)  # settings are no other tiles
    return struct.pack("<II", len(text), checksum) + text + body


def scaled_integers(
    values: np.ndarray, bits: int, *, from_zero: bool = False, shared: bool = False
) -> np.ndarray:
    """Each map `(n, h, w)` from its least, or from zero, to its greatest value, as integers.

    With `shared` all maps have one scale, from zero to the greatest value of all.

    A map without a range, or one with NaN or Inf, becomes zeros: the browser leaves it bare.
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    good = np.isfinite(flat).all(axis=1, keepdims=True)
    flat = np.where(good, flat, 0.0)
    low = np.zeros((len(flat), 1)) if from_zero or shared else flat.min(axis=1, keepdims=True)
    top = np.full((len(flat), 1), flat.max()) if shared else flat.max(axis=1, keepdims=True)
    span = top - low
    share = np.divide(flat - low, span, out=np.zeros_like(flat), where=span > 0).clip(0)
    most = (1 << bits) - 1
    whole = np.rint(share * most).astype("<u2" if bits == 16 else "u1")
    return np.asarray(whole.reshape(values.shape))


def _layer(parts: list[bytes], layer: MapLayer, bits: int) -> dict[str, object]:
    h, w = layer.values.shape[1:]
    whole = scaled_integers(layer.values, bits, from_zero=layer.from_zero, shared=layer.shared)
    place = _part(parts, whole.tobytes())
    shape = {"name": layer.name, "label": layer.label, "h": h, "w": w, "bits": bits}
    return {
        **shape,
        "threshold": layer.threshold,
        "words": list(layer.words),
        "zero": layer.from_zero or layer.shared,
        "shared": layer.shared,
        **place,
    }


def _part(parts: list[bytes], data: bytes) -> dict[str, int]:
    place = {"offset": sum(len(part) for part in parts), "length": len(data)}
    parts.append(data)
    return place


def _atlas(images: np.ndarray) -> bytes:
    n, h, w = images.shape[:3]
    columns, rows = min(n, ATLAS_COLUMNS), -(-n // ATLAS_COLUMNS)
    sheet = np.zeros((rows * h, max(columns, 1) * w, 3), np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, ATLAS_COLUMNS)
        sheet[y * h : (y + 1) * h, x * w : (x + 1) * w] = image
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=90, method=0)
    return buffer.getvalue()
