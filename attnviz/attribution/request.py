"""Calls of a Captum object, a piece of the batch at a time.

The pieces follow from a memory budget: one forward of one image measures how many bytes its graph
keeps, and so how many rows fit at once. The attributions do not depend on the pieces.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attnviz.attribution.method_table import Method
from attnviz.attribution.regions import superpixels
from attnviz.errors import AttnvizError, InputError, UnsupportedError
from attnviz.model_state import seeded
from attnviz.shapes import Images
from attnviz.targets import Target, output_rows

_NOTICES = (
    "Setting backward hooks on ReLU activations",
    r"Setting forward, backward hooks and attributes on non-linear",
    r"Input Tensor \d+ did not already require gradients",
    "You are providing multiple inputs for Lime / Kernel SHAP",
)

_UNCONNECTED = ("not have been used in the graph", "does not require grad")


class ExplainedModel(nn.Module):
    """The model that Captum explains: `(b, n)` outputs, checked against the target.

    Args:
        model: The model.
        images: How many images are explained.
        target: Which of its outputs.
        progress: A progress bar that advances by one per row of a forward, or None.
    """

    def __init__(self, model: nn.Module, images: int, target: Target, progress: Any = None) -> None:
        super().__init__()
        self.model = model
        self._images, self._target, self._progress = images, target, progress

    def forward(self, images: Tensor) -> Tensor:
        """The outputs, one row per image."""
        if self._progress is not None:
            self._progress.update(len(images))
        return output_rows(self.model(images), self._images, self._target)


@dataclass(frozen=True)
class Request:
    """All arguments of a Captum object for all images.

    Attributes:
        method: Which arguments the object takes.
        explainer: The Captum object.
        images: `(b, c, h, w)`, detached.
        target: `(b,)` indices, or None where the object takes none.
        baseline: `(b, c, h, w)`, each image's own, or None.
        distribution: `(n, c, h, w)`, sampled for every image, or None. With neither, Captum's own
            baseline is used.
        options: Further arguments.
        seed: Start of the random generators, for each piece.
    """

    method: Method
    explainer: Any
    images: Images
    target: Tensor | None
    baseline: Tensor | None
    distribution: Tensor | None
    options: Mapping[str, Any]
    seed: int

    def attributions(self, rows: int) -> Iterator[Tensor]:
        """Attributions `(piece, c, h, w)`, piece after piece, about `rows` rows in one forward."""
        size = self._piece(rows)
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            with seeded(self.seed, self.images.device), without_notices():
                try:
                    answer = self.explainer.attribute(**self._arguments(part, rows))
                except AssertionError as error:
                    raise InputError(f"{self.method.name}: captum: {error}") from error
                except (TypeError, ValueError, ArithmeticError) as error:
                    if isinstance(error, AttnvizError) or not self.options:
                        raise
                    raise InputError(
                        f"{self.method.name}: captum fails with {dict(self.options)}: {error}"
                    ) from error
                except RuntimeError as error:
                    if any(words in str(error) for words in _UNCONNECTED):
                        raise InputError(
                            f"{self.method.name}: expected an output with a gradient by the "
                            "images, and the output has no gradient by the images: a layer runs "
                            "under torch.no_grad, or its input is detached; remove that, or use "
                            "method='occlusion'"
                        ) from error
                    if "being used more than once" not in str(error):
                        raise
                    raise UnsupportedError(
                        f"{self.method.name}: expected every activation module to run once per "
                        "forward, and one of this model runs twice; give each place its own "
                        "module, or use method='integrated_gradients'"
                    ) from error
            yield self._single(answer)

    @property
    def copies(self) -> int:
        """Rows of a forward per image, as far as they are known beforehand."""
        copies = self.method.copies
        if isinstance(copies, int):
            return copies
        given = self.options[copies]
        if not isinstance(given, int) or given < 1:
            raise InputError(f"{self.method.name}: expected 1 or more {copies}, got {given!r}")
        return given

    def _piece(self, rows: int) -> int:
        if self.method.alone:
            return 1
        most = rows if self.method.split else max(1, rows // self.copies)
        pieces = ceil(len(self.images) / most)
        return max(1, ceil(len(self.images) / max(1, pieces)))

    def _arguments(self, part: slice, rows: int) -> dict[str, Any]:
        images = self.images[part].clone().requires_grad_(self.method.gradient)
        arguments = dict(self.options)
        arguments["inputs"] = images
        if self.target is not None:
            arguments["target"] = self.target[part]
        if self.distribution is not None:
            arguments["baselines"] = self.distribution
        elif self.baseline is not None:
            arguments["baselines"] = self.baseline[part]
        if self.method.superpixels or "feature_mask" in arguments:
            _add_regions(arguments, images, part, len(self.images))
        if self.method.captum == "Occlusion":
            _add_windows(arguments, images)
        if self.method.split == "internal_batch_size":
            if rows < len(images) * self.copies:
                arguments["internal_batch_size"] = max(rows, len(images))
        elif self.method.split:
            # Captum repeats the images this many times even where there is less to remove.
            most = _removals(self.method, arguments, images)
            arguments[self.method.split] = max(1, min(rows // len(images), most))
        return arguments

    def _single(self, answer: object) -> Tensor:
        if isinstance(answer, tuple) and len(answer) == 1:
            answer = answer[0]
        if not isinstance(answer, Tensor) or answer.ndim != 4:
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise InputError(
                f"{self.method.name}: expected attributions (b, c, h, w), got {got}; "
                "a layer must put out (b, c, h, w) to have a map"
            )
        return answer.detach()


@contextmanager
def without_notices() -> Iterator[None]:
    """Suppress Captum's notices about its own hooks; all other warnings stay."""
    with warnings.catch_warnings():
        for notice in _NOTICES:
            warnings.filterwarnings("ignore", message=notice)
        yield


def _add_regions(arguments: dict[str, Any], images: Tensor, part: slice, b: int) -> None:
    cut = {k: arguments.pop(k) for k in ("segments", "compactness") if k in arguments}
    mask = arguments.get("feature_mask")
    if mask is None:
        mask = superpixels(images, **cut)
    elif len(mask) == b:
        mask = mask[part]
    if int(mask.max()) < 1:
        raise InputError("superpixels: the image is a single region; expected more segments")
    arguments["feature_mask"] = mask


def _add_windows(arguments: dict[str, Any], images: Tensor) -> None:
    """Windows of a sixth of the image's shorter side, half of that apart, over all channels."""
    c, h, w = images.shape[1:]
    side = max(1, round(min(h, w) / 6))
    for name, default in (("sliding_window_shapes", side), ("strides", max(1, side // 2))):
        value = arguments.get(name, default)
        arguments[name] = (c, value, value) if isinstance(value, int) else value


def _removals(method: Method, arguments: Mapping[str, Any], images: Tensor) -> int:
    """How many times something is removed from each image."""
    if "feature_mask" in arguments and "n_samples" not in arguments:
        return int(arguments["feature_mask"].max()) + 1
    if method.captum == "Occlusion":
        windows = zip(
            images.shape[1:],
            arguments["sliding_window_shapes"],
            arguments["strides"],
            strict=True,
        )
        return prod(ceil(max(0, side - window) / step) + 1 for side, window, step in windows)
    return int(arguments.get("n_samples", 64))


_KNOWN: WeakKeyDictionary[nn.Module, dict[object, int]] = WeakKeyDictionary()


def bytes_per_image(model: nn.Module, image: Images) -> int:
    """Bytes that the graph of one image's forward keeps for the backward, parameters aside.

    Measured once per model, size and type of image: on a GPU a forward of one image can take as
    long as one of sixty-four.
    """
    known = _KNOWN.setdefault(model, {})
    kind = (tuple(image.shape), image.dtype, image.device)
    if kind not in known:
        known[kind] = _bytes_kept(model, image)
    return known[kind]


def _bytes_kept(model: nn.Module, image: Images) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), keeping:
        # The output is held until all is counted: freed storage would give its address away again.
        output = model(image.clone().requires_grad_())
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del output
    return max(sum(kept.values()), image.nbytes)
