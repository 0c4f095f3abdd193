"""The help of every metric describes each of its arguments once, in the order of the signature."""

from __future__ import annotations

import inspect
import re

import pytest

from attnviz import faithfulness
from attnviz.faithfulness.arguments import documented

NAMES = [
    "avg_drop",
    "deletion_auc",
    "faithfulness_scores",
    "increase_in_confidence",
    "insertion_auc",
    "removal_curve",
    "road_combined",
    "road_lerf",
    "road_morf",
]


@pytest.mark.parametrize("name", NAMES)
def test_help_is_complete(name):
    function = getattr(faithfulness, name)
    text = inspect.getdoc(function)
    before, arguments, after = re.split(r"Args:\n|\n\nReturns:\n", text)
    described = re.findall(r"^    (\w+): \S", arguments, re.M)
    assert described == list(inspect.signature(function).parameters)
    assert before.endswith("\n\n")
    assert "Raises:" in after
    assert max(map(len, text.splitlines())) <= 100


def test_an_argument_that_nothing_describes_is_a_fault_of_the_code():
    with pytest.raises(KeyError, match="unheard"):

        @documented()
        def function(model, unheard):
            """Something.

            Returns:
                Nothing.
            """

    @documented(unheard="Now it is described.")
    def other(model, unheard):
        """Something.

        Returns:
            Nothing.
        """

    assert "    unheard: Now it is described.\n\nReturns:" in other.__doc__
