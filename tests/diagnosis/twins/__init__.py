"""Faulty programs, each beside its mended twin; `docs/write_doctor.py` shows their source."""

from tests.diagnosis.twins.attention import ATTENTION
from tests.diagnosis.twins.gates import GATES
from tests.diagnosis.twins.images import IMAGES
from tests.diagnosis.twins.runs import RUNS
from tests.diagnosis.twins.tokens import TOKENS
from tests.diagnosis.twins.twin import SIZE, C, Net, Twin

TWINS: dict[str, Twin] = {**ATTENTION, **TOKENS, **GATES, **IMAGES, **RUNS}
"""Every twin by what is wrong with the faulty one."""

__all__ = ["SIZE", "TWINS", "C", "Net", "Twin"]
