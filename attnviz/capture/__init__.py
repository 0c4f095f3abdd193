"""Watch a model: every attention map and every gate, without changing its output.

* `watch(model)` sees one or a few forward passes, `stream(model, loader, reduce=…)` a data set
* `Capture` maps dotted names to `Record`s
* `edits` are ready interventions, `reductions` what can be kept instead of whole weights
* `rule("namespace.op.overload")` registers a function that follows an op of one's own
"""

from attnviz.capture import edits, reductions
from attnviz.capture.capture import Capture
from attnviz.capture.record import Record, Windows, gradients
from attnviz.capture.registry import rule
from attnviz.capture.sampling_points import SamplingPoints
from attnviz.capture.session import Session
from attnviz.capture.stream import stream
from attnviz.capture.watch import watch

__all__ = [
    "Capture",
    "Record",
    "SamplingPoints",
    "Session",
    "Windows",
    "edits",
    "gradients",
    "reductions",
    "rule",
    "stream",
    "watch",
]
