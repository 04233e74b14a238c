"""A verifier that shares no code with secfl agrees with it, on good files and on bad ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secfl.errors import LedgerCorrupted
from secfl.guarantees import Visibility
from secfl.ledger import (
    Composed,
    Exposure,
    Family,
    Noise,
    NonPrivate,
    Placement,
    PrivacyLedger,
    Sampling,
    SiteNoise,
)
from secfl.ledger.schema import load_schema
from secfl.ledger.verify import load, verify_file


def test_it_is_a_stranger():
    tree = ast.parse(Path(__file__).with_name("stranger.py").read_text())
    names = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert not any(name.startswith("secfl") for name in names)


def agree(stranger, path: Path) -> None:
    verdict = verify_file(path)
    state = stranger.verify(path.read_bytes(), load_schema())
    assert state["closed"] == (verdict.status == "closed")
    for row in verdict.statements:
        theirs = stranger.epsilon(
            state, (row.view.value, row.adversary.value, row.colluders), row.delta, row.site
        )
        if row.epsilon is None:
            assert theirs is None, row
        else:
            assert theirs == pytest.approx(row.epsilon, rel=2e-3, abs=2e-3), row


def test_on_the_example_with_every_entry_type(stranger, every_entry_type):
    agree(stranger, every_entry_type)


WEIGHTS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 1.5, "e": 3.0}
RATES = {"a": 0.02, "b": 0.04, "c": 0.08, "d": 0.04, "e": 0.08}


@pytest.mark.parametrize("kind", ["weights", "rates"])
def test_where_sites_differ(stranger, tmp_path, workshop, kind):
    """Each site's patients have rows of their own."""
    if kind == "weights":
        noise = SiteNoise(
            family=Family.DISCRETE_GAUSSIAN,
            noise_multiplier=1.5,
            shares=5,
            sensitivity=4096.0,
            dimension=1000,
            sampling=Sampling.POISSON,
            sampling_rate=0.1,
            sampler_error=1e-25,
            weights=WEIGHTS,
        )
    else:
        noise = workshop.noise(sampling_rate=0.08, site_rates=RATES, count=20)
    path = tmp_path / "sites.jsonl"
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        for survivors in ("abcde", "abce"):
            ledger.commit(ledger.reserve(noise, workshop.guarantee()), survivors=survivors)
        ledger.close(co_signers=workshop.identities)
    verdict = verify_file(path)
    assert {row.site for row in verdict.statements} == set("abcde")
    assert len({row.epsilon for row in verdict.statements if row.view == "aggregator"}) > 2
    agree(stranger, path)


NOISES = st.one_of(
    st.builds(
        Noise,
        family=st.just(Family.GAUSSIAN),
        noise_multiplier=st.sampled_from([0.7, 1.0, 3.0]),
        shares=st.sampled_from([4, 5]),
        sampling=st.just(Sampling.POISSON),
        sampling_rate=st.sampled_from([0.04, 0.3]),
        count=st.sampled_from([1, 20]),
    ),
    st.builds(
        Noise,
        family=st.just(Family.DISCRETE_GAUSSIAN),
        noise_multiplier=st.sampled_from([1.0, 4.0]),
        shares=st.just(5),
        sensitivity=st.sampled_from([20.0, 4096.0]),
        dimension=st.sampled_from([1, 10_000]),
        count=st.sampled_from([1, 3]),
        sampler_error=st.sampled_from([0.0, 1e-22]),
    ),
    st.builds(
        Noise,
        family=st.just(Family.GAUSSIAN),
        noise_multiplier=st.sampled_from([1.0, 2.0]),
        placement=st.sampled_from([Placement.LOCAL, Placement.CENTRAL]),
    ),
)
EVENTS = st.one_of(
    NOISES,
    st.builds(Composed, events=st.lists(NOISES, min_size=1, max_size=2).map(tuple)),
    st.just(NonPrivate(reason="a seed made the noise")),
)
SCHEMES = st.sampled_from(
    [("masking", "pairwise"), ("ckks", "sum-key"), ("ckks", "shared"), ("plain", "none"), ("other", "x")]
)


def any_run(workshop, path, data) -> None:
    """Writes a run of some kind to ``path``."""
    scheme, key_mode = data.draw(SCHEMES)
    workshop = workshop.variant(
        scheme=scheme, key_mode=key_mode, threshold=data.draw(st.sampled_from([4, 5]))
    )
    path.unlink(missing_ok=True)
    guarantee = workshop.guarantee(
        survivors=data.draw(st.sampled_from([workshop.threshold, 5])),
        advantage_log2=data.draw(st.sampled_from([-100.0, -60.0])),
        network_sees=data.draw(st.sampled_from(Visibility)),
    )
    events = data.draw(st.lists(EVENTS, min_size=1, max_size=2))
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        for _ in range(data.draw(st.integers(0, 4))):
            reservation = ledger.reserve(data.draw(st.sampled_from(events)), guarantee)
            match data.draw(st.sampled_from(["commit", "abort", "leave"])):
                case "commit":
                    present = data.draw(st.integers(workshop.threshold, 5))
                    variation = data.draw(st.sampled_from([0.0, 1e-20]))
                    ledger.commit(reservation, survivors="abcde"[:present], total_variation=variation)
                case "abort":
                    ledger.abort(reservation, exposure=data.draw(st.sampled_from(Exposure)), reason="x")
                case "leave":
                    pass
        if data.draw(st.booleans()):
            ledger.checkpoint(workshop.identities[:3])
        if data.draw(st.booleans()):
            ledger.close(co_signers=workshop.identities)


SHARED_FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=6, suppress_health_check=SHARED_FIXTURES)
@given(st.data())
def test_on_runs_of_every_kind(stranger, workshop, tmp_path, data):
    any_run(workshop, tmp_path / "run.jsonl", data)
    agree(stranger, tmp_path / "run.jsonl")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=150, suppress_health_check=SHARED_FIXTURES)
@given(st.data())
def test_on_many_runs_of_every_kind(stranger, workshop, tmp_path, data):
    any_run(workshop, tmp_path / "run.jsonl", data)
    agree(stranger, tmp_path / "run.jsonl")


@settings(max_examples=200, suppress_health_check=SHARED_FIXTURES)
@given(st.data())
def test_on_damaged_files(stranger, every_entry_type, tmp_path, data):
    content = every_entry_type.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                content[:place]
                + bytes([content[place] ^ (1 << data.draw(st.integers(0, 7)))])
                + content[place + 1 :],
                content[:place] + content[place + 1 :],
                content[:place],
            ]
        )
    )
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(damaged)
    try:
        stranger.verify(damaged, load_schema())
        theirs = None
    except stranger.Wrong as error:
        theirs = error.entry
    try:
        load(path)
        ours = None
    except LedgerCorrupted as error:
        ours = error.entry
    if damaged:
        assert ours == theirs
    else:
        assert ours is None  # an empty file is refused as a whole
