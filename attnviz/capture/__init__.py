"""Watch a model: every attention map and every gate, without changing a bit of its output.

* `watch(model)` sees one or a few forward passes, `stream(model, loader, reduce=…)` a data set
* `Capture` maps dotted names to `Record`s
* `edits` are ready interventions, `reductions` what can be kept instead of whole weights
"""

from attnviz.capture import edits, reductions
from attnviz.capture.capture import Capture
from attnviz.capture.record import Record, Windows, gradients
from attnviz.capture.stream import stream
from attnviz.capture.watch import watch

__all__ = ["Capture", "Record", "Windows", "edits", "gradients", "reductions", "stream", "watch"]
