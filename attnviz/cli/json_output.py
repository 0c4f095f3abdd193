"""JSON for the commands' `--json`."""

from __future__ import annotations

import json
from typing import Any

from attnviz.runs.documents import plain


def as_json(value: Any) -> str:
    """A value as strict JSON; times in ISO 8601, NaN and infinities as null."""
    return json.dumps(plain(value, "output"), indent=1, allow_nan=False)
