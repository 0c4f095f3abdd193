"""Watch a model: every attention map and every gate, without changing a bit of its output.

* `watch(model)` sees one or a few forward passes, `stream(model, loader, reduce=…)` a data set
* `Capture` maps dotted names to `Record`s
* `edits` are ready interventions, `reductions` what can be kept instead of whole weights
"""

from attnviz.capture import edits, reductions
from attnviz.capture.record import Record, Windows, gradients
from attnviz.capture.seen import Capture
from attnviz.capture.streaming import stream
from attnviz.capture.watching import watch

__all__ = ["Capture", "Record", "Windows", "edits", "gradients", "reductions", "stream", "watch"]
