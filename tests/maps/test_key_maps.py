"""Maps of a word over the places of a denoiser's queries, against attention by hand."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnviz as av
from attnviz.capture import Record, reductions
from attnviz.capture.watch import check_model
from attnviz.errors import InputError
from attnviz.places import Layout
from tests.maps.denoisers import Joint, UNet, by_hand
from tests.maps.language_models import Letters
from tests.places.nets import WIDTH, Block, Cross

WORDS = 7


@cache
def made(kind: str) -> tuple[nn.Module, Tensor, Tensor, Layout]:
    """A model, two images' latents, their text, and the layout of one image."""
    torch.manual_seed(1)
    model = UNet() if kind == "unet" else Joint(kind == "words first")
    sample, text = torch.randn(2, 4, 8, 12), torch.randn(2, WORDS, WIDTH)
    inputs = lambda x: {"sample": x, "text": text[: len(x)]}  # noqa: E731
    return model.eval(), sample, text, av.locate(model, sample[:1], inputs=inputs)


def watched(model: nn.Module, sample: Tensor, text: Tensor, passes: int = 1, **options: Any) -> Any:
    with torch.no_grad(), av.watch(model, **options) as seen:
        for i in range(passes):
            model(sample * (i + 1), text)
    return seen


def test_a_word_of_cross_attention_is_the_mean_of_its_columns_over_layers() -> None:
    model, sample, text, layout = made("unet")
    maps = av.key_map(watched(model, sample, text), 4, layout=layout)
    hand = by_hand(model, sample, text)
    fine = hand["attn2.0"][..., 4].mean(1).view(2, 8, 12)
    coarse = hand["attn2.1"][..., 4].mean(1).view(2, 1, 4, 6)
    large = F.interpolate(coarse, (8, 12), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(maps, (fine + large) / 2, rtol=0, atol=1e-6)
    one = av.key_map(watched(model, sample, text)["attn2.0"], 4, layout=layout)
    torch.testing.assert_close(one, fine)


def test_all_words_of_a_record_sum_to_one_at_each_place() -> None:
    model, sample, text, layout = made("unet")
    seen = watched(model, sample, text)
    total = av.key_map(seen, range(WORDS), layout=layout) * WORDS
    torch.testing.assert_close(total, torch.ones(2, 8, 12))


@pytest.mark.parametrize("kind", ["words last", "words first"])
def test_words_of_joint_attention_are_counted_without_the_places(kind: str) -> None:
    model, sample, text, layout = made(kind)
    maps = av.key_map(watched(model, sample, text), 2, layout=layout)
    hand = by_hand(model, sample, text)
    rows, key = (slice(7, None), 2) if kind == "words first" else (slice(24), 26)
    mean = torch.stack([one[:, :, rows, key].mean(1) for one in hand.values()]).mean(0)
    torch.testing.assert_close(maps, mean.view(2, 4, 6), rtol=0, atol=1e-6)
    kept = watched(model, sample, text, reduce=reductions.columns(key, 99))
    torch.testing.assert_close(av.key_map(kept, 2, layout=layout), maps)
    with pytest.raises(InputError, match=re.escape("reduce=reductions.columns(")):
        av.key_map(kept, 3, layout=layout)


def test_denoising_steps_count_the_same_and_can_be_chosen() -> None:
    model, sample, text, layout = made("unet")
    seen = watched(model, sample, text, passes=3, reduce=reductions.columns(1))
    each = [av.key_map(seen, 1, layout=layout, steps=i, layers="attn2.0") for i in range(3)]
    mean = av.key_map(seen, 1, layout=layout, layers=["attn2.0"])
    torch.testing.assert_close(torch.stack(each).mean(0), mean)
    hand = by_hand(model, sample * 3, text)["attn2.0"][..., 1].mean(1)
    torch.testing.assert_close(each[2].flatten(1), hand, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=r"in layers=None, steps=5"):
        av.key_map(seen, 1, layout=layout, steps=5)


def test_layers_are_weighed_as_stated() -> None:
    model, sample, text, layout = made("unet")
    seen = watched(model, sample, text)
    fine, coarse = (
        av.key_map(seen, 1, layout=layout, layers=f"attn2.{i}", size=(8, 12)) for i in (0, 1)
    )
    maps = av.key_map(seen, 1, layout=layout, weights={"attn2.0": 3, "*": 1})
    torch.testing.assert_close(maps, (3 * fine + coarse) / 4)
    alone = av.key_map(seen, 1, layout=layout, weights={"attn2.0": 1})
    torch.testing.assert_close(alone, fine)
    with pytest.raises(InputError, match="expected positive ones for some of attn2"):
        av.key_map(seen, 1, layout=layout, weights={"attn1.*": 1})


def test_halves_of_a_guided_batch_are_told_apart() -> None:
    model, sample, text, layout = made("unet")
    guided = torch.cat([sample, sample]), torch.cat([text.flip(0) * 0.1, text])
    seen = watched(model, *guided)
    both = av.key_map(seen, 3, layout=layout)
    assert both.shape == (4, 8, 12)
    for half, kind in enumerate(("unconditional", "conditional")):
        maps = av.key_map(seen, 3, layout=layout, guidance=kind)
        torch.testing.assert_close(maps, both[2 * half : 2 * half + 2])
    plain = av.key_map(watched(model, sample, text), 3, layout=layout)
    torch.testing.assert_close(maps, plain)
    with pytest.raises(InputError, match=r"guidance runs .* choose these by steps="):
        av.key_map(watched(model, sample[:1], text[:1]), 3, layout=layout, guidance="conditional")


def test_a_word_is_found_among_the_prompts_ids() -> None:
    model, sample, text, layout = made("unet")
    seen, ids = watched(model, sample, text), [1, 2, 4, 5, 7, 8, 10]
    maps = av.key_map(seen, "w005", layout=layout, prompt=ids, tokenizer=Letters())
    torch.testing.assert_close(maps, av.key_map(seen, 3, layout=layout))
    with pytest.raises(InputError, match=r"pass prompt= \(its ids\) and tokenizer="):
        av.key_map(seen, "w005", layout=layout)


def test_a_bare_tensor_takes_a_grid_and_counts_all_keys() -> None:
    weights = torch.rand(2, 3, 24, 5).softmax(-1)
    maps = av.key_map(weights, 4, grid=(4, 6), heads="each")
    torch.testing.assert_close(maps, weights[..., 4].view(2, 3, 4, 6))
    torch.testing.assert_close(
        av.key_map(weights, 4, grid=(4, 6), heads=1),
        av.key_column(weights, 4, grid=(4, 6), heads=1),
    )
    with pytest.raises(InputError, match="has 5 words, got number 5"):
        av.key_map(weights, 5, grid=(4, 6))
    with pytest.raises(InputError, match="expected numbers of words from 0, got -1"):
        av.key_map(weights, -1, grid=(4, 6))


def test_a_capture_without_words_has_no_such_map() -> None:
    torch.manual_seed(0)
    model = av.build_model("mha").eval()
    images = torch.randn(1, 3, 96, 96)
    seen = watched_images(model, images)
    with pytest.raises(InputError, match="goes from places of the image to words"):
        av.key_map(seen, 0, layout=av.locate(model, images))


def watched_images(model: nn.Module, images: Tensor) -> Any:
    with torch.no_grad(), av.watch(model) as seen:
        model(images)
    return seen


def test_a_pipeline_says_which_of_its_modules_to_watch() -> None:
    class Pipeline:
        components = {"unet": UNet(), "vae": nn.Conv2d(1, 1, 1), "scheduler": object()}  # noqa: RUF012

    message = r"got the pipeline Pipeline: watch pipeline\.unet, its denoiser, .* it has unet, vae"
    with pytest.raises(InputError, match=message):
        check_model("watch", Pipeline())

    class Captioner:
        model = UNet()

    with pytest.raises(InputError, match=r"got Captioner, which holds one: watch its attribute"):
        check_model("watch", Captioner())


def test_records_that_do_not_fit_together_are_refused() -> None:
    two, three = (
        Record(name, "attention", torch.rand(1, n, 6, 3), shape=(1, n, 6, 3))
        for name, n in (("a", 2), ("b", 3))
    )
    with pytest.raises(InputError, match="layers have different numbers of heads or rows"):
        av.key_map([two, three], 1, grid=(2, 3), heads="each")
    with pytest.raises(InputError, match="expected 'conditional' or 'unconditional', got 'both'"):
        av.key_map(two, 1, grid=(2, 3), guidance="both")
    with pytest.raises(InputError, match="expected a record with weights, got 'c'"):
        av.key_map(Record("c", "attention", how="linear"), 1, grid=(2, 3))


class Skipped(nn.Module):
    """Halved, enlarged again and joined with what was there before, as in a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(4, 24, 3, 1, 1), nn.Conv2d(24, 24, 3, 2, 1)
        self.up, self.attn, self.cross = nn.Conv2d(48, WIDTH, 3, 1, 1), Block(), Cross()

    def forward(self, sample: Tensor, text: Tensor) -> Tensor:
        maps = self.stem(sample)
        large = F.interpolate(self.down(maps), scale_factor=2.0, mode="nearest")
        tokens = self.up(torch.cat([large, maps], 1)).flatten(2).mT
        return self.cross(self.attn(tokens), text)


def test_behind_a_skip_connection_places_are_those_of_the_larger_map() -> None:
    torch.manual_seed(0)
    model, sample, text = Skipped().eval(), torch.randn(2, 4, 8, 12), torch.randn(2, 5, WIDTH)
    seen = watched(model, sample, text)
    maps = av.key_map(seen, 2)  # proven: no layout is needed
    column = by_hand(model, sample, text)["cross"][..., 2].mean(1)
    torch.testing.assert_close(maps, column.view(2, 8, 12))
