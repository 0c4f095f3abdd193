"""Watch a model: every attention map and every gate, without changing a bit of its output."""

from attnviz.capture.record import Record, Windows
from attnviz.capture.seen import Capture
from attnviz.capture.watching import watch

__all__ = ["Capture", "Record", "Windows", "watch"]
