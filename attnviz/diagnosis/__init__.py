"""The doctor: faults of a model's attention and gates, with evidence and remedy.

The rules examine behaviour, not source code: they run the model on other sizes and batches, perturb
one image patch, replace attention weights and gates, differentiate once, and compare. Each rule
stands in `attnviz.diagnosis.rules` with its words, severity and remedy above it.
"""

from attnviz.diagnosis import rules as rules
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import SEVERITIES, Finding, Findings, Severity
from attnviz.diagnosis.model_diagnosis import diagnose
from attnviz.diagnosis.registers import Sink, Trial, attention_sinks, try_registers, without_sinks
from attnviz.diagnosis.registry import RULES, Observation, Rule, observed, rule, unregister
from attnviz.diagnosis.run_diagnosis import diagnose_run, diagnose_split
from attnviz.diagnosis.sarif import as_sarif

__all__ = [
    "RULES",
    "SEVERITIES",
    "Examination",
    "Finding",
    "Findings",
    "Observation",
    "Rule",
    "Severity",
    "Sink",
    "Trial",
    "as_sarif",
    "attention_sinks",
    "diagnose",
    "diagnose_run",
    "diagnose_split",
    "observed",
    "rule",
    "try_registers",
    "unregister",
    "without_sinks",
]
