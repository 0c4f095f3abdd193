"""Dots and curves: what is drawn, and that no global state is touched."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from attnviz.errors import InputError
from attnviz.figures import curves, dot_plot


def rows(**columns: list[float]) -> pd.DataFrame:
    table = {"variant": ["a", "b"], "mean": [0.6, 0.4], "low": [0.5, 0.3], "high": [0.7, 0.5]}
    return pd.DataFrame({**table, **columns})


class TestDotPlot:
    def test_first_in_rank_is_on_top(self) -> None:
        axes = dot_plot(rows()).axes[0]
        low, high = axes.get_ylim()
        assert low > high
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]

    def test_intervals_reach_from_low_to_high(self) -> None:
        lines = [line for line in dot_plot(rows()).axes[0].lines if len(line.get_xdata()) == 2]
        assert [list(line.get_xdata()) for line in lines] == [[0.5, 0.7], [0.3, 0.5]]

    def test_a_shared_level_is_one_line_others_are_marks(self) -> None:
        axes = dot_plot(rows(chance=[0.03, 0.03], redrawn=[0.8, 0.9])).axes[0]
        chance = [line for line in axes.lines if line.get_linestyle() == ":"]
        redrawn = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert len(chance) == 1
        assert [line.get_xdata()[0] for line in redrawn] == [0.8, 0.9]
        assert {"chance 0.03", "mask redrawn 0.8 to 0.9"} <= {t.get_text() for t in axes.texts}

    def test_an_unknown_level_is_left_out(self) -> None:
        axes = dot_plot(rows(chance=[np.nan, np.nan])).axes[0]
        assert not [line for line in axes.lines if line.get_linestyle() == ":"]

    def test_colours_follow_the_order_given_not_the_rank(self) -> None:
        def dots(**options: list[str]) -> dict[str, str]:
            table = rows()
            found = dot_plot(table, **options).axes[0].lines
            marks = [line.get_color() for line in found if line.get_marker() == "o"]
            return dict(zip(table["variant"], marks, strict=True))

        assert dots(order=["b", "a"]) == dict(zip("ab", reversed(dots().values()), strict=True))

    def test_a_score_that_is_no_number_is_a_row_without_a_dot(self) -> None:
        table = rows()
        table.loc[1, ["mean", "low", "high"]] = np.nan
        axes = dot_plot(table).axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
        assert [t.get_text() for t in axes.texts] == ["0.60"]

    def test_the_number_stands_beyond_the_interval_and_every_seed(self) -> None:
        seeds = pd.DataFrame({"variant": ["a", "b", "b"], "mean": [0.65, 0.2, 0.8]})
        places = [text.xy[0] for text in dot_plot(rows(), seeds=seeds).axes[0].texts]
        assert places == [0.7, 0.8]

    def test_nothing_to_draw_is_refused(self) -> None:
        with pytest.raises(InputError, match="at least one row, got none"):
            dot_plot(rows()[:0])


class TestCurves:
    def table(self, *losses: float) -> pd.DataFrame:
        return pd.DataFrame({"epoch": range(len(losses)), "val_loss": losses})

    def test_a_line_is_the_mean_and_the_band_the_spread_of_the_seeds(self) -> None:
        figure = curves({"a": [self.table(1, 0.5), self.table(3, 0.7, 0.2)]}, ["val_loss"])
        axes = figure.axes[0]
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [2, 0.6, 0.2])
        band = axes.collections[0].get_paths()[0].get_extents()
        assert (band.ymin, band.ymax) == (0.2, 3)

    def test_one_seed_has_no_band(self) -> None:
        axes = curves({"a": [self.table(1, 0.5)]}, ["val_loss"]).axes[0]
        assert not axes.collections
        assert len(axes.lines) == 1

    def test_panels_without_data_are_left_out(self) -> None:
        figure = curves({"a": [self.table(1, 0.5)], "b": []}, ["train_loss", "val_loss"])
        assert [axes.get_title() for axes in figure.axes] == ["val loss"]

    def test_every_variant_is_named(self) -> None:
        figure = curves({"a": [self.table(1, 0.5)], "b": [self.table(1, 0.6)]}, ["val_loss"])
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]

    def test_no_such_curve_names_those_there_are(self) -> None:
        with pytest.raises(InputError, match="unknown curve 'loss': did you mean 'val_loss'"):
            curves({"a": [self.table(1)]}, ["loss"])


def test_neither_torch_nor_pyplot_is_imported() -> None:
    code = (
        "import sys, numpy as np, attnviz.figures as f\n"
        "f.comparison_picture([np.zeros((4, 4))], {'a': [np.ones((2, 2))]})\n"
        "bad = {'torch', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_room_s_door_is_light() -> None:
    """Who only lays a map over an image does not wait for matplotlib's figures."""
    code = "import sys, attnviz.figures\nassert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
