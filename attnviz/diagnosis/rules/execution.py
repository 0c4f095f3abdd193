"""Faults of execution: randomness, dependence on the batch, values that are not finite."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import torch

from attnviz.capture import Record
from attnviz.diagnosis.examination import DIFFERENT, LEAK, Examination, Run
from attnviz.diagnosis.registry import Observation, observed, rule

_FLOAT16 = 65504.0


@rule(
    code="left-in-training",
    severity="warning",
    summary="The model was in training mode.",
    meaning="{modules} modules were in training mode: dropout and batch statistics would be "
    "active; the doctor measured in evaluation mode",
    evidence={"modules": "number of modules with training=True"},
    remedy="model.eval() before you watch or measure",
    appearance="Changes from run to run, where there is dropout.",
    cause="`model.eval()` was forgotten. The doctor measures in evaluation mode; your "
    "maps would not.",
    method="Modules of a trained model have `training=True`.",
)
def training_mode(case: Examination) -> Iterator[Observation]:
    if case.left_in_training and case.trained:
        yield observed("model", modules=case.left_in_training)


@rule(
    code="not-finite",
    severity="error",
    summary="NaN or infinity in float32.",
    meaning="{share:.1%} of the values are NaN or infinite in float32",
    evidence={"share": "share of values that are not finite, 0 to 1"},
    remedy="look for a row with all keys masked, a division by zero, log 0 or √ of a negative "
    "number",
    appearance="Empty, or an error of the plotting library.",
    cause="A softmax over a row that is all −∞ is 0/0; square roots and logarithms of numbers that "
    "may be zero or negative.",
    method="Weights, gates and outputs of the plain run are tested; the first that is not finite "
    "is named.",
)
def not_finite(case: Examination) -> Iterator[Observation]:
    for record in case.records:
        values = record.weights if record.kind == "attention" else record.scale
        if values is not None and not bool(values.isfinite().all()):
            yield observed(record.name, share=1 - float(values.isfinite().float().mean()))
            return
    output = case.base.output
    if output is not None and not bool(output.isfinite().all()):
        yield observed("model", share=1 - float(output.isfinite().float().mean()))


@rule(
    code="random-in-eval",
    severity="error",
    summary="Two runs of the same images differ in evaluation mode.",
    meaning="two runs on the same images in evaluation mode differ by {difference:.2g} of the "
    "largest output: dropout or noise is left on",
    evidence={"difference": "largest difference over the largest output"},
    threshold="difference above 1e-05",
    remedy="use nn.Dropout, or F.dropout(x, p, training=self.training): its default is "
    "training=True",
    appearance="Changes from run to run.",
    cause="`F.dropout(x, p)` is active by default; `model.eval()` does not reach it.",
    method="Two runs with different seeds differ by more than 10⁻⁵ of the largest output.",
)
def random_in_eval(case: Examination) -> Iterator[Observation]:
    if case.is_finite and case.is_random:
        dropped = (one.name for one in case.records if one.dropout)
        yield observed(next(dropped, "model"), difference=case.randomness)


@rule(
    code="half-precision",
    severity="warning",
    summary="NaN or infinity under bfloat16 autocast.",
    meaning="under bfloat16 autocast {share:.1%} of the output is NaN or infinite, in float32 none "
    "is",
    evidence={"share": "share of outputs that are not finite, 0 to 1"},
    remedy="mask with torch.finfo(scores.dtype).min instead of -1e9 or -inf, and run the softmax "
    "in float32",
    appearance="Right in float32, empty under autocast.",
    cause="Eight bits of mantissa: E[x²] − E[x]² turns negative, 1 + 10⁻³ is 1. Masks of −10⁹ do "
    "not fit float16.",
    method="A run under `torch.autocast(dtype=torch.bfloat16)` on the model's own device.",
)
def half_precision(case: Examination) -> Iterator[Observation]:
    if not case.is_finite:
        return
    with torch.autocast(case.images.device.type, dtype=torch.bfloat16):
        run = case.attempt(case.some)
    if run.output is None or bool(run.output.isfinite().all()):
        return
    broken = (one.name for one in run.records if not _finite(one))
    share = 1 - float(run.output.isfinite().float().mean())
    yield observed(next(broken, "model"), share=share)


def _finite(record: Record) -> bool:
    return record.weights is None or bool(record.weights.isfinite().all())


@rule(
    code="float16-overflow",
    severity="note",
    summary="Logits exceed the range of float16.",
    meaning="logits reach {largest:.3g}, and float16 ends at 65,504",
    evidence={"largest": "largest |q · k| before any scale that follows the product"},
    threshold=f"|q · k| above {_FLOAT16:,.0f}",
    remedy="scale q before the product, or use bfloat16",
    appearance="Empty under float16.",
    cause="q · k is too large before it is scaled.",
    method="The largest |q · k| is above 65,504.",
)
def float16_overflow(case: Examination) -> Iterator[Observation]:
    if not case.is_finite:
        return
    for _, record in case.attention():
        largest = _largest_logit(record)
        if largest > _FLOAT16:
            yield observed(record.name, largest=largest)


def _largest_logit(record: Record) -> float:
    if record.query is None or record.key is None:
        return 0.0
    q, k = record.query.float(), record.key.float()
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return float(torch.matmul(q, k.transpose(-2, -1)).abs().max())


@rule(
    code="batch-leak",
    severity="error",
    summary="An image's output depends on the other images of the batch.",
    meaning="an image's output changes by {difference:.2g} of the largest output with the size of "
    "its batch, in evaluation mode",
    evidence={"difference": "largest difference over the largest output"},
    threshold=f"difference above {DIFFERENT:g}, by neighbours above {LEAK:g}",
    remedy="look for a softmax or a norm over axis 0, batch statistics without running ones, or a "
    "permute that mixes b with places",
    appearance="Changes with the batch.",
    cause="Batch norm without running statistics, a norm or softmax over axis 0, a permute that "
    "mixes images and places.",
    method=f"The same images in a smaller batch give outputs that differ by more than {DIFFERENT} "
    f"of the largest, or other neighbours in a batch of the same size by more than {LEAK:g}.",
    explained_by=("batch-attention", "gate-over-batch", "wrong-axis"),
)
def batch_leak(case: Examination) -> Iterator[Observation]:
    if case.is_random:
        return
    if case.batch_difference > DIFFERENT:
        yield observed("model", difference=case.batch_difference)
    elif case.neighbour_difference > LEAK:
        yield observed("model", difference=case.neighbour_difference)


@rule(
    code="skipped-in-eval",
    severity="warning",
    summary="Attention or a gate runs in training mode only.",
    meaning="in training mode {records} more {word} run in this module than in evaluation mode: "
    "what is evaluated is another model than what was trained",
    evidence={"records": "number of attentions and gates that evaluation mode leaves out"},
    remedy="remove the condition, if self.training, around it, unless it belongs to an auxiliary "
    "head",
    appearance="None in evaluation mode.",
    cause="`if self.training:` around a branch, or an early return in evaluation mode. Auxiliary "
    "heads mean it.",
    method="One watched run in training mode, on copies of the buffers: modules with more records "
    "than in evaluation mode.",
)
def skipped_in_eval(case: Examination) -> Iterator[Observation]:
    trained, plain = (_by_module(case, run) for run in (case.training_run, case.fewer))
    for where, count in trained.items():
        more = {kind: n - plain[where][kind] for kind, n in count.items()}
        kinds = [kind for kind, n in more.items() if n > 0]
        if kinds and sum(plain[where].values()) < sum(count.values()):
            named = {"attention": "attentions", "gate": "gates"}
            yield observed(
                where or type(case.model).__name__, records=sum(more[kind] for kind in kinds),
                word=" and ".join(named[kind] for kind in kinds),
            )  # fmt: skip


def _by_module(case: Examination, run: Run) -> dict[str, Counter[str]]:
    """How many attentions and gates each module has, with those that are not used."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for record in (*run.records, *run.seen.unused):
        found[record.origin or record.name.partition("#")[0]][record.kind] += 1
    return found


@rule(
    code="nothing-seen",
    severity="note",
    summary="The model has no attention and no gate that can be captured.",
    meaning="no attention and no gate was captured: there is nothing to examine",
    remedy="draw an attribution: av.attribute(model, images, method='layer_gradcam', layer=…)",
    appearance="Attributions only.",
    cause="A model without attention, or one whose attention cannot be captured.",
    method="`av.watch` recorded nothing.",
)
def nothing_seen(case: Examination) -> Iterator[Observation]:
    if not case.records:
        yield observed("model")


@rule(
    code="untrained",
    severity="note",
    summary="The weights are random; some rules are not applied.",
    meaning="norm layers are as they were initialised, so the weights are random: flat or equal "
    "heads, dead gates and localization are not judged",
    remedy="diagnose again after training, or pass diagnose(…, trained=True)",
    appearance="Noise, whatever the image.",
    cause="The model is as it was built.",
    method="Norm layers have weight 1 and bias 0, and batch norms have counted no batch. Not "
    "applied are the rules on flat, saturated, collapsed and equal heads, dead gates, input "
    "statistics and localization.",
)
def untrained(case: Examination) -> Iterator[Observation]:
    if case.records and case.trained is False:
        yield observed("model")
