"""Findings: sorted, printed, and as JSON; every code has its page, and every page its code."""

from __future__ import annotations

import json

import pytest

from attnviz.diagnosis import SEVERITIES, Finding, Findings
from attnviz.diagnosis.registry import named
from attnviz.errors import InputError


def finding(code: str, where: str, **evidence) -> Finding:
    return named(code).finding(where, **evidence)


def three() -> Findings:
    return Findings(
        [
            finding("nothing-seen", "model"),
            finding("temperature", "a", scale=1.0, ratio=4.0, d_k=16, word="sharper"),
            finding("not-applied", "b", change=0.0),
            finding("temperature", "c", scale=1.0, ratio=4.0, d_k=16, word="sharper"),
        ],
        name="net",
        checked={"attention": 2, "gates": 0},
    )


def test_the_worst_comes_first() -> None:
    found = three()
    assert found.codes == ("not-applied", "temperature", "nothing-seen")
    assert found.worst is found[0]
    assert [len(found.of(severity)) for severity in SEVERITIES] == [1, 2, 1]
    assert isinstance(found[1:], Findings)
    assert Findings().worst is None


def test_the_headline_is_the_worst_and_how_many_like_it() -> None:
    found = three()
    assert found.headline.startswith("net: error not-applied at b: weights are computed")
    assert found.warnings.headline.startswith("net: warning temperature at a and 1 more: logits")
    assert found.notes.headline == "net: nothing wrong was found (to know: nothing-seen)"
    assert Findings().headline == "nothing wrong was found"


def test_print_shows_a_code_once_with_its_places_numbers_and_remedy() -> None:
    text = str(three())
    assert text.startswith(
        "net: 1 error, 2 warnings, 1 note (2 attention, 0 gates examined)\nerror   not-applied at b"
    )
    assert "1 attention, 1 gate examined" in str(Findings(checked={"attention": 1, "gates": 1}))
    assert text.count("temperature at") == 1
    assert "warning temperature at a, c\n" in text
    assert "seen: scale 1, ratio 4, d_k 16" in text
    assert "do:   scale by the width of one head" in text
    assert "→ docs/doctor/temperature.md" in text
    assert max(map(len, text.splitlines())) <= 100


def test_numbers_that_hold_at_one_place_only_say_so() -> None:
    alike = [finding("temperature", w, scale=1.0, ratio=4.0, d_k=16, word="sharper") for w in "ac"]
    other = finding("temperature", "d", scale=1.0, ratio=9.0, d_k=16, word="sharper")
    assert "a, c\n        logits" in str(Findings(alike))
    assert "a, c, d\n        at a: logits" in str(Findings([*alike, other]))


def test_findings_are_strict_json() -> None:
    more = [finding("no-effect", "d", change=float("nan"))]
    found = three() + more
    read = json.loads(json.dumps(found.as_dicts(), allow_nan=False))
    assert [one["code"] for one in read[:2]] == ["not-applied", "no-effect"]
    assert read[1]["evidence"] == {"change": None}
    assert set(read[0]) == {
        "code", "severity", "where", "evidence", "meaning", "remedy", "page",
    }  # fmt: skip


def test_a_finding_without_a_page_prints_no_arrow() -> None:
    one = Finding("own", "note", "a", {}, "it is so", "do this", "")
    assert "→" not in str(Findings([one]))


def test_an_unknown_code_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        finding("temprature", "a")


def test_findings_that_were_not_examined_are_not_clean() -> None:
    found = Findings(name="net", unexamined=("no weights",))
    assert found.headline == "net: not examined: no weights"
    assert str(found) == "net: no finding\nnot examined: no weights"
    assert (found + three()).headline.startswith("net: error not-applied")
    assert (three() + found).unexamined == ("no weights",)
    assert found.errors.unexamined == ("no weights",)
