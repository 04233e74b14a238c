"""One row of the ledger's table, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secfl.guarantees import Assumption, Behaviour, View

__all__ = ["Statement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One row: what one adversary learns about one unit of privacy.

    Attributes:
        view: Who is looking.
        adversary: Whether it follows the protocol.
        colluders: Clients that share everything with it.
        site: The clinic whose patients the row is about, where clinics differ; else ``None`` for all.
        sees: What it sees, in words.
        epsilon: Proved for the mechanism that ran; ``None`` when there is no finite guarantee.
        epsilon_rdp: The same by the second accountant (Rényi); never a claim, always at least as large
            up to numerical error.
        epsilon_reference: With continuous Gaussian noise of the same width, for comparison.
        delta: δ of ``epsilon``, everything included.
        z_effective: Smallest noise multiplier that this adversary faced in a round; ``None`` without noise.
        unit: Whose presence is hidden, or ``None``.
        relation: Which data sets are neighbours, or ``None``.
        assumptions: What carries the row, beyond mathematics.
        post_quantum: Whether all of them are believed to hold against a quantum computer.
        dropouts_tolerated: Clients that may drop out without stopping a round.
        colluders_tolerated: Most colluders for which an aggregator of this behaviour still sees sums only; -1 when
            it sees every update even alone; ``None`` for views without colluders.
        key_mode: Key mode of the scheme.
        broken: Whether the row (or a round of it) is that of broken cryptography.
        simulated: Whether one process held all keys.
        unprotected: What was used or shown without protection.
        non_private: Why there is no ε; empty when there is one.
        holds_if: One sentence.
    """

    view: View
    adversary: Behaviour
    colluders: int
    site: str | None
    sees: str
    epsilon: float | None
    epsilon_rdp: float | None
    epsilon_reference: float | None
    delta: float | None
    z_effective: float | None
    unit: str | None
    relation: str | None
    assumptions: tuple[Assumption, ...]
    post_quantum: bool
    dropouts_tolerated: int
    colluders_tolerated: int | None
    key_mode: str
    broken: bool
    simulated: bool
    unprotected: tuple[str, ...]
    non_private: str
    holds_if: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, for files and for ``--json``."""
        return {
            "view": self.view.value,
            "adversary": self.adversary.value,
            "colluders": self.colluders,
            "site": self.site,
            "sees": self.sees,
            "epsilon": self.epsilon,
            "epsilon_rdp": self.epsilon_rdp,
            "epsilon_reference": self.epsilon_reference,
            "delta": self.delta,
            "z_effective": self.z_effective,
            "unit": self.unit,
            "relation": self.relation,
            "assumptions": [assumption.name for assumption in self.assumptions],
            "post_quantum": self.post_quantum,
            "dropouts_tolerated": self.dropouts_tolerated,
            "colluders_tolerated": self.colluders_tolerated,
            "key_mode": self.key_mode,
            "broken": self.broken,
            "simulated": self.simulated,
            "unprotected": list(self.unprotected),
            "non_private": self.non_private,
            "holds_if": self.holds_if,
        }
