"""The run-time type checker of the tests: beartype, with int welcome where float is asked for.

PEP 484 says so, and mypy reads annotations that way too.
"""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
