"""Runs of tiny reference models with their test images, as `experiments` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from attnviz.capture import watch
from attnviz.maps import received
from attnviz.models import build_model
from attnviz.patches import inject_patch
from attnviz.runs import Run, save_dataset, save_run

COUNT, SIDE = 6, 32


def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Soft images in [−1, 1], a white patch in two of three, and the masks and boxes."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(COUNT, 3, 4, 4, generator=draw) - 1
    clean = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    images, masks, boxes = inject_patch(clean, size=8, seed=1)
    images[::3], masks[::3], boxes[::3] = clean[::3], False, 0
    return (((images + 1) * 127.5).round().byte(), masks, boxes)


def write_trained(root: Path, variant: str = "mha", *, weights: bool = True) -> Run:
    """A complete run of an untrained model; its attention is kept as `received`."""
    pixels, masks, boxes = pictures()
    digest = save_dataset(
        root,
        images=pixels.permute(0, 2, 3, 1).contiguous().numpy(),
        masks=masks.numpy(),
        boxes=boxes.numpy(),
        labels=masks.flatten(1).any(1).long().numpy(),
        info={"split": "test"},
    )
    torch.manual_seed(0)
    model = build_model(variant, width=8).eval()
    images = pixels.float() / 127.5 - 1
    maps = {}
    with torch.no_grad():
        logits = model(images)
        if variant.startswith("mha"):
            with watch(model) as seen:
                model(images)
            record = next(iter(seen.attention.values()))
            maps = {"received": received(record), "received.heads": received(record, heads="each")}
            maps["received@0001"] = maps["received"][:2]  # an epoch's, of the first images
    table = {
        "index": np.arange(COUNT),
        "label": masks.flatten(1).any(1).long().numpy(),
        "logit": logits.numpy(),
        "correct": True,
        "received/pointing_game": 0.5,
    }
    return save_run(
        root / f"{variant}-0",
        variant=variant,
        settings={"factory": f"attnviz:{variant}", "model": {"width": 8}},
        seed=0,
        samples=pd.DataFrame(table),
        maps={name: array.numpy() for name, array in maps.items()},
        weights={k: v.numpy() for k, v in model.state_dict().items()} if weights else None,
        dataset=digest,
        summary={"accuracy": 1.0, "metrics": {"received": {"pointing_game": {"mean": 0.5}}}},
    )
