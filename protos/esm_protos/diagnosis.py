"""A diagnosis for people and for programs: the agent's command and the host's print the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

from esm_protos.messages import Diagnosis, Severity
from esm_protos.text import printable

SCHEMA_VERSION = 1
NOT_FIT = 3
"""Exit code of a doctor whose device is not fit."""


def lines(diagnosis: Diagnosis) -> list[str]:
    """Aligned rows ``severity  check  text``, a fix indented below, and a summary."""
    checks = max((len(finding.check) for finding in diagnosis.findings), default=0)
    words = max(len(severity.value) for severity in Severity)
    rows = []
    for finding in diagnosis.findings:
        rows.append(f"{finding.severity.value:{words}}  {finding.check:{checks}}  {finding.text}")
        if finding.fix:
            rows.append(f"{'':{words}}  {'':{checks}}  -> {finding.fix}")
    return [printable(row) for row in (*rows, summary(diagnosis))]


def summary(diagnosis: Diagnosis) -> str:
    """One line: fit or not, and how many findings of each kind."""
    counts = Counter(finding.severity for finding in diagnosis.findings)
    told = ", ".join(f"{counts[severity]} {severity.value}" for severity in Severity)
    if diagnosis.fit:
        return f"fit to measure ({told})"
    unfit = [f.check for f in diagnosis.findings if f.severity is Severity.UNFIT]
    return f"not fit to measure because of {', '.join(unfit)} ({told})"


def to_json(diagnosis: Diagnosis, device: str) -> dict[str, Any]:
    """For ``--json``; ``device`` is the name that it was asked by."""
    return {
        "schema_version": SCHEMA_VERSION,
        "device": device,
        "fit": diagnosis.fit,
        "findings": [
            {"check": f.check, "severity": f.severity.value, "text": f.text, "fix": f.fix}
            for f in diagnosis.findings
        ],
    }
