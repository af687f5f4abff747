"""Text and JSON of a diagnosis, shared by the agent's and the host's ``doctor``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from esm_protos.messages import Diagnosis, Severity
from esm_protos.text import printable

SCHEMA_VERSION = 1
NOT_FIT = 3
"""Exit code of ``doctor`` for a device that is not fit to measure."""


def lines(diagnosis: Diagnosis) -> list[str]:
    """Return aligned rows ``severity  check  text``, each fix below its row, and a summary."""
    checks = max((len(finding.check) for finding in diagnosis.findings), default=0)
    words = max(len(severity.value) for severity in Severity)
    rows = []
    for finding in diagnosis.findings:
        rows.append(f"{finding.severity.value:{words}}  {finding.check:{checks}}  {finding.text}")
        if finding.fix:
            rows.append(f"{'':{words}}  {'':{checks}}  -> {finding.fix}")
    return [printable(row) for row in (*rows, summary(diagnosis))]


def summary(diagnosis: Diagnosis) -> str:
    """Return one line: whether the device is fit, and the number of findings by severity."""
    counts = Counter(finding.severity for finding in diagnosis.findings)
    totals = ", ".join(f"{counts[severity]} {severity.value}" for severity in Severity)
    if diagnosis.fit:
        return f"fit to measure ({totals})"
    unfit = [f.check for f in diagnosis.findings if f.severity is Severity.UNFIT]
    return f"not fit to measure because of {', '.join(unfit)} ({totals})"


def to_json(diagnosis: Diagnosis, device: str) -> dict[str, Any]:
    """Return the JSON of ``--json``; ``device`` is the name that the user gave."""
    return {
        "schema_version": SCHEMA_VERSION,
        "device": device,
        "fit": diagnosis.fit,
        "findings": [
            {"check": f.check, "severity": f.severity.value, "text": f.text, "fix": f.fix}
            for f in diagnosis.findings
        ],
    }
