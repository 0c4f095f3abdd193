"""Does the map matter to the model?

* Take away what a map points at, and see: `deletion_auc`, `insertion_auc` (and `removal_curve`,
  what they are the area of), ROAD (`road_morf`, `road_lerf`, `road_combined`), `avg_drop`,
  `increase_in_confidence`; `faithfulness_scores` gives them by name, `infidelity` and
  `sensitivity` are Captum's.
* Take away what the map was made of: `knockout` of each head and gate.
* Take away what the model has learned: `randomisation`.

All give one number per image, ask the model in evaluation mode and without gradients, and leave it
as it was. A baseline is always said, and an image's score does not depend on the others.
"""

from attnviz.attribution import infidelity, sensitivity
from attnviz.faithfulness.average_drop import avg_drop, increase_in_confidence
from attnviz.faithfulness.deletion import deletion_auc, insertion_auc, removal_curve
from attnviz.faithfulness.knockout import Cut, Knockout, knockout
from attnviz.faithfulness.randomisation import Randomisation, randomisation
from attnviz.faithfulness.road import impute, road_combined, road_lerf, road_morf
from attnviz.faithfulness.scores import DEFAULT, METRICS, faithfulness_scores

__all__ = [
    "DEFAULT",
    "METRICS",
    "Cut",
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
    "randomisation",
    "removal_curve",
    "road_combined",
    "road_lerf",
    "road_morf",
    "sensitivity",
]
