"""What takes further passes on a few images: faithfulness, knockout, the doctor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.comparison.from_runs import grouping_of
from attnviz.data.samples import Batch, Samples, batches
from attnviz.errors import NothingSeenError
from attnviz.evaluation.answers import Answers
from attnviz.evaluation.result import Evaluation
from attnviz.maps import resized
from attnviz.statistics.summary import summarised

EXAMINED = 32
"""Images that the doctor sees."""


def examined(
    result: Evaluation,
    answers: Answers,
    samples: Samples,
    *,
    faithfulness: int,
    knockout: int,
    findings: bool,
) -> Evaluation:
    """The evaluation with faithfulness, knockout and findings, as far as they are wanted."""
    changes: dict[str, Any] = {}
    if faithfulness:
        changes |= _faithful(result, answers, _chosen(samples, faithfulness))
    if knockout:
        changes["knockout"] = _knocked_out(answers, _chosen(samples, knockout))
    if findings:
        changes["findings"] = _diagnosed(answers, _chosen(samples, EXAMINED))
    return replace(result, **changes)


def _chosen(samples: Samples, count: int) -> list[Batch]:
    """Up to `count` images with a mask, evenly spaced, by size; any images where none has one."""
    spaced = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), 4 * count)).astype(int))
    with_mask = [
        index
        for index in spaced.tolist()
        if (mask := samples[index].mask) is not None and bool(mask.any())
    ]
    return list(batches(samples, (with_mask or spaced.tolist())[:count], count))


def _faithful(result: Evaluation, answers: Answers, parts: list[Batch]) -> dict[str, Any]:
    """Faithfulness columns of one map of each kind; NaN for images that were not computed."""
    from attnviz.faithfulness import METRICS, faithfulness_scores

    table = result.samples.copy()
    summary = {name: dict(scores) for name, scores in result.summary.items()}
    for name in result.main_maps:
        whole = torch.from_numpy(result.raw(name))
        for part in parts:
            images = part.images.to(_device(answers))
            rows = torch.tensor(part.indices)
            h, w = images.shape[-2:]
            maps = resized(whole[rows], (h, w), "bilinear").to(images.device)
            with torch.no_grad():
                target = answers.chosen(answers(images), part)
            levels = part.samples[0].value_range or (-1.0, 1.0)  # of one preprocessing, so of all
            found = faithfulness_scores(answers, images, maps, target=target, value_range=levels)
            for key, scores in found.items():
                column = f"{name}/{key}"
                if column not in table:
                    table[column] = np.nan
                table.loc[list(part.indices), column] = _array(scores)
        for key in METRICS:
            if f"{name}/{key}" in table:
                summary[name][key] = summarised(
                    key, table[f"{name}/{key}"].to_numpy(), group=grouping_of(table)
                )
    return {"samples": table, "summary": summary}


def _knocked_out(answers: Answers, parts: list[Batch]) -> Any:
    from attnviz.faithfulness import knockout

    part = parts[0]
    images = part.images.to(_device(answers))
    with torch.no_grad():
        outputs = answers.model(images)
        target = answers.chosen(answers.scores(outputs), part)
    try:
        return knockout(answers.unwrapped(outputs), images, target=target)
    except NothingSeenError:
        return None


def _diagnosed(answers: Answers, parts: list[Batch]) -> Any:
    from attnviz.diagnosis import diagnose

    part = parts[0]
    images, masks = part.images.to(_device(answers)), part.masks
    if masks.shape[-2:] != images.shape[-2:] or not bool(masks.any()):
        return diagnose(answers.model, images)
    return diagnose(answers.model, images, masks.to(images.device))


def _device(answers: Answers) -> torch.device:
    tensor = next(iter([*answers.parameters(), *answers.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _array(scores: Tensor) -> np.ndarray:
    return scores.double().cpu().numpy()
