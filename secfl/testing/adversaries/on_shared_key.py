"""What a key in every client allows: chosen ciphertexts, key recovery, collusion, differences of sums.

In other frameworks every client holds the decryption key and decrypts what the server calls the sum; `_NaiveClient`
does the same. Where the shared mode has no guard, the attack is played against one-time keys instead, and the
outcome says what the guarantee of each says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from secfl.crypto import ckks, ckks_sum_key
from secfl.crypto.aggregation import Envelope
from secfl.crypto.attachments import Words
from secfl.crypto.ckks import Ckks
from secfl.crypto.ckks_ring import CiphertextSum, Uniform, open_sum, small_polynomial
from secfl.crypto.ckks_shared_client import SharedKeyClient
from secfl.crypto.ckks_shared_messages import SharedInput, SharedRound, SharedSums
from secfl.crypto.ckks_sum_key import SumKeyRound
from secfl.crypto.hazmat.ring_noise import REACH
from secfl.crypto.hazmat.seal import DEGREE, MODULUS
from secfl.crypto.identity import SIGNATURE_BYTES
from secfl.crypto.wire import AGGREGATOR_INDEX, FRAME_BYTES, MessageType, Roster, Signed, frame
from secfl.errors import RemoteProtocolError, RoundAborted
from secfl.guarantees import Adversary, Behaviour, View, Visibility
from secfl.randomness import InsecureSeededRng
from secfl.testing.adversaries.attacks import Attack, Guard, Outcome, learned, refused
from secfl.testing.adversaries.forging import kind_of
from secfl.testing.adversaries.masking_view import MaliciousAggregator
from secfl.testing.adversaries.on_masking import ask_for_both_secrets
from secfl.testing.stage import DEFAULT_VECTORS, Cast, Stage
from secfl.types import AGGREGATOR, ClientId, SchemeSpec, VectorSpec

__all__ = ["ATTACKS"]

_SHARED = SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),))
_SUM_KEY = SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),))
_WIDE = (VectorSpec(name="update", length=DEGREE, modulus_bits=40),)
"""One value in every coefficient of one polynomial, so that a decryption shows all of the key."""


def _cast(spec: SchemeSpec, *, vectors: tuple[VectorSpec, ...] = DEFAULT_VECTORS) -> Cast:
    return Cast.make(Ckks(threads=1), spec, clients=3, threshold=3, vectors=vectors)


def _ciphertexts(cast: Cast, stage: Stage) -> dict[int, tuple[Signed, bytes]]:
    """What the network saw of the inputs in shared mode: header and ciphertext, by position."""
    found = {}
    for envelope in stage.sent:
        if kind_of(envelope.payload) is MessageType.CKKS_INPUT:
            end = FRAME_BYTES + SharedInput.SIZE + SIGNATURE_BYTES
            header = Signed.decode(envelope.payload[FRAME_BYTES:end])
            found[cast.spec.index(envelope.sender)] = header, envelope.payload[end:]
    return found


def _decrypt(
    cast: Cast, index: int, header: Signed, ciphertext: bytes, key: NDArray[np.int64]
) -> Mapping[str, Words]:
    """One client's input in shared mode, with the key."""
    layout = SharedRound(cast.spec).layout
    total = CiphertextSum(layout)
    total.add(cast.cohort[index], ciphertext)
    nonce = SharedInput.decode(header.body, peer=AGGREGATOR).nonce
    label = cast.cohort[index].encode()
    uniform = Uniform(b"shared", cast.spec.digest(), label, nonce)
    return open_sum(total, layout, uniforms=(uniform,), key=key)


def _is_input(cast: Cast, index: int, found: Mapping[str, Words]) -> bool:
    truth = cast.inputs[cast.cohort[index]]
    return all((found[name] == words).all() for name, words in truth.items())


# One client that works with the aggregator


def _one_client_with_the_key(guard: Guard) -> Outcome:
    """The aggregator and client 0 try to read client 2. In shared mode they can, and the guarantee says so."""
    shared = guard is Guard.REMOVED
    cast = _cast(_SHARED if shared else _SUM_KEY)
    adversary = Adversary(view=View.AGGREGATOR_COLLUDERS, colluders=1)
    said = cast.scheme.guarantee(cast.spec, survivors=3).visibility(adversary)
    stage = Stage(cast, rng=InsecureSeededRng(1))
    stage.start()
    if shared:
        stage.carry(until=lambda now: len(_ciphertexts(cast, now)) == len(cast.cohort))
        colluder = stage.parties[cast.cohort[0]]
        assert isinstance(colluder, SharedKeyClient)
        noise = colluder._key_noise(colluder._memory.key_seed)  # noqa: SLF001 - the colluder's own memory
        header, ciphertext = _ciphertexts(cast, stage)[2]
        assert _is_input(cast, 2, _decrypt(cast, 2, header, ciphertext, small_polynomial(noise)))
        assert said is Visibility.EVERY_UPDATE
        return learned(f"the whole input of a third client; the guarantee says: {said}")
    stage.carry()
    # A colluder knows its own one-time key and nothing about another's; after the round, also their sum.
    shape = SumKeyRound(cast.spec)
    own, _ = shape.protect(cast.inputs[cast.cohort[0]], InsecureSeededRng(1).fork(cast.cohort[0]))
    words = own[ckks_sum_key.KEY_VECTOR].astype(np.int64)
    half = 1 << (shape.key_bits - 1)
    key = (words + half) % (2 * half) - half
    victim = next(
        one.payload
        for one in stage.sent
        if one.sender == cast.cohort[2] and kind_of(one.payload) is MessageType.MASKED_INPUT
    )
    total = CiphertextSum(shape.layout)
    total.add(cast.cohort[2], victim[-shape.layout.packed_bytes :])
    try:
        open_sum(total, shape.layout, uniforms=(shape.uniform,), key=key)
    except RoundAborted as error:
        assert said is Visibility.SUM
        return refused(f"{error}; the guarantee says: {said}")
    return learned("a one-time key opened another client's ciphertext")


def _two_openers(guard: Guard) -> Outcome:
    """Two honest clients each open a sum, of all and of all but one. Only the aggregator knows of both."""
    shared = guard is Guard.REMOVED
    scheme = Ckks(threads=1)
    cast = Cast.make(scheme, _SHARED if shared else _SUM_KEY, clients=4, threshold=3)
    adversary = Adversary(view=View.AGGREGATOR, behaviour=Behaviour.MALICIOUS)
    said = scheme.guarantee(cast.spec, survivors=4).visibility(adversary)
    if not shared:
        assert said is Visibility.SUM
        rng = InsecureSeededRng(1)
        attacker = MaliciousAggregator(
            cast, {name: cast.client(name, rng.fork(name)) for name in cast.cohort}
        )
        attacker.collect_inputs()
        return ask_for_both_secrets(attacker)
    stage = _stage_of(Guard.IN_PLACE, cast)
    seen = _ciphertexts(cast, stage)
    everybody = _ask_to_open(cast, stage, cast.cohort[0], seen)["update"]
    others = _ask_to_open(cast, stage, cast.cohort[1], {index: seen[index] for index in (0, 1, 2)})["update"]
    assert (((everybody - others) & 0xFFFF) == cast.inputs[cast.cohort[3]]["update"]).all()
    assert said is Visibility.EVERY_UPDATE
    return learned(f"the whole input of one client, as a difference of two sums; the guarantee says: {said}")


# A client as an oracle


class _NaiveClient(SharedKeyClient):
    """Opens whatever it is given as the sum, as soon as it is signed by somebody."""

    __slots__ = ()

    def _take_roster(
        self, reader: Any, content: memoryview, *arguments: Any, **more: Any
    ) -> dict[int, Signed]:
        del content, more
        _, body_bytes = arguments
        members = Roster.read_members(reader._data, peer=AGGREGATOR, clients=64)  # noqa: SLF001 - of its parent's reader
        return dict(Roster.take(reader, members=members, body_bytes=body_bytes).members)

    def _check_own(self, *_: object) -> None:
        return None


def _ask_to_open(
    cast: Cast, stage: Stage, opener: ClientId, rows: Mapping[int, tuple[Signed, bytes]]
) -> Mapping[str, Words]:
    """Have a client decrypt these ciphertexts as the sum."""
    shared = SharedRound(cast.spec)
    roster = Roster({index: header for index, (header, _) in rows.items()}).encode()
    head = frame(MessageType.CKKS_OPEN, digest=cast.spec.digest(), sender=AGGREGATOR_INDEX)
    payload = head + roster + b"".join(rows[index][1] for index in sorted(rows))
    answer = stage.parties[opener].receive(Envelope(AGGREGATOR, opener, payload))
    packed = memoryview(answer[0].payload)[FRAME_BYTES + SharedSums.SIZE + SIGNATURE_BYTES :]
    return shared.unpack_sums(packed, peer=opener)


def _stage_of(guard: Guard, cast: Cast) -> Stage:
    """A round up to the inputs, with naive clients when the guard is removed."""
    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            without.enter_context(patch.object(ckks, "SharedKeyClient", _NaiveClient))
        stage = Stage(cast, rng=InsecureSeededRng(1))
    stage.start()
    stage.carry(until=lambda now: len(_ciphertexts(cast, now)) == len(cast.cohort))
    return stage


def _one_ciphertext_as_the_sum(guard: Guard) -> Outcome:
    """The aggregator offers one client's ciphertext to another client as the sum of all."""
    cast = _cast(_SHARED)
    stage = _stage_of(guard, cast)
    seen = _ciphertexts(cast, stage)
    try:
        found = _ask_to_open(cast, stage, cast.cohort[0], {2: seen[2]})
    except RemoteProtocolError as error:
        return refused(error)
    assert _is_input(cast, 2, found)
    return learned("the whole input of one client, decrypted by another")


class _Constant(Uniform):
    """A chosen second half of a ciphertext: one constant, which is the same in evaluation form."""

    __slots__ = ("_value",)

    def __init__(self, value: int) -> None:
        super().__init__()
        self._value = value

    def rows(self, first: int, count: int, *, modulus: int = MODULUS) -> NDArray[np.uint64]:
        """The constant."""
        del first
        return np.full((count, DEGREE), self._value % modulus, np.uint64)


def _chosen_ciphertext(guard: Guard) -> Outcome:
    """The ciphertext (0, 2^40): its decryption, rounded to integers, gives the key (and then everything)."""
    cast = _cast(_SHARED, vectors=_WIDE)
    stage = _stage_of(guard, cast)
    seen = _ciphertexts(cast, stage)
    layout = SharedRound(cast.spec).layout
    zero = CiphertextSum(layout)
    zero.add(AGGREGATOR, bytes(layout.packed_bytes))
    oracle = stage.parties[cast.cohort[0]]
    assert isinstance(oracle, SharedKeyClient)
    if guard is Guard.IN_PLACE:
        # The second half of every ciphertext follows from signed labels; only the first half can be tried.
        chosen = {index: (header, bytes(layout.packed_bytes)) for index, (header, _) in seen.items()}
        try:
            _ask_to_open(cast, stage, cast.cohort[0], chosen)
        except RemoteProtocolError as error:
            return refused(error)
        return learned("a chosen ciphertext was decrypted")
    secret = small_polynomial(oracle._key_noise(oracle._memory.key_seed))  # noqa: SLF001 - a client uses its key
    rounded = open_sum(zero, layout, uniforms=(_Constant(2**40),), key=secret)[
        "update"
    ]  # what it would return
    # From here on the attacker works with public things and the answer only.
    every = np.resize(np.arange(-REACH, REACH + 1), DEGREE).astype(np.int64)
    known = open_sum(zero, layout, uniforms=(_Constant(2**40),), key=every)["update"]
    table = dict(zip(known.tolist(), every.tolist(), strict=True))
    key = np.array([table[value] for value in rounded.tolist()], np.int64)
    for index, (header, ciphertext) in seen.items():
        assert _is_input(cast, index, _decrypt(cast, index, header, ciphertext, key))
    return learned("the key, and with it the whole inputs of all clients")


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="aggregator and one client read a third client",
        line="a shared key and one colluder (the guarantee's own row)",
        guard="one-time keys, of which only the sum is opened (sum-key)",
        play=_one_client_with_the_key,
    ),
    Attack(
        name="have two clients open two sums",
        line="two survivor sets (under the shared key, the guarantee's own row)",
        guard="one-time keys, whose sum the consistency round lets be opened once (sum-key)",
        play=_two_openers,
    ),
    Attack(
        name="offer one client's ciphertext to another client as the sum",
        line="in shared mode a single client's ciphertext offered as the sum",
        guard="a client opens only what it summed itself, from a threshold of signed ciphertexts",
        play=_one_ciphertext_as_the_sum,
    ),
    Attack(
        name="offer (0, 2^40) as the sum",
        line="in shared mode a chosen ciphertext",
        guard="the same, and the second half follows from signed labels",
        play=_chosen_ciphertext,
    ),
)
