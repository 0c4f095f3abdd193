"""What the address may ask for, and what is said when it asks for something else."""

from __future__ import annotations

import pytest

from dashboard import address


class TestTheAddress:
    def test_a_missing_parameter_is_the_default_without_a_complaint(self):
        assert address.one_of({}, "order", ["worst", "best"], "worst") == ("worst", None)
        assert address.whole({}, "image", 0, 9, 3) == (3, None)
        assert address.share({}, "tau", 0.4) == (0.4, None)
        assert address.several({}, "runs", ["a"]) == ([], None)

    def test_a_good_value_is_taken(self):
        assert address.one_of({"order": "best"}, "order", ["worst", "best"], "worst")[0] == "best"
        assert address.whole({"image": "9"}, "image", 0, 9, 3) == (9, None)
        assert address.share({"tau": "1"}, "tau", 0.4) == (1.0, None)
        assert address.several({"runs": "b,a,b"}, "runs", ["a", "b"]) == (["b", "a"], None)

    @pytest.mark.parametrize("bad", ["10", "-1", "2.5", "nan", "", "1e2", "٣x", "9" * 400])
    def test_a_bad_number_is_said_and_not_taken(self, bad):
        value, complaint = address.whole({"image": bad}, "image", 0, 9, 3)
        assert value == 3
        assert "from 0 to 9" in complaint
        assert "Shown instead: 3" in complaint

    @pytest.mark.parametrize("bad", ["1.01", "-0.1", "nan", "inf", "x", ""])
    def test_a_bad_share_is_said_and_not_taken(self, bad):
        value, complaint = address.share({"tau": bad}, "tau", 0.4)
        assert value == 0.4
        assert "from 0 to 1" in complaint

    def test_an_unknown_word_names_those_that_exist(self):
        value, complaint = address.one_of({"order": "worse"}, "order", ["worst", "best"], "worst")
        assert value == "worst"
        assert "`worse`" in complaint
        assert "worst, best" in complaint

    def test_unknown_ids_are_named_and_the_known_ones_stay(self):
        found, complaint = address.several({"runs": "a,zz,b,../x"}, "runs", ["a", "b"])
        assert found == ["a", "b"]
        assert "`zz`" in complaint
        assert "`../x`" in complaint

    def test_quoting_cannot_be_left(self):
        assert "`" not in address.quoted("a` **b** `c")[1:-1]
        assert address.quoted("x" * 1000).endswith("…`")
        assert "\n" not in address.quoted("a\nb")

    @pytest.mark.parametrize(
        "text", ["<b>", "[x](y)", "$a$", ":red[x]", "*a*", "#a", "a_b_c", "\\"]
    )
    def test_every_mark_is_escaped(self, text):
        marks = set("\\`*_{}[]()<>#$:")
        out = address.plain(text)
        bare = [c for i, c in enumerate(out) if c in marks - {"\\"} and out[i - 1] != "\\"]
        assert not bare
        assert out.replace("\\", "") == text.replace("\\", "")
