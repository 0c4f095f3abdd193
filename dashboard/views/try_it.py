"""Try it: place a patch or upload an image, and see the model's output live."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import streamlit as st

from attnviz.comparison.cohorts import question
from attnviz.comparison.from_runs import patched
from attnviz.figures import resized
from attnviz.figures.packing import MapLayer, Settings, Tile, pack, pack_image
from dashboard import notices, run_cache
from dashboard.address import plain, quoted, whole
from dashboard.chosen_runs import Chosen, chosen, one_run
from dashboard.controls import chooser, many, number, ratio, value_or_warning
from dashboard.gallery import gallery
from dashboard.overlap import energy
from dashboard.pointer import pointer
from dashboard.query import params, put
from dashboard.selection import chosen_threshold, class_name, threshold_of
from dashboard.upload import upload
from dashboard.uploads import decoded

PAGE = {"title": "Try it", "icon": ":material/touch_app:", "order": 7}

_WEIGHTS = "model.safetensors"
_SHAPES = ("square", "disc", "ring", "bar", "line", "cross", "L", "dots", "texture")


@dataclass(frozen=True)
class Patch:
    """The patch that the reader put."""

    x: int
    y: int
    size: int
    shape: str
    fill: float
    opacity: float


def main() -> None:
    """The page."""
    st.title("Try it")
    st.caption("Put a patch where you click, or bring an image: the run's model answers live.")
    choice = chosen()
    if choice is None:
        return
    run = one_run(choice)
    if run is None:
        return
    if _WEIGHTS not in run.files:
        st.info(
            f"{quoted(run.id)} keeps no weights, so its model cannot run: this page runs a model "
            "with the weights that its run keeps (`weights=` of `attnviz.save_run`)."
        )
        return
    try:
        live = import_module("dashboard.live")
    except ImportError as error:
        st.warning(
            f"This page runs the model and needs PyTorch, which is not here ({plain(error)}). "
            "All other pages work without it. To have it:",
            icon=":material/extension_off:",
        )
        notices.command("pip install torch torchvision")
        return
    factory, settings = named_model()
    if not factory and _reference(run) is None:
        st.info(
            f"{quoted(run.id)} is of a model of its own, {plain(run.variant)}. This page rebuilds "
            "attnviz's reference models from a run's weights, and others where the command line "
            "names how to build them:"
        )
        notices.command("attnviz dashboard RUNS --model MODULE:FACTORY --setting KEY=VALUE")
        return
    key = (run_cache.stamp(run, _WEIGHTS), factory, repr(settings))
    model = notices.readable(lambda: _model(key, run, factory, settings), run)
    if model is None:
        return
    left, right = st.columns([1, 2], gap="large")
    with left:
        image = _image(choice, run)
        if image is None:
            return
        patch = _patch(min(image.shape[:2]), run)
        picture, mask = live.patched(image, **vars(patch))
        _place(picture, patch)
    with right:
        _answer(live, model, run, picture, mask, patch)


@st.cache_resource(max_entries=4, show_spinner="Building the model …")
def _model(key: tuple[Any, ...], _run: Any, _factory: str, _settings: dict[str, Any]) -> Any:
    if _factory:
        return import_module("dashboard.live").build(_factory, _settings, _run.weights())
    rebuild = import_module("attnviz.models").rebuild_model
    return rebuild(_reference(_run), _run.settings, _run.weights()).requires_grad_(False)


def _reference(run: Any) -> str | None:
    """The reference model that a run says it is of; its name alone does not make it one."""
    name: str | None = import_module("attnviz.models").reference_of(run.variant, run.settings)
    return name


def named_model() -> tuple[str, dict[str, Any]]:
    """The factory that `attnviz dashboard --model` named, and its arguments; empty without it."""
    try:
        found = json.loads(os.environ.get("ATTNVIZ_MODEL", "{}"))
        return str(found.get("factory", "")), dict(found.get("settings", {}))
    except (ValueError, AttributeError, TypeError):
        return "", {}


def _image(choice: Chosen, run: Any) -> np.ndarray | None:
    """A test image without a patch, or the reader's own."""
    side = run.settings.get("side")
    side = side if isinstance(side, int) and 16 <= side <= 1024 else 96
    file = notices.readable(lambda: upload(side, key="upload"))
    if file is not None:
        return notices.readable(lambda: decoded(file, side))
    table = notices.readable(lambda: run_cache.samples(run), run)
    if table is None:
        return None
    bare = np.flatnonzero(~patched(table))
    first = int(bare[0]) if len(bare) else 0
    image = value_or_warning(whole(params(), "image", 0, len(table) - 1, first))
    number("Or test image", "image", 0, len(table) - 1, image)
    if not len(bare) or patched(table)[image]:
        st.caption("This test image already has a patch of its own.")
    held = notices.readable(
        lambda: run_cache.pictures(choice.listing.root, str(run.dataset), [image]), run
    )
    if held is not None and held.depth is not None:
        st.info("The test images are volumes or videos: the model is not run on them here.")
        return None
    return None if held is None else held.images[0]


def _patch(side: int, run: Any) -> Patch:
    """Where and what the reader puts; a patch like those that the run was trained on, at first."""
    trained = run.settings.get("shape"), run.settings.get("size")
    shape = chooser(
        "Patch", "shape", ("none", *_SHAPES), trained[0] if trained[0] in _SHAPES else "square"
    )
    usual = trained[1] if isinstance(trained[1], int) and 2 <= trained[1] <= side else 16
    size = value_or_warning(whole(params(), "size", 2, side, min(usual, side)))
    number("Size in pixels", "size", 2, side, size)
    fill = ratio("Brightness", "fill", 1.0, help="0 is black, 1 is white")
    opacity = ratio("Opacity", "opacity", 1.0)
    middle = (side - size) // 2
    x = value_or_warning(whole(params(), "x", 0, side - 1, middle))
    y = value_or_warning(whole(params(), "y", 0, side - 1, middle))
    x, y = min(x, side - size), min(y, side - size)
    nothing = shape == "none" or opacity == 0
    return Patch(
        x, y, 0 if nothing else size, "square" if nothing else shape, 2 * fill - 1, opacity or 1.0
    )


def _place(picture: np.ndarray, patch: Patch) -> None:
    """The image, to be clicked."""
    placed = pointer(pack_image(picture, x=patch.x, y=patch.y, size=patch.size), key="pointer")
    if placed is not None and placed != (patch.x, patch.y):
        put({"x": str(placed[0]), "y": str(placed[1])})
        st.rerun()


def _answer(
    live: Any, model: Any, run: Any, picture: np.ndarray, mask: np.ndarray, patch: Patch
) -> None:
    recorded = live.Recorded.of(run)
    before = notices.readable(lambda: live.ask(model, picture, recorded=recorded))
    if before is None:
        return
    switches = {one.key: one.words for one in before.switches}
    off = many("Intervene", "off", switches) if switches else []
    answer = notices.readable(lambda: live.ask(model, picture, off, recorded)) if off else before
    if answer is None:
        return
    named = _named(answer, run)
    of_class = f"({plain(named)})" if len(answer.logits) > 1 else ""
    st.header(
        f"The model says {plain(named)}: p{of_class} = {answer.probability:.3f}, "
        f"logit {answer.logit:+.2f}"
    )
    if off:
        st.markdown(
            f"Untouched: p = {before.probability:.3f}, logit {before.logit:+.2f}; the change is "
            f"{answer.logit - before.logit:+.2f}."
        )
    _views(answer, run, picture, mask, patch)


def _named(answer: Any, run: Any) -> str:
    """The model's answer in words: a class by its name, or yes and no."""
    if len(answer.logits) > 1 or len(run.classes) == 2:
        return class_name(run, answer.best)
    asked = run.settings.get("question", "patch") == "patch" and bool(question(run))
    return (("no patch", "a patch") if asked else ("no", "yes"))[answer.best]


def _views(answer: Any, run: Any, picture: np.ndarray, mask: np.ndarray, patch: Patch) -> None:
    views = [view for view in answer.views if np.isfinite(view.values).all()]
    if not views:
        st.caption("The model showed no map.")
        return
    box = _hull(mask)
    tiles, maps = [], []
    for view in views:
        share = float(energy(view.values[None], mask[None])[0])
        said = f"energy {share:.3f}" if np.isfinite(share) else _unscored(mask)
        alt = f"{view.name} ({view.construction}): {said}"
        built = () if view.construction == view.name else (view.construction,)
        tiles.append(Tile(view.name, view.name, (*built, said), alt, 0, box))
        maps.append(resized(view.values, mask.shape))
    threshold = threshold_of(run, views[0].construction)
    masks = np.repeat(mask[None], len(tiles), axis=0)
    block = pack(
        picture[None], tiles, [MapLayer("map", "map", np.stack(maps), threshold)], masks,
        settings=Settings(threshold=threshold), label="What the model looked at", opens=False,
        counted="maps", tile=8,
    )  # fmt: skip
    gallery(block, key="live")
    for layer, reason in list(answer.missing.items())[:4]:
        st.caption(f"No map of {plain(layer)}: {plain(reason)}.")
    construction = views[0].construction
    chosen = chosen_threshold(run, construction) is not None
    chose = f"; validation images chose {threshold:.2f} for {construction}" if chosen else ""
    st.caption(
        f"Chance is {mask.mean():.3f}, the patch's share of the image. Coloured is what reaches "
        f"the threshold{chose}."
    )


def _unscored(mask: np.ndarray) -> str:
    return "no positive mass" if mask.any() else "no patch, no score"


def _hull(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


main()
