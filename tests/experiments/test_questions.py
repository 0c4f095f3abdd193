"""Questions: what is asked, and that its answer is where the mask says."""

from __future__ import annotations

import pytest
import torch

from experiments.questions import Asked, ask, patch_seed
from experiments.settings import Settings
from experiments.training import Loader

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


@pytest.mark.parametrize("question", ["patch", "both", "larger"])
def test_as_published_places_repeat_from_batch_to_batch_and_answers_do_not(question: str) -> None:
    plain, published = (
        ask(GREY, torch.arange(400),
            Settings(question=question, size=12, places=places, batch=8), seed=5,
            order=torch.arange(400))
        for places in ("image", "batch")
    )  # fmt: skip
    assert torch.equal(plain.labels, published.labels)

    def drawn(asked: Asked) -> int:
        boxes = asked.boxes[asked.boxes[:, 2] > 0]
        return len(boxes.unique(dim=0))

    assert drawn(published) == 8
    assert drawn(plain) > 100


def test_a_loader_takes_the_place_in_the_batch_for_training_and_in_the_split_for_the_rest() -> None:
    settings = Settings(side=32, size=8, train_images=24, val_images=4, test_images=12, batch=4,
                        places="batch")  # fmt: skip
    train, test = (Loader(settings, split, torch.device("cpu")) for split in ("train", "test"))
    numbers = torch.tensor([17, 3, 9, 20])
    asked, known = train.batch(numbers), test.batch(torch.arange(12))
    here = asked.labels.bool()
    assert here.any()
    for n in here.nonzero()[:, 0].tolist():
        same = known.boxes[n::4][known.labels[n::4].bool()]
        assert (same == asked.boxes[n]).all()
    few = test.batch(torch.arange(5, 9))
    assert torch.equal(few.masks, known.masks[5:9])


def test_val_and_test_do_not_follow_the_training_seed() -> None:
    for split in ("val", "test"):
        assert patch_seed(Settings(seed=0), split) == patch_seed(Settings(seed=9), split)
