"""The words that cryptography, differential privacy and the ledger share.

A scheme states, as a `Guarantee`, what each adversary sees and under which assumptions. The ledger joins
this with the privacy plan into one ε per adversary.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Adversary", "Assumption", "Behaviour", "Guarantee", "UnitOfPrivacy", "View", "Visibility"]


class View(StrEnum):
    """Who is looking. The names are fixed: they appear in files and in audits."""

    NETWORK = "network"
    AGGREGATOR = "aggregator"
    AGGREGATOR_COLLUDERS = "aggregator_colluders"
    CLIENT = "client"
    FINAL_MODEL = "final_model"
    CRYPTO_BROKEN = "crypto_broken"


class Behaviour(StrEnum):
    """Whether the adversary follows the protocol (curious) or not (malicious)."""

    CURIOUS = "curious"
    MALICIOUS = "malicious"


class UnitOfPrivacy(StrEnum):
    """Whose presence is hidden: one patient, or a whole clinic."""

    PATIENT = "patient"
    CLIENT = "client"


class Visibility(StrEnum):
    """What reaches an adversary, beyond what is public on purpose, in rising order."""

    NOTHING = "nothing"
    SUM = "sum"
    EVERY_UPDATE = "every_update"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adversary:
    """One adversary: a view, a behaviour and how many clients collude with it."""

    view: View
    behaviour: Behaviour = Behaviour.CURIOUS
    colluders: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """One thing that must be true for a row of the ledger to hold.

    Attributes:
        name: Short stable name, for example ``x25519``.
        statement: One plain sentence.
        post_quantum: Whether it is believed to hold against a quantum computer.
    """

    name: str
    statement: str
    post_quantum: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What one scheme promises for one round.

    Attributes:
        scheme: Scheme name.
        key_mode: ``"none"``, ``"pairwise"``, ``"shared"`` or ``"sum-key"``.
        cohort_size: n, the invited clients.
        survivors: |U3|, the clients whose inputs are in the sum.
        threshold: t.
        curious_colluders: Most clients that may share what they know with a curious aggregator while it
            still learns no more than the sum; -1 when even alone it sees every update.
        malicious_colluders: The same for a malicious aggregator.
        network_sees: What an eavesdropper on all links sees, without further link encryption.
        client_with_network: What one client sees that also taps the network.
        assumptions: All of them carry every row that is better than ``crypto_broken``.
        advantage_log2: log2 of the summed distinguishing advantages that are added to δ
            (``-inf`` when no cryptography is involved).
        notes: Further sentences for people.
    """

    scheme: str
    key_mode: str
    cohort_size: int
    survivors: int
    threshold: int
    curious_colluders: int
    malicious_colluders: int
    network_sees: Visibility
    client_with_network: Visibility
    assumptions: tuple[Assumption, ...]
    advantage_log2: float
    notes: tuple[str, ...] = ()

    @property
    def post_quantum(self) -> bool:
        """Whether confidentiality is believed to survive a quantum computer."""
        return all(assumption.post_quantum for assumption in self.assumptions)

    def visibility(self, adversary: Adversary) -> Visibility:
        """What this adversary sees in the round."""
        match adversary.view:
            case View.NETWORK:
                return self.network_sees
            case View.CLIENT:
                # The client that opens a sum under a shared key is sent every ciphertext, and holds the key.
                return Visibility.EVERY_UPDATE if self.key_mode == "shared" else Visibility.SUM
            case View.FINAL_MODEL:
                return Visibility.SUM
            case View.CRYPTO_BROKEN:
                return Visibility.EVERY_UPDATE
            case View.AGGREGATOR | View.AGGREGATOR_COLLUDERS:
                curious = adversary.behaviour is Behaviour.CURIOUS
                limit = self.curious_colluders if curious else self.malicious_colluders
                return Visibility.SUM if adversary.colluders <= limit else Visibility.EVERY_UPDATE
