"""Faithfulness: whether a map shows what matters to the model.

* Removal of places in the map's order: `deletion_auc`, `insertion_auc` (areas under
  `removal_curve`), ROAD (`road_morf`, `road_lerf`, `road_combined`), `avg_drop`,
  `increase_in_confidence`; `faithfulness_scores` computes them by name. `infidelity` and
  `sensitivity` perturb the image with noise.
* Removal of what the map is made of: `knockout` of each head and gate.
* Removal of what the model has learned: `randomisation`.

All give one number per image, run the model in evaluation mode without gradients, and leave it as
it was. The baseline is an argument, and an image's score does not depend on the other images.
`faithfulness_scores` describes the arguments that they share; `metric` registers another one.
"""

from attnviz.attribution import infidelity, sensitivity
from attnviz.faithfulness.average_drop import avg_drop, increase_in_confidence
from attnviz.faithfulness.deletion import deletion_auc, insertion_auc, removal_curve
from attnviz.faithfulness.knockout import Cut, Knockout, knockout
from attnviz.faithfulness.randomisation import Randomisation, randomisation
from attnviz.faithfulness.registry import METRICS, OPTIONS, FaithfulnessMetric, metric
from attnviz.faithfulness.road import impute, road_combined, road_lerf, road_morf
from attnviz.faithfulness.scores import DEFAULT, faithfulness_scores

__all__ = [
    "DEFAULT",
    "METRICS",
    "OPTIONS",
    "Cut",
    "FaithfulnessMetric",
    "Knockout",
    "Randomisation",
    "avg_drop",
    "deletion_auc",
    "faithfulness_scores",
    "impute",
    "increase_in_confidence",
    "infidelity",
    "insertion_auc",
    "knockout",
    "metric",
    "randomisation",
    "removal_curve",
    "road_combined",
    "road_lerf",
    "road_morf",
    "sensitivity",
]
