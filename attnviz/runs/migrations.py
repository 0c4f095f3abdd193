"""Older run.json documents, brought up to the present schema.

Each step takes a document of one schema to the next and touches nothing but the document, so a
reader can open an old run as it lies, and `attnviz migrate` writes down what the reader saw.

Schema 0 (before the first release) called the variant `model`, the settings `config` and the
status `state` (`"done"` for complete), kept the creation time as Unix seconds in `time`, and
listed each file with its size alone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from attnviz.errors import RunError

SCHEMA = 1
"""The schema of the run folders that this version writes."""


def upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """The same document under the present schema.

    Raises:
        RunError: a field of the older schema is not what it should be.
    """
    while document["schema"] < SCHEMA:
        try:
            document = _STEPS[document["schema"]](document)
        except (TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
            raise RunError(f"run.json: not a run of schema {document['schema']}") from error
    return document


def _from_0(old: dict[str, Any]) -> dict[str, Any]:
    moved = {"model", "config", "state", "time", "schema", "files"}
    created = datetime.fromtimestamp(float(old.get("time", 0)), UTC).isoformat()
    states = {"done": "complete", "training": "running"}
    return {
        "schema": 1,
        "status": states.get(str(old.get("state")), "stopped"),
        "variant": old.get("model", ""),
        "created": created,
        "heartbeat": created,
        "settings": old.get("config", {}),
        **{key: value for key, value in old.items() if key not in moved},
        "files": {name: {"bytes": size} for name, size in dict(old.get("files", {})).items()},
    }


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {0: _from_0}
