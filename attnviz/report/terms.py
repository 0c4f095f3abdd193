"""Terms of the tables other than metrics."""

from __future__ import annotations

TERMS: tuple[tuple[str, str], ...] = (
    (
        "interval",
        "Student's t with the variance of training seeds and of groups of images (photographs, "
        "patients), or of images where no group is known; within the metric's bounds. With one "
        "seed it speaks of these images alone. A mean of trainings of two kinds has a wide one.",
    ),
    (
        "difference",
        "On the same images; its interval is adjusted for all pairs of variants. Clear: the "
        "interval leaves out 0, and both variants have three seeds or more.",
    ),
    (
        "p, adjusted",
        "Two-sided, from the same variance as the interval; adjusted for all pairs of variants, so "
        "that with equal variants any pair comes out below 0.05 in about one study of twenty. None "
        "below three seeds.",
    ),
    ("valid", "How many of all scores are numbers; the others could not be computed."),
)
"""The words of the tables that are no metrics."""
