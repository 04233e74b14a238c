"""A ledger of a made-up run, to time its verification."""

from __future__ import annotations

from pathlib import Path

from secfl.crypto.identity import Directory, Identity
from secfl.dp.accounting import Relation
from secfl.guarantees import Assumption, Guarantee, UnitOfPrivacy, Visibility
from secfl.ledger import Family, KeyCustody, Noise, PrivacyLedger, RunHeader
from secfl.randomness import SystemRng

__all__ = ["write_ledger"]

_CLINICS = ("a", "b", "c", "d", "e")


def write_ledger(path: Path, *, rounds: int) -> None:
    """Write a closed ledger of so many committed rounds of five clinics.

    Args:
        path: A new file.
        rounds: Each is a reservation and a commit.
    """
    rng = SystemRng()
    identities = [Identity.generate(name, rng) for name in _CLINICS]
    header = RunHeader(
        run_id=rng.bytes(16),
        directory=Directory.enroll(identities),
        threshold=4,
        scheme="benchmark",
        key_mode="pairwise",
        custody=KeyCustody.ONE_PROCESS,
        unit=UnitOfPrivacy.PATIENT,
        relation=Relation.ADD_REMOVE,
        delta=1e-5,
        public=(),
        software="secfl bench",
    )
    guarantee = Guarantee(
        scheme="benchmark",
        key_mode="pairwise",
        cohort_size=len(_CLINICS),
        survivors=len(_CLINICS),
        threshold=4,
        curious_colluders=3,
        malicious_colluders=-1,
        network_sees=Visibility.SUM,
        client_with_network=Visibility.SUM,
        assumptions=(Assumption(name="none", statement="A benchmark.", post_quantum=True),),
        advantage_log2=-100.0,
    )
    event = Noise(
        family=Family.DISCRETE_GAUSSIAN,
        noise_multiplier=8.0,
        shares=len(_CLINICS),
        sensitivity=4096.0,
        dimension=20,
        sampler_error=1e-30,
    )
    with PrivacyLedger.open(path, header) as ledger:
        for _ in range(rounds):
            ledger.commit(ledger.reserve(event, guarantee))
        ledger.close(co_signers=identities)
