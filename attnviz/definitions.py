"""Definitions of all metrics and reference levels.

Each metric is described here once: key, title, meaning, range, direction, source, bound, and
whether it needs a threshold. The code of a metric is bound to its definition by
`attnviz.metrics.metric`; tables, comparison, report and dashboard read the definition and hold no
table of their own. A metric from outside the package is defined the same way (CONTRIBUTING.md, "A
metric").

Nothing here needs torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from attnviz.errors import InputError

Better: TypeAlias = Literal["higher", "lower"]
"""Which scores are better."""

Family: TypeAlias = Literal["localization", "concentration", "faithfulness", "agreement", "other"]
"""Family of a metric: its inputs and subject.

A map and a mask (localization), a map alone (concentration), a map and the model (faithfulness),
two maps (agreement), or anything else (other).
"""

_UNITS = {word.lower(): word for word in ("AUROC", "AUC", "AP", "SSIM", "ROAD", "MPRT", "IoU")}
_WRITTEN = {**_UNITS, "topk": "top-k", "morf": "MoRF", "lerf": "LeRF", "acc": "accuracy"}
_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ACTIVE = re.compile(r"[\[\]<>`*_|!\\#$~{}\x00-\x1f\x7f]|://")
_LONGEST = 300


@dataclass(frozen=True, kw_only=True)
class MetricDefinition:
    """What a metric is.

    Attributes:
        key: Its name in every table and column: lower case, digits, underscores.
        title: Its name in a sentence.
        meaning: What the number is, in one sentence.
        source: The paper or definition that it follows.
        better: "higher" or "lower".
        low: The least possible score; an interval ends there.
        high: The largest possible score.
        limits: The range in words, where an end depends on the image; derived from `low` and
            `high` unless given.
        chance: What a map without information scores, in words, where it is known.
        bound: The best score that any map can reach: a number, or words such as "D/|G|"; "unknown"
            unless given. Not a reference level of the grid: see `LEVELS`.
        threshold: Whether it needs a threshold τ, calibrated on the validation split.
        family: Inputs and subject; see `Family`.
        short: Its name below a picture; the title unless given.

    Raises:
        InputError: A key that is no column name, an unknown direction or family, an empty range.
    """

    key: str
    title: str
    meaning: str
    source: str
    better: Better = "higher"
    low: float = 0.0
    high: float = 1.0
    limits: str = ""
    chance: str = ""
    bound: float | str = "unknown"
    threshold: bool = False
    family: Family = "localization"
    short: str = ""

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(str(self.key)):
            raise InputError(
                f"metric key: expected lower-case letters, digits and underscores, up to 64, "
                f"got {self.key!r}"
            )
        for name, known in (("better", get_args(Better)), ("family", get_args(Family))):
            if getattr(self, name) not in known:
                raise InputError(
                    f"metric {self.key}: {name}: expected one of {', '.join(known)}, "
                    f"got {getattr(self, name)!r}"
                )
        if not self.low < self.high:
            raise InputError(
                f"metric {self.key}: expected low < high, got {self.low} and {self.high}"
            )
        if not self.limits:
            object.__setattr__(self, "limits", _limits(self.low, self.high))
        if not self.short:
            object.__setattr__(self, "short", self.title)

    @property
    def scale(self) -> str:
        """Range, direction, chance and bound in words."""
        parts = [f"{self.limits}, {self.better} is better"]
        if self.chance:
            parts.append(f"chance is {self.chance}")
        return "; ".join([*parts, f"bound: {self.bound_in_words}"])

    @property
    def bound_in_words(self) -> str:
        """The best score that any map can reach, as text."""
        return self.bound if isinstance(self.bound, str) else f"{self.bound:g}"


def _limits(low: float, high: float) -> str:
    if math.isinf(low):
        return "any number" if math.isinf(high) else f"up to {high:g}"
    return f"{low:g} upwards" if math.isinf(high) else f"{low:g} to {high:g}"


_AREA = "the mask's share of the image"
# Where the limits are infinite, logits may be measured instead of probabilities.
_BUILT_IN = (
    MetricDefinition(
        key="pointing_game",
        title="pointing game",
        meaning="Whether the map's greatest value lies in the mask; of several equal ones, the "
        "share that does.",
        source="Zhang 2018",
        chance=_AREA,
        bound=1.0,
        short="pointing",
    ),
    MetricDefinition(
        key="energy_pointing_game",
        title="energy pointing game",
        meaning="The share of the map's positive mass that lies in the mask (relevance mass "
        "accuracy).",
        source="Wang 2020; Arras 2022",
        chance=_AREA,
        bound=1.0,
        short="energy",
    ),
    MetricDefinition(
        key="mass_lift",
        title="mass lift",
        meaning="The energy pointing game divided by what a constant map scores.",
        source="Kohlbrenner 2020",
        high=math.inf,
        limits="0 to D/|G|",
        chance="1",
        bound="D/|G|, the image's places over the mask's",
    ),
    MetricDefinition(
        key="relevance_rank_accuracy",
        title="relevance rank accuracy",
        meaning="Of as many greatest values as the mask has places, the share that lies in the "
        "mask.",
        source="Arras 2022",
        chance=_AREA,
        bound=1.0,
    ),
    MetricDefinition(
        key="topk_intersection",
        title="top-k intersection",
        meaning="Of the k greatest values, the share that lies in the mask.",
        source="Theiner 2021",
        chance=_AREA,
        bound="1, or |G|/k for masks of fewer than k places",
    ),
    MetricDefinition(
        key="pixel_auroc",
        title="pixel AUROC",
        meaning="The probability that a place in the mask has a greater value than one outside; "
        "ties count half.",
        source="Fawcett 2006",
        chance="0.5",
        bound=1.0,
    ),
    MetricDefinition(
        key="pixel_ap",
        title="pixel AP",
        meaning="Average precision of the map's places against the mask, image by image.",
        source="scikit-learn's definition",
        chance=_AREA,
        bound=1.0,
    ),
    MetricDefinition(
        key="iou",
        title="IoU at a threshold",
        meaning="Intersection over union of the mask and the places that reach τ in the map "
        "scaled to 0 … 1; τ is given.",
        source="Jaccard 1901",
        bound=1.0,
        threshold=True,
    ),
    MetricDefinition(
        key="iou_at_area",
        title="IoU at the mask's area",
        meaning="Intersection over union of the mask and of as many greatest values as it has "
        "places.",
        source="r/(2−r) of rank accuracy r",
        bound=1.0,
    ),
    MetricDefinition(
        key="max_iou",
        title="calibrated IoU",
        meaning="IoU at the one threshold that was best on the validation images.",
        source="after Choe 2020",
        bound=1.0,
        threshold=True,
        short="IoU",
    ),
    MetricDefinition(
        key="oracle_iou",
        title="oracle IoU",
        meaning="IoU at the threshold that is best for this very image: chosen with the mask at "
        "hand, no estimate.",
        source="per-map maximum over all thresholds",
        bound=1.0,
    ),
    MetricDefinition(
        key="max_box_acc",
        title="MaxBoxAcc",
        meaning="Whether the box around the map's largest component overlaps a box of the mask by "
        "an IoU of 0.5 or more.",
        source="Choe 2020",
        bound=1.0,
        threshold=True,
    ),
    MetricDefinition(
        key="max_box_acc_v2",
        title="MaxBoxAccV2",
        meaning="MaxBoxAcc averaged over overlaps of 0.3, 0.5 and 0.7.",
        source="Choe 2020",
        bound=1.0,
        threshold=True,
    ),
    MetricDefinition(
        key="sparseness",
        title="sparseness",
        meaning="Gini index of the map's absolute values: 0 for equal values, near 1 for a single "
        "place.",
        source="Chalasani 2020",
        limits="0 to (D−1)/D",
        chance="0 for a constant map",
        bound="(D−1)/D",
        family="concentration",
    ),
    MetricDefinition(
        key="complexity",
        title="complexity",
        meaning="Entropy of the map's absolute values as shares of their sum: 0 for a single "
        "place.",
        source="Bhatt 2020",
        better="lower",
        high=math.inf,
        limits="0 to ln D",
        chance="ln D for a constant map",
        bound=0.0,
        family="concentration",
    ),
    MetricDefinition(
        key="deletion_auc",
        title="deletion AUC",
        meaning="Area below the probability while the highest places are removed.",
        source="Petsiuk 2018",
        better="lower",
        limits="0 to 1 for probabilities",
        family="faithfulness",
        low=-math.inf,
        high=math.inf,
    ),
    MetricDefinition(
        key="insertion_auc",
        title="insertion AUC",
        meaning="Area below the probability while the highest places are inserted.",
        source="Petsiuk 2018",
        limits="0 to 1 for probabilities",
        family="faithfulness",
        low=-math.inf,
        high=math.inf,
    ),
    MetricDefinition(
        key="road_morf",
        title="ROAD, most relevant first",
        meaning="The probability with the highest places imputed from their surroundings.",
        source="Rong 2022",
        better="lower",
        limits="0 to 1 for probabilities",
        family="faithfulness",
        low=-math.inf,
        high=math.inf,
    ),
    MetricDefinition(
        key="road_lerf",
        title="ROAD, least relevant first",
        meaning="The probability with the lowest places imputed from their surroundings.",
        source="Rong 2022",
        limits="0 to 1 for probabilities",
        family="faithfulness",
        low=-math.inf,
        high=math.inf,
    ),
    MetricDefinition(
        key="road_combined",
        title="ROAD combined",
        meaning="(LeRF − MoRF) / 2: half of what is left with the lowest places imputed, less "
        "what is left with the highest imputed.",
        source="Gildenblat 2022",
        limits="-0.5 to 0.5 for probabilities",
        family="faithfulness",
        low=-math.inf,
        high=math.inf,
    ),
    MetricDefinition(
        key="avg_drop",
        title="average drop",
        meaning="The share of the probability that is lost when only the map's places are kept.",
        source="Chattopadhay 2018",
        better="lower",
        family="faithfulness",
    ),
    MetricDefinition(
        key="increase_in_confidence",
        title="increase in confidence",
        meaning="Whether the probability rises when only the map's places are kept.",
        source="Chattopadhay 2018",
        family="faithfulness",
    ),
    MetricDefinition(
        key="infidelity",
        title="infidelity",
        meaning="Squared difference between the map's prediction of what noise on the image does "
        "to the output and what it does.",
        source="Yeh 2019, by Captum",
        better="lower",
        high=math.inf,
        bound=0.0,
        family="faithfulness",
    ),
    MetricDefinition(
        key="sensitivity",
        title="sensitivity",
        meaning="The largest relative change of the map under small changes of the image.",
        source="Yeh 2019, by Captum",
        better="lower",
        high=math.inf,
        bound=0.0,
        family="faithfulness",
    ),
    MetricDefinition(
        key="mprt",
        title="parameter randomisation",
        meaning="Similarity of the map to that of the same model with randomised weights, layer "
        "by layer.",
        source="Adebayo 2018",
        better="lower",
        low=-1.0,
        family="faithfulness",
    ),
    MetricDefinition(
        key="agreement_spearman",
        title="agreement, Spearman",
        meaning="Rank correlation of the map with an attribution of the same image.",
        source="Spearman 1904",
        low=-1.0,
        bound=1.0,
        family="agreement",
    ),
    MetricDefinition(
        key="agreement_ssim",
        title="agreement, SSIM",
        meaning="Structural similarity of the map and an attribution, each scaled to 0 … 1.",
        source="Wang 2004, by scikit-image",
        low=-1.0,
        bound=1.0,
        family="agreement",
    ),
    MetricDefinition(
        key="agreement_topk_iou",
        title="agreement, top-k IoU",
        meaning="Intersection over union of the map's highest places and those of an attribution.",
        source="Jaccard 1901",
        bound=1.0,
        family="agreement",
    ),
)

_DEFINED: dict[str, MetricDefinition] = {one.key: one for one in _BUILT_IN}
_OWN = frozenset(_DEFINED)
_ADDED: set[str] = set()  # by `define`, not out of a run folder

DEFINITIONS: Mapping[str, MetricDefinition] = MappingProxyType(_DEFINED)
"""Every defined metric by key: those of this package, then those that were added."""


def built_in(*families: Family) -> tuple[str, ...]:
    """The keys of this package's own metrics of some families, in their order."""
    return tuple(one.key for one in _BUILT_IN if one.family in families)


def define(definition: MetricDefinition) -> MetricDefinition:
    """Add the definition of a metric from outside the package; a second one replaces the first.

    Raises:
        InputError: The key belongs to a metric of this package.
    """
    if definition.key in _OWN:
        raise InputError(
            f"metric {definition.key}: the package has a metric of that key; choose another"
        )
    _DEFINED[definition.key] = definition
    _ADDED.add(definition.key)
    return definition


def sort_by_definition(table: dict[str, Any]) -> None:
    """Bring a table with metrics' keys into the order in which these are defined."""
    place = {key: i for i, key in enumerate(_DEFINED)}
    ordered = sorted(table.items(), key=lambda one: place[one[0]])
    table.clear()
    table.update(ordered)


def added() -> dict[str, dict[str, Any]]:
    """The definitions from outside the package, as plain documents for a run folder."""
    return {
        key: {name: value for name, value in asdict(one).items() if value not in _ENDLESS}
        for key, one in _DEFINED.items()
        if key in _ADDED
    }


_ENDLESS = (math.inf, -math.inf)  # JSON has no infinity: an open end is left out


def adopt(documents: Any) -> None:
    """Take over the definitions that a run folder holds, unless the process has its own.

    Only data: types are checked, texts are shortened and lose what Markdown or a terminal would
    act on. What does not make a definition is left out.
    """
    for key, document in documents.items() if isinstance(documents, Mapping) else ():
        if key not in _DEFINED and isinstance(document, Mapping):
            found = _read(str(key), document)
            if found is not None:
                _DEFINED[found.key] = found


def _read(key: str, document: Mapping[str, Any]) -> MetricDefinition | None:
    texts = ("title", "meaning", "source", "better", "limits", "chance", "family", "short")
    values: dict[str, Any] = {"low": -math.inf, "high": math.inf}
    for name in (one.name for one in fields(MetricDefinition) if one.name in document):
        value = document[name]
        if isinstance(value, str) and name in (*texts, "bound"):
            values[name] = _ACTIVE.sub(" ", value)[:_LONGEST].strip()
        elif name in ("low", "high", "bound") and _is_number(value):
            values[name] = float(value)
        elif name == "threshold" and isinstance(value, bool):
            values[name] = value
    try:
        return MetricDefinition(key=key, **values)
    except (InputError, TypeError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metric_title(key: str) -> str:
    """A metric's name in a sentence; of one that is not defined, its key as words."""
    return _DEFINED[key].title if key in _DEFINED else as_words(key)


def as_words(key: str) -> str:
    """A key with spaces for underscores, abbreviations as they are written."""
    return " ".join(_WRITTEN.get(word, word) for word in key.split("_"))


def short_title(key: str) -> str:
    """A metric's name below a picture."""
    return _DEFINED[key].short if key in _DEFINED else metric_title(key)


def is_lower_better(key: str) -> bool:
    """Whether lower scores of a metric are better; of one that is not defined, higher are."""
    return key in _DEFINED and _DEFINED[key].better == "lower"


def is_localization(key: str) -> bool:
    """Whether a metric compares a map with a mask."""
    return key in _DEFINED and _DEFINED[key].family == "localization"


def limits_of(key: str) -> tuple[float, float]:
    """Limits of a metric's mean; infinite where unknown."""
    known = _DEFINED.get(key)
    return (-math.inf, math.inf) if known is None else (known.low, known.high)


@dataclass(frozen=True)
class Level:
    """A reference level: a number that stands beside a score.

    Attributes:
        key: Its name in tables and runs.
        title: Its name beside a score.
        meaning: What it is, in one sentence.
    """

    key: str
    title: str
    meaning: str


LEVELS: Mapping[str, Level] = MappingProxyType(
    {
        level.key: level
        for level in (
            Level("chance", "chance", "The score of a map without information, on these masks."),
            Level(
                "centre",
                "centred Gaussian",
                "The score of a Gaussian in the centre of every image, σ a quarter of each side; "
                "not the best map that ignores the image.",
            ),
            Level(
                "fixed",
                "best fixed map",
                "The score of one map for all images, the best for the calibration masks.",
            ),
            Level(
                "redrawn",
                "mask redrawn",
                "The score of the mask, redrawn on the map's grid. No upper bound: a map that "
                "lights part of the mask can score more.",
            ),
            Level("bound", "bound", "The best score that any map can reach, where it is known."),
        )
    }
)
"""The reference levels by key, in the order in which they are shown."""

SHOWN_LEVELS = ("chance", "redrawn")
"""The levels that stand in a sentence or a plot."""

_FORMER = {"ceiling": "redrawn"}
"""Names that run folders of earlier versions use."""


def level_key(name: str) -> str:
    """A level's present key."""
    return _FORMER.get(name, name)


def renamed_levels(summary: Any) -> Any:
    """A run's summary with the levels of its metrics under their present keys.

    Summaries of earlier versions say "ceiling" for `redrawn`. Whatever has another form than
    `{"metrics": {map: {metric: {level: value}}}}` is left as it is.
    """
    if not isinstance(summary, Mapping) or not isinstance(summary.get("metrics"), Mapping):
        return summary
    return {**summary, "metrics": _renamed(summary["metrics"], depth=2)}


def _renamed(value: Any, depth: int) -> Any:
    if not isinstance(value, Mapping):
        return value
    if depth:
        return {key: _renamed(one, depth - 1) for key, one in value.items()}
    return dict(_named_once(value))


def _named_once(levels: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in levels.items():
        if level_key(name) == name or level_key(name) not in levels:
            yield level_key(name), value
