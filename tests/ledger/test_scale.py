"""100,000 entries. Figures are printed (``pytest -s``) and kept in docs/ledger.md; only sizes are asserted."""

from __future__ import annotations

import os
import statistics
import time

import pytest

from secfl.ledger import PrivacyLedger
from secfl.ledger.verify import load, verify_file


def write_rounds(path, workshop, rounds, monkeypatch) -> tuple[list[float], list[float]]:
    """Seconds a reserve-and-commit took beyond its fsyncs, and what the fsyncs took."""
    in_fsync = [0.0]
    real = os.fsync

    def timed(descriptor):
        start = time.perf_counter()
        real(descriptor)
        in_fsync[0] += time.perf_counter() - start

    monkeypatch.setattr(os, "fsync", timed)
    beyond, waited = [], []
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        noise, guarantee = workshop.noise(count=1), workshop.guarantee()
        for done in range(rounds):
            in_fsync[0] = 0.0
            start = time.perf_counter()
            ledger.commit(ledger.reserve(noise, guarantee), survivors="abcde" if done % 3 else "abcd")
            total = time.perf_counter() - start
            beyond.append(total - in_fsync[0])
            waited.append(in_fsync[0])
            if done % 1000 == 999:
                ledger.checkpoint(workshop.identities)
        ledger.close(co_signers=workshop.identities)
    return beyond, waited


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
def test_a_hundred_thousand_entries(tmp_path, workshop, monkeypatch):
    path = tmp_path / "large.jsonl"
    beyond, waited = write_rounds(path, workshop, 50_000, monkeypatch)
    entries = 2 * len(beyond)
    start = time.perf_counter()
    state = load(path)
    read = time.perf_counter() - start
    start = time.perf_counter()
    verdict = verify_file(path)
    verified = time.perf_counter() - start
    print(  # noqa: T201 - the figures are the point
        f"\n{state.size} entries, {path.stat().st_size / 1e6:.1f} MB; per entry beyond fsync: "
        f"median {statistics.median(beyond) / 2 * 1e3:.3f} ms, mean {sum(beyond) / entries * 1e3:.3f} ms; "
        f"fsync {sum(waited) / entries * 1e3:.3f} ms; read and check {read:.1f} s; verify {verified:.1f} s"
    )
    assert state.size > 100_000
    assert verdict.status == "closed"
    assert verdict.rounds["committed"] == 50_000
