"""Write docs/doctor/ from the rules, and from the twins of the tests as code examples.

    python docs/write_doctor.py

A page says what each rule declares above its function; the code is the source of a faulty program
and of its mended twin, on which the tests hold the rule.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from attnviz.diagnosis import RULES, SEVERITIES, Rule  # noqa: E402
from tests.diagnosis.twins import TWINS, Twin  # noqa: E402

_HEAD = """# The doctor

`av.diagnose(model, images, masks)` and `attnviz doctor RUN | FACTORY` find faults in a model's attention and gates. The rules examine what the model does: they run it at another size and in another batch, perturb one image patch, replace attention weights and gates, and compare. They do not read source code.

```python
import torch
import attnviz as av

images = torch.randn(8, 3, 96, 96).clamp(-1, 1)
findings = av.diagnose(av.build_model("mha_reshape"), images)
print(findings)  # severity, module, evidence, meaning, remedy
print(findings.headline)  # one line
findings.as_dicts()  # JSON data
```

- **error**: a fault whatever the weights are. `attnviz doctor` exits with 1, with 2 if something was not examined, and with 0 otherwise; `--format json` and `--format sarif` are for programs.
- **warning**: a fault unless it is meant.
- **note**: to know before a map is read.

What random weights show by nature is not judged in untrained models, and is a note where that is not known. `python benchmarks/doctor.py` examines correct models and faulty layers, and measures the cost. Your own rule: [CONTRIBUTING.md](../../CONTRIBUTING.md), "A doctor rule".

| finding | severity | what it is |
| --- | --- | --- |
"""


def index() -> str:
    """`README.md`: all findings."""
    rows = [f"| [{one.code}]({one.code}.md) | {one.severity} | {one.summary} |" for one in _rules()]
    return _HEAD + "\n".join(rows) + "\n" + measured()


def measured() -> str:
    """What the benchmarks measured: faults found, findings on correct models, thresholds."""
    folder = ROOT / "docs" / "doctor"
    names = ("injected", "correct", "null")
    if not all((folder / f"{name}.json").exists() for name in names):
        return ""
    injected, correct, null = (json.loads((folder / f"{name}.json").read_text()) for name in names)
    return _injected(injected) + _correct(correct, injected) + _thresholds(correct, injected, null)


def _injected(read: dict[str, Any]) -> str:
    total = sum(count for count, _ in read["faults"].values())
    found = sum(hits for _, hits in read["faults"].values())
    rows = [
        f"| {name} | {count} | {hits / count:.0%} |"
        for name, (count, hits) in read["faults"].items()
    ]
    errors = sum(read["accused"]["error"].values())
    return (
        f"\n## Faults injected into models of others\n\n`python benchmarks/injected_faults.py`: "
        f"{len(read['faults'])} faults in {', '.join(read['hosts'])}, untrained and trained for some "
        f"steps: {found} of {total} found ({found / total:.1%}). On {read['twins']} examinations of "
        f"mended twins there were {errors} errors.{_left(read)}\n\n"
        "| fault | injected | found |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def _left(read: dict[str, Any]) -> str:
    left = read["left"]
    said = (
        f" {left} more that the script plans were not examined, and some of these were examined before "
        "the last changes of the rules."
    )
    return said if left else ""


def _columns(correct: dict[str, Any], injected: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Numbers of correct models with random weights, trained ones and twins, with their findings."""
    return [
        (correct["untrained"]["models"], correct["untrained"]),
        (correct["trained"]["models"], correct["trained"]),
        (injected["twins"], injected["accused"]),
    ]


def _correct(correct: dict[str, Any], injected: dict[str, Any]) -> str:
    columns, rows = _columns(correct, injected), []
    for code in RULES:
        for severity in SEVERITIES:
            counts = [found[severity].get(code, 0) for _, found in columns]
            if any(counts):
                shares = (f"{n / of:.1%}" for n, (of, _) in zip(counts, columns, strict=True))
                rows.append(f"| [{code}]({code}.md) | {severity} | {' | '.join(shares)} |")
    numbers = [of for of, _ in columns]
    return (
        "\n## Findings on correct models\n\nShare of correct models with each finding: its "
        f"false-alarm rate, where there is nothing to find. {numbers[0]} models of torchvision, "
        f"timm, transformers and attnviz with random weights and {numbers[1]} trained reference "
        f"models (`python benchmarks/doctor.py --only correct`), and {numbers[2]} examinations of "
        "the mended twins above, untrained and trained for some steps. Warnings and notes on weights "
        "and gates that barely learned are often true of them: a training of some steps leaves "
        f"attention near uniform.{_left(correct)}\n\n"
        "| finding | severity | random weights | trained | twins |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def _thresholds(correct: dict[str, Any], injected: dict[str, Any], null: dict[str, Any]) -> str:
    columns, rows = _columns(correct, injected), []
    total, simulated = sum(of for of, _ in columns), null["rules"]
    for code, one in RULES.items():
        if not one.threshold:
            continue
        if code in simulated:
            rate, of = simulated[code]["rate"], simulated[code]["of"]
            measured = f"{rate:.2%} of {null['draws']} draws | {of}"
        elif one.subject in ("model", "images"):
            counts = [
                sum(found[level].get(code, 0) for level in SEVERITIES) for _, found in columns
            ]
            measured = (
                f"{sum(counts) / total:.1%} of {total} | {counts[0]}, {counts[1]}, {counts[2]}"
            )
        else:
            measured = "not measured |"
        rows.append(f"| [{code}]({code}.md) | {one.threshold} | {measured} |")
    return (
        "\n## Thresholds\n\nThe number that decides, and how often it says so of a correct subject: "
        f"of the {total} examinations of correct models above, by columns, or of simulations without "
        "the fault (`python benchmarks/doctor.py --only null`). With 0 alarms the rate is below "
        f"{3 / total:.1%} with 95 % confidence.\n\n"
        "| finding | threshold | alarms | on |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows) + "\n"
    )  # fmt: skip


def page(rule: Rule) -> str:
    """The page of one finding."""
    parts = [
        f"# {rule.code}",
        f"{rule.summary} Severity: **{rule.severity}** unless the page says otherwise.",
        "## What it says",
        re.sub(r"{(\w+)[^}]*}", r"*\1*", rule.meaning[0].upper() + rule.meaning[1:]) + ".",
    ]
    if rule.evidence:
        rows = [f"| `{name}` | {meaning} |" for name, meaning in rule.evidence.items()]
        parts.append("\n".join(["| evidence | meaning |", "| --- | --- |", *rows]))
    parts += ["## As a heatmap", rule.appearance, "## Why it happens", rule.cause]
    parts += ["## The fix", rule.remedy[0].upper() + rule.remedy[1:] + "."]
    parts += _code(next(twin for twin in TWINS.values() if twin.code == rule.code))
    parts += ["## How it is found", rule.method]
    if rule.threshold:
        measured = "[its false-alarm rate](README.md#thresholds)"
        parts.append(f"Threshold: {rule.threshold}; {measured}.")
    return "\n\n".join(parts) + "\n"


def _code(twin: Twin) -> list[str]:
    faulty, mended = twin.source(mended=False), twin.source(mended=True)
    return ["Faulty:", f"```python\n{faulty}\n```", "Mended:", f"```python\n{mended}\n```"]


def _rules() -> list[Rule]:
    return [one for one in RULES.values() if one.page]


def pages() -> dict[str, str]:
    """Every page by its path relative to the repository's root."""
    written = {"docs/doctor/README.md": index()}
    return written | {one.page: page(one) for one in _rules()}


if __name__ == "__main__":
    for path, text in pages().items():
        (ROOT / path).write_text(text)
    for path in (ROOT / "docs/doctor").glob("*.md"):
        if f"docs/doctor/{path.name}" not in pages():
            path.unlink()
