"""What attention does while a network learns: its scores and a few maps, epoch by epoch."""

from __future__ import annotations

import torch
from torch import nn

from attnviz.maps import resized
from attnviz.metrics import localization
from attnviz.models import variants
from attnviz.runs import RunWriter
from experiments.faithfulness import chosen_images
from experiments.maps import look
from experiments.settings import Settings
from experiments.training import Loader, evaluate

PINNED = 8
"""How many test images' maps are kept at every epoch."""

_SCORES = ("energy_pointing_game", "pointing_game")


class Follower:
    """Measures the variant's primary map after each epoch.

    Scores are of the first validation images that have something to find, and join the curves as
    `val_<metric>`. The maps of the first such test images are kept as `<map>@<epoch>`.

    Args:
        settings: Of the training; `follow` says how many validation images are looked at.
        writer: The run.
        device: Where the model is.
    """

    def __init__(self, settings: Settings, writer: RunWriter, device: torch.device) -> None:
        self.writer, self.map = writer, variants()[settings.variant].map
        self.val, self.test = (Loader(settings, split, device) for split in ("val", "test"))
        self.scored = chosen_images(_masks(self.val), settings.follow)
        self.pinned = chosen_images(_masks(self.test), PINNED)
        self.test_curve = settings.test_curve

    def __call__(self, model: nn.Module, epoch: int) -> dict[str, float]:
        """Look, keep the pinned maps, and give the scores for the curves."""
        row = evaluate(model, self.test, prefix="test_") if self.test_curve else {}
        gradcam = self.map == "layer_gradcam"
        if len(self.pinned):
            pinned = look(model, self.test, numbers=self.pinned, gradcam=gradcam)
            about = {"epoch": epoch, "images": self.pinned.tolist()}
            self.writer.maps(f"{self.map}@{epoch:04d}", pinned.maps[self.map].numpy(), about=about)
        if len(self.scored):
            seen = look(model, self.val, numbers=self.scored, gradcam=gradcam)
            height, width = seen.masks.shape[-2:]
            maps = resized(seen.maps[self.map], (height, width), "bilinear")
            scores = localization(maps, seen.masks, _SCORES)
            row |= {f"val_{name}": float(score.nanmean()) for name, score in scores.items()}
        return row


def _masks(loader: Loader) -> torch.Tensor:
    return torch.cat([loader.batch(numbers).masks for numbers in loader.batches()]).cpu()
