"""Rules are registered with their words, by this package and by others."""

from __future__ import annotations

import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attnviz.diagnosis import RULES, Examination, Observation, diagnose, observed, rule, unregister
from attnviz.errors import InputError
from tests.diagnosis.twins import TWINS

OWN = {
    "code": "own-rule",
    "severity": "note",
    "summary": "The attention has few heads.",
    "meaning": "the attention has {heads} heads",
    "evidence": {"heads": "number of heads"},
    "remedy": "use more",
}


@pytest.fixture
def registered() -> Iterator[None]:
    yield
    if "own-rule" in RULES:
        unregister("own-rule")


def heads(case: Examination) -> Iterator[Observation]:
    for _, record in case.attention():
        yield observed(record.name, heads=record.heads)


@pytest.mark.usefixtures("registered")
def test_an_own_rule_is_applied_by_diagnose_beside_those_of_the_package() -> None:
    own = rule(**OWN)(heads)
    model, images = TWINS["reshaped tokens"].make(mended=False), TWINS["reshaped tokens"].images()
    found = diagnose(model, images)
    assert found.codes[0] == "scrambled-tokens"
    (one,) = (one for one in found if one.code == "own-rule")
    assert one == own.finding("layer", heads=4)
    assert one.meaning == "the attention has 4 heads"
    assert one.page == ""
    unregister("own-rule")
    assert "own-rule" not in diagnose(model, images).codes


@pytest.mark.usefixtures("registered")
def test_a_consequence_is_left_out_at_the_module_of_its_cause() -> None:
    rule(**OWN, explained_by=("scrambled-tokens",))(heads)
    twin = TWINS["reshaped tokens"]
    assert "own-rule" not in diagnose(twin.make(mended=False), twin.images()).codes
    assert "own-rule" in diagnose(twin.make(mended=True), twin.images()).codes


@pytest.mark.usefixtures("registered")
def test_a_rule_for_images_gets_the_images() -> None:
    @rule(**{**OWN, "evidence": {"heads": "images"}}, subject="images")
    def count(images: torch.Tensor) -> Iterator[Observation]:
        yield observed("input", heads=len(images))

    twin = TWINS["reshaped tokens"]
    assert "own-rule" in diagnose(twin.make(mended=True), twin.images()).codes


@pytest.mark.usefixtures("registered", "unchecked")
def test_what_cannot_be_registered_says_what_is_wrong() -> None:
    with pytest.raises(InputError, match="expected a new code, 'not-applied' is registered by"):
        rule(**{**OWN, "code": "not-applied"})(heads)
    with pytest.raises(InputError, match="unknown severity 'eror': did you mean 'error'"):
        rule(**{**OWN, "severity": "eror"})
    with pytest.raises(InputError, match="unknown subject of a rule 'modle'"):
        rule(**OWN, subject="modle")
    with pytest.raises(InputError, match="did you mean 'not-applied'"):
        unregister("not-aplied")
    own = rule(**OWN)(heads)
    with pytest.raises(InputError, match="expected the evidence heads, got keys; declare each"):
        own.finding("a", keys=3)


@pytest.mark.parametrize("code", RULES)
def test_a_rule_has_all_words_and_speaks_of_its_evidence_only(code: str) -> None:
    one = RULES[code]
    for words in (one.summary, one.meaning, one.remedy, one.appearance, one.cause, one.method):
        assert words
    named = {name for _, name, _, _ in string.Formatter().parse(one.meaning) if name}
    assert named <= {*one.evidence, "word"}
    assert set(one.explained_by) <= set(RULES)
    assert "!" not in one.meaning + one.remedy
    assert not one.meaning.endswith(".")


def test_an_own_rule_is_used_from_a_module_outside_the_package(tmp_path: Path) -> None:
    (tmp_path / "own_rules.py").write_text(
        "from attnviz.diagnosis import observed, rule\n"
        f"@rule(**{OWN!r})\n"
        "def few_heads(case):\n"
        "    for _, record in case.attention():\n"
        "        yield observed(record.name, heads=record.heads)\n"
    )
    (tmp_path / "examine.py").write_text(
        "import own_rules, torch, attnviz as av\n"
        "model = av.build_model('mha', width=8)\n"
        "print(av.diagnose(model, torch.rand(2, 3, 32, 32)))\n"
    )
    done = subprocess.run(
        [sys.executable, "examine.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "note    own-rule at features.attention" in done.stdout
