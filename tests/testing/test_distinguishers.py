"""Distinguishers: they find what they say, and cry wolf as rarely as they say."""

import hashlib

import numpy as np
import pytest

from secfl.crypto.aggregation import Envelope
from secfl.testing.conformance_distinguishers import (
    FALSE_ALARM,
    _fisher_table,
    compare_bits,
    compare_features,
    find_repeats,
    slots_of,
)
from secfl.types import AGGREGATOR, ClientId

SLOT = ("a", "aggregator", 0)


def runs(count, size, *, seed, change=lambda payload, run: payload):
    source = np.random.Generator(np.random.Philox(seed))
    return [{SLOT: bytes(change(bytearray(source.bytes(size)), run))} for run in range(count)]


def test_messages_are_numbered_by_place():
    a, b = ClientId("a"), ClientId("b")
    sent = [Envelope(a, AGGREGATOR, b"1"), Envelope(b, AGGREGATOR, b"2"), Envelope(a, AGGREGATOR, b"3")]
    assert slots_of(sent) == {
        ("a", AGGREGATOR, 0): b"1",
        ("b", AGGREGATOR, 0): b"2",
        ("a", AGGREGATOR, 1): b"3",
    }


class TestBits:
    def test_random_worlds_look_alike(self):
        """20 comparisons of a million bits: a false alarm has probability 2e-5."""
        for seed in range(20):
            assert compare_bits(runs(24, 6000, seed=seed), runs(24, 6000, seed=1000 + seed)) is None

    @pytest.mark.parametrize("size", [1000, 30_000])
    def test_one_leaking_bit_is_found(self, size):
        def leak(payload, run):
            payload[size // 2] |= 16
            return payload

        def other(payload, run):
            payload[size // 2] &= ~16
            return payload

        alarm = compare_bits(runs(24, size, seed=1, change=leak), runs(24, size, seed=2, change=other))
        assert alarm is not None
        assert f"bit 4 of byte {size // 2}" in alarm.where
        assert alarm.p_value < FALSE_ALARM

    def test_public_constants_are_no_alarm(self):
        def constant(payload, run):
            payload[:50] = bytes(50)
            return payload

        assert (
            compare_bits(runs(24, 200, seed=1, change=constant), runs(24, 200, seed=2, change=constant))
            is None
        )

    def test_a_size_that_depends_on_the_input_is_found(self):
        alarm = compare_bits(runs(24, 100, seed=1), runs(24, 101, seed=2))
        assert alarm is not None
        assert "sizes" in alarm.where

    def test_p_values_are_exact(self):
        """Under exchangeable labels a p-value is at most u with probability at most u, for every total."""
        table = _fisher_table(6, 5)
        from math import comb

        for ones in range(12):
            weights = {
                a: comb(6, a) * comb(5, ones - a) / comb(11, ones) for a in range(7) if 0 <= ones - a <= 5
            }
            assert abs(sum(weights.values()) - 1) < 1e-12
            for level in (0.01, 0.1, 0.5):
                mass = sum(weight for a, weight in weights.items() if table[a, ones - a] <= level)
                assert mass <= level + 1e-12
        assert table[6, 0] == pytest.approx(2 / comb(11, 6))


class TestFeatures:
    def test_random_worlds_look_alike(self):
        for seed in range(8):
            assert compare_features(runs(24, 2000, seed=seed), runs(24, 2000, seed=1000 + seed)) is None

    def test_one_stream_over_two_equal_vectors_is_found(self):
        def reuse(payload, run):
            payload[500:600] = payload[100:200]
            return payload

        alarm = compare_features(runs(24, 1000, seed=1, change=reuse), runs(24, 1000, seed=2))
        assert alarm is not None
        assert alarm.where in {"windows that occur twice", "its compressibility"}

    def test_structure_that_moves_is_found(self):
        def moving(payload, run):
            payload[run * 7 : run * 7 + 60] = bytes(60)
            return payload

        assert compare_features(runs(24, 1000, seed=1, change=moving), runs(24, 1000, seed=2)) is not None


class TestRepeats:
    def test_fresh_randomness_does_not_repeat(self):
        """64 runs of 8,000 bytes: a false alarm has probability 1e-13."""
        assert find_repeats(runs(64, 8000, seed=3)) is None

    def test_constants_and_short_fields_are_no_repeats(self):
        def framed(payload, run):
            payload[:39] = bytes(39)
            return payload

        assert find_repeats(runs(64, 100, seed=3, change=framed)) is None

    def test_short_seeds_repeat(self):
        """64 runs with seeds of 8 bits: all distinct with probability 2e-4; the seeds here are fixed."""

        def short(payload, run):
            seed = hashlib.sha256(bytes(payload[:4])).digest()[:1]
            payload[40:] = hashlib.shake_256(seed).digest(60)
            return payload

        alarm = find_repeats(runs(64, 100, seed=3, change=short))
        assert alarm is not None
        assert "byte 40 of message 0 from a to aggregator" in alarm.where
