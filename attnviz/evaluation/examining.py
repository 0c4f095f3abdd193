"""What takes further passes on a few images: faithfulness, knockout, the doctor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnviz.capture import watch
from attnviz.comparison.from_runs import grouping_of
from attnviz.data.samples import Batch, Samples, batches
from attnviz.errors import InputError, NothingSeenError
from attnviz.evaluation.answers import Answers
from attnviz.evaluation.measuring import Plan, measured
from attnviz.evaluation.result import Evaluation
from attnviz.evaluation.saving import (
    ROWS_BYTES,
    attention_bytes,
    several_grids,
    whole_attention,
)
from attnviz.maps import resized
from attnviz.statistics.summary import summarised

EXAMINED = 32
"""Images that the doctor sees."""

FAITHFUL = 16
"""Images for faithfulness where options are given and no number of images."""


def examined(
    result: Evaluation,
    answers: Answers,
    samples: Samples,
    plan: Plan,
    *,
    faithfulness: int | Sequence[int] | Mapping[str, Any],
    knockout: int | Sequence[int],
    findings: bool,
    rows: int,
) -> Evaluation:
    """The evaluation with what is wanted of faithfulness, knockout, findings, whole attention."""
    changes: dict[str, Any] = {}
    if faithfulness:
        options = dict(faithfulness) if isinstance(faithfulness, Mapping) else {}
        images = options.pop("images", FAITHFUL if options else faithfulness)
        changes |= _faithful(result, answers, plan, _chosen(samples, images), options)
    if knockout:
        changes["knockout"] = _knocked_out(answers, _chosen(samples, knockout))
    if findings:
        changes["findings"] = _diagnosed(answers, _chosen(samples, EXAMINED))
    if rows:
        changes["rows"] = whole_attention(answers, samples, plan, result.layers, rows)
    return replace(result, **changes)


def check_numbers(what: str, wanted: Any, count: int) -> None:
    """Whether a number of images, or their numbers, are of a data set.

    Args:
        what: The argument that they are of.
        wanted: A number, numbers of images, or a mapping with one of them as `images`.
        count: Images of the data set.

    Raises:
        InputError: They are not.
    """
    images = wanted.get("images", 0) if isinstance(wanted, Mapping) else wanted
    several = isinstance(images, Sequence) and not isinstance(images, str)
    wrong = [one for one in (images if several else [images]) if not isinstance(one, Integral)]
    if several:
        wrong += [one for one in images if one not in wrong and not 0 <= one < count]
    elif not wrong and images < 0:
        wrong = [images]
    if wrong:
        raise InputError(
            f"evaluate: {what}: expected how many images, from 0, or their numbers from 0 to "
            f"{count - 1}, got {wrong[0]!r}"
        )


def _chosen(samples: Samples, count: int | Sequence[int]) -> list[Batch]:
    """Batches of one size: the images of these numbers, or `count` evenly spaced with a mask.

    Any images are taken where none has a mask.
    """
    if isinstance(count, Sequence):
        return list(batches(samples, [int(one) for one in count], max(1, len(count))))
    count = int(count)
    spaced = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), 4 * count)).astype(int))
    with_mask = [
        index
        for index in spaced.tolist()
        if (mask := samples[index].mask) is not None and bool(mask.any())
    ]
    return list(batches(samples, (with_mask or spaced.tolist())[:count], count))


def _faithful(
    result: Evaluation,
    answers: Answers,
    plan: Plan,
    parts: list[Batch],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Faithfulness columns of each map; NaN for images that were not computed.

    Maps of several grids are drawn anew, since they are kept on one.
    """
    from attnviz.faithfulness import METRICS, faithfulness_scores

    table = result.samples.copy()
    summary = {name: dict(scores) for name, scores in result.summary.items()}
    for name in result.maps:
        whole = torch.from_numpy(result.raw(name))
        anew = bool(several_grids(result.pieces.joined(f"grid/{name}", result.parts)))
        for part in parts:
            images = part.images.to(_device(answers))
            own = whole[list(part.indices)]
            if anew:
                own = measured(answers, part, replace(plan, metrics=(), heads=())).maps[name]
            h, w = images.shape[-2:]
            maps = resized(own, (h, w), "bilinear").to(images.device)
            with torch.no_grad():
                target = answers.chosen(answers(images), part)
            levels = part.samples[0].value_range or (-1.0, 1.0)  # of one preprocessing, so of all
            found = faithfulness_scores(
                answers, images, maps, **{"target": target, "value_range": levels, **options}
            )
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
    images = _that_fit(answers, part.images.to(_device(answers)))
    part = replace(part, indices=part.indices[: len(images)], samples=part.samples[: len(images)])
    with torch.no_grad():
        outputs = answers.model(images)
        target = answers.chosen(answers.scores(outputs), part)
    try:
        return knockout(answers.unwrapped(outputs), images, target=target)
    except NothingSeenError:
        return None


def _that_fit(answers: Answers, images: Tensor) -> Tensor:
    """As many of the images as have their whole attention in `ROWS_BYTES`, but one at least."""
    with torch.no_grad(), watch(answers.model, empty=True, reduce=("received",)) as seen:
        answers.model(images[:1])
    return images[: max(1, ROWS_BYTES // max(1, attention_bytes(seen)))]


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
