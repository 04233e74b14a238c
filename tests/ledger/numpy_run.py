"""A small federated run on NumPy with masking, as a process that tests kill at any moment.

Usage: ``python numpy_run.py FOLDER ROUNDS [account]``. It resumes whatever the folder holds; with ``account``, every
reservation is charged to an account in the folder. Each opened sum is
appended to ``opened.log`` (round, attempt), with fsync, right after it was opened: the ground truth of what was
released.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from secfl.crypto.identity import Directory, Identity
from secfl.dp.accounting import Relation
from secfl.guarantees import Assumption, Guarantee, UnitOfPrivacy, Visibility
from secfl.ledger import Account, Budget, Family, KeyCustody, Noise, PrivacyLedger, RunHeader, Sampling
from secfl.randomness import InsecureSeededRng, SystemRng

COHORT = ("a", "b", "c", "d", "e")
LENGTH = 2_000
BUDGET = Budget(epsilon=40.0, delta=1e-5, order=2)  # never spent here
GUARANTEE = Guarantee(
    scheme="masking",
    key_mode="pairwise",
    cohort_size=5,
    survivors=5,
    threshold=4,
    curious_colluders=3,
    malicious_colluders=2,
    network_sees=Visibility.SUM,
    client_with_network=Visibility.SUM,
    assumptions=(Assumption(name="x25519", statement="X25519 is hard to invert.", post_quantum=False),),
    advantage_log2=-100.0,
)
EVENT = Noise(
    family=Family.GAUSSIAN,
    noise_multiplier=1.0,
    shares=5,
    sampling=Sampling.POISSON,
    sampling_rate=0.04,
)


def identities() -> list[Identity]:
    rng = InsecureSeededRng(1)
    return [Identity.generate(name, rng.fork(name)) for name in COHORT]


def header(account: str | None = None) -> RunHeader:
    return RunHeader(
        account=account,
        run_id=bytes(16),
        directory=Directory.enroll(identities()),
        threshold=4,
        scheme="masking",
        key_mode="pairwise",
        custody=KeyCustody.ONE_PROCESS,
        unit=UnitOfPrivacy.PATIENT,
        relation=Relation.ADD_REMOVE,
        delta=1e-5,
    )


def masked_inputs(round_id: int, attempt: int) -> list[np.ndarray]:
    """Integers with masks that cancel; seeded, so that a resend is byte-identical."""
    generator = np.random.default_rng([round_id, attempt])
    values = generator.integers(0, 100, (len(COHORT), LENGTH), dtype=np.uint64)
    masks = generator.integers(0, 2**63, (len(COHORT), LENGTH), dtype=np.uint64)
    return list(values + masks - np.roll(masks, 1, axis=0))


def note(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, text.encode())
    os.fsync(descriptor)
    os.close(descriptor)


def main(folder: Path, rounds: int, account: Account | None = None) -> None:
    identity = None if account is None else account.identity
    with PrivacyLedger.open(folder / "ledger.jsonl", header(identity), account=account) as ledger:
        state = ledger.state
        while len(state.commits) < rounds:
            round_id, attempt = state.latest_attempt
            pending = state.by_attempt.get((round_id, attempt))
            if pending is None or pending.index in state.commits:
                # Settled: the next round. Otherwise the interrupted attempt is resent, byte for byte.
                round_id, attempt = round_id + 1, 0
            reservation = ledger.reserve(EVENT, GUARANTEE, round_id=round_id, attempt=attempt)
            total = np.sum(masked_inputs(round_id, attempt), axis=0)
            ledger.commit(reservation)
            note(folder / "opened.log", f"{round_id} {attempt} {int(total.sum())}\n")
            if round_id % 5 == 4:
                ledger.checkpoint(identities())
            time.sleep(0.002)
        ledger.close(co_signers=identities())


if __name__ == "__main__":
    run_folder, shared = Path(sys.argv[1]), None
    if sys.argv[3:] == ["account"]:
        shared = Account.open(run_folder / "account", budget=BUDGET, rng=SystemRng())
    main(run_folder, int(sys.argv[2]), shared)
