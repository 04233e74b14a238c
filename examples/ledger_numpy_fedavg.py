"""Keep a privacy ledger for a federated average written in NumPy, without any of secfl's training.

Five clinics fit a linear model together. Each clips every patient's gradient, puts it on a grid, sums, adds its share
of discrete Gaussian noise and a mask; the masks cancel in the sum. Run it: ``python examples/ledger_numpy_fedavg.py``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from secfl.crypto.identity import Directory, Identity
from secfl.dp.accounting import Relation
from secfl.dp.noise import NoiseFamily, NoiseShare
from secfl.guarantees import Assumption, Guarantee, UnitOfPrivacy, Visibility
from secfl.ledger import Family, KeyCustody, Noise, PrivacyLedger, RunHeader, verify_file
from secfl.ledger.explain import explain
from secfl.randomness import SystemRng

CLINICS = ("amber", "birch", "cedar", "dune", "elm")
THRESHOLD, ROUNDS, DIMENSION = 4, 30, 20
CLIP, GRID, NOISE_MULTIPLIER = 1.0, 2**12, 8.0
PUBLIC_DIVISOR = 1000  # a constant, never the number of patients


def header(identities: list[Identity]) -> RunHeader:
    """What holds for the whole run."""
    return RunHeader(
        run_id=SystemRng().bytes(16),
        directory=Directory.enroll(identities),
        threshold=THRESHOLD,
        scheme="example-masks",
        key_mode="pairwise",
        custody=KeyCustody.ONE_PROCESS,
        unit=UnitOfPrivacy.PATIENT,
        relation=Relation.ADD_REMOVE,
        delta=1e-5,
        public=("who took part", "the model after every round"),
        software="ledger_numpy_fedavg.py",
    )


def guarantee() -> Guarantee:
    """What this scheme promises. For its own schemes secfl works it out; another project says it here."""
    return Guarantee(
        scheme="example-masks",
        key_mode="pairwise",
        cohort_size=len(CLINICS),
        survivors=len(CLINICS),
        threshold=THRESHOLD,
        curious_colluders=len(CLINICS) - 2,
        malicious_colluders=-1,  # these masks have no consistency check
        network_sees=Visibility.SUM,
        client_with_network=Visibility.SUM,
        assumptions=(
            Assumption(
                name="mask-seeds", statement="Pairs of clinics share secret seeds.", post_quantum=True
            ),
        ),
        advantage_log2=-100.0,
    )


def on_grid(gradients: np.ndarray) -> np.ndarray:
    """Clip each patient's gradient (a row) to CLIP, round it so that its integer norm stays within GRID, and sum."""
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    clipped = gradients * np.minimum(1.0, CLIP / np.maximum(norms, 1e-12))
    shrunk = clipped * (GRID - np.sqrt(DIMENSION) / 2) / CLIP
    return np.rint(shrunk).astype(np.int64).sum(axis=0)


def masks(rng: SystemRng) -> list[np.ndarray]:
    """One mask a clinic; together they cancel. A real protocol derives them between pairs of clinics."""
    drawn = [np.frombuffer(rng.bytes(8 * DIMENSION), dtype=np.uint64) for _ in CLINICS[1:]]
    last = -np.sum(drawn, axis=0, dtype=np.uint64)
    return [*drawn, last]


def main(folder: Path) -> None:
    """Train, keep the ledger, verify it, and explain it."""
    rng = SystemRng()
    public = np.random.default_rng(0)  # for the toy data only
    truth = public.normal(size=DIMENSION) / 5
    data = []
    for _ in CLINICS:
        inputs = public.normal(size=(200, DIMENSION))
        data.append((inputs, inputs @ truth))

    share = NoiseShare(
        family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=NOISE_MULTIPLIER * GRID / np.sqrt(len(CLINICS))
    )
    sampler = share.sampler()
    event = Noise(
        family=Family.DISCRETE_GAUSSIAN,
        noise_multiplier=NOISE_MULTIPLIER,
        shares=len(CLINICS),
        sensitivity=float(GRID),
        dimension=DIMENSION,
        sampler_error=sampler.total_variation,
    )
    identities = [Identity.generate(name, rng) for name in CLINICS]
    path = folder / "ledger.jsonl"
    model = np.zeros(DIMENSION)
    with PrivacyLedger.open(path, header(identities)) as ledger:
        for _ in range(ROUNDS):
            reservation = ledger.reserve(event, guarantee())  # on disk before anything is sent
            uploads = []
            for (inputs, targets), mask in zip(data, masks(rng), strict=True):
                gradients = inputs * (targets - inputs @ model)[:, None]
                noisy = on_grid(gradients) + sampler.draw(DIMENSION, rng)
                uploads.append(noisy.astype(np.uint64) + mask)
            ledger.commit(reservation)  # on disk before the sum is opened
            total = np.sum(uploads, axis=0, dtype=np.uint64).astype(np.int64)
            model += total * CLIP / GRID / PUBLIC_DIVISOR
        ledger.close(co_signers=identities)

    verdict = verify_file(path)
    print(
        f"distance to the truth: {np.linalg.norm(model - truth):.3f} (started at {np.linalg.norm(truth):.3f})"
    )
    print(f"the ledger is {verdict.status}, {verdict.rounds['committed']} rounds")
    for row in verdict.statements:
        print(f"- {explain(row)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
