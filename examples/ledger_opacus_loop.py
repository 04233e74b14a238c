"""Keep a privacy ledger around a hand-written training loop with Opacus at one site.

The site trains with DP-SGD and publishes its model after every epoch. The noise is added where the data are, so
the one who runs the loop sees everything (its row is ``null``); the row ``final_model`` is the promise to everybody
else. Run it: ``python examples/ledger_opacus_loop.py``.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from secfl.crypto.identity import Directory, Identity
from secfl.dp.accounting import Relation
from secfl.guarantees import Guarantee, UnitOfPrivacy, View, Visibility
from secfl.ledger import (
    Family,
    KeyCustody,
    Noise,
    Placement,
    PrivacyLedger,
    RunHeader,
    Sampling,
    verify_file,
)
from secfl.randomness import SystemRng

EPOCHS, BATCH, PATIENTS = 4, 32, 512
NOISE_MULTIPLIER, CLIP, DELTA = 1.1, 1.0, 1e-5


def header(identity: Identity, rate: float) -> RunHeader:
    """One site, no secure aggregation."""
    return RunHeader(
        run_id=SystemRng().bytes(16),
        directory=Directory.enroll([identity]),
        threshold=1,
        scheme="plain",
        key_mode="none",
        custody=KeyCustody.SEPARATE,
        unit=UnitOfPrivacy.PATIENT,
        relation=Relation.ADD_REMOVE,
        delta=DELTA,
        parameters={"clip_norm": CLIP, "sampling_rate": rate},
        public=("the model after every epoch",),
        unprotected=("the training loss that is printed at the site",),
        software="ledger_opacus_loop.py",
    )


def guarantee() -> Guarantee:
    """Without secure aggregation nothing is hidden from whoever runs the loop."""
    return Guarantee(
        scheme="plain",
        key_mode="none",
        cohort_size=1,
        survivors=1,
        threshold=1,
        curious_colluders=-1,
        malicious_colluders=-1,
        network_sees=Visibility.SUM,
        client_with_network=Visibility.SUM,
        assumptions=(),
        advantage_log2=float("-inf"),
    )


def main(folder: Path) -> None:
    """Train, keep the ledger, and compare its figure with Opacus' own."""
    warnings.filterwarnings("ignore", module="opacus|torch")
    inputs = torch.randn(PATIENTS, 10)
    labels = (inputs[:, 0] > 0).long()
    model: nn.Module = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2))
    engine = PrivacyEngine(
        secure_mode=False
    )  # torch's generator makes this noise: an example, not a deployment
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        data_loader=DataLoader(TensorDataset(inputs, labels), batch_size=BATCH),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP,
    )
    rate = 1 / len(loader)
    event = Noise(
        family=Family.GAUSSIAN,
        noise_multiplier=NOISE_MULTIPLIER,
        placement=Placement.CENTRAL,
        sampling=Sampling.POISSON,
        sampling_rate=rate,
        count=len(loader),
    )
    identity = Identity.generate("clinic", SystemRng())
    path = folder / "ledger.jsonl"
    with PrivacyLedger.open(path, header(identity, rate)) as ledger:
        for _ in range(EPOCHS):
            reservation = ledger.reserve(event, guarantee())  # on disk before the data are touched
            for batch, target in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(batch), target).backward()
                optimizer.step()
            ledger.commit(reservation)  # on disk before the model leaves the site
        ledger.close(co_signers=[identity])

    rows = {row.view: row for row in verify_file(path).statements}
    released = rows[View.FINAL_MODEL]
    print(f"epsilon of the released models: {released.epsilon:.3f} (Renyi: {released.epsilon_rdp:.3f})")
    print(f"Opacus' own figure:             {engine.get_epsilon(DELTA):.3f}")
    print(f"whoever runs the loop: epsilon null, because {rows[View.AGGREGATOR].non_private}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
