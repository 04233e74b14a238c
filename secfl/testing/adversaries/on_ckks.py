"""Attacks of a malicious client on CKKS in both key modes: copies of ciphertexts, and malformed ones."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from unittest.mock import patch

from secfl.crypto import ckks_sum_key
from secfl.crypto.aggregation import Aborted, Envelope
from secfl.crypto.attachments import Words
from secfl.crypto.ckks import Ckks
from secfl.crypto.ckks_ring import Uniform
from secfl.crypto.ckks_shared_client import SharedKeyClient
from secfl.crypto.ckks_shared_messages import SharedInput
from secfl.crypto.ckks_sum_key import SumKeyRound
from secfl.crypto.hazmat.seal import DEGREE
from secfl.crypto.packing import pack, unpack
from secfl.crypto.wire import FRAME_BYTES, MessageType
from secfl.errors import SecflError
from secfl.randomness import InsecureSeededRng, Rng
from secfl.testing.adversaries.attacks import Attack, Guard, Outcome, learned, refused
from secfl.testing.adversaries.forging import Repair, kind_of, own_up, reseal
from secfl.testing.stage import Cast, Stage, same_sums
from secfl.types import AGGREGATOR, SchemeSpec

__all__ = ["ATTACKS"]

_SHARED = SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),))
_SUM_KEY = SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),))


def _cast(spec: SchemeSpec) -> Cast:
    return Cast.make(Ckks(threads=1), spec, clients=3, threshold=3)


def _play_with_copy(cast: Cast, *, kind: MessageType, body: int) -> Stage:
    """Client 2 sends the ciphertext of client 1 as its own, and the first ``body`` bytes of its statement."""
    stage = Stage(cast, rng=InsecureSeededRng(1))
    stage.start()
    done = False

    def copy(now: Stage) -> bool:
        nonlocal done
        inputs = [one for one in now.in_flight if kind_of(one.payload) is kind]
        if len(inputs) == len(cast.cohort) and not done:
            done = True
            victim, thief = inputs[1], inputs[2]
            tail = SumKeyRound(cast.spec).layout.packed_bytes
            labels = FRAME_BYTES + body
            payload = (
                thief.payload[:FRAME_BYTES]
                + victim.payload[FRAME_BYTES:labels]
                + thief.payload[labels:-tail]
                + victim.payload[-tail:]
            )
            stolen = reseal(cast, Envelope(thief.sender, thief.recipient, payload), Repair.BINDINGS)
            if kind is MessageType.MASKED_INPUT:
                own_up(now.parties[thief.sender], before=thief.payload, after=stolen.payload)
            now.in_flight[now.in_flight.index(thief)] = stolen
        return False

    stage.carry(until=copy)
    assert done
    return stage


def _counted_twice(cast: Cast, stage: Stage) -> Outcome:
    result = stage.result
    if result is not None:
        twice = [cast.cohort[0], cast.cohort[1], cast.cohort[1]]
        assert same_sums(result, cast.expected(twice))
        return learned("a sum in which one client's input counts twice, chosen by who never saw it")
    state = stage.aggregator.state
    reasons = [str(refusal.error) for refusal in stage.refusals]
    return refused(reasons[0] if reasons else state.reason if isinstance(state, Aborted) else state)


def _copy_under_one_time_keys(guard: Guard) -> Outcome:
    """A client sends another's ciphertext beside its own key vector."""
    cast = _cast(_SUM_KEY)

    def one_key(self: SumKeyRound, vectors: Mapping[str, Words], _: Rng) -> tuple[dict[str, Words], bytes]:
        return _protect(self, vectors, InsecureSeededRng(77))

    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:  # the same key in every client
            without.enter_context(patch.object(SumKeyRound, "protect", one_key))
        stage = _play_with_copy(cast, kind=MessageType.MASKED_INPUT, body=0)
    return _counted_twice(cast, stage)


_protect = SumKeyRound.protect


def _copy_under_the_shared_key(guard: Guard) -> Outcome:
    """A client sends another's ciphertext and nonce as its own."""
    cast = _cast(_SHARED)

    def unnamed(self: SharedKeyClient, _: int, nonce: bytes) -> Uniform:
        return Uniform(b"shared", self._round.digest, nonce)

    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            without.enter_context(patch.object(SharedKeyClient, "_uniform", unnamed))
        stage = _play_with_copy(cast, kind=MessageType.CKKS_INPUT, body=SharedInput.SIZE)
    return _counted_twice(cast, stage)


def _residue_above_the_modulus(guard: Guard) -> Outcome:
    """A client's ciphertext holds residues that are not below q."""
    cast = _cast(_SUM_KEY)
    shape = SumKeyRound(cast.spec)
    size = shape.layout.packed_bytes
    stage = Stage(cast, rng=InsecureSeededRng(1))
    stage.start()
    done = False

    def spoil(now: Stage) -> bool:
        nonlocal done
        for place, one in enumerate(now.in_flight):
            if kind_of(one.payload) is MessageType.MASKED_INPUT and not done:
                done = True
                residues = unpack(memoryview(one.payload)[-size:], length=size * 8 // 60, bits=60).copy()
                residues[:] = 2**60 - 1
                payload = one.payload[:-size] + pack(residues, bits=60)
                spoiled = reseal(cast, Envelope(one.sender, one.recipient, payload), Repair.BINDINGS)
                own_up(now.parties[one.sender], before=one.payload, after=spoiled.payload)
                now.in_flight[place] = spoiled
        return False

    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            without.enter_context(patch.object(ckks_sum_key, "check_ciphertext", lambda *_: None))
        try:
            stage.carry(until=spoil)
        except SecflError as error:
            return learned(f"the aggregator fails over what one client sent: {error}")
    assert done
    if stage.refusals:
        return refused(stage.refusals[0].error)
    return learned("the round is lost, and nobody is blamed")


def _another_length(guard: Guard) -> Outcome:
    """A client's ciphertext has one polynomial too many, and its signature covers it."""
    cast = _cast(_SHARED)
    stage = Stage(cast, rng=InsecureSeededRng(1))
    stage.start()
    done = False

    def extend(now: Stage) -> bool:
        nonlocal done
        for place, one in enumerate(now.in_flight):
            if kind_of(one.payload) is MessageType.CKKS_INPUT and not done:
                done = True
                longer = Envelope(one.sender, one.recipient, one.payload + bytes(DEGREE * 60 // 8))
                now.in_flight[place] = reseal(cast, longer, Repair.BINDINGS)
        return False

    from secfl.crypto import ckks_shared_aggregator

    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            for name in ("check_size", "check_ciphertext"):
                without.enter_context(patch.object(ckks_shared_aggregator, name, lambda *_, **__: None))
        stage.carry(until=extend)
    assert done
    first = stage.refusals[0]
    if first.envelope.recipient == AGGREGATOR:
        return refused(first.error)
    return learned(f"the round is lost: the opener refuses what the aggregator took ({first.error})")


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="copy a ciphertext under sum-key",
        line="a replayed or copied input of another client (under sum-key a copy does not decrypt)",
        guard="one-time keys",
        play=_copy_under_one_time_keys,
    ),
    Attack(
        name="copy a ciphertext under the shared key",
        line="a replayed or copied input of another client",
        guard="the public polynomial follows from the sender's name",
        play=_copy_under_the_shared_key,
    ),
    Attack(
        name="send residues that are not below q",
        line="a residue >= q",
        guard="the range check",
        play=_residue_above_the_modulus,
    ),
    Attack(
        name="send a ciphertext of another length",
        line="a ciphertext of other parameters or length",
        guard="every message has one size",
        play=_another_length,
    ),
)
