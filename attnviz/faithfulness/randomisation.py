"""The randomisation check: a map that stays the same when the weights are random explains no model.

Layers get new random weights from the head down, one after the other and for good, and the map is
drawn again each time (Adebayo et al. 2018, *Sanity checks for saliency maps*, cascading
randomisation). The order is that of the data: one forward pass records when each parameter is last
used. The comparison of the original with itself is left out, where others average it in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnviz.attribution import attribute
from attnviz.errors import InputError, UnsupportedError, unknown_name
from attnviz.metrics import agreement
from attnviz.model_state import copied_inputs, frozen, seeded
from attnviz.shapes import Images, Maps, Scores
from attnviz.text import table

if TYPE_CHECKING:
    import pandas as pd

Draw = Callable[[nn.Module, Tensor], Tensor]
"""From a model and images to maps `(b, h, w)`."""


@dataclass(frozen=True, eq=False, repr=False)
class Randomisation:
    """Similarity of maps to the original while layers are randomised, one by one.

    Attributes:
        layers: Dotted names in the order in which they were randomised; each row stands for this
            layer and all before it.
        spearman: `(layers, b)` rank correlation with the original map, ties averaged.
        ssim: `(layers, b)` structural similarity (scikit-image's) with the original map.
    """

    layers: tuple[str, ...]
    spearman: Float[Tensor, "layers b"]
    ssim: Float[Tensor, "layers b"]

    @property
    def mprt(self) -> Scores:
        """`(b,)` mean Spearman over the layers, the original left out; lower ↓ is more sensitive.

        NaN where no randomised map could be compared, since it or the original is constant.
        """
        return self.spearman.nanmean(0)

    @property
    def table(self) -> pd.DataFrame:
        """One row per layer: mean over the images, and how many of them could be compared."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": self.layers,
                "spearman": self.spearman.nanmean(1).tolist(),
                "ssim": self.ssim.nanmean(1).tolist(),
                "valid": self.spearman.isfinite().sum(1).tolist(),
                "images": self.spearman.shape[1],
            }
        )

    def __repr__(self) -> str:
        rows = (
            (row.layer, row.spearman, row.ssim, f"{row.valid}/{row.images}")
            for row in self.table.itertuples()
        )
        header = ("randomised from the top", "spearman", "ssim", "images")
        return table(header, rows, right=(1, 2, 3))


def randomisation(
    model: nn.Module,
    images: Images,
    draw: str | Draw = "layer_gradcam",
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Randomisation:
    """Whether a way of drawing maps depends on what the model has learned.

    Works on a copy; the model stays what it is. A layer is randomised by its own
    `reset_parameters`, and where it has none its parameters' values are shuffled.

    Args:
        model: The trained model.
        images: `(b, c, h, w)`.
        draw: A name of `attnviz.attribution.methods()`, or a function `(model, images) -> maps`.
        layers: Dotted names in the order of randomisation, each taken with what is inside it. None
            takes every module with parameters of its own that the forward pass uses, the last used
            first: the head, then the layers before it. A module that runs several times counts by
            its last run, parameters that modules share by the first of these modules in this
            order, and modules that are not used are left out.
        seed: Of the new weights. The same for drawing the maps, where `draw` is a name.
        **options: For `attribute`, where `draw` is a name: `target`, `layer`, `sign`, ….

    Returns:
        Similarities to the original maps, per layer and image.

    Raises:
        InputError: A name that the model does not have, a model without parameters, options beside
            a function, maps of another shape.
        UnsupportedError: No parameter is seen in use (compiled models); `layers=` gives the order.

    Examples:
        >>> check = randomisation(model, images, "saliency", target=3)  # doctest: +SKIP
        >>> print(check)                                                # doctest: +SKIP
    """
    drawn = _drawing(draw, seed, options)
    shaken = copy.deepcopy(model)
    names = _checked_names(shaken, layers) if layers is not None else _order(shaken, images)
    original = _maps(drawn, model, images)
    likeness = []
    with seeded(seed, *_devices(model)):
        for name in names:
            _randomise(shaken.get_submodule(name), inside=layers is not None)
            likeness.append(agreement(original, _maps(drawn, shaken, images)))
    spearman, ssim = (torch.stack([one[key] for one in likeness]) for key in ("spearman", "ssim"))
    return Randomisation(tuple(names), spearman, ssim)


def _drawing(draw: str | Draw, seed: int, options: dict[str, Any]) -> Draw:
    if isinstance(draw, str):
        method = draw
        if isinstance(options.get("layer"), nn.Module):
            raise InputError(
                "randomisation: expected layer= as a dotted name, since it works on a copy"
            )
        return lambda model, images: attribute(model, images, method=method, seed=seed, **options)
    if options:
        raise InputError(
            f"randomisation: {', '.join(options)} belong to a method's name, got a function"
        )
    return draw


def _maps(draw: Draw, model: nn.Module, images: Images) -> Maps:
    with copied_inputs(model):
        maps = draw(model, images)
    if maps.ndim != 3 or len(maps) != len(images):
        raise InputError(
            f"randomisation: expected maps ({len(images)}, h, w), got {tuple(maps.shape)}"
        )
    return maps.detach()


def _checked_names(model: nn.Module, layers: Sequence[str]) -> list[str]:
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules:
            raise unknown_name("layer", name, [known for known in modules if known])
    return list(layers)


def _order(model: nn.Module, images: Images) -> list[str]:
    """Modules with parameters of their own, the last used first, each parameter once."""
    owners = {name: _own(module) for name, module in model.named_modules() if _own(module)}
    if not owners:
        raise InputError("randomisation: the model has no parameters that could be randomised")
    recorder = _LastUse(model)
    with frozen(model), recorder:
        model(images[:1])
    last = {name: max(map(recorder.of, own)) for name, own in reversed(owners.items())}
    order, taken = [], set[int]()
    for name in sorted(last, key=last.__getitem__, reverse=True):
        new = {id(one) for one in owners[name]} - taken
        if last[name] >= 0 and new:
            order.append(name)
            taken |= new
    if not order:
        raise UnsupportedError(
            "randomisation: expected a forward pass that uses the model's parameters in plain "
            "Python, and none was seen in use; give the order with layers="
        )
    return order


class _LastUse(TorchDispatchMode):
    """The number of the last operation that took each parameter, or a view of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._used = {one.untyped_storage().data_ptr(): -1 for one in model.parameters()}
        self._count = 0

    def of(self, parameter: nn.Parameter) -> int:
        """The number for a parameter, -1 for one that is not used."""
        return self._used[parameter.untyped_storage().data_ptr()]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._count += 1
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, Tensor) and one.layout == torch.strided:
                storage = one.untyped_storage().data_ptr()
                if storage in self._used:
                    self._used[storage] = self._count
        return func(*args, **(kwargs or {}))


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _randomise(module: nn.Module, *, inside: bool) -> None:
    for one in module.modules() if inside else [module]:
        reset = getattr(one, "reset_parameters", None)
        if callable(reset):
            reset()
            continue
        for parameter in _own(one):
            shuffled = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.data = parameter.data.flatten()[shuffled].view_as(parameter)


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})
