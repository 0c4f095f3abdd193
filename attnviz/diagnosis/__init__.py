"""The doctor: what is wrong with a model's attention, with evidence and remedy.

No tool of the field finds an attention whose tokens were scrambled by a reshape, or whose weights
meet nothing; the training goes on, and the heatmap looks like a heatmap. The rules here ask what a
model *does*: they run it on other sizes and batches, change one spot of an image, put other weights
in the place of its own, and look. Nothing reads source code.
"""

from attnviz.diagnosis.catalogue import FAULTS, Fault
from attnviz.diagnosis.diagnosing import diagnose
from attnviz.diagnosis.findings import SEVERITIES, Finding, Findings, Severity
from attnviz.diagnosis.training import diagnose_run, diagnose_split

__all__ = [
    "FAULTS",
    "SEVERITIES",
    "Fault",
    "Finding",
    "Findings",
    "Severity",
    "diagnose",
    "diagnose_run",
    "diagnose_split",
]
