"""What a model answered: outputs of any form as columns, and which output a map explains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnviz.data.samples import Batch, called
from attnviz.errors import InputError, unknown_name

Target: TypeAlias = Literal["label", "predicted"] | int | Callable[[Any], Tensor]
"""Which output a map explains: that of the image's label, the largest, the one of this index, or
a function from the model's outputs to one number per image `(b,)`."""

Task = Literal["binary", "classes", "several labels", "regression", "segmentation", "embedding"]

_ANSWERS = ("label", "predicted")

_FIELDS = ("logits", "out", "pooler_output", "image_embeds", "last_hidden_state")


def tensor_of(outputs: Any) -> Tensor:
    """The output tensor, out of what a model returned.

    Args:
        outputs: A tensor, a mapping or an object with one of the fields `logits`, `out`,
            `pooler_output`, `image_embeds`, `last_hidden_state`, or a sequence whose first tensor
            is taken.

    Raises:
        InputError: There is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    by_name = outputs.get if isinstance(outputs, Mapping) else partial(getattr, outputs)
    for field in _FIELDS:
        found = by_name(field, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(outputs, Sequence):
        for found in outputs:
            if isinstance(found, Tensor):
                return found
    raise InputError(
        f"evaluate: expected outputs with a tensor (b,), (b, n) or (b, n, h, w), or a field among "
        f"{', '.join(_FIELDS)}; got {type(outputs).__name__}. Give target=<function of the outputs>"
    )


def target_of(target: Any, classes: Sequence[str] | None = None) -> Target:
    """What is explained, checked.

    Args:
        target: `"label"`, `"predicted"`, an index, the name of a class, or a function.
        classes: The names of the classes, by index.

    Returns:
        The same; a class's name as its index.

    Raises:
        InputError: It is none of these.
    """
    names = list(classes or ())
    if callable(target):
        return cast(Callable[[Any], Tensor], target)
    if isinstance(target, str):
        if target in _ANSWERS:
            return cast(Target, target)
        if target in names:
            return names.index(target)
        raise unknown_name("target", target, [*_ANSWERS, *names])
    if isinstance(target, Integral) and not isinstance(target, bool):
        return int(target)
    raise InputError(
        f"target: expected 'label', 'predicted', an index, a class's name or a function of the "
        f"outputs, got {target!r}; each image has a target of its own by 'label' and 'predicted' "
        "only"
    )


def named_target(target: Target) -> str | int:
    """A target as a run's settings hold it: a function by its name."""
    if callable(target):
        return f"{target.__module__}.{getattr(target, '__qualname__', type(target).__name__)}"
    return target


def task_of(outputs: Tensor, count: int, labels: Sequence[Any], target: Target = "label") -> Task:
    """The kind of task, from a model's outputs and labels.

    Labels that are all 0 or 1 of a model of one output are binary, and whole numbers of a model of
    several are classes, of whatever type.

    Args:
        outputs: Of a batch.
        count: Images of the batch.
        labels: Of some images; None where there is none.
        target: What is explained. Of several outputs without labels one is an answer where it is
            `"predicted"` or an index, and all are an embedding otherwise.

    Raises:
        InputError: Outputs of another rank, or labels that do not fit them.
    """
    if outputs.ndim not in (1, 2, 3, 4, 5) or outputs.shape[0] != count:
        raise InputError(
            f"evaluate: expected outputs for {count} images, (b,), (b, n) or (b, n, h, w), "
            f"got {tuple(outputs.shape)}"
        )
    known = [label for label in labels if not is_missing(label)]
    if outputs.ndim > 3:
        return "segmentation"
    single = outputs.ndim < 3 and outputs[0].numel() == 1
    if outputs.ndim == 3 or not known:
        if single:
            return "binary"
        return "embedding" if outputs.ndim == 3 or target == "label" else "classes"
    vectors = [label for label in known if isinstance(label, Tensor) and label.ndim]
    if vectors:
        if single or len(vectors[0]) != outputs.shape[1]:
            raise InputError(
                f"evaluate: labels of {len(vectors[0])} classes and outputs {tuple(outputs.shape)}"
            )
        return "several labels"
    if not all(map(_is_number, known)):
        return "classes"  # each is named where it is read
    if single:
        return "binary" if all(float(label) in (0.0, 1.0) for label in known) else "regression"
    return "classes" if all(float(label).is_integer() for label in known) else "regression"


def is_missing(label: Any) -> bool:
    """Whether an image has no label: None, or NaN as tables have it."""
    if isinstance(label, Tensor):
        return label.ndim == 0 and bool(label.isnan())
    return label is None or (isinstance(label, Real) and math.isnan(label))


def _is_number(label: Any) -> bool:
    if isinstance(label, Tensor):
        return label.ndim == 0 and bool(label.isfinite())
    return isinstance(label, Real | np.bool_) and math.isfinite(label)


def _check_number(label: Any, name: str) -> None:
    if not _is_number(label):
        raise InputError(
            f"{name}: expected a label that is a finite number, or None where there is none, "
            f"got {label!r}"
        )


def _check_labels(batch: Batch, task: Task, n: int) -> None:
    """Whether every label of a batch is one that the task has.

    Raises:
        InputError: One is not; the image is named.
    """
    for index, sample in zip(batch.indices, batch.samples, strict=True):
        label, name = sample.label, called(sample, index)
        if label is None or is_missing(label):
            continue
        if task == "embedding":
            raise InputError(
                f"{name}: expected no label, as of the images that were looked at first, got "
                f"{label!r}; give all images labels, or target='predicted' or an index"
            )
        if task == "several labels":
            if not (isinstance(label, Tensor) and label.shape == (n,)):
                got = tuple(label.shape) if isinstance(label, Tensor) else repr(label)
                raise InputError(f"{name}: expected a label of {n} classes, as a vector, got {got}")
            continue
        _check_number(label, name)
        if task == "binary" and float(label) not in (0.0, 1.0):
            raise InputError(
                f"{name}: expected a label 0 or 1 of a model of one output, as of the images that "
                f"were looked at first, got {label}"
            )
        if task == "classes" and not (float(label).is_integer() and 0 <= label < n):
            raise InputError(f"{name}: expected a label from 0 to {n - 1}, got {label}")


class Answers(nn.Module):
    """A model read as `(b, n)` scores, one column per output that a map can explain.

    Args:
        model: Any module.
        target: Which output a map explains.
        task: The kind of task.
    """

    def __init__(self, model: nn.Module, target: Target, task: Task) -> None:
        super().__init__()
        self.model, self.target, self.task = model, target, task

    def forward(self, images: Tensor) -> Float[Tensor, "b n"]:
        """`(b, n)`; for a function as target, or an embedding, `(b, 1)`."""
        return self.scores(self.model(images))

    def scores(self, outputs: Any) -> Float[Tensor, "b n"]:
        """The same from outputs that are at hand.

        A segmentation scores each class by the mean of its logit over the pixels where it is the
        largest (over all pixels where it is nowhere); an embedding by its Euclidean norm.
        """
        if callable(self.target):
            found = self.target(outputs)
            if not isinstance(found, Tensor) or found.ndim != 1:
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InputError(
                    f"target: expected a function to one number per image (b,), got {shape}"
                )
            return found[:, None]
        tensor = tensor_of(outputs)
        if self.task == "segmentation":
            return _class_scores(tensor)
        if self.task == "embedding":
            length: Tensor = tensor.flatten(1).norm(dim=1, keepdim=True)
            return length
        return tensor[:, None] if tensor.ndim == 1 else tensor

    def unwrapped(self, outputs: Any) -> nn.Module:
        """The model itself where its output is scores, so that its layers keep their names.

        Args:
            outputs: What the model returned for some images: `(b,)` or `(b, n)` are scores.

        Returns:
            The model, or this where its outputs must be read first.
        """
        plain = isinstance(outputs, Tensor) and outputs.ndim < 3 and not callable(self.target)
        return self.model if plain and self.task != "embedding" else self

    def check_target(self, n: int) -> None:
        """Refuse an index that none of the model's `n` outputs has.

        Raises:
            InputError: It is out of range.
        """
        if isinstance(self.target, int) and not 0 <= self.target < n:
            raise InputError(f"target: expected an output from 0 to {n - 1}, got {self.target}")

    def chosen(self, scores: Float[Tensor, "b n"], batch: Batch) -> list[int] | None:
        """Which column each image's map explains; None where there is one column only.

        Raises:
            InputError: `target="label"` and an image without a label, or an index out of range.
        """
        n = scores.shape[1]
        self.check_target(n)
        if n == 1 or callable(self.target):
            return None
        if isinstance(self.target, int):
            return [self.target] * len(batch)
        largest: list[int] = scores.argmax(1).tolist()
        if self.target == "predicted" or self.task in ("embedding", "regression"):
            return largest
        return [
            _label(sample.label, best, n, called(sample, index))
            for index, sample, best in zip(batch.indices, batch.samples, largest, strict=True)
        ]


def _class_scores(logits: Float[Tensor, "b n *places"]) -> Float[Tensor, "b n"]:
    logits = logits.flatten(2)
    if logits.shape[1] == 1:
        here = (logits > 0).to(logits)
    else:
        here = F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).to(logits)
    area = here.sum(2)
    inside = (logits * here).sum(2) / area.clamp(min=1)
    return torch.where(area > 0, inside, logits.mean(2))


def _label(label: int | float | Tensor | None, best: int, n: int, name: str) -> int:
    if label is None or is_missing(label):
        raise InputError(
            f"{name}: target='label' and no label; give labels, or target='predicted' or an index"
        )
    if isinstance(label, Tensor) and label.ndim:
        present = label.nonzero().flatten().tolist()
        return best if best in present or not present else int(present[0])
    _check_number(label, name)
    if not 0 <= int(label) < n:
        raise InputError(f"{name}: expected a label from 0 to {n - 1}, got {label}")
    return int(label)


def columns_of(outputs: Any, batch: Batch, task: Task) -> dict[str, np.ndarray]:
    """The columns of outputs in the table of samples, one row per image.

    Returns:
        `label`, `prediction`, `correct`, `probability` (of the positive answer, or of the label's
        class, or of the predicted one where there is no label), `confidence` (of the prediction),
        `loss`; only those that the task has.
    """
    if task == "embedding":
        if tensor_of(outputs).ndim == 2:
            _check_labels(batch, task, 0)
        return {}
    tensor = tensor_of(outputs).detach().float().cpu()
    _check_labels(batch, task, 1 if tensor.ndim == 1 else tensor.shape[1])
    labels = [sample.label for sample in batch.samples]
    if task == "segmentation":
        tensor = _class_scores(tensor)
    if task in ("binary", "segmentation") and tensor[0].numel() == 1:
        return _binary(tensor.flatten(), labels)
    if task == "several labels":
        return _several(tensor, labels)
    if task == "regression":
        value = tensor.reshape(len(tensor), -1)[:, 0]
        truth = _numbers(labels)
        return {"label": truth, "prediction": value.numpy(), "loss": (value.numpy() - truth) ** 2}
    return _classes(tensor, labels, counted=task == "classes")


def _numbers(labels: Sequence[Any]) -> np.ndarray:
    return np.array(
        [np.nan if label is None or is_missing(label) else float(label) for label in labels]
    )


def _where_finite(logits: Tensor, prediction: Tensor) -> np.ndarray:
    """Predictions, NaN of images of which an output is not finite: that is no answer."""
    answered = logits.isfinite().all(1).numpy()
    return np.where(answered, prediction.numpy(), np.nan)


def _binary(logits: Tensor, labels: Sequence[Any]) -> dict[str, np.ndarray]:
    probability = logits.sigmoid().numpy()
    prediction = _where_finite(logits[:, None], (logits > 0).double())
    truth = _numbers(labels)
    known = np.isfinite(truth) & np.isfinite(prediction)
    goal = torch.from_numpy(np.where(np.isfinite(truth), truth, 0)).to(logits)
    loss = F.binary_cross_entropy_with_logits(logits, goal, reduction="none").numpy()
    return {
        "label": truth,
        "logit": logits.numpy(),
        "prediction": prediction,
        "correct": np.where(known, prediction == truth, np.nan),
        "probability": probability,
        "confidence": np.maximum(probability, 1 - probability),
        "loss": np.where(known, loss, np.nan),
    }


def _classes(logits: Tensor, labels: Sequence[Any], *, counted: bool) -> dict[str, np.ndarray]:
    shares = logits.softmax(1)
    prediction = logits.argmax(1)
    truth = _numbers(labels)
    said = _where_finite(logits, prediction)
    known = np.isfinite(truth) if counted else np.zeros(len(truth), dtype=bool)
    goal = torch.where(torch.from_numpy(known), torch.from_numpy(np.nan_to_num(truth)).long(),
                       prediction)  # fmt: skip
    of_goal = shares.gather(1, goal[:, None])[:, 0].numpy()
    loss = F.cross_entropy(logits, goal, reduction="none").numpy()
    return {
        "label": truth,
        "prediction": said,
        "correct": np.where(known & np.isfinite(said), said == truth, np.nan),
        "probability": of_goal,
        "confidence": shares.amax(1).numpy(),
        "loss": np.where(known, loss, np.nan),
    }


def _several(logits: Tensor, labels: Sequence[Any]) -> dict[str, np.ndarray]:
    missing = torch.full((logits.shape[1],), torch.nan)
    truth = torch.stack(
        [missing if label is None or is_missing(label) else label.float() for label in labels]
    )
    prediction = logits > 0
    known = truth.isfinite().all(1).numpy()
    exact = (prediction == (truth > 0.5)).all(1).numpy()
    best = _where_finite(logits, logits.argmax(1))
    loss = F.binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none").mean(1)
    return {
        "prediction": best,
        "correct": np.where(known & np.isfinite(best), exact, np.nan),
        "confidence": logits.sigmoid().amax(1).numpy(),
        "loss": np.where(known, loss.numpy(), np.nan),
    }
