"""`python -m attnviz …`, the same as `attnviz …`."""

import sys

from attnviz.cli import run

if __name__ == "__main__":
    sys.exit(run())
