"""The program: `attnviz …`, and `python -m attnviz …`, the same.

An interrupt while modules are imported, or after the command has ended, ends the process at once;
in between it is a `KeyboardInterrupt`, and one that a finaliser would have swallowed ends it too.
Where interrupts are ignored from the start, as in a shell's background, they stay ignored.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

INTERRUPTED = 130


def main() -> int:
    """Run the command line as a process of its own.

    Returns:
        The exit code.
    """
    _on_interrupt(signal.SIG_DFL)
    _open_streams()
    from attnviz.cli import run

    sys.unraisablehook = _unraisable
    try:
        _on_interrupt(signal.default_int_handler)
        code = run()
        _on_interrupt(signal.SIG_DFL)
    except KeyboardInterrupt:  # between two lines of this package
        _on_interrupt(signal.SIG_DFL)
        return INTERRUPTED
    return code


def _on_interrupt(handler: Any) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _open_streams() -> None:
    """Open what is closed of the three standard streams onto nothing.

    The next file that is opened would get the free number, and be written to as if it were the
    stream.
    """
    import os

    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """End on an interrupt that came while an object was finalised; show anything else."""
    if unraisable.exc_type is KeyboardInterrupt:
        import os

        os._exit(INTERRUPTED)
    sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main())
