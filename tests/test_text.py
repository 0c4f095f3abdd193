"""Tables of plain text: columns line up in a terminal, and nothing in them acts on it."""

from __future__ import annotations

import pytest

from attnviz.text import first_line, printable, table, width


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    text = table(("name", "n"), [("a", 1), ("longer name", 20)])
    assert text.splitlines() == ["name         n", "a            1", "longer name  20"]


def test_numbers_align_right_where_asked_and_a_rule_is_as_wide_as_the_table() -> None:
    lines = table(("name", "n"), [("a", 1), ("b", 20)], right=(1,), rule=True).splitlines()
    assert lines == ["name   n", "────────", "a      1", "b     20"]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("abc", 3),
        ("", 0),
        ("注意", 4),
        ("é", 1),
        ("e\u0301", 1),
        ("ﾊﾝ", 2),
        ("τ ≥ ½", 5),
        ("猫a", 3),
    ],
)
def test_width_is_that_of_a_terminal(text: str, columns: int) -> None:
    assert width(text) == columns


def test_wide_characters_do_not_shift_the_next_column() -> None:
    lines = table(("name", "n"), [("注意", 1), ("e\u0301", 2), ("abcd", 3)]).splitlines()
    assert {width(line) for line in lines} == {7}


def test_control_characters_are_shown_not_sent() -> None:
    text = table(("a",), [("\x1b[31mred\nnext\u202e",)])
    assert text.splitlines() == ["a", "\\x1b[31mred\\nnext\\u202e"]
    assert printable("\a") == "\\x07"


def test_what_is_missing_is_a_dash_and_floats_have_three_decimals() -> None:
    text = table(("a",) * 5, [(None, "", 0.12345, 1e-9, [1])])
    assert text.splitlines()[1].split() == ["–", "–", "0.123", "1e-09", "[1]"]


def test_an_error_is_told_by_its_first_line() -> None:
    assert first_line("one\ntwo") == "one"
    assert first_line("one:\n two") == "one: two"
    assert first_line("a" * 300) == "a" * 200 + "…"
