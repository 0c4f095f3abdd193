"""What is chosen on the calibration split: thresholds of each map, the best layer, the best head.

Nothing is chosen on the images whose scores are reported. Of several layers or heads with the same
construction, the one with the highest mean energy pointing game on the calibration split is
chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.data.samples import Sample, Samples, batches
from attnviz.errors import InputError
from attnviz.evaluation.answers import Answers
from attnviz.evaluation.identity import spaced
from attnviz.evaluation.measuring import Plan, measured
from attnviz.maps import resized
from attnviz.metrics.counted import counted_thresholds

CALIBRATION = 1024
"""The most images that are used; evenly spaced over the split."""

PRIMARY = "energy_pointing_game"
"""The metric that ranks and chooses, declared before anything is measured."""

THRESHOLDED = ("iou", "max_iou", "max_box_acc", "max_box_acc_v2")


def calibrated(answers: Answers, samples: Samples, plan: Plan) -> dict[str, Any]:
    """Thresholds and choices, both from the calibration split.

    Returns:
        `thresholds`: map → metric → τ; a map that is constant on every image has none.
        `chosen`: construction → `map`, `head` (None for the mean of the heads), `of` (how many it
        was chosen from), `images` (with a mask) and the `score` there, where there is a choice.

    Raises:
        InputError: No image of the split has a mask.
    """
    wanted = [key for key in plan.metrics if key in THRESHOLDED]
    plain = replace(plan, metrics=(PRIMARY,), heads=(PRIMARY,) if plan.heads else ())
    maps: dict[str, list[Tensor]] = {}
    scores: dict[tuple[str, int | None], list[np.ndarray]] = {}
    masks: list[Tensor] = []
    ignored: list[Tensor] = []
    boxes: list[Tensor | None] = []
    for found in batches(samples, spaced(len(samples), CALIBRATION), plan.batch):
        if not bool(found.masks.any()):
            continue
        seen = measured(answers, found, plain)
        size = found.masks.shape[1:] if not masks else masks[0].shape[1:]
        masks.append(_at(found.masks, size))
        ignored.append(
            torch.zeros_like(masks[-1]) if found.ignore is None else _at(found.ignore, size)
        )
        boxes += [_box_at(one, found.masks.shape[1:], size) for one in found.samples]
        for name, one in seen.maps.items():
            maps.setdefault(name, []).append(one)
            scores.setdefault((name, None), []).append(seen.columns[f"{name}/{PRIMARY}"])
        for name in seen.heads:
            for head, column in enumerate(seen.head_scores[f"{name}/{PRIMARY}"].T):
                scores.setdefault((name, head), []).append(column)
    if not masks:
        raise InputError("evaluate: expected calibration images with masks, got none")
    goal = torch.cat(masks)
    means = {key: _mean(parts) for key, parts in scores.items()}
    count = int((goal & ~torch.cat(ignored)).flatten(1).any(1).sum())
    return {
        "thresholds": _thresholds(maps, goal, torch.cat(ignored), boxes, wanted),
        "chosen": _chosen(means, list(maps), count),
    }


def _thresholds(
    maps: Mapping[str, Sequence[Tensor]],
    goal: Tensor,
    ignore: Tensor,
    boxes: Sequence[Tensor | None],
    wanted: Sequence[str],
) -> dict[str, dict[str, float]]:
    thresholds = {}
    size = tuple(goal.shape[1:])
    for name, parts in maps.items() if wanted else ():
        large = torch.cat([resized(one, size, "bilinear") for one in parts])
        try:
            thresholds[name] = counted_thresholds(large, goal, ignore, wanted, boxes=boxes)
        except InputError:  # no image whose map can be thresholded
            continue
    return thresholds


def _chosen(
    means: Mapping[tuple[str, int | None], float], names: Sequence[str], count: int
) -> dict[str, dict[str, Any]]:
    """For each construction with several layers or heads the best of them."""
    found: dict[str, dict[str, Any]] = {}
    plain = [name for name in names if not any(_is_layer_of(name, other) for other in names)]
    for first in plain:
        rivals = {
            key: mean
            for key, mean in means.items()
            if (key[0] == first or _is_layer_of(key[0], first)) and not np.isnan(mean)
        }
        if len(rivals) < 2:
            continue
        (name, head), score = max(rivals.items(), key=lambda item: item[1])
        found[first] = {
            "map": name, "head": head, "of": len(rivals), "images": count, "score": score,
        }  # fmt: skip
    return found


def _is_layer_of(name: str, construction: str) -> bool:
    return name.startswith(f"{construction}.")


def _mean(parts: Sequence[np.ndarray]) -> float:
    whole = np.concatenate(parts)
    valid = whole[np.isfinite(whole)]
    return float(valid.mean()) if len(valid) else float("nan")


def _box_at(sample: Sample, own: Sequence[int], size: Sequence[int]) -> Tensor | None:
    """The annotated boxes of an image at another size, of at least one pixel."""
    if sample.boxes is None or tuple(own) == tuple(size):
        return sample.boxes
    high, wide = (int(side) for side in size)
    scale = torch.tensor([wide / own[1], high / own[0]] * 2)
    x0, y0, x1, y1 = (sample.boxes * scale).round().long().unbind(1)
    x0, y0 = x0.clamp(max=wide - 1), y0.clamp(max=high - 1)
    return torch.stack([x0, y0, torch.maximum(x1, x0 + 1), torch.maximum(y1, y0 + 1)], 1)


def _at(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks at another size, a pixel being inside where most of what it covers is."""
    return resized(masks.float(), tuple(size), "bilinear") > 0.5
