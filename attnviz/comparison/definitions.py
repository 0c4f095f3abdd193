"""What each metric means, in the reader's words: shown beside the numbers that it names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """One metric.

    Attributes:
        name: What people call it.
        meaning: What the number is, in one sentence.
        scale: Its range, and which way is better.
        source: Where it comes from.
        less: Whether less is better.
    """

    name: str
    meaning: str
    scale: str
    source: str
    less: bool = False


DEFINITIONS: dict[str, Definition] = {
    "energy_pointing_game": Definition(
        "energy pointing game",
        "The share of the map's positive mass that lies on the patch.",
        "0 to 1, more is better; chance is the patch's share of the image",
        "Wang et al. 2020; Arras et al. 2022 (relevance mass accuracy)",
    ),
    "pointing_game": Definition(
        "pointing game",
        "Whether the map's greatest value lies on the patch; of several equal ones, their share.",
        "0 to 1, more is better",
        "Zhang et al. 2018",
    ),
    "mass_lift": Definition(
        "mass lift",
        "The energy pointing game divided by what a constant map gets.",
        "0 to image size over patch size, chance is 1",
        "Kohlbrenner et al. 2020",
    ),
    "relevance_rank_accuracy": Definition(
        "relevance rank accuracy",
        "Of as many greatest values as the patch has pixels, the share that lies on the patch.",
        "0 to 1, more is better",
        "Arras et al. 2022",
    ),
    "topk_intersection": Definition(
        "top-k intersection",
        "Of the k greatest values, the share that lies on the patch.",
        "0 to 1, more is better",
        "Theiner et al. 2021",
    ),
    "pixel_auroc": Definition(
        "pixel AUROC",
        "How likely a pixel of the patch has a greater value than one outside; ties count half.",
        "0 to 1, chance is 0.5",
        "Fawcett 2006",
    ),
    "pixel_ap": Definition(
        "pixel AP",
        "Average precision of the map's pixels against the patch, image by image.",
        "0 to 1, more is better",
        "scikit-learn's definition",
    ),
    "iou": Definition(
        "IoU at τ",
        "Overlap of the patch and of what reaches τ in the map scaled to 0 … 1, over their union.",
        "0 to 1, more is better",
        "Jaccard",
    ),
    "iou_at_area": Definition(
        "IoU at the patch's area",
        "IoU of the patch and of as many greatest values as it has pixels.",
        "0 to 1, more is better",
        "Jaccard",
    ),
    "max_iou": Definition(
        "calibrated IoU",
        "IoU at the one threshold that was best on the validation images.",
        "0 to 1, more is better",
        "after Choe et al. 2020",
    ),
    "oracle_iou": Definition(
        "oracle IoU",
        "IoU at the threshold that is best for this very image: an upper bound, no estimate.",
        "0 to 1, more is better",
        "after Choe et al. 2020",
    ),
    "max_box_acc": Definition(
        "MaxBoxAcc",
        "Share of images where the box around the largest component overlaps by half or more.",
        "0 to 1, more is better",
        "Choe et al. 2020",
    ),
    "max_box_acc_v2": Definition(
        "MaxBoxAccV2",
        "The same, averaged over overlaps of 0.3, 0.5 and 0.7.",
        "0 to 1, more is better",
        "Choe et al. 2020",
    ),
    "sparseness": Definition(
        "sparseness",
        "Gini coefficient of the map's absolute values.",
        "0 (even) to 1 (one pixel)",
        "Chalasani et al. 2020",
    ),
    "complexity": Definition(
        "complexity",
        "Entropy of the map's absolute values as shares of their sum.",
        "0 (one pixel) upwards, less is better",
        "Bhatt et al. 2020",
        less=True,
    ),
    "deletion_auc": Definition(
        "deletion",
        "Area below the probability while the most important pixels are taken away.",
        "0 to 1, less is better",
        "Petsiuk et al. 2018",
        less=True,
    ),
    "insertion_auc": Definition(
        "insertion",
        "Area below the probability while the most important pixels are put in.",
        "0 to 1, more is better",
        "Petsiuk et al. 2018",
    ),
    "road_morf": Definition(
        "ROAD, most relevant first",
        "The probability with the most important pixels imputed from what is around them.",
        "0 to 1, less is better",
        "Rong et al. 2022",
        less=True,
    ),
    "road_lerf": Definition(
        "ROAD, least relevant first",
        "The probability with the least important pixels imputed from what is around them.",
        "0 to 1, more is better",
        "Rong et al. 2022",
    ),
    "road_combined": Definition(
        "ROAD combined",
        "Half of what the least relevant first leaves more than the most relevant first.",
        "-0.5 to 0.5, more is better",
        "Gildenblat 2022",
    ),
    "avg_drop": Definition(
        "average drop",
        "The share of the probability that is lost when only what the map shows is kept.",
        "0 to 1, less is better",
        "Chattopadhay et al. 2018",
        less=True,
    ),
    "increase_in_confidence": Definition(
        "increase in confidence",
        "Whether the probability rises when only what the map shows is kept.",
        "0 to 1, more is better",
        "Chattopadhay et al. 2018",
    ),
    "infidelity": Definition(
        "infidelity",
        "How far the map is from telling what noise on the image does to the output.",
        "0 upwards, less is better",
        "Yeh et al. 2019",
        less=True,
    ),
    "sensitivity": Definition(
        "sensitivity",
        "How much the map changes, at most, when the image does so by a little.",
        "0 upwards, less is better",
        "Yeh et al. 2019",
        less=True,
    ),
    "mprt": Definition(
        "parameter randomisation",
        "How alike the map still is when the model's weights are drawn at random, layer by layer.",
        "-1 to 1, less is better",
        "Adebayo et al. 2018",
        less=True,
    ),
    "agreement_spearman": Definition(
        "agreement, Spearman",
        "Rank correlation of the map with an attribution, in the lab with layer Grad-CAM.",
        "-1 to 1",
        "Spearman 1904",
    ),
    "agreement_ssim": Definition(
        "agreement, SSIM",
        "Structural similarity of the map and an attribution, in the lab layer Grad-CAM.",
        "-1 to 1",
        "Wang et al. 2004",
    ),
    "agreement_topk_iou": Definition(
        "agreement, top-k IoU",
        "Overlap of the map's greatest values with those of an attribution.",
        "0 to 1",
        "Jaccard",
    ),
}
"""Key of a metric → what it means."""

LOWER_IS_BETTER = frozenset(key for key, known in DEFINITIONS.items() if known.less)
"""The metrics of which less is better; of all others, more is."""
