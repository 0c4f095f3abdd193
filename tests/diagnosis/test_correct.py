"""Models that are right raise no error and no warning; the table is benchmarks/doctor.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attnviz.diagnosis import diagnose
from attnviz.models import build_model


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut = nn.Conv2d(3, 32, 8, 8)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, images: Tensor) -> Tensor:
            return self.encoder(self.cut(images).flatten(2).mT).mean(1)

    return Patches()


def timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return pytest.importorskip("timm").create_model(name, num_classes=10)

    return make


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 8, 2, 2, 32, 64, num_classes=10)


def swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10)


def segformer() -> nn.Module:
    hf = pytest.importorskip("transformers")
    return hf.SegformerModel(hf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[16, 32], num_attention_heads=[1, 2],
        sr_ratios=[4, 2], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2],
    ))  # fmt: skip


class TokensFirst(nn.Module):
    """Windows of 4 x 4 places as `(b, 16 tokens, 256 windows, 16 features)`.

    It looks like a feature map of as many channels as an attention has keys, a change covers every
    place of a window, and the layer works at one size of image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.qkv, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.cut(images)
        if x.shape[-2:] != (64, 64):
            raise ValueError("expected images of 64 x 64")
        t = x.unflatten(3, (16, 4)).unflatten(2, (16, 4)).permute(0, 3, 5, 2, 4, 1)
        qkv = self.qkv(t.reshape(len(x), 16, 256, 16)).transpose(1, 2)
        q, k, v = qkv.chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean((1, 2)))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "our ViT": (lambda: build_model("vit"), 96),
    "encoder": (encoder, 64),
    "tokens before windows": (TokensFirst, 64),
    "torchvision ViT": (vision_transformer, 64),
    "torchvision Swin": (swin, 64),
    "timm class and register tokens": (timm("test_vit3"), 160),
    "timm channel attention": (timm("edgenext_xx_small"), 64),
    "timm pooled attention": (timm("gcresnet33ts"), 64),
    "timm gates": (timm("mobilenetv3_small_050"), 64),
    "transformers Segformer": (segformer, 64),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_correct_model_has_no_error_and_no_warning(name: str) -> None:
    make, side = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    found = diagnose(model, images.clamp(-1, 1))
    assert not [one for one in found if one.severity != "note"], found
    assert sum(found.checked.values()) > 0


class Weighted(nn.Module):
    """Attention between patches whose weights another published function makes."""

    def __init__(self, weigh: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.qkv, self.head = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 96), nn.Linear(32, 3)
        self.place, self.sinks = nn.Parameter(torch.randn(36, 32) / 2), nn.Parameter(torch.zeros(4))
        self.weigh = weigh

    def forward(self, images: Tensor) -> Tensor:
        t = self.cut(images).flatten(2).mT + self.place
        q, k, v = (x.unflatten(2, (4, 8)).transpose(1, 2) for x in self.qkv(t).chunk(3, 2))
        weights = self.weigh(q @ k.mT / 8**0.5, self.sinks)
        return self.head((t + (weights @ v).transpose(1, 2).flatten(2)).mean(1))


def sparsemax(scores: Tensor, _: Tensor) -> Tensor:
    """The projection onto the simplex (Martins and Astudillo, 2016)."""
    z, ranks = scores.sort(-1, descending=True)[0], torch.arange(1, scores.shape[-1] + 1)
    total = z.cumsum(-1)
    size = (1 + ranks * z > total).sum(-1, keepdim=True)
    return (scores - (total.gather(-1, size - 1) - 1) / size).clamp(min=0)


def with_sinks(scores: Tensor, sinks: Tensor) -> Tensor:
    column = sinks[:, None, None].expand(len(scores), -1, scores.shape[2], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]


DESIGNS = {
    "sparsemax": (sparsemax, set()),
    "sigmoid": (lambda scores, _: torch.sigmoid(scores - 3.5), {"not-a-distribution"}),
    "relu": (lambda scores, _: scores.relu() / scores.shape[-1], {"not-a-distribution"}),
    "sinks": (with_sinks, {"not-a-distribution"}),
    "differential": (
        lambda scores, _: scores.softmax(-1) - 0.3 * scores.flip(1).softmax(-1),
        {"not-a-distribution"},
    ),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_published_weights_other_than_a_softmax_are_described_and_not_accused(design):
    weigh, notes = DESIGNS[design]
    images = torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = diagnose(Weighted(weigh).eval(), images)
    assert {one.code for one in found if one.severity != "note"} == set()
    assert {one.code for one in found} - {"untrained", "near-uniform"} == notes


class Scaled(nn.Module):
    """Attention whose logits are scaled in one way or another, and sometimes twice."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.cut, self.qkv = way, nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 96)
        self.position = nn.Parameter(torch.randn(1, 64, 32))
        self.head = nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.cut(images).flatten(2).mT + self.position
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return self.head(self.attend(q, k, v).transpose(1, 2).flatten(2).mean(1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kernel, pad = nn.functional.scaled_dot_product_attention, nn.functional.pad
        if self.way == "queries before a kernel":
            return kernel(q / 4, k, v, scale=1.0)
        if self.way == "both before a kernel":
            return kernel(q / 2, k / 2, v, scale=1.0)
        if self.way == "heads padded for a kernel":
            q, k, v = (pad(x, (0, 16)) for x in (q, k, v))
            return kernel(q, k, v, scale=0.25)[..., :16]
        if self.way == "a bias as one more feature":
            q, k = pad(q, (0, 1), value=1.0), pad(k, (0, 1))
            return (q @ k.mT / 4).softmax(-1) @ v
        if self.way == "learned positions":
            p = self.position.unflatten(2, (2, 16)).transpose(1, 2)
            return (p @ p.mT * 0.25).softmax(-1) @ v
        return kernel(q / 4 if self.way == "twice" else q * 4, k, v)


@pytest.mark.parametrize(
    "way",
    ["queries before a kernel", "both before a kernel", "heads padded for a kernel",
     "a bias as one more feature", "learned positions"],
)  # fmt: skip
def test_logits_that_are_scaled_once_are_right_wherever_it_is_done(way: str) -> None:
    found = diagnose(Scaled(way).eval(), torch.randn(8, 3, 64, 64))
    assert "temperature" not in found.codes


@pytest.mark.parametrize(("way", "ratio"), [("twice", 0.25), ("not at all", 4.0)])
def test_what_multiplies_queries_before_a_kernel_is_counted(way: str, ratio: float) -> None:
    found = diagnose(Scaled(way).eval(), torch.randn(8, 3, 64, 64))
    (one,) = [finding for finding in found if finding.code == "temperature"]
    assert one.evidence["ratio"] == pytest.approx(ratio)


def test_queries_that_may_be_counted_as_heads_are_no_equal_heads() -> None:
    class Neighbours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cut, self.head = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 3)

        def forward(self, images: Tensor) -> Tensor:
            x = self.cut(images)
            around = nn.functional.unfold(x, 3, padding=1).view(len(x), 2, 16, 9, 64)
            weights = (x.view(len(x), 2, 16, 1, 64) * around).sum(2).softmax(2)
            return self.head((weights[:, :, None] * around).sum(3).flatten(1, 2).mean(2))

    images = torch.randn(8, 3, 1, 1).expand(-1, -1, 64, 64)  # of one colour: queries are alike
    found = diagnose(Neighbours().eval(), images + 0.01 * torch.randn(8, 3, 64, 64), trained=True)
    assert "duplicate-heads" not in found.codes


@pytest.mark.parametrize(
    ("weigh", "flat"),
    [
        (lambda scores, _: 3 * (12 * scores).softmax(-1), False),
        (lambda scores, _: 40 * (12 * scores).softmax(-1), False),
        (lambda scores, _: (0 * scores).softmax(-1) / 9, True),
        (lambda scores, _: (1 + 0.3 * scores).clamp(0) / scores.shape[-1], None),
        (lambda scores, _: scores.softmax(-1) - 0.9 * scores.flip(1).softmax(-1), False),
    ],
    ids=["sum of 3", "sum of 40", "sum below 1", "nearly 1", "negative"],
)
def test_entropy_is_that_of_rows_that_sum_to_one(weigh, flat) -> None:
    images = torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = diagnose(Weighted(weigh).eval(), images, trained=True)
    assert "collapsed-heads" not in found.codes
    told = [one.evidence["entropy"] for one in found if one.code == "near-uniform"]
    assert all(0 <= one <= 1 + 1e-6 for one in told)
    if flat is not None:
        assert bool(told) == flat


class AsManyAsChannels(nn.Module):
    """Attention whose keys are as many as channels and are none: each made another way."""

    def __init__(self, made: str, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.made, self.width = nn.Conv2d(3, width, 4, 4), made, width
        self.place = nn.Parameter(torch.randn(64, width) / 2)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.latents = nn.Parameter(torch.randn(1, width, width))
        self.learner, self.shorter = nn.Linear(width, width), nn.Linear(64, width)
        self.head = nn.Linear(width, 4)

    def forward(self, images: Tensor) -> Tensor:
        t = self.cut(images).flatten(2).mT + self.place
        if self.made == "latents":
            t = self.latents + self.attend(self.latents.expand_as(t[:, : self.width]), t)
        if self.made == "learned tokens":
            t = self.learner(t).softmax(1).mT @ t
        return self.head((t + self.attend(t, t)).mean(1))

    def attend(self, queries: Tensor, t: Tensor) -> Tensor:
        q, k, v = self.query(queries), self.key(t), self.value(t)
        if self.made == "shorter keys":
            k, v = self.shorter(k.mT).mT, self.shorter(v.mT).mT
        chunks = self.width if self.made == "chunks" else k.shape[1]
        outs, sums = [], []
        for keys, values in zip(k.split(chunks, 1), v.split(chunks, 1), strict=True):
            scores = q @ keys.mT / self.width**0.5
            outs.append(scores.softmax(-1) @ values)
            sums.append(scores.logsumexp(-1, keepdim=True))
        return (torch.stack(sums).softmax(0) * torch.stack(outs)).sum(0)


@pytest.mark.parametrize("made", ["latents", "learned tokens", "shorter keys", "chunks"])
def test_keys_as_many_as_channels_by_coincidence_are_no_channels(made: str) -> None:
    """A Perceiver, a TokenLearner, a Linformer, and online softmax over chunks of keys."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = diagnose(AsManyAsChannels(made).eval(), images)
    assert not [one for one in found if one.severity != "note"], found


class OneToken(nn.Module):
    """Two blocks, of which the second has the mean of all places as its only token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.place = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.randn(16, 32) / 2)
        self.first, self.last = (nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        t = self.cut(images).flatten(2).mT + self.place
        t = (t + self.first(t, t, t)[0]).mean(1, keepdim=True)
        return (t + self.last(t, t, t)[0])[:, 0]


def test_one_key_is_not_accused_of_having_no_effect() -> None:
    """As in the last stage of a Swin transformer on small images."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = diagnose(OneToken().eval(), images)
    assert found.checked["attention"] == 2
    assert not [one for one in found if one.severity != "note"], found
