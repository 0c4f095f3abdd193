"""Garbage collection over what changes only.

Streamlit collects the whole heap after each script run, while the last messages of that run wait
for the interpreter's lock. Modules and listings of runs, which stay, are most of that heap: they
are set apart with `gc.freeze`.
"""

from __future__ import annotations

import gc
import sys

_modules = 0


def settle(*, again: bool = False) -> None:
    """Set apart what is alive now, where modules were imported since the last time.

    Garbage is collected first, also that of what was set apart before, so nothing is kept for good.

    Args:
        again: Set apart anew even without new modules.
    """
    global _modules
    if not again and len(sys.modules) <= _modules:
        return
    _modules = len(sys.modules)
    gc.unfreeze()
    gc.collect()
    gc.freeze()
