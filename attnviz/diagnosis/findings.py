"""Findings of the doctor, each with evidence and remedy.

A finding's code is stable, so that scripts can test for it; its words may change.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, overload

from attnviz.display import html_of

Severity: TypeAlias = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From worst to mildest: `error` is a fault whatever the weights are, `warning` one if it was not
meant, `note` something to know before reading a map."""

_WIDTH = 100
_SHOWN = 3  # modules named in print; the others are counted


@dataclass(frozen=True)
class Finding:
    """One fault, or one fact to know, of one module.

    Attributes:
        code: A stable name, such as `"scrambled-tokens"`.
        severity: `"error"`, `"warning"` or `"note"`.
        where: The module's dotted name, `"input"`, `"model"` or `"run"`.
        evidence: The measured numbers, by name.
        meaning: One sentence.
        remedy: What to do, as code where it fits.
        page: The page that explains it, relative to the repository's root; empty if none.
    """

    code: str
    severity: Severity
    where: str
    evidence: Mapping[str, float] = field(hash=False)
    meaning: str
    remedy: str
    page: str

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {
            "code": self.code,
            "severity": self.severity,
            "where": self.where,
            "evidence": {name: _jsonable(value) for name, value in self.evidence.items()},
            "meaning": self.meaning,
            "remedy": self.remedy,
            "page": self.page,
        }

    def _repr_html_(self) -> str:
        return html_of(self)

    def __str__(self) -> str:
        return f"{self.severity} {self.code} at {self.where}: {self.meaning}"


class Findings(Sequence[Finding]):
    """All findings about one model or run, the worst first; `print` shows them as text.

    Args:
        findings: In any order.
        name: Name of the model or run; the headline begins with it.
        checked: Number of attentions and gates examined, None if it was not a model.
        unexamined: Why something was not examined, one reason each; such findings are not clean.
    """

    def __init__(
        self,
        findings: Iterable[Finding] = (),
        *,
        name: str = "",
        checked: Mapping[str, int] | None = None,
        unexamined: Iterable[str] = (),
    ) -> None:
        self._findings = tuple(sorted(findings, key=lambda one: SEVERITIES.index(one.severity)))
        self.name = name
        self.checked = MappingProxyType(dict(checked or {}))
        self.unexamined = tuple(unexamined)

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> Findings: ...
    def __getitem__(self, index: int | slice) -> Finding | Findings:
        if isinstance(index, slice):
            return self._with(self._findings[index])
        return self._findings[index]

    def __len__(self) -> int:
        return len(self._findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._findings)

    def __add__(self, other: Iterable[Finding]) -> Findings:
        more = other.unexamined if isinstance(other, Findings) else ()
        return Findings(
            (*self._findings, *other), name=self.name, checked=self.checked,
            unexamined=(*self.unexamined, *more),
        )  # fmt: skip

    @property
    def errors(self) -> Findings:
        """The errors alone."""
        return self.of("error")

    @property
    def warnings(self) -> Findings:
        """The warnings alone."""
        return self.of("warning")

    @property
    def notes(self) -> Findings:
        """The notes alone."""
        return self.of("note")

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code once, the worst first."""
        return tuple(dict.fromkeys(one.code for one in self._findings))

    @property
    def worst(self) -> Finding | None:
        """The first finding of the worst severity, None without findings."""
        return self._findings[0] if self._findings else None

    @property
    def headline(self) -> str:
        """One line: the worst error or warning, or that there is none and the notes' codes."""
        worst = self.worst
        start = f"{self.name}: " if self.name else ""
        if self.unexamined and (worst is None or worst.severity == "note"):
            return f"{start}not examined: {self.unexamined[0]}"
        if worst is None:
            return f"{start}nothing wrong was found"
        if worst.severity == "note":
            return f"{start}nothing wrong was found (to know: {', '.join(self.codes)})"
        same = sum(one.code == worst.code for one in self._findings) - 1
        more = f" and {same} more" if same else ""
        return f"{start}{worst.severity} {worst.code} at {worst.where}{more}: {worst.meaning}"

    def of(self, severity: Severity) -> Findings:
        """Those of one severity."""
        return self._with(one for one in self._findings if one.severity == severity)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The findings as JSON data, for `run.json` and scripts."""
        return [one.as_dict() for one in self._findings]

    def _with(self, findings: Iterable[Finding]) -> Findings:
        return Findings(findings, name=self.name, checked=self.checked, unexamined=self.unexamined)

    def _repr_html_(self) -> str:
        return html_of(self)

    def __repr__(self) -> str:
        blocks = [self._summary()]
        blocks += [f"not examined: {reason}" for reason in self.unexamined]
        blocks += [_block(group) for group in _grouped(self._findings)]
        return "\n".join(blocks)

    def _summary(self) -> str:
        counts = [
            f"{n} {severity}{'s' if n != 1 else ''}"
            for severity in SEVERITIES
            if (n := len(self.of(severity)))
        ]
        seen = ", ".join(f"{n} {_kind(kind, n)}" for kind, n in self.checked.items())
        examined = f" ({seen} examined)" if seen else ""
        start = f"{self.name}: " if self.name else ""
        clean = "no finding" if self.unexamined else "nothing wrong was found"
        return f"{start}{', '.join(counts) or clean}{examined}"


def _kind(kind: str, n: int) -> str:
    return "gate" if kind == "gates" and n == 1 else kind


def _grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of one code and severity together, in order."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.severity, one.code), []).append(one)
    return list(groups.values())


def _block(group: Sequence[Finding]) -> str:
    first = group[0]
    places = ", ".join(one.where for one in group[:_SHOWN])
    if len(group) > _SHOWN:
        places += f" and {len(group) - _SHOWN} more"
    numbers = ", ".join(f"{name} {_number(value)}" for name, value in first.evidence.items())
    own = "" if len({one.meaning for one in group}) == 1 else f"at {first.where}: "
    lines = [f"{first.severity:<8}{first.code} at {places}", *_wrapped("", own + first.meaning)]
    if numbers:
        lines += _wrapped("seen: ", numbers)
    page = [f"        → {first.page}"] if first.page else []
    return "\n".join([*lines, *_wrapped("do:   ", first.remedy), *page])


def _wrapped(label: str, text: str) -> list[str]:
    """A labelled paragraph; continuation lines are aligned behind the label."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * 8 + label,
        subsequent_indent=" " * (8 + len(label)),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _jsonable(value: float) -> float | int | None:
    """JSON has no NaN and no infinity."""
    if isinstance(value, int):
        return int(value)
    return float(value) if value == value and abs(value) != float("inf") else None
