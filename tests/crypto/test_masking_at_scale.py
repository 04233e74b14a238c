"""The largest cohort: 64 clients, a million parameters, a tenth of the rest lost in every phase."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from secfl.crypto.aggregation import Finished
from secfl.crypto.masking import Masking
from secfl.types import AGGREGATOR, VectorSpec

pytestmark = pytest.mark.slow
LENGTH = 1_000_000


@pytest.fixture(scope="module")
def played(rounds):
    """A finished round, and what happened to its aggregator: (phase, envelope)."""
    vectors = (VectorSpec(name="update", length=LENGTH, modulus_bits=22),)
    case = rounds.Round(64, 33, vectors=vectors, scheme=Masking())
    order = list(np.random.default_rng(1).permutation(case.names))
    dropped = {}
    for phase in rounds.PHASES:
        count = round(len(order) / 10)
        dropped[phase], order = set(order[:count]), order[count:]
    events, deliver = [], case.deliver

    def record(envelope):
        if envelope.recipient == AGGREGATOR:
            events.append((case.phase, envelope))
        return deliver(envelope)

    case.deliver = record
    case.finish(dropped=dropped)
    case.counted = set(case.names).difference(*(dropped[phase] for phase in rounds.PHASES[:3]))
    return case, events


def test_the_sum_is_exact(played):
    case, _ = played
    state = case.aggregator.state
    assert isinstance(state, Finished)
    assert set(state.result.survivors) == case.counted
    want = sum(case.inputs[name]["update"].astype(np.uint64) for name in case.counted) % 2**22
    assert np.array_equal(state.result.sums["update"], want)


def test_the_aggregator_needs_less_than_eight_vectors(played):
    """Everything it allocates: sums, shares, keys, and the messages that it sends."""
    case, events = played
    aggregator = case.scheme.aggregator(case.spec, directory=case.directory)
    tracemalloc.start()
    try:
        for phase, envelope in events:
            if phase != aggregator.state.phase:
                aggregator.phase_over()
            aggregator.receive(envelope)
        aggregator.phase_over()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(aggregator.state, Finished)
    assert peak < 8 * 4 * LENGTH


def test_an_upload_takes_the_packed_bits_and_little_more(played):
    _, events = played
    largest = max(len(envelope.payload) for phase, envelope in events if phase == "masked-input")
    assert largest / LENGTH < 22 / 8 + 0.001
