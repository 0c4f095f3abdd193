"""What curves, splits and sibling runs say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from attnviz.diagnosis import Finding, diagnose_run, diagnose_split
from attnviz.diagnosis.registry import findings_of
from attnviz.diagnosis.rules.splits import shared_images
from attnviz.diagnosis.run_diagnosis import Training
from attnviz.runs import open_run, save_dataset, save_run


def curve_findings(table: pd.DataFrame, *, kept_best: bool = False) -> list[Finding]:
    return findings_of("run", Training(table, kept_best))


def curves(train: list[float], val: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"epoch": range(1, len(train) + 1), "train_loss": train, "val_loss": val}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("train", "val", "codes"),
    [
        ([0.69, 0.4, 0.2, 0.1], [0.68, 0.42, 0.25, 0.2], []),
        ([0.69, 0.69, 0.7, 0.69], [0.69, 0.7, 0.69, 0.7], ["no-learning"]),
        ([0.69, 0.4, 0.1, 0.02], [0.68, 0.42, 0.5, 0.7], ["overfitting"]),
        ([0.69, float("nan"), 0.5], [0.7, 0.7, 0.7], ["diverged"]),
        ([0.01, 0.01, 0.01], [0.01, 0.01, 0.01], []),
        ([0.69], [0.69], []),
        ([], [], []),
    ],
)
def test_curves_say_what_went_wrong(train: list, val: list, codes: list[str]) -> None:
    assert [one.code for one in curve_findings(curves(train, val))] == codes


def test_overfitting_names_the_best_epoch_and_matters_less_if_it_was_kept() -> None:
    table = curves([0.69, 0.4, 0.1, 0.02], [0.68, 0.42, 0.5, 0.7])
    (one,) = curve_findings(table)
    assert one.severity == "warning"
    assert one.evidence == {"last": 0.7, "best": 0.42, "epoch": 2, "train": 0.02}
    (kept,) = curve_findings(table, kept_best=True)
    assert kept.severity == "note"


def test_divergence_names_its_epoch() -> None:
    (one,) = curve_findings(curves([0.7, 0.6, float("inf")], [0.7, 0.6, 0.6]))
    assert one.evidence == {"epoch": 3}


def test_curves_without_losses_say_nothing() -> None:
    assert not list(curve_findings(pd.DataFrame({"epoch": [1, 2], "lr": [1.0, 1.0]})))


def boxes(rng: np.random.Generator, n: int, room: int = 81) -> np.ndarray:
    corner = rng.integers(0, room, (n, 2))
    return np.concatenate([corner, corner + 16], 1)


def test_places_at_random_are_no_leak_and_repeated_ones_are() -> None:
    rng = np.random.default_rng(0)
    train, test = boxes(rng, 4000), boxes(rng, 1000)
    assert not len(diagnose_split(train_boxes=train, test_boxes=test, size=(96, 96)))
    found = diagnose_split(train_boxes=train, test_boxes=train[:1000], size=(96, 96))
    assert found.codes == ("shared-places",)
    assert found[0].evidence["share"] == 1
    # 4000 draws from 81² places hit 1 − (1 − 1/6561)^4000 of them
    assert found[0].evidence["expected"] == pytest.approx(1 - (1 - 1 / 6561) ** 4000)
    nothing = np.zeros((5, 4), int)
    assert not len(diagnose_split(train_boxes=train, test_boxes=nothing, size=(96, 96)))


def test_photographs_on_both_sides_are_found_by_name_and_by_pixels() -> None:
    rng = np.random.default_rng(1)
    train = rng.integers(0, 256, (12, 24, 24, 3), dtype=np.uint8)
    test = rng.integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    assert not len(diagnose_split(train_images=train, test_images=test))
    test[1], test[3] = train[4], train[7]
    test[1, :8, :8] = 255  # under a patch it is still the same photograph
    assert shared_images(train, test) == 2
    found = diagnose_split(train_images=train, test_images=test)
    assert found.errors.codes == ("shared-photographs",)
    assert found[0].evidence == {"images": 2}
    named = diagnose_split(train_photographs=["a", "b"], test_photographs=["c", "b", "b"])
    assert named[0].evidence == {"images": 2}
    assert not len(diagnose_split(train_photographs=[1, 2], test_photographs=[3]))


def test_flat_images_are_no_copies_of_each_other() -> None:
    flat = np.zeros((3, 12, 12, 3), np.uint8)
    assert shared_images(flat, flat) == 0


def write(root, name: str, *, variant: str = "mha", seconds: float = 100.0, accuracy: float = 0.95,
          places: int = 1000, settings: dict | None = None, peak: int = 10**9,
          findings: list | None = None):  # fmt: skip
    rng = np.random.default_rng(2)
    n = 200
    where = boxes(rng, n)[np.arange(n) % places]
    labels = np.arange(n) % 2
    where[labels == 0] = 0
    masks = np.zeros((n, 96, 96), bool)
    digest = save_dataset(root, images=np.zeros((n, 96, 96, 3), np.uint8), masks=masks, boxes=where,
                          labels=labels, info={})  # fmt: skip
    save_run(
        root / name, variant=variant, settings=settings or {}, seed=0,
        samples=pd.DataFrame({"index": range(n), "label": labels}), dataset=digest,
        curves=[{"epoch": e, "train_loss": 0.7 / e, "val_loss": 0.7 / e} for e in (1, 2)],
        summary={"accuracy": accuracy, "seconds": seconds, "epochs": 2, "peak_bytes": peak,
                 "findings": findings or []},
    )  # fmt: skip
    return open_run(root / name)


def test_a_good_run_has_nothing_wrong(tmp_path) -> None:
    assert not len(diagnose_run(write(tmp_path, "a")))


def test_answers_like_the_commonest_one_are_noticed(tmp_path) -> None:
    found = diagnose_run(write(tmp_path, "a", accuracy=0.52))
    assert found.codes == ("not-above-majority",)
    assert found[0].evidence == {"accuracy": 0.52, "majority": 0.5}
    assert found[0].meaning.startswith("test accuracy is 52.0%")  # a run's accuracy is the test's


def test_places_that_repeat_are_noticed(tmp_path) -> None:
    found = diagnose_run(write(tmp_path, "a", places=10))
    assert found.codes == ("unlikely-places",)
    assert found[0].evidence["places"] <= 10 < found[0].evidence["expected"]


def test_what_the_training_said_of_its_split_is_said_again(tmp_path) -> None:
    found = diagnose_split(train_photographs=["a"], test_photographs=["a", "b"])
    kept = [*found.as_dicts(), {"code": "shared-places", "evidence": {}}, {"code": "no-effect"}, 7]
    again = diagnose_run(write(tmp_path, "a", findings=kept))
    assert again.codes == ("shared-photographs",)
    assert again[0] == found[0]


def test_cost_is_told_beside_the_plain_network(tmp_path) -> None:
    cuda = {"device": "cuda"}
    write(tmp_path, "plain", variant="cnn", seconds=40.0, settings=cuda, peak=4 * 10**8)
    run = write(tmp_path, "a", settings=cuda)
    found = diagnose_run(run)
    assert found.codes == ("slower-than-plain", "heavier-than-plain")
    assert found[0].evidence["ratio"] == 2.5
    assert found[0].evidence["seconds"] == 50.0
    assert found[1].evidence["ratio"] == 2.5
    assert diagnose_run(write(tmp_path, "b")).codes == ("slower-than-plain",)
    assert not len(diagnose_run(write(tmp_path, "c", variant="cnn")))
