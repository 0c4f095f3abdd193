"""Findings as SARIF 2.1.0, which code hosts and editors read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnviz.diagnosis.findings import Finding, Findings
from attnviz.diagnosis.registry import RULES

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_sarif(examined: Iterable[Findings]) -> dict[str, Any]:
    """Findings of several models or runs as one SARIF log, as JSON data.

    A finding's location is the module's dotted name; what was not examined is a notification of an
    invocation that was not successful.
    """
    examined = list(examined)
    unexamined = [(one.name, reason) for one in examined for reason in one.unexamined]
    run = {
        "tool": {"driver": {"name": "attnviz doctor", "rules": _rules(examined)}},
        "invocations": [
            {
                "executionSuccessful": not unexamined,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": f"{name}: not examined: {reason}"}}
                    for name, reason in unexamined
                ],
            }
        ],
        "results": [_result(one.name, finding) for one in examined for finding in one],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _rules(examined: Iterable[Findings]) -> list[dict[str, Any]]:
    codes = sorted({finding.code for one in examined for finding in one})
    return [
        {
            "id": code,
            "shortDescription": {"text": RULES[code].summary},
            "help": {"text": RULES[code].remedy},
            "defaultConfiguration": {"level": RULES[code].severity},
        }
        for code in codes
        if code in RULES
    ]


def _result(name: str, finding: Finding) -> dict[str, Any]:
    location = {"fullyQualifiedName": f"{name}:{finding.where}", "kind": "module"}
    return {
        "ruleId": finding.code,
        "level": finding.severity,
        "message": {"text": f"{finding.meaning}; {finding.remedy}"},
        "locations": [{"logicalLocations": [location]}],
        "properties": {"evidence": finding.as_dict()["evidence"], "page": finding.page},
    }
