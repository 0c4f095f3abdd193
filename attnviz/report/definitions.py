"""What each metric means, in words that need no other page."""

from __future__ import annotations

DEFINITIONS: dict[str, tuple[str, str]] = {
    "pointing_game": (
        "Is the map's highest place inside the patch? Ties share the hit. 0 to 1.",
        "Zhang 2018",
    ),
    "energy_pointing_game": (
        "The share of the map's positive values that lies inside the patch. 0 to 1.",
        "Wang 2020; Arras 2022 (relevance mass accuracy)",
    ),
    "mass_lift": (
        "How many times more of the map lies inside the patch than if it were spread evenly; "
        "chance is 1.",
        "Kohlbrenner 2020",
    ),
    "relevance_rank_accuracy": (
        "Of as many highest places as the patch has pixels, the share inside it. 0 to 1.",
        "Arras 2022",
    ),
    "topk_intersection": (
        "Of the k highest places, the share inside the patch. 0 to 1.",
        "Theiner 2021",
    ),
    "pixel_auroc": (
        "How often a place inside the patch is higher than one outside, ties half; chance is 0.5.",
        "Fawcett 2006",
    ),
    "pixel_ap": (
        "Average precision of the places, ordered by the map, as finders of the patch. 0 to 1.",
        "scikit-learn's definition",
    ),
    "iou": (
        "Intersection over union of the patch and the places above the threshold, the map scaled "
        "from its minimum to its maximum. 0 to 1.",
        "Jaccard",
    ),
    "max_iou": (
        "IoU at the one threshold that was best on the validation images. 0 to 1.",
        "after Choe 2020",
    ),
    "iou_at_area": (
        "IoU of the patch and as many highest places as it has pixels. 0 to 1.",
        "from the rank accuracy r as r / (2 − r)",
    ),
    "oracle_iou": (
        "IoU at the threshold that is best for each single image: an upper bound, not a result. "
        "0 to 1.",
        "exact over all thresholds",
    ),
    "max_box_acc": (
        "Does the box around the largest component above the validation threshold overlap the "
        "patch with an IoU of 0.5? 0 or 1.",
        "Choe 2020",
    ),
    "max_box_acc_v2": (
        "The same, averaged over overlaps of 0.3, 0.5 and 0.7.",
        "Choe 2020",
    ),
    "sparseness": (
        "Gini index of the map's absolute values: 0 is even, near 1 is one place alone.",
        "Chalasani 2020",
    ),
    "complexity": (
        "Entropy of the map's absolute values: low is concentrated.",
        "Bhatt 2020",
    ),
    "deletion_auc": (
        "Area under the score as the highest places are removed first; low is good.",
        "Petsiuk 2018",
    ),
    "insertion_auc": (
        "Area under the score as the highest places are put back first; high is good.",
        "Petsiuk 2018",
    ),
    "agreement_spearman": (
        "Rank correlation of the map with an attribution, here layer Grad-CAM. −1 to 1.",
        "Spearman",
    ),
    "agreement_ssim": (
        "Structural similarity of the map and an attribution. −1 to 1.",
        "Wang 2004, as scikit-image has it",
    ),
    "agreement_topk_iou": (
        "Overlap of the map's highest places with those of an attribution. 0 to 1.",
        "Jaccard",
    ),
}
"""Key → what it says, and where it comes from."""

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
    ("chance", "What a map that knows nothing scores on these very patches."),
    ("centre", "What a blob in the middle of the image scores on them."),
    (
        "ceiling",
        "What an ideal map on the variant's own grid scores; a coarse one cannot do more.",
    ),
    ("valid", "How many of all scores are numbers; the others could not be computed."),
)
"""The words of the tables that are no metrics."""
