"""The words of the tables that are no metrics."""

from __future__ import annotations

TERMS: tuple[tuple[str, str], ...] = (
    (
        "interval",
        "The mean ± Student's t times the standard error of a bootstrap that draws training seeds, "
        "then test images, the same for all variants. With one seed it speaks of these images "
        "alone.",
    ),
    (
        "paired difference",
        "Taken image by image and seed by seed. Where its interval touches 0 for any other "
        "variant, there is no clear winner.",
    ),
    (
        "p, Holm",
        "Two-sided sign-flip test over paired seeds; Holm's correction over all pairs of variants "
        "and metrics. Five seeds cannot reach less than 0.0625.",
    ),
    ("valid", "How many of all scores are numbers; the others could not be computed."),
)
"""The words of the tables that are no metrics."""
