"""Images, masks and modes with faults, each beside its mended twin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from attnviz.diagnosis import Findings, diagnose
from attnviz.patches import inject_patch
from tests.diagnosis.twins.attention import Attention
from tests.diagnosis.twins.gates import ChannelGate
from tests.diagnosis.twins.twin import C, Net, Twin, noise


def photographs() -> Tensor:
    """`(8, 3, 32, 32)` bytes."""
    return ((noise() + 1) * 127.5).byte()


def bytes_as_floats() -> Tensor:
    return photographs().float()


def scaled_bytes() -> Tensor:
    return photographs().float() / 127.5 - 1


def divided_by_zero() -> Tensor:
    images = scaled_bytes()
    images[0] = 0.2
    return (images - images.mean((1, 2, 3), True)) / images.std((1, 2, 3), keepdim=True)


def divided_safely() -> Tensor:
    images = scaled_bytes()
    return (images - images.mean((1, 2, 3), True)) / (images.std((1, 2, 3), keepdim=True) + 1e-6)


def undecoded() -> Tensor:
    images = scaled_bytes()
    images[3] = 0.5  # a file that failed to decode
    return images


def decoded_only() -> Tensor:
    images = undecoded()
    return images[images.flatten(1).std(1) > 0]


def drawn_twice() -> Tensor:
    return scaled_bytes()[torch.tensor([0, 1, 1, 2, 3, 4, 5, 6])]


def drawn_once() -> Tensor:
    return scaled_bytes()[torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])]


def _image_twin(code: str, severity: str, faulty: Callable, mended: Callable) -> Twin:
    return Twin(code, severity, faulty, mended, (faulty, mended), _of_images)


def _of_images(images: Tensor) -> Findings:
    return diagnose(Net(ChannelGate()), images)


def _trained_net() -> Net:
    model = Net(Attention()).train()
    for _ in range(60):
        model(noise(8))
    return model.eval()


def unlike_training() -> Tensor:
    return scaled_bytes() * 12


def like_training() -> Tensor:
    return scaled_bytes()


def _of_statistics(images: Tensor) -> Findings:
    return diagnose(_trained_net(), images)


def left_in_training() -> nn.Module:
    return Net(Attention()).train()


def put_in_evaluation() -> nn.Module:
    return Net(Attention()).eval()


def _of_trained(model: nn.Module) -> Findings:
    return diagnose(model, noise(), trained=True)


def as_built() -> nn.Module:
    return Net(Attention())


def with_weights() -> nn.Module:
    model = Net(Attention())
    model.load_state_dict(_trained_net().state_dict())
    return model


class Bright(nn.Module):
    """A spatial gate that opens where the image is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.gate(x)).mean((2, 3))

    def gate(self, x: Tensor) -> Tensor:
        return (8 * (x.mean(1, keepdim=True) - 0.5)).sigmoid()


class Dark(Bright):
    """A gate that closes where the image is bright."""

    def gate(self, x: Tensor) -> Tensor:
        return (8 * (0.5 - x.mean(1, keepdim=True))).sigmoid()


class Anywhere(Bright):
    """A gate that is next to flat."""

    def gate(self, x: Tensor) -> Tensor:
        return (0.01 * (x.mean(1, keepdim=True) - 0.5)).sigmoid()


def _of_masks(model: nn.Module) -> Findings:
    """With a white patch in every image, as the mask shows."""
    return _of_some(model, 32)


def _of_some(model: nn.Module, count: int) -> Findings:
    images, masks, _ = inject_patch(noise(count) * 0.3, size=8, seed=3)
    return diagnose(model.eval(), images, masks, trained=True)


def eight_images() -> int:
    return 8


def more_images() -> int:
    return 32


def _of_count(count: int) -> Findings:
    return _of_some(Anywhere(), count)


def _mask_twin(code: str, faulty: type[Bright]) -> Twin:
    return Twin(code, "warning", faulty, Bright, (faulty.gate, Bright.gate), _of_masks)


IMAGES: dict[str, Twin] = {
    "bytes as floats": _image_twin("input-range", "warning", bytes_as_floats, scaled_bytes),
    "divided by zero": _image_twin("input-not-finite", "error", divided_by_zero, divided_safely),
    "file not decoded": _image_twin("input-constant", "warning", undecoded, decoded_only),
    "drawn twice": _image_twin("input-repeated", "note", drawn_twice, drawn_once),
    "unlike the training": Twin(
        "input-statistics", "warning", unlike_training, like_training,
        (unlike_training, like_training), _of_statistics,
    ),
    "training mode": Twin(
        "left-in-training", "warning", left_in_training, put_in_evaluation,
        (left_in_training, put_in_evaluation), _of_trained,
    ),
    "weights not loaded": Twin(
        "untrained", "note", as_built, with_weights, (as_built, with_weights),
        partial(diagnose, images=noise()),
    ),
    "gate avoids the object": _mask_twin("outside-mask", Dark),
    "gate elsewhere": _mask_twin("not-above-chance", Anywhere),
    "eight images": Twin(
        "too-few-images", "note", eight_images, more_images, (eight_images, more_images), _of_count
    ),
}  # fmt: skip
