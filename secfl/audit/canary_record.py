"""What a canary audit leaves in its run directory, and how anybody repeats it from there.

``audit.json`` has the revealed seed and every figure, ``scores.json`` the score of every canary in every view. With the
ledger beside them the whole judgement can be repeated: the seed gives the commitment that the ledger's first entry
holds and the coins; coins and scores give both figures; the ledger gives ε; and those give the verdicts. The scores
themselves are what the auditor saw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secfl._version import __version__
from secfl.audit.canaries import CanaryPlan, task_digest
from secfl.audit.canary_book import (
    LEVEL,
    VARIANCE_TESTS,
    CanaryAudit,
    audited_views,
    judged,
    measured_power,
    scored_canaries,
)
from secfl.audit.findings import Finding
from secfl.audit.release import describe
from secfl.audit.verdicts import REFUTED_LEVEL, Verdict, worst
from secfl.dp.plan import PrivacyPlan
from secfl.errors import DataError
from secfl.federation.checkpoint import write_atomically
from secfl.guarantees import Adversary, Behaviour, View
from secfl.ledger.reader import replay
from secfl.ledger.verify import verify_file

__all__ = ["read_audit", "verify_audit", "write_audit"]

_FORMAT_VERSION: Final = 1
_TOLERANCE: Final = 1e-6  # of figures that another machine's arithmetic gives


def write_audit(
    run: Path,
    found: CanaryAudit,
    *,
    task_digest: bytes,
    inner_task_digest: bytes,
    shortfall: float,
) -> None:
    """Write ``scores.json``, then ``audit.json``, whose presence says that the audit is finished."""
    scores = {one.to_dict()["name"]: [float(value) for value in one.scores] for one in found.views}
    document = {
        "format_version": _FORMAT_VERSION,
        "software": f"secfl {__version__}",
        "task_digest": task_digest.hex(),
        "inner_task_digest": inner_task_digest.hex(),
        "shortfall_on_purpose": shortfall,
        **found.to_dict(),
    }
    _write(run / "scores.json", {"format_version": _FORMAT_VERSION, "scores": scores}, indent=None)
    _write(run / "audit.json", document, indent=2)


def read_audit(run: Path) -> dict[str, Any]:
    """``audit.json`` of a run.

    Raises:
        DataError: Missing, damaged or of another version than this secfl reads.
    """
    return _read(run / "audit.json")


def verify_audit(run: Path) -> list[Finding]:
    """Repeat a canary audit's judgement from its run directory.

    Raises:
        DataError: No canary audit, or a damaged file.
        LedgerCorrupted: The ledger does not verify.
    """
    document, scores = read_audit(run), _read(run / "scores.json")
    ledger = run / "ledger.jsonl"
    verified = verify_file(ledger)
    header = replay(ledger.read_bytes()).state.header
    promised = {(row.view, row.adversary, row.colluders): row.epsilon for row in verified.statements}
    try:
        plan = CanaryPlan(
            seed=bytes.fromhex(document["seed"]), count=document["canaries"], guesses=document["guesses"]
        )
        bound = task_digest(bytes.fromhex(document["inner_task_digest"]), plan)
        views = [
            (_adversary(row), row, _scores(scores, row["name"], plan.count)) for row in document["views"]
        ]
        stated = document["commitment"]
        expected = audited_views(PrivacyPlan.from_dict(dict(header.plan or {})))
        found = [
            _mismatches(
                plan,
                row,
                seen,
                view,
                sites=len(header.cohort),
                share=LEVEL / len(expected),
                delta=header.delta or 0.0,
            )
            for view, row, seen in views
            if view in expected  # others are found below
        ]
        others = [
            row["name"]
            for view, row, _ in views
            if not _same(row["epsilon"], promised.get((view.view, view.behaviour, view.colluders)))
        ]
        others += _other_views([view for view, _, _ in views], expected)
        found.append(_variance_mismatches(document["variance"]))
        words = [*(row["verdict"] for _, row, _ in views), *(row["verdict"] for row in document["variance"])]
        verdict = worst([Verdict(word) for word in words])
        if document["verdict"] != verdict.value:
            found.append(["the verdict of the whole"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise DataError(f"{run / 'audit.json'}: damaged; expected what secfl audit run writes") from None
    wrong = [name for names in found for name in names]
    return [
        Finding(
            name="the revealed seed gives the stated commitment",
            flagged=plan.commitment().hex() != stated,
            statistic=f"{plan.count} canaries, {plan.guesses} guesses",
        ),
        Finding(
            name="the ledger's first entry holds that commitment",
            flagged=header.digests.get("task") != bound,
            statistic="digest of the task",
        ),
        Finding(
            name="coins and scores give both figures, and they the verdict",
            flagged=bool(wrong) or not views,
            statistic=_count(wrong, len(views), "views differ"),
        ),
        Finding(
            name="every view is there once, and every ε is the ledger's",
            flagged=bool(others) or not views,
            statistic=_count(others, len(views), "views differ"),
        ),
        Finding(
            name="the verdict, repeated, refutes nothing",
            flagged=verdict is Verdict.REFUTED,
            statistic=verdict.value,
        ),
    ]


def _adversary(row: Mapping[str, Any]) -> Adversary:
    return Adversary(
        view=View(row["view"]), behaviour=Behaviour(row["adversary"]), colluders=int(row["colluders"])
    )


def _scores(document: Mapping[str, Any], name: str, count: int) -> NDArray[np.float64]:
    found = np.array(document["scores"][name], dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ValueError(name)
    return found


def _mismatches(
    plan: CanaryPlan,
    row: Mapping[str, Any],
    scores: NDArray[np.float64],
    view: Adversary,
    *,
    sites: int,
    share: float,
    delta: float,
) -> list[str]:
    """The view's name if its figures or its word do not follow from coins and scores."""
    measured = measured_power(
        scores,
        plan.coins(),
        scored=scored_canaries(plan.sites(sites), sites=sites, view=view),
        guesses=plan.guesses,
        delta=delta,
        level=share,
    )
    stated, repeated = row["measured"], measured.to_dict()
    equal = all(_same(stated[key], value) for key, value in repeated.items())
    return [] if equal and row["verdict"] == judged(measured, row["epsilon"]).value else [str(row["name"])]


def _other_views(judged_views: Sequence[Adversary], expected: Sequence[Adversary]) -> list[str]:
    """Views that are missing, there twice, or none of a run without drop-outs: more rows would thin out the level."""
    return [
        *(f"{describe(view)} is missing" for view in expected if view not in judged_views),
        *(f"{describe(view)} is there twice" for view in expected if judged_views.count(view) > 1),
        *(f"{describe(view)} is not one of the plan's" for view in judged_views if view not in expected),
    ]


def _variance_mismatches(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Variance tests that are missing, or whose word does not follow from their p-value at the usual level."""
    if tuple(row["name"] for row in rows) != VARIANCE_TESTS:
        return ["the variance tests"]
    return [
        str(row["name"])
        for row in rows
        if row["level"] != REFUTED_LEVEL
        or row["verdict"]
        != (Verdict.REFUTED if row["p_value"] < REFUTED_LEVEL else Verdict.NOT_REFUTED).value
    ]


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _count(wrong: Sequence[str], views: int, what: str) -> str:
    return f"{len(wrong)} of {views} {what}" + (f"; first: {wrong[0]}" if wrong else "")


def _write(path: Path, document: dict[str, Any], *, indent: int | None) -> None:
    write_atomically(path, (json.dumps(document, indent=indent) + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = document["format_version"]
    except FileNotFoundError:
        raise DataError(f"{path}: missing; expected a run made by secfl audit run") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{path}: damaged; expected what secfl audit run writes") from None
    if version != _FORMAT_VERSION:
        raise DataError(f"{path}: format_version {version}; this secfl reads {_FORMAT_VERSION}")
    return document
