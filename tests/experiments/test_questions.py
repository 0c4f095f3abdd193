"""Questions: what is asked, and that its answer is where the mask says."""

from __future__ import annotations

import pytest
import torch

from experiments.questions import Asked, ask, patch_seed
from experiments.settings import Settings

GREY = torch.full((400, 3, 64, 64), 100, dtype=torch.uint8)


def asked(question: str, **changes: object) -> Asked:
    settings = Settings(question=question, size=12, **changes)  # type: ignore[arg-type]
    return ask(GREY, torch.arange(len(GREY)), settings, seed=5)


@pytest.mark.parametrize("question", ["patch", "both", "larger"])
def test_about_half_of_the_answers_are_yes_and_images_stay_in_range(question: str) -> None:
    result = asked(question)
    assert 0.4 < result.labels.mean() < 0.6
    assert result.images.min() >= -1
    assert result.images.max() <= 1


def test_patch_is_there_where_the_label_says() -> None:
    result = asked("patch")
    assert torch.equal(result.labels.bool(), result.masks.flatten(1).any(1))
    assert (result.images.amax((1, 2, 3)) == 1).equal(result.labels.bool())


def test_both_has_two_kinds_exactly_where_the_answer_is_yes() -> None:
    result = asked("both")
    areas = result.masks.flatten(1).sum(1)
    counts = {tuple(areas[result.labels == answer].unique().tolist()) for answer in (0, 1)}
    mixed, alike = areas[result.labels == 1].unique(), areas[result.labels == 0].unique()
    assert len(counts) == 2
    assert len(mixed) == 1
    assert len(alike) == 2
    assert alike.float().mean() == mixed[0]  # a square and a ring: half of each pair of one kind


def test_larger_is_bright_where_the_answer_is_yes_and_the_mask_is_the_larger_one() -> None:
    result = asked("larger")
    assert (result.masks.flatten(1).sum(1) == 144).all()
    for image, mask, label in zip(result.images, result.masks, result.labels, strict=True):
        assert (image[:, mask] == (1 if label else -1)).all()
        smaller = (image[0] == (-1 if label else 1)).sum()
        assert smaller == 36
    widths = result.boxes[:, 2:] - result.boxes[:, :2]
    assert (widths == 12).all()


def test_no_two_splits_or_seeds_share_their_patches() -> None:
    seeds = [
        patch_seed(Settings(seed=seed, data_seed=data_seed), split)
        for seed in range(3)
        for data_seed in range(3)
        for split in ("train",)
    ]
    seeds += [
        patch_seed(Settings(data_seed=n), split) for n in range(3) for split in ("val", "test")
    ]
    assert len(set(seeds)) == len(seeds)


def test_val_and_test_do_not_follow_the_training_seed() -> None:
    for split in ("val", "test"):
        assert patch_seed(Settings(seed=0), split) == patch_seed(Settings(seed=9), split)
