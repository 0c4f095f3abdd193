"""`attnviz watch FACTORY --image x.png --out maps/`: a model's attention and gates on some images.

Prints what was seen, one line a record. With `--out` it also writes every map, raw
(`maps.safetensors`, `(n, h, w)` each), laid over its image (`<record>/<image>.png`), and all of
them on one sheet (`sheet.png`). The construction of each map is part of its name: two
constructions of one record can show different things.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz import maps
from attnviz.capture import Capture, Record, watch
from attnviz.cli.argument_types import folder, word
from attnviz.cli.json_output import as_json
from attnviz.cli.model_arguments import FORMS, add_model, images_of, model_of
from attnviz.cli.shared_options import add_images, add_json
from attnviz.errors import InputError
from attnviz.places import placed
from attnviz.text import printable

_MOST_TILES = 400
_MOST_COLUMNS = 13
_TILE = 160


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", help=FORMS, metavar="FACTORY")
    add_model(parser)
    add_images(parser)
    parser.add_argument(
        "--image", dest="images", type=word, metavar="FILE", help="a picture, or a folder"
    )
    parser.add_argument(
        "--where", action="append", metavar="GLOB",
        help="only these modules, by their dotted names, or 'attention' or 'gate'; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=folder, metavar="FOLDER", help="write maps and a contact sheet there"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Watch one forward pass; 0 when anything was recorded."""
    model = model_of(args, args.model)
    images, prepared = images_of(args, model, args.model)
    with torch.no_grad(), watch(model, where=args.where, features=True) as seen:
        model(images)
    drawn, left_out = draw(placed(model, images, seen, proven=True))
    written = _write(args.out, drawn, prepared.pixels(images)) if args.out else []
    if args.json:
        print(as_json(_as_dict(args.model, seen, drawn, left_out, written)))
        return 0
    print(printable_lines(str(seen)))
    for name, reason in left_out.items():
        print(f"no map of {printable(name)}: {printable(reason)}")
    if written:
        print(f"\n{len(drawn)} maps of {len(images)} images, and a sheet of them, in {args.out}")
    return 0


def draw(seen: Mapping[str, Record]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The primary map of each record, by `record:construction`, and why others have none."""
    drawn: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for name, record in seen.items():
        construction = maps.primary(record)
        if construction is None:
            left_out[name] = f"a gate over {record.axis} has no places"
            continue
        try:
            drawn[f"{name}:{construction.key}"] = construction.draw(record)
        except InputError as error:
            left_out[name] = str(error)
    return drawn, left_out


def _write(out: Path, drawn: dict[str, Tensor], pixels: np.ndarray) -> list[str]:
    """Raw maps, overlays and a contact sheet; the names of the files."""
    from safetensors.torch import save

    from attnviz.figures import contact_sheet, overlay, save_png
    from attnviz.runs.outputs import write_output

    raw = save({name: one.cpu().contiguous() for name, one in drawn.items()})
    write_output(out / "maps.safetensors", raw)
    written = ["maps.safetensors"]
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    lines = math.ceil((len(drawn) + 1) / _MOST_COLUMNS)
    columns = math.ceil((len(drawn) + 1) / lines)
    empty = columns * lines - len(drawn) - 1  # each image begins a line
    for number, picture in enumerate(pixels):
        tiles.append(_tile(picture))
        captions.append(f"image {number}")
        for name, one in drawn.items():
            laid = overlay(picture, np.maximum(one[number].cpu().numpy(), 0))
            path = out / name.replace(":", ".") / f"{number}.png"
            save_png(laid, path)
            written.append(str(path.relative_to(out)))
            tiles.append(_tile(laid))
            captions.append(name.replace(":", "\n"))
        tiles += [np.full((_TILE, _TILE, 3), 255, np.uint8)] * empty
        captions += [""] * empty
    sheet = contact_sheet(tiles[:_MOST_TILES], captions[:_MOST_TILES], columns)
    save_png(sheet, out / "sheet.png")
    return [*written, "sheet.png"]


def _tile(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    small = Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
    return np.asarray(small)


def printable_lines(text: str) -> str:
    """Lines without control characters: names come out of a model's own code."""
    return "\n".join(printable(line) for line in text.splitlines())


def _as_dict(
    model: str,
    seen: Capture,
    drawn: dict[str, Tensor],
    left_out: dict[str, str],
    written: list[str],
) -> dict[str, Any]:
    fields = ("name", "kind", "axis", "heads", "prefix", "how", "exact", "check", "source", "op")
    records = [
        {key: getattr(record, key) for key in fields}
        | {
            "shape": list(record.shape),
            "query_grid": list(record.query_grid) if record.query_grid else None,
            "key_grid": list(record.key_grid) if record.key_grid else None,
        }
        for record in seen.values()
    ]
    shapes = {name: list(one.shape) for name, one in drawn.items()}
    unused = [{"name": r.name, "op": r.op, "source": r.source} for r in seen.unused]
    return {"model": model, "records": records, "not_applied": unused, "maps": shapes,
            "no_map": left_out, "files": written}  # fmt: skip
