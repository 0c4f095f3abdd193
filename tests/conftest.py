"""What every test shares."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest

import tests.checker  # noqa: F401 - the run-time checks name it; it must be there before attnviz


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the run-time shape checks off, as a user runs: for tests of our own error messages."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
