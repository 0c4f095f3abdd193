"""Ctrl-C between any two lines of the capture."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from attnviz.capture import op_mode

_OURS = str(Path(op_mode.__file__).parent)


def interrupting(line: int) -> Any:
    """A tracer for `sys.settrace` that raises before that many lines of ours have run."""
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename.startswith(_OURS) and event == "line":
            left -= 1
            if not left:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace if frame.f_code.co_filename.startswith(_OURS) else None

    return trace
