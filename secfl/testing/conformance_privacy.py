"""Checks of the conformance suite: what transcripts and printed objects give away."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType

import numpy as np

from secfl.crypto.aggregation import Envelope
from secfl.crypto.attachments import Words
from secfl.randomness import InsecureSeededRng
from secfl.testing.conformance_base import Inputs, SuiteBase
from secfl.testing.conformance_distinguishers import (
    Alarm,
    compare_bits,
    compare_features,
    find_repeats,
    slots_of,
)
from secfl.testing.stage import Cast, Stage
from secfl.types import AGGREGATOR, ClientId, VectorSpec

__all__ = ["PrivacyChecks", "RecordingRng"]

_LENGTH = 32


class RecordingRng:
    """A seeded source that remembers what it gave out, so that a check can look for it."""

    def __init__(self, seed: int) -> None:
        self._inner = InsecureSeededRng(seed)
        self.drawn: list[bytes] = []

    @property
    def is_secret(self) -> bool:
        """False."""
        return False

    def bytes(self, count: int) -> bytes:
        """The next bytes, remembered."""
        value = self._inner.bytes(count)
        self.drawn.append(value)
        return value

    def fork(self, label: str) -> RecordingRng:
        """A fork that remembers in the same place."""
        other = RecordingRng(0)
        other._inner = self._inner.fork(label)
        other.drawn = self.drawn
        return other


class PrivacyChecks(SuiteBase):
    """Distinguishers over transcripts, and a look at every printed form."""

    def test_equal_sums_look_alike(self) -> None:
        """The aggregator's view of two cohorts with equal sums: no bit and no feature tells them apart.

        False alarms: at most 2e-6, exact (see `compare_bits` and `compare_features`).
        """
        if self.capabilities.inputs is Inputs.VISIBLE:
            self.not_applicable("the scheme does not hide inputs")
        cast = self.cast(vectors=self._two_vectors())
        worlds = [
            [
                slots_of(_transcript(cast.with_inputs(inputs), seed=2 * run + number))
                for run in range(self.repetitions)
            ]
            for number, inputs in enumerate(_two_worlds(cast))
        ]
        for compare in (compare_bits, compare_features):
            alarm: Alarm | None = compare(*worlds)
            assert alarm is None, (
                f"{alarm.where} tells two cohorts with equal sums apart, p = {alarm.p_value:.1e}"
            )

    def test_key_material_never_repeats(self) -> None:
        """No message holds, in two rounds with one input, the same 8 bytes where bytes vary.

        Finds masks from seeds that are too short. False alarms: below 1e-11 (see `find_repeats`).
        """
        if self.capabilities.inputs is Inputs.VISIBLE:
            self.not_applicable("the scheme does not hide inputs")
        cast = self.cast(vectors=self._two_vectors()[:1])
        runs = [slots_of(_transcript(cast, seed=seed)) for seed in range(self.collision_rounds)]
        alarm = find_repeats(runs)
        assert alarm is None, f"{alarm.where} repeats from round to round: its randomness is too short"

    def test_secrets_do_not_print(self) -> None:
        """No party, and nothing that it holds, shows a secret in its ``repr``; neither does any refusal."""
        cast = self.cast(vectors=self._two_vectors())
        rng = RecordingRng(3)
        stage = Stage(cast, rng=rng)
        stage.start()
        secrets = [identity.seed for identity in cast.identities.values()] + rng.drawn
        numbers = {
            str(int(value))
            for vectors in cast.inputs.values()
            for words in vectors.values()
            for value in words
            if value > 10**7
        }
        seen = 0

        def look(now: Stage) -> bool:
            nonlocal seen
            for party in now.parties.values():
                for thing in _held_by(party):
                    _check_text(f"{thing!r} {thing!s}", type(thing).__name__, secrets, numbers)
                    seen += 1
            for envelope in now.in_flight[:1]:
                for payload in (envelope.payload[:-1], envelope.payload[:-1] + b"?"):
                    refusal = now.hand_over(Envelope(envelope.sender, envelope.recipient, payload))
                    _check_text(str(refusal), "a refusal", secrets, numbers)
            return False

        stage.carry(until=look)
        look(stage)
        assert seen >= len(stage.parties), "nothing was looked at"
        for name, party in stage.parties.items():
            assert len(repr(party)) < 500, f"the repr of {name} has {len(repr(party))} characters"

    def _two_vectors(self) -> tuple[VectorSpec, ...]:
        low, high = self.capabilities.modulus_bits
        bits = min(high, max(low, 32))
        return tuple(VectorSpec(name=name, length=_LENGTH, modulus_bits=bits) for name in ("update", "other"))


def _two_worlds(cast: Cast) -> tuple[Mapping[ClientId, Mapping[str, Words]], ...]:
    """Inputs with equal sums: structured and the same in both vectors, or scattered over two clients."""
    rng = InsecureSeededRng(11)
    structured: dict[ClientId, dict[str, Words]] = {}
    scattered: dict[ClientId, dict[str, Words]] = {}
    first, second, *rest = cast.cohort
    for vector in cast.spec.vectors:
        mask = (1 << vector.modulus_bits) - 1
        total = np.full(vector.length, 0x5A5A5A5A & mask, vector.dtype)
        drawn = np.frombuffer(rng.bytes(8 * vector.length), np.uint64).astype(vector.dtype)
        part = drawn & vector.dtype.type(mask)
        other = (total - part) & vector.dtype.type(mask)
        zeros = np.zeros(vector.length, vector.dtype)
        for world, one, two in ((structured, zeros, total), (scattered, part, other)):
            world.setdefault(first, {})[vector.name] = one
            world.setdefault(second, {})[vector.name] = two
            for name in rest:
                world.setdefault(name, {})[vector.name] = zeros
    return structured, scattered


def _transcript(cast: Cast, *, seed: int) -> list[Envelope]:
    """What reaches the aggregator; all that it sends follows from that."""
    stage = Stage(cast, rng=InsecureSeededRng(seed))
    assert stage.play() is not None, "the round had no result"
    return [envelope for envelope in stage.sent if envelope.recipient == AGGREGATOR]


def _held_by(party: object) -> Iterator[object]:
    """A party and every object of a class of one's own that it holds, directly or through others."""
    seen: set[int] = set()
    waiting = [party]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType | FunctionType | MethodType):
            continue
        seen.add(id(thing))
        if isinstance(thing, Mapping):
            waiting.extend(itertools.chain(thing.keys(), thing.values()))
        elif isinstance(thing, list | tuple | set | frozenset):
            waiting.extend(thing)
        elif type(thing).__module__.partition(".")[0] not in {
            "builtins",
            "numpy",
            "cryptography",
            "tenseal",
            "_cffi_backend",
        }:
            yield thing
            waiting.extend(_fields(thing))


def _fields(thing: object) -> Iterator[object]:
    yield from getattr(thing, "__dict__", {}).values()
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") else name
            value = getattr(thing, private, None)
            if value is not None:
                yield value


def _check_text(text: str, kind: str, secrets: list[bytes], numbers: set[str]) -> None:
    for secret in secrets:
        for start in range(0, max(1, len(secret) - 7), 8):
            piece = secret[start : start + 8]
            assert piece.hex() not in text, f"{kind} prints a secret in hexadecimal"
            assert repr(piece)[2:-1] not in text, f"{kind} prints a secret"
    for word in text.replace("(", " ").replace("[", " ").replace(",", " ").replace("]", " ").split():
        assert word not in numbers, f"{kind} prints a value of an input"
