from __future__ import annotations

import importlib.util
import math
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from secfl.crypto.identity import Directory, Identity
from secfl.dp.accounting import Relation
from secfl.dp.plan import PrivacyPlan
from secfl.guarantees import Assumption, Guarantee, UnitOfPrivacy, Visibility
from secfl.ledger import (
    Exposure,
    Family,
    KeyCustody,
    Noise,
    Placement,
    PrivacyLedger,
    RunHeader,
    Sampling,
)
from secfl.randomness import InsecureSeededRng

X25519 = Assumption(name="x25519", statement="X25519 is hard to invert.", post_quantum=False)
MLKEM = Assumption(name="ml-kem-768", statement="ML-KEM-768 hides its keys.", post_quantum=True)
NO_ADVANTAGE = -1000.0  # 2**-1000 changes no figure


@dataclass(frozen=True)
class Workshop:
    """Makes the parts of a ledger: n clients, threshold t, one scheme."""

    cohort: tuple[str, ...] = ("a", "b", "c", "d", "e")
    threshold: int = 4
    scheme: str = "masking"
    key_mode: str = "pairwise"
    seed: int = 1
    assumptions: tuple[Assumption, ...] = (X25519, MLKEM)
    identities: tuple[Identity, ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = InsecureSeededRng(self.seed)
        identities = tuple(Identity.generate(name, rng.fork(name)) for name in self.cohort)
        object.__setattr__(self, "identities", identities)

    def variant(self, **changes: object) -> Workshop:
        return replace(self, **changes)

    @property
    def directory(self) -> Directory:
        return Directory.enroll(self.identities)

    def header(self, **changes: object) -> RunHeader:
        values = {
            "run_id": bytes(range(16)),
            "directory": self.directory,
            "threshold": self.threshold,
            "scheme": self.scheme,
            "key_mode": self.key_mode,
            "custody": KeyCustody.ONE_PROCESS,
            "unit": UnitOfPrivacy.PATIENT,
            "relation": Relation.ADD_REMOVE,
            "delta": 1e-5,
            "digests": {"code": bytes(32), "config": b"\1" * 32},
            "public": ("who took part",),
            "unprotected": ("per-site metrics",),
            "software": "tests",
        }
        return RunHeader(**(values | changes))

    def plan(self, **changes: object) -> PrivacyPlan:
        """Ten releases for patients of which each takes part in 4 %."""
        values = {
            "unit": UnitOfPrivacy.PATIENT,
            "clip_norm": 1.0,
            "grid_norm": 4096,
            "dimension": 1000,
            "noise_multiplier": 1.0,
            "releases": 10,
            "cohort_size": len(self.cohort),
            "threshold": self.threshold,
            "delta": 1e-5,
            "sampling_rate": 0.04,
        }
        return PrivacyPlan(**(values | changes))

    def guarantee(self, **changes: object) -> Guarantee:
        n, t = len(self.cohort), self.threshold
        survivors = changes.get("survivors", n)
        if self.scheme == "plain":
            curious = malicious = -1
        elif self.key_mode == "shared":
            curious, malicious = 0, -1
        else:
            curious = max(-1, min(t - 1, survivors - 2))
            malicious = max(-1, min(2 * t - n - 1, t - 2))
        plain, shared = self.scheme == "plain", self.key_mode == "shared"
        values = {
            "scheme": self.scheme,
            "key_mode": self.key_mode,
            "cohort_size": n,
            "survivors": survivors,
            "threshold": t,
            "curious_colluders": curious,
            "malicious_colluders": malicious,
            "network_sees": Visibility.EVERY_UPDATE if plain else Visibility.SUM,
            "client_with_network": Visibility.EVERY_UPDATE if plain or shared else Visibility.SUM,
            "assumptions": () if plain else self.assumptions,
            "advantage_log2": -math.inf if plain else NO_ADVANTAGE,
        }
        return Guarantee(**(values | changes))

    def noise(self, **changes: object) -> Noise:
        """The running example: q = 0.04, z = 1, continuous Gaussian, 500 steps in one round."""
        values = {
            "family": Family.GAUSSIAN,
            "noise_multiplier": 1.0,
            "shares": len(self.cohort),
            "placement": Placement.DISTRIBUTED,
            "sampling": Sampling.POISSON,
            "sampling_rate": 0.04,
            "count": 500,
        }
        return Noise(**(values | changes))

    def discrete(self, **changes: object) -> Noise:
        return self.noise(
            **(
                {"family": Family.DISCRETE_GAUSSIAN, "sensitivity": 4096.0, "dimension": 1000, "count": 1}
                | changes
            )
        )


def fixed_clock() -> str:
    return "2026-01-02T03:04:05Z"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Tests do not wait for the disk: that a write is followed by an fsync has a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


@pytest.fixture
def make_ledger(tmp_path: Path):
    """Makes ledgers that are released when the test ends, whatever it does with them."""
    opened: list[PrivacyLedger] = []

    def make(workshop: Workshop, header: RunHeader | None = None, name: str = "ledger.jsonl", **kwargs):
        kwargs.setdefault("clock", fixed_clock)
        ledger = PrivacyLedger.create(tmp_path / name, header or workshop.header(), **kwargs)
        opened.append(ledger)
        return ledger

    yield make
    for ledger in opened:
        ledger.release()


@pytest.fixture
def every_entry_type(tmp_path: Path, workshop: Workshop) -> Path:
    """A closed ledger that holds every type of entry and every kind of event."""
    path = tmp_path / "every.jsonl"
    noise = workshop.discrete(count=3, sampler_error=1e-30)
    with PrivacyLedger.create(path, workshop.header(), clock=fixed_clock) as ledger:
        first = ledger.reserve(noise, workshop.guarantee(), digests={"model": b"\2" * 32})
        ledger.commit(first, sum_digest=b"\3" * 32, wrap_probability=2.0**-41, total_variation=1e-25)
        second = ledger.reserve(noise, workshop.guarantee(), unprotected=("a preview",))
        ledger.abort(second, exposure=Exposure.INPUTS_SENT, reason="too few answered")
        ledger.checkpoint(workshop.identities)
    with path.open("ab") as stream:
        stream.write(b'{"body":{"attempt":0,"dig')
    with PrivacyLedger.open(path, clock=fixed_clock) as ledger:
        third = ledger.reserve(noise, workshop.guarantee(), round_id=7)
        ledger.commit(third, survivors=("a", "b", "c", "d"))
        ledger.reserve(noise, workshop.guarantee(), round_id=7, attempt=1)
        ledger.close(co_signers=workshop.identities)
    return path


@pytest.fixture(scope="session")
def stranger():
    """The verifier that was written from docs/ledger.md alone."""
    path = Path(__file__).with_name("stranger.py")
    spec = importlib.util.spec_from_file_location("ledger_stranger", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ledger_stranger"] = module
    spec.loader.exec_module(module)
    return module
