"""The comparison as a result: its numbers against plain numpy, its words, its tables."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from attnviz.comparison import Comparison, compare
from attnviz.definitions import is_lower_better

PRIMARY = "energy_pointing_game"


def study(mean: float, seeds: int = 3, images: int = 20, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, round(1000 * mean)])
    return np.asarray(mean + rng.normal(0, 0.01, (seeds, 1)) + rng.normal(0, 0.05, (seeds, images)))


def clear(**options: Any) -> Comparison:
    levels = {"chance": 0.03, "redrawn": 0.81}
    tables = {"cbam": study(0.41), "mha": study(0.61)}
    return compare(tables, resamples=500, baselines={PRIMARY: levels}, **options)


class TestNumbers:
    def test_a_mean_is_the_mean_over_seeds_of_means_over_images(self) -> None:
        rows = study(0.5)
        rows[0, :15] = np.nan  # this seed must weigh as much as the others
        result = compare({"a": rows}, resamples=10).table.iloc[0]
        assert result["mean"] == pytest.approx(np.mean([np.nanmean(row) for row in rows]))
        assert (result.valid, result.n) == (45, 60)

    def test_differences_are_paired_over_images(self) -> None:
        """A shift that every image shares: sure, although the images differ by far more."""
        images = np.random.default_rng(0).normal(0.5, 0.2, (1, 30)).repeat(3, axis=0)
        tables = {"a": images + 0.01, "b": images}
        gap = compare(tables, resamples=500).differences.iloc[0]
        assert gap.difference == pytest.approx(0.01)
        assert gap.clear
        assert gap.high - gap.low < 1e-6
        table = compare(tables).table
        assert table.loc[0, "low"] < table.loc[1, "mean"] < table.loc[0, "high"]

    def test_shuffled_images_are_not_paired(self) -> None:
        images = np.random.default_rng(0).normal(0.5, 0.2, (1, 30)).repeat(3, axis=0)
        tables = {"a": images + 0.01, "b": np.random.default_rng(1).permutation(images, axis=1)}
        assert not compare(tables, resamples=500).differences.iloc[0].clear

    def test_interval_p_and_clear_say_the_same(self) -> None:
        tables = {name: study(0.5 + i / 60, 4, seed=i) for i, name in enumerate("abcd")}
        gaps = compare(tables, resamples=2000).differences
        outside = (gaps["low"] > 0) | (gaps["high"] < 0)
        assert (outside == gaps["clear"]).all()
        assert (gaps["clear"] == (gaps["p_adjusted"] <= 0.05)).all()
        assert (gaps["p"] <= gaps["p_adjusted"]).all()
        assert set(gaps["clear"]) == {True, False}
        assert gaps["p_holm"].equals(gaps["p_adjusted"])

    def test_other_metrics_do_not_take_from_the_primary_one(self) -> None:
        tables = {name: study(0.5 + i / 60, 4, seed=i) for i, name in enumerate("abc")}
        more = {k: {PRIMARY: v, "max_iou": v, "pixel_ap": v} for k, v in tables.items()}
        alone, beside = compare(tables, resamples=2000), compare(more, resamples=2000)
        gaps = beside.differences
        pd.testing.assert_frame_equal(alone.differences, gaps[gaps["metric"] == PRIMARY])
        mine, theirs = (
            gaps[gaps["metric"] == metric]["p_adjusted"].to_numpy()
            for metric in (PRIMARY, "max_iou")
        )
        np.testing.assert_allclose(theirs, np.minimum(2 * mine, 1))

    @pytest.mark.parametrize("seeds", [1, 2])
    def test_below_three_seeds_nothing_is_tested_and_nothing_clear(self, seeds: int) -> None:
        gaps = compare({"a": study(0.9, seeds), "b": study(0.1, seeds)}, resamples=50).differences
        assert np.isnan(gaps[["p", "p_adjusted"]].to_numpy(dtype=float)).all()
        assert not gaps["clear"].any()
        assert np.isfinite(gaps[["low", "high"]].to_numpy()).all()

    def test_seeds_of_one_variant_need_no_partner(self) -> None:
        a, b = study(0.6, 4), study(0.5, 3)
        gap = compare({"a": a, "b": b}, resamples=50).differences.iloc[0]
        assert gap.seeds == 3
        assert gap.difference == pytest.approx(a.mean() - b.mean())

    def test_images_that_one_of_two_lacks_are_dropped_from_the_pair_and_counted(self) -> None:
        a, b, c = study(0.7, 1), study(0.5, 1), study(0.3, 1)
        b[0, :4] = np.nan
        result = compare({"a": a, "b": b, "c": c}, resamples=50)
        pairs = result.differences.set_index(["variant", "other"])
        assert pairs.loc[("a", "b"), ["images", "dropped"]].tolist() == [16, 4]
        assert pairs.loc[("a", "c"), ["images", "dropped"]].tolist() == [20, 0]
        expected = (a[0, 4:] - b[0, 4:]).mean()
        assert pairs.loc[("a", "b"), "difference"] == pytest.approx(expected)
        assert any("energy pointing game (b 4 of 20)" in note for note in result.notes)

    def test_a_variant_s_numbers_do_not_depend_on_its_company(self) -> None:
        a, b = study(0.6), study(0.5)
        alone = compare({"a": a}, resamples=4000).table.iloc[0]
        beside = compare({"a": a, "b": b}, resamples=4000).table.iloc[0]
        assert alone["mean"] == beside["mean"]
        assert (alone.low, alone.high) == (beside.low, beside.high)

    def test_the_same_seed_gives_the_same_numbers(self) -> None:
        tables = {name: study(0.5 + i / 100) for i, name in enumerate("abc")}
        first, again, other = (
            compare(tables, resamples=100, seed=seed).differences["p_adjusted"]
            for seed in (1, 1, 2)
        )
        assert first.equals(again)
        assert not first.equals(other)

    def test_the_order_of_the_variants_does_not_rank(self) -> None:
        tables = {"a": study(0.3), "b": study(0.5), "c": study(0.4)}
        turned = dict(reversed(tables.items()))
        assert compare(tables, resamples=10).variants == ["b", "c", "a"]
        assert compare(turned, resamples=10).variants == ["b", "c", "a"]

    def test_equal_means_share_a_rank(self) -> None:
        row = study(0.5)
        result = compare({"a": row, "b": row, "c": row - 0.1}, resamples=50)
        assert result.table["rank"].tolist() == [1, 1, 3]
        assert result.winner is None
        assert result.differences.iloc[0][["difference", "p"]].tolist() == [0, 1]

    def test_less_is_better_where_it_is(self) -> None:
        tables = {"a": {"deletion_auc": study(0.2)}, "b": {"deletion_auc": study(0.6)}}
        result = compare(tables, primary="deletion_auc", resamples=200)
        assert result.variants == ["a", "b"]
        assert result.differences.iloc[0].difference < 0
        assert result.winner == "a"
        assert result.sentence.startswith("a ranks first: deletion AUC 0.")

    def test_an_interval_stays_where_the_mean_can_be(self) -> None:
        hits = np.array([[1.0] * 9 + [0.0], [1.0] * 10])
        rows = compare({"a": {"pointing_game": hits}}, primary="pointing_game", resamples=50).table
        assert 0 <= rows["low"].iloc[0] < rows["high"].iloc[0] <= 1
        percent = compare({"a": {"iou": 50 * (1 + hits)}}, primary="iou", resamples=50).table
        assert percent["high"].iloc[0] == percent["mean"].iloc[0]

    @pytest.mark.parametrize(
        ("change", "got"),
        [(lambda scores: 100 * scores, r"60 of 60 scores, such as [45]\d\.\d+"),
         (lambda scores: scores - 3, r"60 of 60 scores, such as -2\.\d+")],
        ids=["percent", "negative"],
    )  # fmt: skip
    def test_scores_that_the_metric_cannot_take_are_noted(self, change: Any, got: str) -> None:
        (note,) = compare({"a": study(0.5), "b": change(study(0.5))}, resamples=10).notes[-1:]
        assert re.match(f"b, {PRIMARY}: {got}, lie outside 0 to 1, where intervals end: div", note)
        rounded = compare({"a": np.full((3, 4), 1 + 1e-7)}, resamples=10)
        assert not any("lie outside" in one for one in rounded.notes)

    def test_copies_of_one_training_are_noted(self) -> None:
        """Three runs whose seed was never applied are one training."""
        one = study(0.5, 1)
        result = compare({"a": one.repeat(3, axis=0), "b": study(0.9)}, resamples=50)
        (note,) = (one for one in result.notes if "was the seed applied?" in one)
        assert note == (
            "a: the scores of seeds 0, 1, 2 are the same on all 20 images to the last bit: was the "
            "seed applied? Copies of one training are no replicates, and no interval, p or winner "
            "holds for them"
        )
        hits = compare({"a": {"pointing_game": np.ones((3, 20))}}, primary="pointing_game")
        assert not any("was the seed applied?" in one for one in hits.notes)

    def test_seeds_that_could_not_be_scored_do_not_count(self) -> None:
        a, b = study(0.6, 3), study(0.5, 3)
        b[2] = np.nan
        gap = compare({"a": a, "b": b}, resamples=50).differences.iloc[0]
        assert gap.seeds == 2
        assert not gap.clear

    @pytest.mark.parametrize("metric", [PRIMARY, "deletion_auc"])
    def test_a_leader_that_loses_where_both_were_measured_wins_nothing(self, metric: str) -> None:
        """First by all of its images, behind on those that the other could score."""
        sign = -1 if is_lower_better(metric) else 1
        easy = np.full((3, 20), 0.5) + 0.001 * study(0.1)
        few, many = easy.copy(), easy + sign * 0.2
        few[:, 5:] += sign * 0.4
        many[:, 5:] = np.nan
        result = compare({"few": {metric: few}, "many": {metric: many}}, primary=metric)
        assert result.variants == ["few", "many"]
        assert result.differences["clear"].all()
        assert result.winner is None
        assert "rank the other way round on what both share: difference" in result.sentence

    def test_a_variant_that_cannot_be_scored_comes_last_and_wins_nothing(self) -> None:
        result = compare({"a": np.full((2, 20), np.nan), "b": study(0.5, 2)}, resamples=50)
        assert result.variants == ["b", "a"]
        assert result.table["valid"].tolist() == [40, 0]
        assert result.winner is None

    def test_nothing_that_can_be_scored_is_said(self) -> None:
        result = compare({"a": [np.nan] * 3, "b": [np.nan] * 3}, resamples=10)
        assert result.sentence.startswith("no ranking: energy pointing game could not be scored")
        assert "–" in repr(result)


class TestWords:
    def test_a_winner(self) -> None:
        sentence = clear().sentence
        assert sentence.startswith("mha looks at the object most: energy 0.61 (95 % CI 0.")
        assert ", chance 0.03, mask redrawn 0.81; +0.19 over cbam, 95 % CI +0.1" in sentence

    def test_the_interval_says_over_how_many_pairs_it_is_adjusted(self) -> None:
        tables = {name: study(0.3 + i / 10) for i, name in enumerate("abc")}
        sentence = compare(tables, resamples=500).sentence
        assert sentence.startswith("c looks at the object most")
        assert "over b, 95 % CI over all 3 pairs +0.0" in sentence

    def test_no_clear_winner(self) -> None:
        noise = np.random.default_rng(0).normal(0, 0.1, (2, 3, 40))
        result = compare({"a": 0.5 + noise[0], "b": 0.5 + noise[1]}, resamples=200)
        assert result.winner is None
        assert result.sentence.startswith("no clear winner: ")
        assert "cannot be told apart: difference +0." in result.sentence

    def test_a_leader_must_be_clear_of_everyone(self) -> None:
        """Clear of the second, not of the third, whose scores scatter: no winner."""
        base = study(0.5, 1, 40).repeat(3, axis=0)
        wild = 0.44 + np.random.default_rng(1).normal(0, 0.6, (1, 40))
        wild = (wild + 0.44 - wild.mean()).repeat(3, axis=0)
        result = compare({"a": base, "b": base - 0.02, "c": wild}, resamples=500)
        assert result.variants == ["a", "b", "c"]
        assert result.differences["clear"].tolist()[:2] == [True, False]
        assert result.winner is None
        assert ": a, energy" in result.sentence
        assert "and c, " in result.sentence

    @pytest.mark.parametrize(("seeds", "words"), [(1, "one training"), (2, "two trainings")])
    def test_below_three_seeds_the_sentence_describes(self, seeds: int, words: str) -> None:
        tables = {"mha": study(0.9, seeds), "cbam": study(0.1, seeds)}
        result = compare(tables, resamples=50, baselines={PRIMARY: {"chance": 0.03}})
        assert result.winner is None
        assert result.sentence == (
            f"{words} each: energy mha 0.90, cbam 0.10, chance 0.03, in an order which another "
            "training may turn round."
        ).replace("0.90", f"{tables['mha'].mean():.2f}").replace(
            "0.10", f"{tables['cbam'].mean():.2f}"
        )

    def test_one_variant_of_few_seeds_keeps_the_others_from_winning(self) -> None:
        result = compare({"a": study(0.9), "b": study(0.5), "c": study(0.1, 1)}, resamples=50)
        assert result.winner is None
        assert result.sentence.startswith("fewer than three trainings of c: energy a 0.")

    def test_a_null_study_of_one_seed_names_no_winner(self) -> None:
        """Equal architectures whose seeds differ, on 190 images each."""
        for k in range(20):
            chance = np.random.default_rng(k)
            tables = {
                v: (0.5 + 0.17 * chance.normal() + 0.1 * chance.normal(size=190))[None]
                for v in "ab"
            }
            result = compare(tables, resamples=10)
            assert result.winner is None
            assert "most" not in result.sentence

    def test_a_null_p_is_small_in_one_of_twenty(self) -> None:
        """Six equal variants that differ image by image: 16 seeds do not stand for 40 images."""
        share, some = [], 0
        for k in range(120):
            chance = np.random.default_rng(k)
            tables = {
                v: 0.15 * chance.normal(size=(1, 40)) + 0.02 * chance.normal(size=(16, 1))
                + 0.1 * chance.normal(size=(16, 40))
                for v in "abcdef"
            }  # fmt: skip
            gaps = compare(tables, resamples=200).differences
            share.append((gaps["p"] <= 0.05).mean())
            some += (gaps["p_adjusted"] <= 0.05).any()
        assert 0.02 < np.mean(share) < 0.08
        assert some / 120 <= 0.08

    def test_trainings_of_two_kinds_are_said(self) -> None:
        means = np.array([0.9, 0.91, 0.1, 0.92, 0.9])[:, None]
        noise = 0.02 * np.random.default_rng(0).normal(size=(5, 20))
        result = compare({"a": means + noise, "b": study(0.5, 5)}, resamples=50)
        (note,) = (one for one in result.notes if "two kinds" in one)
        assert note.startswith("a: trainings of two kinds, 1 near 0.1")
        assert "and 4 near 0.91 (seeds: 0.1" in note
        row = result.of(PRIMARY).iloc[0]
        assert row["high"] - row["low"] > 0.5

    def test_what_trainings_that_did_not_fail_leave_open(self) -> None:
        notes = compare({"a": study(0.5, 5), "b": study(0.4, 5)}, resamples=50).notes
        assert notes == (
            "the intervals take trainings to spread like a bell; 5 that did not fail leave open "
            "that up to 45 % of others do",
        )

    def test_one_variant(self) -> None:
        assert compare({"a": study(0.5)}, resamples=50).sentence.endswith(
            "nothing to compare it with."
        )

    def test_one_seed_speaks_of_these_images_alone(self) -> None:
        notes = compare({"a": study(0.5, 1), "b": study(0.4, 1)}, resamples=50).notes
        assert notes == (
            "one seed each: the intervals speak of these images alone, not of another training",
        )

    def test_few_seeds_among_several_are_named(self) -> None:
        tables = {"a": study(0.5, 1), "b": study(0.4, 2), "c": study(0.3)}
        notes = compare(tables, resamples=50).notes
        assert notes[0].startswith("one seed for a: the interval speaks of these images alone")
        assert notes[1] == "two seeds for b: no difference is tested below 3 seeds"

    def test_print_is_a_ranking(self) -> None:
        lines = repr(clear()).splitlines()
        assert lines[0] == "energy pointing game on 20 images, 3 seeds"
        assert lines[2].split()[:4] == ["variant", "mean", "95", "%"]
        assert lines[3].split()[:3] == ["1", "mha", "0.61"]
        assert lines[4].split()[:3] == ["2", "cbam", "0.41"]
        assert lines[5].split() == ["chance", "0.03"]
        assert lines[6].split() == ["mask", "redrawn", "0.81"]
        assert clear().sentence in lines

    def test_columns_are_aligned(self) -> None:
        table = [line for line in repr(clear()).splitlines()[2:5] if line]
        assert len({line.index("/") for line in table[1:]}) == 1

    def test_html_is_escaped(self) -> None:
        page = compare({"<script>": study(0.5)}, resamples=10)._repr_html_()
        assert "<script>" not in page
        assert "&lt;script&gt;" in page


class TestExports:
    def test_markdown(self) -> None:
        text = clear().to_markdown().splitlines()
        assert text[0] == "| rank | variant | energy pointing game |"
        assert text[1] == "| ---: | --- | ---: |"
        assert text[2].startswith("| 1 | mha | **0.61** [0.")
        assert text[3].startswith("| 2 | cbam | 0.41 [0.")

    def test_markdown_escapes_what_would_break_the_table(self) -> None:
        assert r"a\|b" in compare({"a|b": study(0.5)}, resamples=10).to_markdown()

    def test_latex_is_booktabs_and_escaped(self) -> None:
        text = compare({"mha_50%": study(0.5), "b": study(0.3)}, resamples=10).to_latex()
        assert r"1 & mha\_50\% & \textbf{0.50} [0." in text
        for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{mha\_50\%", "95 \\% CI"):
            assert part in text
        assert text.count("{") == text.count("}")
        assert text.count(" & ") == 3 * 2

    def test_accuracy_has_a_column_where_it_is_known(self) -> None:
        told = {"a": {PRIMARY: study(0.5), "correct": np.ones((3, 20))}, "b": {PRIMARY: study(0.3)}}
        compared = compare(told, resamples=10)
        assert compared.to_markdown().splitlines()[0].endswith("| accuracy |")
        assert compared.to_latex().count(" & ") == 3 * 3
        assert "accuracy" in repr(compared)
        assert "accuracy" not in repr(clear())

    def test_decimals_are_as_many_as_tell_the_ends_of_an_interval_apart(self) -> None:
        rng = np.random.default_rng(0)
        near = 0.1 + rng.normal(0, 0.004, (1, 40))
        text = repr(compare({"a": near, "b": near - 0.003}, resamples=200))
        (row,) = (line for line in text.splitlines() if line.startswith("1  a"))
        mean, low, high = re.match(r"1  a +(\S+) +\[(\S+) to (\S+)\]", row).groups()  # type: ignore[union-attr]  # a miss fails
        assert low < mean < high
        assert mean == f"{near.mean():.3f}"
        (row,) = (line for line in text.splitlines() if line.startswith("2  b"))
        assert f"[{float(low) - 0.003:.3f} to {float(high) - 0.003:.3f}]" in row

    def test_json_holds_everything_and_no_nan(self) -> None:
        told = json.loads(json.dumps(clear().to_dict(), allow_nan=False))
        assert told["winner"] == "mha"
        assert told["table"][0]["p"] is None
        assert told["differences"][0]["clear"] is True
        assert [row["variant"] for row in told["by_seed"]] == ["mha"] * 3 + ["cbam"] * 3

    def test_csv(self, tmp_path: Any) -> None:
        clear().to_csv(tmp_path / "table.csv")
        columns = (
            "variant metric mean low high valid n seeds chance centre fixed redrawn bound accuracy"
        )
        expected = [*columns.split(), "p", "p_adjusted", "p_holm", "rank"]
        assert list(pd.read_csv(tmp_path / "table.csv").columns) == expected

    def test_the_figure_shows_every_variant_seed_and_level(self) -> None:
        figure = clear().figure()
        axes = figure.axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["mha", "cbam"]
        small = [line for line in axes.lines if line.get_markersize() < 5]
        assert [len(line.get_xdata()) for line in small if line.get_marker() == "o"] == [3, 3]
        words = [text.get_text() for text in axes.texts]
        assert {"0.61", "0.41", "chance 0.03", "mask redrawn 0.81"} <= set(words)
        assert "energy pointing game, mean and 95 % interval" in axes.get_xlabel()
