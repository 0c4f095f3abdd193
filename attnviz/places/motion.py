"""What moves a token: means over the pixels, weighted by how strongly each moves it.

Noise `ε` is laid on the image, then the same noise times an amplitude `f` that varies over the
image. With `J` a token's derivative by the pixels, `⟨J f ε, J ε⟩ / ⟨J ε, J ε⟩` is the mean of `f`
over the pixels, each weighted by its share in what moves the token: for `f = x` the horizontal
centre of what the token sees, for `x²` its spread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnviz.places.probe import Probe

Amplitude = Callable[[int, Sequence[Tensor]], Tensor]
"""From an image's number and the coordinates of its pixels, 0 to 1, to a factor per pixel."""

_CODE = 4  # sides of the coarse field that the check is made of


@dataclass(slots=True)
class Motion:
    """How the tokens of one side of a record move.

    Attributes:
        energy: `(b, tokens)`, `⟨Δ, Δ⟩`, summed over heads, width and noise fields.
        products: For each amplitude `⟨Δ_f, Δ⟩` and the energy of the same fields.
        fields: Positions by noise field, of that field alone, `(b, tokens, axes)`.
        spread: `(b, tokens)`, the sum over axes of the variance of what moves each token, once the
            squares of the coordinates have been measured.
    """

    energy: Tensor
    products: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    fields: dict[int, Tensor] = field(default_factory=dict)
    spread: Tensor | None = None

    def mean(self, name: str) -> Tensor:
        """`(b, tokens)`, the mean of an amplitude over what moves each token."""
        product, energy = self.products[name]
        return product / energy.clamp_min(torch.finfo(torch.float64).tiny)


class Images:
    """The images, and noise on them.

    Attributes:
        given: A tensor `(b, c, *sides)`, or a list of `(c, *sides)`.
        each: The images one by one, `(c, *sides)`.
        sides: The sides of each, in pixels.
    """

    def __init__(self, given: Any, channels: int) -> None:
        self.given = given
        self.each: list[Tensor] = list(given)
        self._channel = channels - 1  # of one image; `channels` counts the axis of the batch
        self.sides = [
            tuple(n for i, n in enumerate(one.shape) if i != self._channel) for one in self.each
        ]
        whole = torch.cat([one.detach().flatten().double() for one in self.each])
        deviation = float(whole.std()) if whole.numel() > 1 else 0.0
        self._strength = deviation or float(whole.abs().mean()) or 1.0

    def __len__(self) -> int:
        return len(self.each)

    @property
    def axes(self) -> int:
        """How many axes of places there are: 2, or 3 for volumes and video."""
        return len(self.sides[0])

    def perturbed(self, seed: int, amplitude: Amplitude) -> Any:
        """The images with noise of this seed, multiplied by an amplitude."""
        changed = []
        for number, one in enumerate(self.each):
            generator = torch.Generator().manual_seed(seed * 1009 + number)
            noise = torch.randn(one.shape, generator=generator)
            factor = amplitude(number, self._coordinates(number)).unsqueeze(self._channel)
            step = (noise * factor * self._strength).to(one.device)
            changed.append(_added(one, step))
        return torch.stack(changed) if isinstance(self.given, Tensor) else changed

    def _coordinates(self, number: int) -> list[Tensor]:
        axes = [(torch.arange(n) + 0.5) / n for n in self.sides[number]]
        return list(torch.meshgrid(*axes, indexing="ij"))


def _added(image: Tensor, step: Tensor) -> Tensor:
    """Noise small enough for a derivative and large enough for the type of the image."""
    if not image.is_floating_point():
        info = torch.iinfo(image.dtype)
        moved = (image + 0.3 * step).round().clamp(info.min, info.max)
        return moved.to(image.dtype)
    share = 0.02 if image.dtype in (torch.float32, torch.float64) else 0.3
    return image + (share * step).to(image.dtype)


def whole(_: int, coordinates: Sequence[Tensor]) -> Tensor:
    """The same everywhere."""
    return torch.ones_like(coordinates[0])


def ramp(axis: int) -> Amplitude:
    """Grows along one axis."""
    return lambda _, coordinates: coordinates[axis]


def squares(_: int, coordinates: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all coordinates."""
    return torch.stack([c.square() for c in coordinates]).sum(0)


def numbered(count: int) -> Amplitude:
    """Another factor for each image."""
    return lambda number, coordinates: torch.full_like(coordinates[0], (number + 1) / count)


def code(_: int, coordinates: Sequence[Tensor]) -> Tensor:
    """A smooth random field, the same for every image, that no other amplitude predicts."""
    return code_at(torch.stack(list(coordinates), -1).flatten(0, -2)).view(coordinates[0].shape)


def code_at(points: Tensor) -> Tensor:
    """The values of `code` at points `(n, axes)`, by linear interpolation."""
    axes = points.shape[-1]
    generator = torch.Generator().manual_seed(97)
    values = torch.rand((1, 1, *([_CODE] * axes)), generator=generator, dtype=torch.float64)
    grid = (points.double().flip(-1) * 2 - 1).view(1, *([1] * (axes - 1)), -1, axes)
    out = F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return out.flatten().to(points.dtype)


class Motions:
    """Motions of all tokens, gathered pass by pass.

    Attributes:
        motions: By record, of queries and keys; None where these are not at hand.
        output: What the model puts out for the images themselves.
    """

    def __init__(self, probe: Probe, images: Images) -> None:
        self.probe = probe
        self.images = images
        self.motions: dict[str, list[Motion | None]] = {}
        self._base = probe.tokens(images.given)
        self.output = probe.output
        self._seed = 0
        self._plain: dict[str, list[Tensor | None]] = {}
        self._energy: dict[str, list[Tensor | None]] = {}

    def begin(self, seed: int) -> None:
        """One pass: a new noise field, the same everywhere."""
        self._seed = seed
        self._plain = self._differences(self.images.perturbed(seed, whole))
        self._energy = {
            name: [None if x is None else _product(x, x) for x in sides]
            for name, sides in self._plain.items()
        }
        for name, energies in self._energy.items():
            motions = self.motions.setdefault(name, [None] * len(energies))
            for side, energy in enumerate(energies):
                known = motions[side]
                if energy is not None and known is not None:
                    known.energy += energy
                elif energy is not None:
                    motions[side] = Motion(energy.clone())

    def along(self, amplitudes: Mapping[str, Amplitude]) -> None:
        """One pass for each amplitude, with the same noise."""
        for word, amplitude in amplitudes.items():
            moved = self._differences(self.images.perturbed(self._seed, amplitude))
            for name, sides in moved.items():
                for side, x in enumerate(sides):
                    self._add(word, name, side, x)

    def _add(self, word: str, name: str, side: int, moved: Tensor | None) -> None:
        motion, one = self.motions[name][side], self._plain[name][side]
        energy = self._energy[name][side]
        if moved is None or one is None or motion is None or energy is None:
            return
        product = _product(moved, one)
        if word.startswith("axis"):
            alone = product / energy.clamp_min(torch.finfo(energy.dtype).tiny)
            known = motion.fields.get(self._seed, alone.new_zeros(*alone.shape, 0))
            motion.fields[self._seed] = torch.cat([known, alone[..., None]], -1)
        before = motion.products.get(word)
        if before is not None:
            product, energy = product + before[0], energy + before[1]
        motion.products[word] = product, energy
        if word == "squares":  # of the same field: the noise of its positions is in them as well
            motion.spread = motion.mean(word) - motion.fields[self._seed].square().sum(-1)

    def moved_by(self, args: Any) -> dict[str, list[Tensor | None]]:
        """Which tokens move when the model is called with these arguments, `(b, tokens)`."""
        return {
            name: [None if x is None else _product(x, x) > 0 for x in sides]
            for name, sides in self._differences(None, args).items()
        }

    def _differences(self, images: Any, args: Any = None) -> dict[str, list[Tensor | None]]:
        tokens = self.probe.tokens(images, args)
        return {
            name: [_difference(x, y) for x, y in zip(sides, self._base[name], strict=True)]
            for name, sides in tokens.items()
            if name in self._base
        }


def _difference(moved: Tensor | None, base: Tensor | None) -> Tensor | None:
    if moved is None or base is None or moved.shape != base.shape:
        return None
    return moved.double() - base.double()


def _product(one: Tensor, other: Tensor) -> Tensor:
    """`⟨one, other⟩` over heads and width, `(b, tokens)`."""
    return (one * other).sum((1, 3)).cpu()
