"""Every published fault raises its own finding and no other error; its twin raises none."""

from __future__ import annotations

import pytest

from attnviz.diagnosis import FAULTS, diagnose
from tests.diagnosis.faulty import CASES, Case


@pytest.mark.parametrize("name", CASES)
def test_a_fault_raises_its_code_and_no_other_error(name: str) -> None:
    case: Case = CASES[name]
    found = diagnose(case.model(False), case.images(), **case.ask)
    assert case.severity in [one.severity for one in found if one.code == case.code], found
    assert set(found.errors.codes) <= {case.code}, found


@pytest.mark.parametrize("name", CASES)
def test_its_repaired_twin_raises_no_error_and_not_that_code(name: str) -> None:
    case: Case = CASES[name]
    found = diagnose(case.model(True), case.images(), **case.ask)
    assert not found.errors, found
    assert case.code not in found.codes, found


def test_the_cases_name_known_codes() -> None:
    assert {case.code for case in CASES.values()} <= set(FAULTS)


def test_padding_that_is_said_to_be_padding_is_a_warning() -> None:
    case = CASES["padding not masked"]
    images = case.images()
    padding = (images == 0).all(1)
    for repaired, codes in ((False, ("padding-attention",)), (True, ())):
        found = diagnose(case.model(repaired), images, padding=padding)
        assert found.warnings.codes == codes
    one = diagnose(case.model(False), images[:1], padding=padding[:1])
    assert one.warnings.codes == ("padding-attention",)
    (share,) = diagnose(case.model(False), images, padding=padding).warnings[0].evidence.values()
    assert share == pytest.approx(0.25, abs=0.05)
