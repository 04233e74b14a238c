"""100,000 entries. Figures are printed (``pytest -s``) and kept in docs/ledger.md; only sizes are asserted."""

from __future__ import annotations

import statistics
import time

import pytest

from secfl.ledger import PrivacyLedger
from secfl.ledger.verify import Depth, verify_file


def write_rounds(path, workshop, rounds) -> list[float]:
    """CPU seconds of each reserve and commit; the wait for the disk is not in them."""
    spent = []
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        noise, guarantee = workshop.noise(count=1), workshop.guarantee()
        for done in range(rounds):
            start = time.process_time()
            ledger.commit(ledger.reserve(noise, guarantee), survivors="abcde" if done % 3 else "abcd")
            spent.append(time.process_time() - start)
            if done % 1000 == 999:
                ledger.checkpoint(workshop.identities)
        ledger.close(co_signers=workshop.identities)
    return spent


def test_the_cost_of_an_entry_does_not_grow_with_the_ledger(tmp_path, workshop, monkeypatch):
    """Counted in hashes, not seconds: appending must not read or hash what is already there."""
    import hashlib

    from secfl.ledger import merkle

    counts = []
    calls = [0]
    real = hashlib.sha256

    def counting(*arguments):
        calls[0] += 1
        return real(*arguments)

    monkeypatch.setattr(merkle.hashlib, "sha256", counting)
    with PrivacyLedger.create(tmp_path / "x.jsonl", workshop.header()) as ledger:
        for _ in range(300):
            calls[0] = 0
            ledger.commit(ledger.reserve(workshop.noise(count=1), workshop.guarantee()))
            counts.append(calls[0])
    assert statistics.mean(counts[200:]) <= statistics.mean(counts[1:101]) + 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_entries(tmp_path, workshop):
    path = tmp_path / "large.jsonl"
    appended = write_rounds(path, workshop, 50_000)
    figures = {"append one entry": statistics.median(appended) / 2}
    for name, depth in (("verify", Depth.FULL), ("show", Depth.QUICK)):
        start = time.process_time()
        verdict = verify_file(path, depth=depth)
        figures[name] = time.process_time() - start
        assert verdict.status == "closed"
        assert verdict.entries > 100_000
        assert verdict.rounds["committed"] == 50_000
    size = path.stat().st_size / 1e6
    print(f"\n{size:.1f} MB, CPU seconds:", figures)  # noqa: T201 - the figures are the point
