"""The registry of doctor rules: `@rule` declares a finding above the function that detects it.

Code, severity, words, remedy, evidence and page text of a finding stand in one place, the
decorator. `docs/write_doctor.py` writes `docs/doctor/` from it. A user registers a rule the same
way; see CONTRIBUTING.md, "A doctor rule".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from attnviz.diagnosis.findings import SEVERITIES, Finding, Severity
from attnviz.errors import InputError, unknown_name

PAGES = "docs/doctor"

Subject: TypeAlias = Literal["model", "images", "run", "split"]
"""What a rule examines: an `Examination` of a model, an image tensor, a `Run`, or a `Split`."""

SUBJECTS: tuple[Subject, ...] = ("images", "model", "run", "split")


@dataclass(frozen=True)
class Observation:
    """What a rule measured at one module.

    Attributes:
        where: The module's dotted name, `"input"`, `"model"`, `"run"` or `"data"`.
        evidence: The numbers that the rule declares, by name.
        severity: If it differs from the rule's own.
        word: The value of `{word}` in the rule's meaning.
    """

    where: str
    evidence: Mapping[str, float] = field(hash=False)
    severity: Severity | None = None
    word: str = ""


def observed(
    where: str, severity: Severity | None = None, *, word: str = "", **evidence: float
) -> Observation:
    """An observation, for a rule to yield."""
    return Observation(where, evidence, severity, word)


Detector: TypeAlias = Callable[[Any], Iterable[Observation]]


@dataclass(frozen=True)
class Rule:
    """One kind of finding: its words, and the function that detects it.

    Calling a rule with its subject yields the findings.

    Attributes:
        code: Stable name of the finding.
        severity: Severity unless an observation has its own.
        summary: What the fault is, one sentence.
        meaning: The sentence of a finding, a format string over the evidence and `{word}`.
        evidence: What each number of the evidence is, with unit and range.
        remedy: What to do, as code where it fits.
        appearance: How a heatmap of such a model looks.
        cause: Why it happens.
        method: How it is detected, with thresholds.
        threshold: The number that decides, in one phrase; empty where none does.
        find: The detector.
        subject: What it examines.
        explained_by: Codes of findings at the same module (or at any module, if one of both is at
            `"model"`) of which this one is a consequence; it is then left out.
        page: The page that explains it, relative to the repository's root; empty if none.
    """

    code: str
    severity: Severity
    summary: str
    meaning: str
    evidence: Mapping[str, str] = field(hash=False)
    remedy: str
    appearance: str
    cause: str
    method: str
    threshold: str
    find: Detector
    subject: Subject
    explained_by: tuple[str, ...]
    page: str

    def __call__(self, subject: Any) -> Iterator[Finding]:
        """Yield the findings on a subject."""
        for one in self.find(subject):
            yield self.finding(one.where, one.severity, word=one.word, **one.evidence)

    def finding(
        self, where: str, severity: Severity | None = None, *, word: str = "", **evidence: float
    ) -> Finding:
        """A finding of this kind.

        Raises:
            InputError: The evidence is not what the rule declares.
        """
        if set(evidence) != set(self.evidence):
            raise InputError(
                f"doctor rule {self.code!r}: expected the evidence {_names(self.evidence)}, "
                f"got {_names(evidence)}; declare each number in evidence="
            )
        meaning = self.meaning.format(word=word, **evidence)
        return Finding(
            self.code, severity or self.severity, where, evidence, meaning, self.remedy, self.page
        )


_RULES: dict[str, Rule] = {}

RULES: Mapping[str, Rule] = MappingProxyType(_RULES)
"""Every registered rule by code, in the order of registration."""


def rule(
    *,
    code: str,
    severity: Severity,
    summary: str,
    meaning: str,
    remedy: str,
    evidence: Mapping[str, str] | None = None,
    appearance: str = "",
    cause: str = "",
    method: str = "",
    threshold: str = "",
    subject: Subject = "model",
    explained_by: tuple[str, ...] = (),
) -> Callable[[Detector], Rule]:
    """Register the decorated function as a doctor rule.

    The function takes the subject and yields `observed(where, **numbers)` for each fault.
    The arguments are explained at `Rule`.

    Raises:
        InputError: The code is taken, or a word is unknown.

    Examples:
        >>> from attnviz.diagnosis import RULES, observed, rule, unregister
        >>> @rule(
        ...     code="single-head",
        ...     severity="note",
        ...     summary="The attention has one head.",
        ...     meaning="the attention has {heads} head",
        ...     evidence={"heads": "number of heads"},
        ...     remedy="use several heads where different relations are to be learned",
        ... )
        ... def single_head(case):
        ...     for _, record in case.attention():
        ...         if record.heads == 1:
        ...             yield observed(record.name, heads=1)
        >>> "single-head" in RULES
        True
        >>> unregister("single-head")
    """
    if severity not in SEVERITIES:
        raise unknown_name("severity", severity, SEVERITIES)
    if subject not in SUBJECTS:
        raise unknown_name("subject of a rule", subject, SUBJECTS)

    def register(find: Detector) -> Rule:
        if code in _RULES:
            raise InputError(
                f"rule: expected a new code, {code!r} is registered by "
                f"{_RULES[code].find.__module__}; choose another, or unregister it first"
            )
        built_in = find.__module__.startswith("attnviz.")
        made = Rule(
            code, severity, summary, meaning, MappingProxyType(dict(evidence or {})), remedy,
            appearance, cause, method, threshold, find, subject, explained_by,
            f"{PAGES}/{code}.md" if built_in else "",
        )  # fmt: skip
        _RULES[code] = made
        return made

    return register


def unregister(code: str) -> None:
    """Remove a rule from the registry.

    Raises:
        InputError: There is no such code.
    """
    named(code)
    del _RULES[code]


def named(code: str) -> Rule:
    """The rule of a code.

    Raises:
        InputError: There is no such code.
    """
    if code not in _RULES:
        raise unknown_name("finding", code, _RULES)
    return _RULES[code]


def findings_of(
    subject: Subject, examined: Any, codes: Collection[str] | None = None
) -> list[Finding]:
    """The findings of all rules of one subject, without those that others explain.

    Args:
        subject: What the rules examine.
        examined: The subject itself.
        codes: Run the rules of these codes only.
    """
    rules = [
        one
        for one in _RULES.values()
        if one.subject == subject and (codes is None or one.code in codes)
    ]
    found = [finding for one in rules for finding in one(examined)]
    return [one for one in found if not _explained(one, found)]


def _explained(one: Finding, found: list[Finding]) -> bool:
    causes = named(one.code).explained_by
    return any(
        other.code in causes and ("model" in (one.where, other.where) or other.where == one.where)
        for other in found
    )


def _names(evidence: Iterable[str]) -> str:
    return ", ".join(sorted(evidence)) or "none"
