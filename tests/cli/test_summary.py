"""The summary that a person reads, from a summary that the schema accepts."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from secfl.cli.summary import print_summary
from secfl.federation.rundir import summary_schema

SITES = ["STARE", "HRF", "CHASE_DB1"]


def by_site(*values: float | None) -> dict:
    known = [value for value in values if value is not None]
    return {"mean": sum(known) / len(known), "per_site": dict(zip(SITES, values, strict=True))}


SUMMARY = {
    "format_version": 1,
    "secfl_version": "0.1.0",
    "simulated": True,
    "seed": 0,
    "config_sha256": "0" * 64,
    "final_model_sha256": "ab" * 32,
    "model": "unet",
    "parameters": 123_456,
    "rounds_planned": 5,
    "rounds_completed": 4,
    "stopped_because": "all rounds are done",
    "sites": SITES,
    "evaluation_only": {
        name: by_site(0.7, 0.8, None) for name in ("dice", "iou", "accuracy", "balanced_accuracy", "hd95")
    },
    "bytes_per_parameter": {"up": 4.062, "down": 4.0},
    "megabytes": {"up": 7.5, "down": 7.4},
    "time_s": {
        "train": 20.0,
        "protect": 0.5,
        "aggregate": 0.1,
        "open": 0.2,
        "total": 25.0,
        "protection_share": 0.032,
    },
    "codec": {"bits": 18, "clipped_fraction": 0.0123, "relative_error": 0.00042},
    "secure_agg": {"scheme": "ckks", "key_mode": "shared", "threshold": 3},
    "privacy": {
        "unit": None,
        "delta": None,
        "statement": "no noise is added, ε is null",
        "views": [
            {
                "view": "aggregator",
                "colluders": 0,
                "adversary": "curious",
                "epsilon": None,
                "holds_if": "RLWE",
            }
        ],
    },
    "dropouts": {"total": 1, "by_round": {"2": ["HRF"]}},
}


def printed(summary) -> str:
    jsonschema.validate(summary, summary_schema())
    stream = io.StringIO()
    print_summary(summary, Path("runs/a b"), console=Console(file=stream, width=110, highlight=False))
    return stream.getvalue()


def test_the_facts_are_there():
    text = printed(SUMMARY)
    for fact in (
        "123,456 parameters, SHA-256 abababababababab…",
        "4 of 5, all rounds are done; drop-outs: 1",
        "ckks (shared), threshold 3",
        "4.06 bytes per parameter and round, 7.5 MB in all",
        "18 bits, 1.23% clipped, relative error 4.2e-04",
        "train 20.0, protect 0.5, aggregate 0.1, open 0.2; total 25.0, protection 3.2%",
        "no noise is added, ε is null",
        "secfl ledger show 'runs/a b'; secfl ledger verify 'runs/a b'",
    ):
        assert fact in text


def test_a_site_without_a_number_shows_a_dash():
    row = next(line for line in printed(SUMMARY).splitlines() if "federated" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "federated",
        "0.700",
        "0.800",
        "-",
        "0.750",
        "-",
    ]


def test_references_stand_beside_the_federated_model():
    summary = copy.deepcopy(SUMMARY)
    summary["evaluation_only"]["references"] = {
        "local": {"STARE": by_site(0.6, 0.5, 0.4), "HRF": by_site(0.3, 0.6, 0.2)},
        "pooled": by_site(0.9, 0.8, 0.7),
    }
    text = printed(summary)
    assert (
        text.index("federated") < text.index("HRF alone") < text.index("STARE alone") < text.index("pooled")
    )


@pytest.mark.parametrize("scheme", [("plain", "none"), ("masking", "pairwise")])
def test_schemes_without_a_key_mode_do_not_mention_one(scheme):
    summary = copy.deepcopy(SUMMARY)
    summary["secure_agg"] = {"scheme": scheme[0], "key_mode": scheme[1], "threshold": 3}
    assert f"{scheme[0]}, threshold 3" in printed(summary)


def test_epsilon_is_never_printed_without_unit_delta_and_view():
    summary = copy.deepcopy(SUMMARY)
    summary["privacy"] |= {"unit": "client", "delta": 1e-5}
    summary["privacy"]["views"][0]["epsilon"] = 7.9971
    assert "ε = 8.00 at δ = 1e-05 per client towards an honest-but-curious aggregator" in " ".join(
        printed(summary).split()
    )
