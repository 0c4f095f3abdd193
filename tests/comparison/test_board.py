"""The board of metrics, and the sentence that shows their disagreement."""

from __future__ import annotations

import numpy as np
import pytest

from attnviz.comparison.board import answer, board, board_metrics, ordinal
from attnviz.comparison.groups import Group
from attnviz.comparison.ranking import rank


def group(name: str, seeds: int = 3, grouping: tuple[str, ...] | None = None, **means: float):
    rng = np.random.default_rng(len(name))
    values = {
        metric: np.clip(mean + rng.normal(0, 0.01, (seeds, 40)), 0, 1)
        for metric, mean in means.items()
    }
    levels = {metric: {"chance": 0.5} for metric in means}
    return Group(name, tuple(range(seeds)), values, None, (), levels, grouping, "lesion")


def answered(groups: list[Group], primary: str = "energy_pointing_game") -> str:
    metrics = list(groups[0].values)
    narrowed = [
        Group(g.variant, g.seeds, {primary: g.values[primary]}, None, (np.nan,) * len(g.seeds),
              g.levels, g.grouping, g.thing)
        for g in groups
    ]  # fmt: skip
    result = rank(narrowed, primary=primary, resamples=100, confidence=0.95, seed=0)
    return answer(result, board(groups, metrics))


DISAGREE = [
    group("first", energy_pointing_game=0.9, max_iou=0.55, pixel_auroc=0.4),
    group("second", energy_pointing_game=0.7, max_iou=0.7, pixel_auroc=0.8),
    group("third one", energy_pointing_game=0.6, max_iou=0.6, pixel_auroc=0.9),
]


def test_the_sentence_says_where_other_metrics_put_the_first():
    said = answered(DISAGREE)
    assert "looks at the lesion most" not in said
    assert said.startswith("first ranks first by energy pointing game")
    assert "By other metrics first is 3rd of 3 by IoU and pixel AUROC" in said
    assert "no better than chance by pixel AUROC" in said


def test_metrics_that_agree_leave_the_sentence_as_it_is():
    best = group("best", energy_pointing_game=0.9, max_iou=0.8)
    said = answered([best, group("other", energy_pointing_game=0.6, max_iou=0.6)])
    assert said.startswith("best looks at the lesion most")
    assert "By other metrics best is first as well." in said


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, "no groups are named, so each image counts as independent"),
        (("a", "b"), "of 2 groups (photographs, patients, scenes) only"),
        (("a", "b", "c", "d", "e", "f", "g", "h"), "of 8 groups."),
    ],
)
def test_the_sentence_says_on_what_it_was_measured(names, said):
    grouping = None if names is None else tuple(names[i % len(names)] for i in range(40))
    groups = [
        group("a", grouping=grouping, energy_pointing_game=0.9),
        group("bb", grouping=grouping, energy_pointing_game=0.6),
    ]
    assert said in answered(groups)


def test_ranks_share_a_place_and_turn_round_where_less_is_better():
    groups = [group("a", deletion_auc=0.2), group("bb", deletion_auc=0.4)]
    groups.append(Group("same", groups[0].seeds, groups[0].values, None, (), groups[0].levels))
    table = board(groups, ["deletion_auc"]).set_index("variant")
    assert table["rank"].to_dict() == {"a": 1, "bb": 3, "same": 1}
    assert not table["below"].any()  # 0.2 and 0.4 are better than a chance of 0.5
    missing = board([*groups, group("none", max_iou=0.5)], ["deletion_auc"])
    assert np.isnan(missing.iloc[-1]["rank"])


def test_a_board_has_six_metrics_the_primary_one_among_them():
    known = [
        "energy_pointing_game", "pointing_game", "max_iou", "pixel_auroc", "pixel_ap",
        "relevance_rank_accuracy", "oracle_iou", "mass_lift", "complexity",
    ]  # fmt: skip
    assert len(board_metrics(known, "energy_pointing_game")) == 6
    assert board_metrics(known, "complexity")[0] == "complexity"
    assert board_metrics([], "x") == ["x"]


def test_ordinals():
    said = [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)]
    assert said == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"]
