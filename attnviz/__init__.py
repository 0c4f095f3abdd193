"""attnviz: watch a model's attention, map it, measure it against known places.

The public names are listed in `__init__.pyi`, one import each. Type checkers read that file as it
is; this module reads its lines as a table, and a name's module is imported when the name is first
used, so that `import attnviz` costs next to nothing and `attnviz ls` never loads torch. A new
public name is one line there.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def _homes() -> dict[str, str]:
    """The module of each public name: the lines `from MODULE import NAME as NAME` of the stub."""
    stub: bytes = __loader__.get_data(f"{__file__.rpartition('.')[0]}.pyi")  # type: ignore[name-defined]
    lines = (line.split() for line in stub.decode().splitlines())
    return {words[5]: words[1] for words in lines if words[:1] == ["from"]}


_HOMES = _homes()

__all__ = sorted(name for name, home in _HOMES.items() if home != __name__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("attnviz")
    if name not in _HOMES:
        raise AttributeError(f"module 'attnviz' has no attribute {name!r}")
    home = _HOMES[name]
    inside = f"{home}.{name}" if home == __name__ else home  # a whole module, such as a package
    module = import_module(inside)
    value = module if home == __name__ else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
