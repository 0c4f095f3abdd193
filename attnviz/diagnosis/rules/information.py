"""Whether information about the image reaches the output, and by which tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Severity
from attnviz.diagnosis.perturbation import Perturbed
from attnviz.diagnosis.registry import Observation, observed, rule
from attnviz.diagnosis.rules.tokens import scrambled_tokens, silenced_runs

CONSTANT = 1e-6
"""Spread of the output over images, relative to its size, below which it is constant."""

PREFIX = 8
"""More tokens than this without the image are no class and register tokens, but padding."""

_FEWEST = 4  # tokens below which a mask or a single token says nothing
_NOTHING = 1e-9  # part of the largest gradient or change that counts as none


@rule(
    code="class-token-blind",
    severity="error",
    summary="The class token attends to no place.",
    meaning="in all {layers} layers the class token gives the places a weight of {largest:.1g} at "
    "most: what is read from it cannot depend on the image",
    evidence={
        "layers": "number of attentions with a class token",
        "largest": "largest weight of the class token on a place",
    },
    remedy="remove the causal mask (is_causal=True, attn_mask=tril): tokens of an image have no "
    "order; or put the class token last",
    appearance="The class token's row is black.",
    cause="A causal or next-token mask of a language model was left in; the class token comes "
    "first and sees itself only.",
    method="The class token's weight on every place is zero, in every head, image and layer, and "
    "the output has a gradient by it and by no place.",
)
def class_token_blind(case: Examination) -> Iterator[Observation]:
    with_token = [
        record for _, record in case.attention()
        if record.prefix and record.weights is not None and record.windows is None
        and record.weights.shape[-1] >= record.prefix + _FEWEST
    ]  # fmt: skip
    rows = [one.weights[:, :, 0, one.prefix :] for one in with_token if one.weights is not None]
    largest = max((float(row.abs().max()) for row in rows), default=1.0)
    if with_token and largest == 0 and _reads_first(case, with_token[0].prefix):
        yield observed(with_token[0].name, layers=len(with_token), largest=largest)


@rule(
    code="causal-mask",
    severity="warning",
    summary="Places attend to earlier places only, or to later ones only.",
    meaning="every query gives all of {keys} keys {word} it a weight of 0: a causal mask, in an "
    "order that places of an image do not have",
    evidence={"keys": "number of keys"},
    remedy="remove is_causal=True or the triangular attn_mask, unless the model generates the "
    "image token by token",
    appearance="Bright at the top left, and every row of the image brighter than the next.",
    cause="A block of a language model, or a next-token mask that was left in.",
    method="All weights on one side of the diagonal are zero, in every head and image, and on the "
    "other side they are not.",
    explained_by=("class-token-blind",),
)
def causal_mask(case: Examination) -> Iterator[Observation]:
    for i, record in case.attention():
        weights = record.weights
        if weights is None or weights.shape[-1] != weights.shape[-2] or record.windows:
            continue
        keys = weights.shape[-1]
        if keys < _FEWEST or case.tokens[i].axis in ("channels", "swapped", "images"):
            continue
        later, earlier = bool(weights.triu(1).any()), bool(weights.tril(-1).any())
        if later != earlier:
            yield observed(record.name, keys=keys, word="before" if later else "behind")


@rule(
    code="head-token",
    severity="error",
    summary="The head reads one token that is not the class token.",
    meaning="the output depends on token {token} of {tokens} alone, which is {word}",
    evidence={"token": "number of the token, from 0", "tokens": "number of tokens"},
    threshold=f"gradients of other tokens below {_NOTHING:g} of the largest",
    remedy="read the class token where it lies (x[:, 0] if it was put first, x[:, -1] if last), or "
    "the mean over the places without it",
    appearance="The class token's row shows what the head does not read; the row of one place is "
    "what counts.",
    cause="An index that is off by one, `x[:, -1]` of a language model, or a class token that was "
    "removed while the head still reads `x[:, 0]`.",
    method="One backward pass: of the tokens of the last layer a single one has a gradient. Its "
    "key in the first layer differs between images, so that it is a place (an error), or it is "
    "not the first of the tokens that do not (a register token, a warning). Not judged where "
    "tokens mix places (scrambled-tokens).",
)
def head_token(case: Examination) -> Iterator[Observation]:
    first = next((one for _, one in case.attention()), None)
    if case.backward is None or first is None or first.key is None or first.windows is not None:
        return
    if any(scrambled_tokens.find(case)):  # then the class token's key has parts of places
        return
    n = first.key.shape[-2]
    last = next(
        ((name, energy) for name, energy in reversed(case.backward.tokens)
         if energy.shape[1] == n >= _FEWEST), None
    )  # fmt: skip
    if last is None:
        return
    name, energy = last
    read = (energy > _NOTHING * energy.max()).any(0).nonzero().flatten().tolist()
    if len(read) != 1:
        return
    constant = constant_tokens(first, len(case.few))
    (token,) = read
    if token not in constant:
        fixed = ", ".join(map(str, constant[:3])) + ", …" * (len(constant) > 3)
        own = f"token {fixed} depends on no image, as a class token" if constant else (
            "there is no class token"
        )  # fmt: skip
        yield observed(name, token=token, tokens=n, word=f"a place of the image; {own}")
    elif token != constant[0]:
        word = f"a register token; the class token is token {constant[0]}"
        yield observed(name, "warning", token=token, tokens=n, word=word)


@rule(
    code="pooled-padding",
    severity="warning",
    summary="The head averages over tokens that hold nothing of the image.",
    meaning="of the {tokens} tokens that the output depends on, {padding} are the same for every "
    "image before the first attention: padding that the mean over tokens counts in",
    evidence={
        "tokens": "number of tokens that the output depends on",
        "padding": "number of those that are padding",
    },
    threshold=f"more than {PREFIX} such tokens",
    remedy="leave padding out of the mean: (x * keep[..., None]).sum(1) / keep.sum(1)",
    appearance="Bright or dark places that are no part of the image.",
    cause="Tokens were padded to a multiple of a window or to the longest sequence, and are "
    "averaged with the others.",
    method=f"More than {PREFIX} tokens have keys that do not differ between images, in the first "
    "attention, and the output has a gradient by them and by others in the last layer. A warning "
    "if they are also equal to one another, as padding is; a note if not, as of learned prompts.",
)
def pooled_padding(case: Examination) -> Iterator[Observation]:
    found = case.cached(padding_tokens)
    if found is None or case.backward is None:
        return
    energies = (
        (name, energy) for name, energy in reversed(case.backward.tokens)
        if energy.shape[1] == found.tokens
    )  # fmt: skip
    name, last = next(energies, ("", None))
    if last is None:
        return
    read = set((last > _NOTHING * last.max()).any(0).nonzero().flatten().tolist())
    padding = read & set(found.padding)
    if len(padding) > PREFIX and len(read) > len(padding):
        severity: Severity | None = None if found.alike else "note"
        yield observed(name, severity, tokens=len(read), padding=len(padding))


@rule(
    code="no-residual",
    severity="warning",
    summary="There is no residual connection around the attention.",
    meaning="with zero attention nothing of the image passes this layer: {share:.0%} of a "
    "perturbation is left behind it",
    evidence={"share": "change behind the layer with zero attention over that before it, 0 to 1"},
    threshold=f"share below {_NOTHING:g}",
    remedy="add the input: x = x + attention(norm(x))",
    appearance="That of a layer which must copy what it would keep: diagonal, or uniform in deep "
    "layers.",
    cause="`x = attention(x)` instead of `x = x + attention(x)`. Each layer averages its tokens, "
    "and after a few they are all alike.",
    method="An image patch is perturbed twice, with the attention as identity and with zero "
    "attention. With zero attention no activation between this attention and the next one "
    "changes. Judged for attention with as many queries as keys or more.",
    explained_by=("not-applied", "no-effect"),
)
def no_residual(case: Examination) -> Iterator[Observation]:
    perturbed = case.perturbed
    for i, silent in silenced_runs(case).items():
        record = case.records[i]
        if perturbed is None or record.how == "pooled" or len(record.shape) < 2:
            continue
        if record.shape[-2] < max(_FEWEST, record.shape[-1]):
            continue
        before = _largest(one.change for one in perturbed.before(i))
        behind = _behind(silent, i, record)
        if before > 0 and behind is not None and behind <= _NOTHING * before:
            yield observed(record.name, share=behind / before)


@rule(
    code="output-constant",
    severity="error",
    summary="The output is the same for every image.",
    meaning="the output is the same for all images: it varies by {spread:.1g} of its size between "
    "{images} of them",
    evidence={
        "spread": "largest difference between images over the largest output",
        "images": "number of images",
    },
    threshold=f"spread below {CONSTANT:g}",
    remedy="follow the features to the head: weights that are zero, a token that sees no place, a "
    "branch that is not connected, an activation that is zero everywhere",
    appearance="Any: a map says nothing about a constant.",
    cause="Weights of zero, a class token that sees no place, features that are not passed on, or "
    "dead activations.",
    method=f"The spread is below {CONSTANT:g}, while the images differ. In models not known to be "
    "trained, parameters that are zero are replaced first.",
    explained_by=("class-token-blind", "not-finite", "gate-closed"),
)
def output_constant(case: Examination) -> Iterator[Observation]:
    output = case.base.output
    if output is None or len(output) < 2 or not case.is_finite:
        return
    if bool((case.few == case.few[:1]).all()):
        return
    scale = float(output.abs().max())
    spread = float((output - output[:1]).abs().max()) / scale if scale else 0.0
    if spread < CONSTANT:
        yield observed("model", spread=spread, images=len(output))


@dataclass(frozen=True)
class Padding:
    """Tokens that hold nothing of the image.

    Attributes:
        tokens: Number of all tokens.
        padding: Numbers of those without the image.
        alike: Whether these are equal to one another, as zeros are.
    """

    tokens: int
    padding: tuple[int, ...]
    alike: bool


def padding_tokens(case: Examination) -> Padding | None:
    """More tokens without the image than class and register tokens are; None without."""
    first = next((one for _, one in case.attention()), None)
    if first is None or first.key is None or first.windows is not None:
        return None
    if next(iter(case.tokens.values())).axis in ("channels", "swapped", "images"):
        return None
    constant = constant_tokens(first, len(case.few))
    if not PREFIX < len(constant) < first.key.shape[-2]:
        return None
    keys = first.key[:, :, constant[PREFIX:]].float()
    alike = float((keys - keys[:, :, -1:]).abs().max()) < 1e-5 * float(keys.abs().max())
    if not alike:
        return Padding(first.key.shape[-2], tuple(constant), alike)
    same = (first.key.float() - keys[:, :, -1:]).abs().amax((0, 1, 3)) < 1e-5 * keys.abs().max()
    return Padding(first.key.shape[-2], tuple(same.nonzero().flatten().tolist()), alike)


def _reads_first(case: Examination, prefix: int) -> bool:
    """Whether the output depends on leading tokens behind the last layer alone."""
    if case.backward is None:
        return True
    last = next((one for _, one in reversed(case.backward.tokens) if one.shape[1] > prefix), None)
    if last is None:
        return True
    read = (last > _NOTHING * last.max()).any(0)
    return bool(read[0]) and not bool(read[prefix:].any())


def constant_tokens(record: Record, images: int) -> list[int]:
    """Tokens whose keys do not differ between images: class, register and padding tokens."""
    if record.key is None or len(record.key) % images:
        return []
    key = record.key.float().unflatten(0, (images, -1))  # heads may be among the images
    spread = (key - key[:1]).abs().amax((0, 1, 2, 4))
    size = key.abs().amax((0, 1, 2, 4)).clamp_min(1e-30)
    numbers: list[int] = (spread < 1e-5 * size).nonzero().flatten().tolist()
    return numbers


def _behind(silent: Perturbed, number: int, record: Record) -> float | None:
    """The largest change behind an attention and outside its module; None if nothing is there."""
    own = record.name.partition("#")[0]
    outside = [
        one.change for one in silent.after(number)
        if one.module != own and not one.module.startswith(f"{own}.")
    ]  # fmt: skip
    return _largest(outside) if outside else None


def _largest(changes: Iterator[Tensor] | list[Tensor]) -> float:
    return max((float(torch.as_tensor(one).abs().max()) for one in changes), default=0.0)
