"""What audits of a run found, from the files that ``secfl audit … --json`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfl.errors import DataError

__all__ = ["AuditResult", "read_audits"]

_FORMAT_VERSION = 1
_LARGEST = 64 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """One audit.

    Attributes:
        what: What was audited.
        verdict: In the audit's own words.
        findings: Name, verdict and figure of each part, in words.
    """

    what: str
    verdict: str
    findings: tuple[tuple[str, str, str], ...]


def read_audits(files: Sequence[Path]) -> tuple[AuditResult, ...]:
    """Read them in order.

    Raises:
        DataError: A file is missing, damaged or newer than this secfl reads; names it.
    """
    return tuple(_read(path) for path in files)


def _read(path: Path) -> AuditResult:
    expected = "expected a file written by `secfl audit … --json`"
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path}: larger than {_LARGEST >> 20} MiB; {expected}")
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document.get("format_version", _FORMAT_VERSION)
        if version > _FORMAT_VERSION:
            raise DataError(f"{path}: format_version {version} is newer than this secfl reads; upgrade secfl")
        verdict = str(document["verdict"]) if "verdict" in document else _word(document)
        return AuditResult(
            what=str(document.get("what", path.stem)),
            verdict=verdict,
            findings=tuple(_finding(row) for row in _parts(document)),
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {expected}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: damaged; {expected}") from None


def _word(document: Mapping[str, Any]) -> str:
    """What stands for a verdict where an audit has none: a suite's outcome, a membership attack's figures."""
    if "true_positive_rate" in document:
        low, high = document["interval"]
        return (
            f"members found {document['true_positive_rate']:.1%} ({low:.1%} to {high:.1%}) at "
            f"{document['false_positive_rate']:.0%} false alarms"
        )
    return "PASSED" if document["passed"] else "FAILED"


def _parts(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for key in ("findings", "views", "variance", "controls") for row in document.get(key, ())]


def _finding(row: Mapping[str, Any]) -> tuple[str, str, str]:
    if "flagged" in row and "kind" in row:
        flagged = "flagged" if row["flagged"] else "not flagged"
        return str(row["name"]), f"{row['kind']} control, {flagged}", str(row.get("statistic", ""))
    if "measured" in row:
        stated = "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        gdp, one_run = row["measured"]["gdp_epsilon"], row["measured"]["one_run_epsilon"]
        figures = f"ledger {stated}, estimate (GDP) {gdp:.2f}, one-run bound {one_run:.2f}"
        return str(row["name"]), str(row["verdict"]), figures
    if "epsilon_lower" in row:
        figures = f"claimed {row['claimed_epsilon']:.2f}, at least {row['epsilon_lower']:.2f}"
        return str(row["name"]), str(row["verdict"]), figures
    return (
        str(row["name"]),
        "FLAGGED" if row["flagged"] else "-",
        str(row.get("statistic") or row.get("power") or ""),
    )
