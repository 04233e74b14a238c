"""Each row of the table in one sentence that a clinician can read, and what would break it."""

from __future__ import annotations

import math

from secfl.guarantees import Adversary, View
from secfl.ledger.statement import Statement
from secfl.ledger.words import plural, who

__all__ = ["clauses", "explain"]


def explain(row: Statement) -> str:
    """One sentence: who, what is seen, what it means for one patient or clinic, and what would break it."""
    name, meaning, breaks = clauses(row)
    return f"{name} sees {row.sees}; {meaning}; {breaks}."


def clauses(row: Statement) -> tuple[str, str, str]:
    """The sentence's parts: who; what it means for one patient or clinic; what would break it."""
    name = who(Adversary(view=row.view, behaviour=row.adversary, colluders=row.colluders))
    return f"{name[0].upper()}{name[1:]}", _meaning(row), _breaks(row)


def _meaning(row: Statement) -> str:
    about = {"patient": "one patient's data", "client": "one clinic's data"}.get(
        row.unit or "", "anyone's data"
    )
    if row.epsilon is None:
        return f"nothing limits what this reveals about {about}, because {row.non_private}"
    if row.epsilon == 0:
        return f"this reveals nothing about {about}"
    # Bayes with equal prior odds: posterior odds are at most e^ε.
    chance = 100 / (1 + math.exp(-row.epsilon)) if row.epsilon < 700 else 100.0
    shown = f"at most {chance:.1f} % sure" if chance < 99.95 else "practically certain"
    return (
        f"a guess, at even odds, whether {about} were used can become {shown} "
        f"(epsilon {row.epsilon:.2f}, except with probability {row.delta:.0e})"
    )


def _breaks(row: Statement) -> str:
    if row.epsilon is None:
        return "there is nothing left to break"
    if row.view is View.CRYPTO_BROKEN:
        return "this holds even with all cryptography broken, as long as each clinic adds its own share of the noise"
    if row.view is View.FINAL_MODEL:
        return "it would break if clinics left out their noise"
    if row.broken:
        return (
            "this is more than the cryptography withstands, so only each clinic's own share of the noise protects, "
            "as in the row crypto_broken"
        )
    reasons = []
    if row.key_mode == "shared":
        reasons.append(
            "one client gave the shared CKKS key to the aggregator, which could then read every update"
        )
    elif row.colluders_tolerated is not None:
        over = row.colluders_tolerated + 1
        reasons.append(f"{plural(over, 'client')} or more colluded with the aggregator")
    if row.assumptions:
        listed = ", ".join(assumption.name for assumption in row.assumptions)
        reasons.append(f"one of these failed: {listed}")
    if not row.post_quantum:
        reasons.append("somebody recorded the traffic and had a large quantum computer later")
    reasons.append("clinics left out their noise")
    return "it would break if " + ", or if ".join(reasons)
