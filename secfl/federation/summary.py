"""``summary.json``: everything a reader or a machine asks of a finished run, measured by the run itself."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secfl._version import __version__
from secfl.config import Engine, RunConfig
from secfl.federation.coordinator import RoundOutcome
from secfl.federation.environment import run_environment
from secfl.federation.evaluation import by_class, by_site
from secfl.federation.local_work import LocalReport
from secfl.federation.observer import Times
from secfl.federation.privacy import RunTerms
from secfl.federation.rundir import RUN_FORMAT_VERSION
from secfl.federation.schemes import key_mode_name
from secfl.federation.state import count_parameters, state_digest
from secfl.segmentation.task import SiteMetrics, State

__all__ = ["METRICS", "build", "encoding_error", "evaluation_only", "processes"]

METRICS = ("dice", "iou", "accuracy", "balanced_accuracy", "hd95")


def encoding_error(outcome: RoundOutcome, reports: Mapping[str, LocalReport]) -> float:
    """``||opened mean - float mean||_2 / ||float mean||_2``: what clipping, rounding and noise cost.

    Only a simulation can compute it, because nobody else has the float updates. Where patients are clipped one
    by one there is no float update to compare with: 0.

    Args:
        outcome: The round.
        reports: Reports of the survivors.
    """
    total = sum(report.weight for report in reports.values())
    exact = np.zeros(outcome.mean.shape)
    for report in reports.values():
        if report.update is None:
            return 0.0
        exact += report.update.values.astype(np.float64) * (report.weight / total)
    norm = float(np.linalg.norm(exact))
    return float(np.linalg.norm(outcome.mean - exact)) / norm if norm else 0.0


def evaluation_only(metrics: Mapping[str, SiteMetrics]) -> dict[str, Any]:
    """Every metric by site, over how many cases, and Dice by class; no deployment may publish these without an event.

    ``empty`` counts the cases in which truth or prediction has no such voxel: HD95 leaves them out, so that a model
    which finds nothing must not be judged by its distance alone.
    """
    found: dict[str, Any] = {name: by_site(metrics, name) for name in METRICS}
    found["cases"] = {site: {"count": row.cases, "empty": row.empty_cases} for site, row in metrics.items()}
    if classes := by_class(metrics):
        found["dice_by_class"] = classes
    return found


def build(
    *,
    config: RunConfig,
    terms: RunTerms,
    threshold: int,
    sites: Sequence[str],
    state: State,
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, SiteMetrics],
    references: Mapping[str, Any] | None,
    statements: Sequence[Mapping[str, Any]],
    rounds_aborted: int,
    reason: str,
    stopped: str,
) -> dict[str, Any]:
    """The summary as a JSON tree; see ``summary.schema.json``.

    Args:
        config: The run.
        terms: Its public numbers.
        threshold: t.
        sites: Site names.
        state: The final model.
        rows: The lines of ``metrics.jsonl``, one per finished round.
        metrics: The final model on every site.
        references: Dice of local and pooled models, if they were trained.
        statements: The ledger's rows, one per adversary.
        rounds_aborted: Attempts in which nothing was opened.
        reason: Why the run ended, in one word: ``completed`` or ``budget``.
        stopped: The same in a sentence.
    """
    parameters = count_parameters(state)
    up = [size for row in rows for size in row["bytes_up"].values()]
    down = [size for row in rows for size in row["bytes_down"].values()]
    seconds = sum((Times(**row["seconds"]) for row in rows), Times())
    protection = seconds.protect + seconds.aggregate + seconds.open
    working = seconds.train + protection
    privacy = config.privacy
    evaluation = evaluation_only(metrics)
    if references is not None:
        evaluation["references"] = dict(references)
    by_round = {str(row["round"]): list(row["dropped"]) for row in rows if row["dropped"]}
    private = terms.plan is not None
    return {
        "format_version": RUN_FORMAT_VERSION,
        "secfl_version": __version__,
        "simulated": True,
        "engine": config.engine.value,
        "tls": False,
        "node_auth": False,
        "processes": processes(config, sites=len(sites)),
        "environment": run_environment(),
        "seed": config.seed,
        "config_sha256": config.digest().hex(),
        "final_model_sha256": state_digest(state).hex(),
        "model": config.model.name,
        "parameters": parameters,
        "rounds_planned": terms.rounds,
        "rounds_completed": len(rows),
        "rounds_aborted": rounds_aborted,
        "stopped": reason,
        "stopped_because": stopped,
        "sites": list(sites),
        "evaluation_only": evaluation,
        "bytes_per_parameter": {
            "up": round(_mean(up) / parameters, 4),
            "down": round(_mean(down) / parameters, 4),
        },
        "megabytes": {"up": sum(up) / 1e6, "down": sum(down) / 1e6},
        "time_s": {
            **seconds.as_dict(),
            "protection_share": round(protection / working, 6) if working else 0.0,
        },
        "codec": {
            "bits": terms.round_terms.bits,
            "clipped_fraction": max((row["clipped_fraction"] for row in rows), default=0.0),
            "relative_error": max((row["relative_error"] for row in rows), default=0.0),
        },
        "secure_agg": {
            "scheme": config.secure_agg.scheme.value,
            "key_mode": key_mode_name(config.secure_agg),
            "threshold": threshold,
        },
        "privacy": {
            "unit": privacy.mode.value if private else None,
            "relation": terms.relation,
            "delta": privacy.delta if private else None,
            "noise_multiplier": terms.noise_multiplier,
            "statement": terms.sentence,
            "views": [_row(statement) for statement in statements],
        },
        "dropped": [list(row["dropped"]) for row in rows],
        "dropouts": {"total": sum(len(names) for names in by_round.values()), "by_round": by_round},
    }


def processes(config: RunConfig, *, sites: int) -> int:
    """Programs of a simulated run: coordinator and sites, or an engine's pool of workers in their place."""
    match config.engine:
        case Engine.INPROCESS:
            return 1
        case Engine.MULTIPROCESS | Engine.NVFLARE:
            return 1 + sites
        case Engine.FLOWER:
            return 1 + min(sites, os.cpu_count() or 1)


def _row(statement: Mapping[str, Any]) -> dict[str, Any]:
    epsilon = statement["epsilon"]
    finite = epsilon is not None and math.isfinite(epsilon)
    site = {} if statement["site"] is None else {"site": str(statement["site"])}
    return {
        **site,
        "view": str(statement["view"]),
        "colluders": int(statement["colluders"]),
        "adversary": str(statement["adversary"]),
        "epsilon": float(epsilon) if finite else None,
        "holds_if": str(statement["holds_if"]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
