"""`show`: images with their maps, heads and attention, to look at in a notebook or a page."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnviz.capture import Record
from attnviz.data.samples import Sample, displayed
from attnviz.errors import InputError
from attnviz.figures import contact_sheet, overlay, pixels, png_bytes
from attnviz.figures.packing import MapLayer, Settings, Tile, pack, pack_rows
from attnviz.maps import drawings, maps_of
from attnviz.maps.geometry import resized
from attnviz.notebook.components import component, page, script

MOST = 64
"""Images of a view; more are too many to look at."""

_SIDE = 160  # the larger side of the images that are sent
_CLOSE = 4  # images whose heads and attention are sent
_CELL = 72  # the larger side of the images of a board
_ROWS = 2_400_000  # bytes of attention that are sent at most
_SHEET = 12  # images of the picture that stands in for the view


class Page:
    """A view as a page of its own: what a notebook keeps, and a file that a browser opens.

    Attributes:
        parts: The components' markup, style and data.
        title: What it shows.
    """

    def __init__(self, parts: Sequence[dict[str, Any]], sheet: np.ndarray, title: str) -> None:
        self.parts, self.title = list(parts), title
        self._sheet = sheet

    def html(self) -> str:
        """The whole page; it needs neither a server nor a network."""
        return page(self.parts, self.title)

    def save(self, path: str | Path) -> Path:
        """Write the page to a file.

        Raises:
            InputError: The path lies inside a run.
            RunError: It cannot be written.
        """
        from attnviz.runs.outputs import write_output

        write_output(Path(path), self.html().encode())
        return Path(path)

    def bundle(self) -> dict[str, Any]:
        """What a notebook keeps: the page in a frame, the picture where frames cannot run."""
        picture = png_bytes(self._sheet)
        source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        framed = (
            f'<div><iframe srcdoc="{html.escape(self.html())}" title="{html.escape(self.title)}" '
            'style="width:100%;height:40rem;border:0" loading="eager"></iframe>'
            f'<img src="{source}" alt="{html.escape(self.title)}" style="max-width:100%"></div>'
        )
        return {"text/html": framed, "image/png": picture, "text/plain": repr(self)}

    def _repr_mimebundle_(self, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle(), {}

    def __repr__(self) -> str:
        return f"{self.title}; a notebook shows it, .save('view.html') writes it"


@cache
def _widget() -> Any:
    """The widget's class; None without anywidget."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        return None

    class View(anywidget.AnyWidget):
        """A view as a widget, with the page as what a saved notebook keeps.

        A notebook that is saved holds no widget once its kernel has gone. Displayed by itself the
        view is therefore its page, in which the same script runs; in a layout of widgets, and in
        marimo, it is the widget.
        """

        _esm = script()
        parts: Any = traitlets.List().tag(sync=True)

        def __init__(self, made: Page) -> None:
            super().__init__(parts=made.parts)
            self.page = made

        def save(self, path: str | Path) -> Path:
            """Write the page to a file."""
            return self.page.save(path)

        def html(self) -> str:
            """The page."""
            return self.page.html()

        def _repr_mimebundle_(self, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return self.page.bundle(), {}

        def __repr__(self) -> str:
            return repr(self.page)

    return View


def show(
    images: Any,
    maps: Any,
    *,
    masks: Any = None,
    names: Sequence[str] | None = None,
    threshold: float = 0.5,
    title: str = "Images and their maps",
) -> Any:
    """Show images under their maps, with the threshold, opacity and IoU of the dashboard's gallery.

    From a capture it also shows the heads of every layer as a board, and the attention of the place
    under the pointer, for the first four images.

    Args:
        images: `(b, c, h, w)` as the model took them, uint8 `(b, h, w, 3)`, or pictures of Pillow.
        maps: `(b, h, w)`, a mapping of names to such maps, or what `watch` yielded, with the
            records' own places or those of `Layout.onto`.
        masks: `(b, h, w)` bool at the images' size, where the object is; gives the IoU.
        names: One per image.
        threshold: Where the slider stands at first.
        title: What is shown, for screen readers and files.

    Returns:
        A widget of anywidget, or without the extra `notebook` a page that looks the same. Both show
        themselves in Jupyter, VS Code, Colab and marimo, stay in a saved notebook, and have
        `save("view.html")`.

    Raises:
        InputError: Images, maps and masks that do not fit; a map without a finite value; a capture
            without any map.

    Examples:
        >>> import torch, attnviz as av
        >>> view = av.show(torch.rand(2, 3, 16, 16), torch.rand(2, 4, 4))
        >>> view
        Images and their maps; a notebook shows it, .save('view.html') writes it
    """
    whole = _images(images)
    shown = _smaller(whole, _SIDE)
    known = None if masks is None else _masks(masks, whole.shape[:3], shown.shape[1:3])
    words = [f"image {i}" for i in range(len(shown))] if names is None else list(map(str, names))
    if len(words) != len(shown):
        raise InputError(f"show: expected {len(shown)} names, got {len(words)}")
    if not 0 <= threshold <= 1:
        raise InputError(f"show: expected a threshold from 0 to 1, got {threshold}")
    is_capture = isinstance(maps, Mapping) and any(hasattr(one, "kind") for one in maps.values())
    records: Mapping[str, Record] = maps if is_capture else {}
    drawn = _drawn(maps, records, len(shown))
    parts = [_gallery(shown, drawn, known, words, threshold, title)]
    parts += _boards(shown, records, known, words)
    parts += _pickers(shown, records, known, words)
    first = next(iter(drawn.values()))
    boxes = _boxes(known)
    sheet = contact_sheet(
        [overlay(shown[i], np.nan_to_num(first[i]), boxes[i], scale=1)
         for i in range(min(len(shown), _SHEET))],
        words[:_SHEET], columns=min(len(shown), 6),
    )  # fmt: skip
    made = Page(parts, sheet, title)
    kind = _widget()
    return made if kind is None else kind(made)


def _images(images: Any) -> np.ndarray:
    """`(b, h, w, 3)` uint8."""
    if isinstance(images, torch.Tensor) and images.dtype.is_floating_point:
        if images.ndim != 4:
            raise InputError(f"show: expected images (b, c, h, w), got shape {tuple(images.shape)}")
        listed = [displayed(Sample(image)).numpy() for image in images]
    else:
        listed = [pixels(image) for image in images]
    if not listed or len(listed) > MOST:
        raise InputError(f"show: expected 1 to {MOST} images, got {len(listed)}")
    if len({one.shape for one in listed}) > 1:
        raise InputError("show: expected images of one size; resize them to one")
    return np.stack(listed)


def _smaller(images: np.ndarray, side: int) -> np.ndarray:
    """Images with at most so many pixels on a side."""
    h, w = images.shape[1:3]
    factor = side / max(h, w)
    if factor >= 1:
        return images
    size = (max(1, round(w * factor)), max(1, round(h * factor)))
    return np.stack([np.asarray(Image.fromarray(one).resize(size)) for one in images])


def _masks(masks: Any, images: tuple[int, ...], size: Sequence[int]) -> np.ndarray:
    """`(b, h, w)` bool at the size at which the images `(b, H, W)` are shown."""
    found = torch.as_tensor(np.asarray(masks) if not isinstance(masks, torch.Tensor) else masks)
    if tuple(found.shape) != images or found.dtype != torch.bool:
        raise InputError(
            f"show: expected {images[0]} masks (b, h, w) of booleans at the images' size, "
            f"{images}, got {found.dtype} {tuple(found.shape)}"
        )
    h, w = (int(side) for side in size)
    return np.asarray((resized(found.cpu().float(), (h, w), "bilinear") > 0.5).numpy())


def _drawn(maps: Any, records: Mapping[str, Record], count: int) -> dict[str, np.ndarray]:
    if records:
        found = maps_of(records)
        if not len(found):
            reasons = "; ".join(f"{name}: {why}" for name, why in found.left_out.items())
            raise InputError(f"show: the capture has no map ({reasons or 'no attention or gate'})")
        layers = {name: one.detach().cpu().float().numpy() for name, one in found.items()}
    elif isinstance(maps, Mapping):
        layers = {str(name): _array(one) for name, one in maps.items()}
    else:
        layers = {"map": _array(maps)}
    for name, one in layers.items():
        if one.ndim != 3 or len(one) != count:
            raise InputError(
                f"show: expected {count} maps (b, h, w) of {name!r}, one per image, got shape "
                f"{one.shape}"
            )
        empty = np.flatnonzero(~np.isfinite(one).any((1, 2)))
        if len(empty):
            raise InputError(
                f"show: expected maps with finite values, got none in {len(empty)} of the {count} "
                f"maps of {name!r}, the first of image {empty[0]}; leave those images out"
            )
    if not layers:
        raise InputError("show: expected maps, got none")
    return layers


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    return np.asarray(values, dtype=np.float32)


def _boxes(masks: np.ndarray | None) -> Any:
    """The bounding box of each mask, None where it is empty."""
    if masks is None:
        return _Nothing()
    found = []
    for mask in masks:
        y, x = mask.nonzero()
        box = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1) if len(x) else None
        found.append(box)
    return found


class _Nothing:
    """No box of any image."""

    def __getitem__(self, index: int) -> None:
        return None


def _part(kind: str, name: str, title: str, block: bytes, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "component": name,
        "title": title,
        "html": component(name, "html"),
        "css": component(name, "css"),
        "block": base64.b64encode(block).decode(),
        "choice": {},
        **more,
    }


def _gallery(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    masks: np.ndarray | None,
    words: Sequence[str],
    threshold: float,
    title: str,
) -> dict[str, Any]:
    boxes = _boxes(masks)
    tiles = [Tile(str(i), word, (), word, i, boxes[i]) for i, word in enumerate(words)]
    layers = [MapLayer(name, name, values, threshold) for name, values in maps.items()]
    block = pack(
        images, tiles, layers, masks, settings=Settings(threshold=threshold), label=title,
        opens=False, tile=8,
    )  # fmt: skip
    return _part("gallery", "gallery", "Maps above the threshold", block)


def _boards(
    images: np.ndarray,
    records: Mapping[str, Record],
    masks: np.ndarray | None,
    words: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of layers, columns of heads, for each of the first images."""
    layers = {
        drawing.layer: _array(drawing.draw(heads="each"))
        for drawing in reversed(drawings(records))
        if drawing.construction.per_head and drawing.construction.subject == "attention"
    }
    boxes, parts = _boxes(masks), []
    heads = max((one.shape[1] for one in layers.values()), default=0)
    grid = max((one.shape[-2:] for one in layers.values()), default=(1, 1))
    for i in range(min(len(images), _CLOSE) if layers else 0):
        tiles, maps = [], []
        for layer, values in layers.items():
            for head in range(heads):
                here = head < values.shape[1]
                name = f"{layer} · {head + 1}" if here else ""
                key = f"image={words[i]}&layer={layer}"
                alt = f"{words[i]}, {layer}, head {head + 1}" if here else "no such head"
                tiles.append(Tile(key, name, (), alt, 0, boxes[i]))
                one = values[i, head] if here else np.zeros((1, 1), np.float32)
                maps.append(resized(torch.from_numpy(one)[None], grid, "bilinear")[0].numpy())
        block = pack(
            _smaller(images[i : i + 1], _CELL),
            tiles,
            [MapLayer("heads", "heads", np.stack(maps), from_zero=True)],
            None,
            settings=Settings(threshold=0.0),
            label=f"Heads of every layer, {words[i]}",
            controls=False,
            tile=5,
            columns=heads,
        )
        parts.append(
            _part("board", "gallery", "Layers × heads, each to its own maximum", block,
                  choice={"image": words[i]})
        )  # fmt: skip
    return parts


def _pickers(
    images: np.ndarray,
    records: Mapping[str, Record],
    masks: np.ndarray | None,
    words: Sequence[str],
) -> list[dict[str, Any]]:
    """The whole attention of the first images, layer by layer, as far as it fits."""
    boxes, left = _boxes(masks), _ROWS
    parts: list[dict[str, Any]] = []
    for i in range(min(len(images), _CLOSE)):
        for layer, record in reversed(list(records.items())):
            weights = getattr(record, "weights", None)
            if record.kind != "attention" or weights is None or weights.ndim != 4:
                continue
            query, key = record.row_grids
            if len(weights) != len(images) or query is None or key is None:
                continue
            rows = _array(weights[i])
            left -= rows.size
            if left < 0:
                return parts
            try:
                block = pack_rows(
                    images[i], rows, query_grid=query, key_grid=key, prefix=record.prefix,
                    box=boxes[i],
                )  # fmt: skip
            except ValueError:  # tokens that are no places, such as words
                continue
            choice = {"image": words[i], "layer": layer}
            parts.append(
                _part("picker", "picker", "The attention of one place", block, choice=choice)
            )
    return parts
