"""Every fault has its own finding and no other error; its mended twin has no error."""

from __future__ import annotations

import pytest

from attnviz.diagnosis import RULES, diagnose
from tests.diagnosis.twins import TWINS


@pytest.mark.parametrize("name", TWINS)
def test_a_fault_has_its_code_and_no_other_error(name: str) -> None:
    twin = TWINS[name]
    found = twin.findings(mended=False)
    assert twin.severity in [one.severity for one in found if one.code == twin.code], found
    assert set(found.errors.codes) <= {twin.code}, found


@pytest.mark.parametrize("name", TWINS)
def test_its_mended_twin_has_no_error_and_not_that_code(name: str) -> None:
    twin = TWINS[name]
    found = twin.findings(mended=True)
    assert not found.errors, found
    assert twin.code not in found.codes, found


def test_every_rule_has_a_twin_and_every_twin_a_rule() -> None:
    assert {twin.code for twin in TWINS.values()} == set(RULES)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_shows_two_different_pieces_of_code(name: str) -> None:
    twin = TWINS[name]
    assert twin.source(False) != twin.source(True)
    compile(twin.source(False), name, "exec")
    compile(twin.source(True), name, "exec")


def test_padding_given_as_padding_is_a_warning() -> None:
    twin = TWINS["padding not masked"]
    images = twin.images()
    padding = (images == 0).all(1)
    for mended, codes in ((False, ("padding-attention",)), (True, ())):
        found = diagnose(twin.make(mended), images, padding=padding)
        assert found.warnings.codes == codes
    one = diagnose(twin.make(False), images[:1], padding=padding[:1])
    assert one.warnings.codes == ("padding-attention",)
    (share,) = diagnose(twin.make(False), images, padding=padding).warnings[0].evidence.values()
    assert share == pytest.approx(0.25, abs=0.05)
