"""The ledger in other people's formats. Everything is derived at the moment of export."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

from secfl.dp.events import (
    Composed,
    DpEvent,
    Gaussian,
    IntegerNoise,
    NonPrivate,
    NoOp,
    PoissonSampled,
    SelfComposed,
    compose,
)
from secfl.dp.integer import gaussian_equivalent
from secfl.dp.noise import NoiseFamily
from secfl.errors import UnsupportedEvent
from secfl.guarantees import View
from secfl.ledger.canonical import canonical
from secfl.ledger.sights import look, releases, seen_event
from secfl.ledger.state import LedgerState
from secfl.ledger.statement import Statement
from secfl.ledger.verify import CANNOT_PROVE
from secfl.ledger.views import adversaries, statements

__all__ = ["ExportFormat", "export"]


class ExportFormat(StrEnum):
    """What can be exported.

    ``dp-accounting``: one event tree per view, under the names of the library of that name. ``csv``: one line
    per row. ``registry``: an entry for the OpenDP deployments registry. ``nist``: the points of NIST SP 800-226.
    """

    DP_ACCOUNTING = "dp-accounting"
    CSV = "csv"
    REGISTRY = "registry"
    NIST = "nist"


_COLUMNS: Final = (
    "view",
    "adversary",
    "colluders",
    "site",
    "sees",
    "epsilon",
    "epsilon_rdp",
    "epsilon_reference",
    "delta",
    "z_effective",
    "unit",
    "relation",
    "assumptions",
    "post_quantum",
    "dropouts_tolerated",
    "colluders_tolerated",
    "key_mode",
    "broken",
    "simulated",
    "unprotected",
    "non_private",
    "holds_if",
)


def export(state: LedgerState, form: ExportFormat, *, delta: float | None = None) -> str:
    """A ledger that verifies, as text in another format.

    Raises:
        UnsupportedEvent: The format cannot express an event (Skellam noise in dp-accounting).
    """
    makers: dict[ExportFormat, Callable[[], str]] = {
        ExportFormat.DP_ACCOUNTING: lambda: _json(_dp_accounting(state)),
        ExportFormat.CSV: lambda: _csv(statements(state, delta)),
        ExportFormat.REGISTRY: lambda: _json(_registry(state, statements(state, delta))),
        ExportFormat.NIST: lambda: _json(_nist(state, statements(state, delta))),
    }
    return makers[form]()


def _json(value: Any) -> str:
    canonical(value)  # refuses what JSON cannot say
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(rows: Iterable[Statement]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        plain = row.to_json()
        for name in ("assumptions", "unprotected"):
            plain[name] = "; ".join(plain[name])
        writer.writerow({name: "" if value is None else value for name, value in plain.items()})
    return stream.getvalue()


def _dp_accounting(state: LedgerState) -> dict[str, Any]:
    """Per view, the event as ``dp_accounting`` objects, written ``{"class": name, ...arguments}``."""
    found = releases(state)
    views = []
    for adversary in adversaries(len(state.header.cohort)):
        sights = [item for release in found if (item := look(release, adversary))]
        event = compose(
            SelfComposed(
                seen_event(item.release.terms.event, item.unknown_shares, site=None), item.release.count
            )
            for item in sights
        )
        remainder: list[float] = []
        views.append(
            {
                "view": adversary.view.value,
                "adversary": adversary.behaviour.value,
                "colluders": adversary.colluders,
                "event": _dp_event(event, 1, remainder),
                "remainder": math.fsum(remainder),
            }
        )
    return {
        "library": "dp-accounting",
        "note": (
            "discrete Gaussians are written as the continuous ones that stand for them: an epsilon of these events "
            "at delta times exp(-remainder), plus twice the remainder, holds for the mechanism that ran"
        ),
        "delta": state.header.delta,
        "views": views,
    }


def _dp_event(event: DpEvent, count: int, remainder: list[float]) -> dict[str, Any]:
    written: dict[str, Any]
    match event:
        case NoOp():
            written = {"class": "NoOpDpEvent"}
        case NonPrivate():
            written = {"class": "NonPrivateDpEvent"}
        case Gaussian(noise_multiplier=z):
            written = {"class": "GaussianDpEvent", "noise_multiplier": z}
        case IntegerNoise(family=NoiseFamily.DISCRETE_GAUSSIAN):
            equivalent = gaussian_equivalent(event)
            remainder.append(count * equivalent.remainder)
            written = {"class": "GaussianDpEvent", "noise_multiplier": equivalent.noise_multiplier}
        case PoissonSampled(sampling_probability=rate, event=inner):
            part = _dp_event(inner, count, remainder)
            written = {"class": "PoissonSampledDpEvent", "sampling_probability": rate, "event": part}
        case SelfComposed(event=inner, count=times):
            part = _dp_event(inner, count * times, remainder)
            written = {"class": "SelfComposedDpEvent", "count": times, "event": part}
        case Composed(events=events):
            parts = [_dp_event(inner, count, remainder) for inner in events]
            written = {"class": "ComposedDpEvent", "events": parts}
        case _:
            raise UnsupportedEvent(f"{type(event).__name__}: dp-accounting has no event for it")
    return written


def _headline(rows: Iterable[Statement]) -> Statement:
    """The row that a registry gets: the released models' recipients."""
    return next(row for row in rows if row.view is View.FINAL_MODEL)


def _mechanisms(state: LedgerState) -> list[Mapping[str, Any]]:
    return [terms.event.to_json() for terms in state.terms.values()]


def _registry(state: LedgerState, rows: list[Statement]) -> dict[str, Any]:
    """Sections as in the OpenDP deployments registry; ``null`` is for whoever submits it to fill in."""
    row = _headline(rows)
    header = state.header
    return {
        "url_slug": None,
        "status": "Draft",
        "deployment": {
            "basic": {
                "name": None,
                "data_curator": None,
                "description": "federated training of an image segmentation model",
                "intended_use": None,
                "data_product_type": "machine learning model",
                "data_product_region": None,
                "data_product_sector": "health",
                "publication_date": None,
            },
            "dp_variant": {
                "name": "Approximate DP",
                "data_domain": "medical images with segmentation masks, by patient",
                "unprotected_quantities": [*header.public, *row.unprotected],
            },
            "privacy_loss": {
                "privacy_unit": row.unit,
                "privacy_unit_description": f"neighbouring data sets differ by one {row.unit} ({row.relation})",
                "privacy_parameters": {"epsilon": row.epsilon, "delta": row.delta},
                "privacy_parameters_description": (
                    "of all released models; other adversaries: "
                    + "; ".join(f"{_label(other)}: {_shown(other)}" for other in rows)
                ),
            },
            "deployment_model": {
                "model_name": "Distributed",
                "model_name_description": f"secure aggregation by {header.scheme} ({header.key_mode})",
                "actors": [
                    f"{len(header.cohort)} clients, at least {header.threshold} in every sum",
                    "one aggregator, which is not trusted with single updates",
                ],
                "release_type": "Many",
                "release_type_description": f"{len(state.commits)} rounds, each releases a model",
                "access_type": "Non-interactive",
            },
            "accounting": {
                "composition": "privacy loss distributions over all rounds as they happened; Renyi as a check",
                "post_processing": "the aggregator divides the noisy sum and applies it to the model",
            },
            "implementation": {"mechanisms": _mechanisms(state), "software": header.software},
        },
    }


def _nist(state: LedgerState, rows: list[Statement]) -> dict[str, Any]:
    """The components of the differential privacy pyramid of NIST SP 800-226, from top to bottom."""
    header = state.header
    row = _headline(rows)
    return {
        "guideline": "NIST SP 800-226, Guidelines for Evaluating Differential Privacy Guarantees",
        "privacy_parameters": {"epsilon": row.epsilon, "delta": row.delta, "variant": "approximate"},
        "unit_of_privacy": {"unit": row.unit, "neighbouring": row.relation},
        "algorithms_and_correctness": {
            "mechanisms": _mechanisms(state),
            "composition": f"{len(state.reservations)} attempts, every one that may have been opened is counted",
            "accountants": "privacy loss distributions; Renyi differential privacy as a check",
            "verification": "secfl ledger verify computes every epsilon again from the file",
        },
        "utility_and_bias": "not part of the ledger; see the run's summary",
        "threat_models": [
            {
                "adversary": _label(other),
                "sees": other.sees,
                "epsilon": other.epsilon,
                "delta": other.delta,
                "holds_if": other.holds_if,
                "post_quantum": other.post_quantum,
            }
            for other in rows
        ],
        "mechanism_implementation": {
            "floating_point": "noise is integer noise on a grid, where the events say so",
            "sampler": "its distance from the ideal noise is part of delta",
            "side_channels": "timing of training is not hidden by the ledger; see its list of public facts",
        },
        "data_security_and_access_control": {
            "keys": header.key_mode,
            "simulated": row.simulated,
            "public": list(header.public),
            "unprotected": list(row.unprotected),
        },
        "data_collection_exposure": "images stay at their sites; the sites' own protection is outside this ledger",
        "cannot_be_proved_by_a_file": list(CANNOT_PROVE),
    }


def _label(row: Statement) -> str:
    site = f", {row.site}" if row.site else ""
    return f"{row.view.value} ({row.adversary.value}, {row.colluders} colluders{site})"


def _shown(row: Statement) -> str:
    return "no guarantee" if row.epsilon is None else f"epsilon {row.epsilon:.4g}"
