"""Comparing run folders: what is taken from them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attnviz.comparison import compare
from attnviz.comparison.from_runs import asks, incidental
from attnviz.errors import InputError
from attnviz.runs import differing, flat, in_words, list_runs, open_run, start_run
from tests.comparison.written import dataset, sample_table, write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_folder_is_grouped_by_variant_and_seed(root: Path) -> None:
    for seed in range(3):
        write_run(root, "mha", seed, energy=0.7)
        write_run(root, "cnn", seed, energy=0.3)
    result = compare(root, resamples=200)
    assert result.variants == ["mha", "cnn"]
    assert result.winner == "mha"
    first = result.of("energy_pointing_game").iloc[0]
    assert (first.seeds, first.n, first.valid) == (3, 24, 24)
    levels = [first.chance, first.centre, first.redrawn]
    assert levels == pytest.approx([0.06, 0.08, 0.8])
    assert first.accuracy == pytest.approx(11 / 12)
    assert result.images == 8


def test_only_images_with_a_patch_count(root: Path) -> None:
    run = write_run(root, "mha", energy=0.7)
    frame = run.samples()
    expected = frame[frame.label == 1]["attend/energy_pointing_game"].mean()
    assert compare(root, resamples=50).table["mean"].iloc[0] == pytest.approx(expected)


def test_runs_paths_lists_and_mappings_say_the_same(root: Path) -> None:
    for variant, energy in (("mha", 0.7), ("cnn", 0.3)):
        write_run(root, variant, energy=energy)
    by_folder = compare(root, resamples=50).table
    paths = [root / "mha-0", str(root / "cnn-0")]
    for source in (
        list_runs(root),
        list(list_runs(root)),
        paths,
        {"mha": paths[:1], "cnn": paths[1]},
        {"mha": open_run(paths[0]), "cnn": [open_run(paths[1])]},
    ):
        assert compare(source, resamples=50).table.equals(by_folder)


def test_a_mapping_names_variants_anew(root: Path) -> None:
    write_run(root, "mha", 0, energy=0.7, settings={"lr": 0.1})
    write_run(root, "mha", 1, energy=0.3, settings={"lr": 0.01})
    result = compare({"fast": root / "mha-0", "slow": root / "mha-1"}, resamples=50)
    assert result.variants == ["fast", "slow"]
    assert "trained unlike: lr: 0.1 (fast), 0.01 (slow)" in result.notes


def test_a_setting_that_the_names_already_say_is_no_news(root: Path) -> None:
    for place in (0, 3):
        settings = {
            "placement": place,
            "lr": 0.1 * (1 + place),
            "mask_pad": place > 0,
            "model": {"placement": place},
        }
        write_run(root, "mha", 0, name=f"mha-{place}", settings=settings)
    write_run(root, "cnn", 0, settings={"placement": None, "lr": 0.1, "mask_pad": False})
    named = {f"mha placement {place} mask pad {word}": root / f"mha-{place}"
             for place, word in ((0, "no"), (3, "yes"))}  # fmt: skip
    notes = compare({**named, "cnn mask pad no": root / "cnn-0"}, resamples=50).notes
    assert [note for note in notes if note.startswith("trained unlike")] == [
        "trained unlike: lr: 0.1 (mha placement 0 mask pad no, cnn mask pad no), "
        "0.4 (mha placement 3 mask pad yes)"
    ]
    notes = compare({"early": root / "mha-0", "late": root / "mha-3"}, resamples=50).notes
    assert "trained unlike: placement: 0 (early), 3 (late)" in notes
    assert not any("model.placement" in note for note in notes)


def test_another_map_can_be_asked_for(root: Path) -> None:
    run = write_run(root, "mha")
    mean = run.samples()["gradcam/energy_pointing_game"].mean()
    result = compare(root, map_name="gradcam", resamples=50)
    assert result.table["mean"].iloc[0] == pytest.approx(mean)
    with pytest.raises(InputError, match="unknown map of run mha-0 'grad': did you mean 'gradcam'"):
        compare(root, map_name="grad")


def test_a_run_without_a_primary_map_must_be_told_which(root: Path) -> None:
    write_run(root, "mha", summary={"map": None})
    with pytest.raises(InputError, match="mha-0 names no primary map: expected map_name=, one of "):
        compare(root)


def test_unfinished_runs_are_left_out_and_counted(root: Path) -> None:
    write_run(root, "mha", energy=0.7)
    start_run(root, "cnn-0", variant="cnn", settings={}, seed=0).stop("enough")
    result = compare(root, resamples=50)
    assert result.variants == ["mha"]
    assert "left out: 1 stopped (cnn-0)" in result.notes


def test_no_complete_run_is_an_error_that_says_what_there_is(root: Path) -> None:
    start_run(root, "cnn-0", variant="cnn", settings={}, seed=0).stop("enough")
    with pytest.raises(InputError, match="at least one complete run, got cnn-0 is stopped"):
        compare(root)
    with pytest.raises(InputError, match="at least one complete run, got no run at all"):
        compare([])


def test_other_images_are_not_ranked(root: Path) -> None:
    write_run(root, "mha")
    write_run(root, "cnn", digest=dataset(root, 15))
    with pytest.raises(InputError, match=r"different images: \w{16} \(cnn-0\), \w{16} \(mha-0\)"):
        compare(root)


def test_the_same_digest_is_not_taken_on_trust(root: Path) -> None:
    digest = dataset(root)
    write_run(root, "mha", digest=digest)
    moved = sample_table(root, digest, 0.5, 0)
    moved["x0"] += 1
    write_run(root, "cnn", digest=digest, samples=moved)
    with pytest.raises(InputError, match="cnn-0 and mha-0 differ in the column 'x0'"):
        compare(root)


def test_another_question_is_not_ranked(root: Path) -> None:
    write_run(root, "mha")
    write_run(root, "cnn", settings={"patch_size": 4, "data": {"fraction": 0.9}})
    message = r"different questions: patch_size: 4 \(cnn-0\), 8 \(mha-0\); data.fraction: 0.9 "
    with pytest.raises(InputError, match=message):
        compare(root)


def test_replicates_differ_in_their_seed_alone(root: Path) -> None:
    write_run(root, "mha", 0)
    write_run(root, "mha", 1, settings={"epochs": 9})
    with pytest.raises(InputError, match=r"runs of mha to differ in their seed alone, got epochs"):
        compare(root)


def test_one_run_per_seed(root: Path) -> None:
    write_run(root, "mha", 0)
    write_run(root, "mha", 0, name="again")
    with pytest.raises(InputError, match="one run of mha per seed, got again, mha-0; choose one"):
        compare(root)


def test_runs_of_one_id_in_two_folders_are_told_apart(root: Path) -> None:
    write_run(root / "a", "mha", 0)
    write_run(root / "b", "mha", 0)
    with pytest.raises(InputError, match=r"one run of mha per seed, got .*a/mha-0, .*b/mha-0"):
        compare([root / "a", root / "b"])


def test_a_run_without_samples_is_left_out_with_a_note(root: Path) -> None:
    write_run(root, "mha", energy=0.7)
    digest = open_run(root / "mha-0").dataset
    with start_run(root, "bare", variant="bare", settings={}, seed=0, dataset=digest) as writer:
        writer.finish({})
    result = compare(root, resamples=50)
    assert result.variants == ["mha"]
    assert any("run bare: expected samples" in note for note in result.notes)
    with pytest.raises(InputError, match="run bare: expected samples, got a run without any"):
        compare([root / "bare"])


def test_a_table_without_what_it_takes_says_so(root: Path) -> None:
    digest = dataset(root)
    bare = sample_table(root, digest, 0.5, 0).drop(columns=["x1"])
    write_run(root, "mha", digest=digest, samples=bare, summary={"accuracy": 1.0})
    with pytest.raises(InputError, match=r"run mha-0: .* got none called x1"):
        compare(root)


def test_scores_are_split_by_right_and_wrong(root: Path) -> None:
    run = write_run(root, "mha")
    frame = run.samples()[lambda f: f.label == 1]
    row = compare(root, resamples=50).split.iloc[0]
    scores = frame["attend/energy_pointing_game"]
    assert row.right == pytest.approx(scores[frame.correct].mean())
    assert row.wrong == pytest.approx(scores[~frame.correct].mean())
    assert (row.n_right, row.n_wrong) == (7, 1)


def test_runs_without_a_seed_are_one_each(root: Path) -> None:
    write_run(root, "mha", None, energy=0.7)
    assert compare(root, resamples=50).by_seed["seed"].tolist()[0] == "mha-None"


class TestSettings:
    @pytest.mark.parametrize("key", ["patch_size", "data.folder", "opacity", "data_seed", "size"])
    def test_the_question(self, key: str) -> None:
        assert asks(key)

    @pytest.mark.parametrize("key", ["lr", "batch_size", "model.size", "heads", "images", "seed"])
    def test_not_the_question(self, key: str) -> None:
        assert not asks(key)

    def test_where_and_from_which_seed_is_incidental(self) -> None:
        assert all(map(incidental, ["seed", "train_seed", "device", "out"]))
        assert not any(map(incidental, ["lr", "seeds", "batch_size"]))

    def test_nested_settings_are_compared_by_their_leaves(self) -> None:
        assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3, "f": {}}) == {
            "a.b": 1,
            "a.c.d": 2,
            "e": 3,
        }
        found = in_words(
            differing({"x": {"a": {"b": 1}, "c": 2}, "y": {"a": {"b": 3}, "c": 2, "d": 4}})
        )
        assert found == {"a.b": {"x": "1", "y": "3"}, "d": {"x": "(none)", "y": "4"}}


def test_a_metric_that_could_not_be_computed_anywhere_is_no_number(root: Path) -> None:
    digest = dataset(root)
    table = sample_table(root, digest, 0.5, 0)
    table["attend/max_iou"] = np.nan
    write_run(root, "mha", digest=digest, samples=table)
    row = compare(root, resamples=50).of("max_iou").iloc[0]
    assert np.isnan(row["mean"])
    assert (row.valid, row.n) == (0, 8)


class TestGroups:
    def grouped(self, root: Path, variant: str, seed: int, labels: list[object]) -> None:
        digest = dataset(root)
        table = sample_table(root, digest, 0.5, seed).assign(group=labels)
        write_run(root, variant, seed, digest=digest, samples=table)

    def test_a_runs_groups_are_those_of_its_samples(self, root: Path) -> None:
        photographs = [f"photo {i % 4}" for i in range(12)]
        for variant in ("mha", "cnn"):
            for seed in range(3):
                self.grouped(root, variant, seed, photographs)
        result = compare(root, resamples=50)
        assert result.groups == 4
        assert repr(result).startswith("energy pointing game on 8 images of 4 groups, 3 seeds")
        assert not any("groups of images" in note for note in result.notes)

    def test_groups_of_some_runs_are_those_of_all(self, root: Path) -> None:
        write_run(root, "mha")
        self.grouped(root, "cnn", 0, [f"photo {i % 2}" for i in range(12)])
        result = compare(root, resamples=50)
        assert result.groups == 2
        assert any(
            note.startswith("2 groups of images (photo 0, photo 1)") for note in result.notes
        )

    def test_other_groups_are_not_ranked(self, root: Path) -> None:
        self.grouped(root, "mha", 0, ["a", "b"] * 6)
        self.grouped(root, "cnn", 0, ["a", "a", "b"] * 4)
        with pytest.raises(InputError, match="samples name other groups: cnn-0, mha-0 differ"):
            compare(root)

    def test_groups_can_be_given(self, root: Path) -> None:
        write_run(root, "mha")
        assert compare(root, groups=["a", "b"] * 4, resamples=50).groups == 2
