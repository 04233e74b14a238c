"""Attacks of a malicious client on masking: it signs with its own valid key whatever it likes.

Such a client can always spoil the sum by lying about its input. What it must not be able to do is to spoil it
unnoticed in another way, or to have somebody else blamed.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Mapping
from unittest.mock import patch

from secfl.crypto import masking_aggregator, masking_opening
from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party
from secfl.crypto.hazmat.sealed import KEM_CIPHERTEXT_BYTES
from secfl.crypto.identity import SIGNATURE_BYTES
from secfl.crypto.inputs import Accumulator
from secfl.crypto.masking import Masking
from secfl.crypto.masking_aggregator import MaskingAggregator
from secfl.crypto.messages import SECRET_BYTES, Deal, InputHeader, Unmask, escrow_bytes
from secfl.crypto.wire import FRAME_BYTES, MessageType, Signed
from secfl.randomness import InsecureSeededRng
from secfl.testing.adversaries.attacks import Attack, Guard, Outcome, learned, refused
from secfl.testing.adversaries.broken import BrokenParty
from secfl.testing.adversaries.broken_masking import BrokenMasking
from secfl.testing.adversaries.forging import Repair, kind_of, own_up, reseal
from secfl.testing.stage import Cast, Stage, same_sums
from secfl.types import ClientId, SchemeSpec

__all__ = ["ATTACKS", "TamperingClient"]

_MASKING = SchemeSpec(name="masking")


class TamperingClient(BrokenParty):
    """A client that changes one of its messages and signs it again.

    Args:
        inner: An honest client.
        cast: Whose keys sign.
        kind: The type of message to change.
        change: Changes its payload in place; the bindings are made good afterwards.
    """

    def __init__(
        self, inner: Party, *, cast: Cast, kind: MessageType, change: Callable[[bytearray], object]
    ) -> None:
        super().__init__(inner)
        self._cast = cast
        self._kind = kind
        self._change = change

    def start(self) -> list[Envelope]:
        """Perhaps changed."""
        return [self._changed(envelope) for envelope in super().start()]

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Perhaps changed."""
        return [self._changed(answer) for answer in super().receive(envelope)]

    def _changed(self, envelope: Envelope) -> Envelope:
        if kind_of(envelope.payload) is not self._kind:
            return envelope
        payload = bytearray(envelope.payload)
        self._change(payload)
        changed = Envelope(envelope.sender, envelope.recipient, bytes(payload))
        sent = reseal(self._cast, changed, Repair.BINDINGS)
        own_up(self.inner, before=envelope.payload, after=sent.payload)
        return sent


def _play(
    scheme: Masking,
    kind: MessageType,
    change: Callable[[bytearray], object],
    *,
    clients: int = 4,
    leaves: Mapping[int, str] | None = None,
) -> Stage:
    """A round in which the first client changes one kind of message."""
    cast = Cast.make(scheme, _MASKING, clients=clients, threshold=3)
    liar = cast.cohort[0]
    rng = InsecureSeededRng(1)
    party = TamperingClient(cast.client(liar, rng.fork(liar)), cast=cast, kind=kind, change=change)
    gone = {cast.cohort[index]: phase for index, phase in (leaves or {}).items()}
    stage = Stage(cast, rng=rng, parties={liar: party}, leaves=gone)
    stage.play()
    return stage


def _blamed(stage: Stage) -> tuple[ClientId, ...]:
    aggregator = stage.aggregator
    assert isinstance(aggregator, MaskingAggregator)
    return aggregator.blamed


def _flip(place: int) -> Callable[[bytearray], object]:
    def change(payload: bytearray) -> None:
        payload[place] ^= 1

    return change


# Wrong shares


class _AggregatorWithoutShareCheck(MaskingAggregator):
    """Takes any share."""

    __slots__ = ()

    def _take_unmask(self, index: int, signed: Signed, *_: object) -> None:
        Unmask.decode(signed.body, peer=self._masked.name_of(index), members=len(signed.body) // SECRET_BYTES)


def _wrong_share_held(guard: Guard) -> Outcome:
    """A holder sends a wrong share of another client's secret."""
    lax = _AggregatorWithoutShareCheck if guard is Guard.REMOVED else MaskingAggregator
    share_of_another = FRAME_BYTES + SECRET_BYTES
    stage = _play(BrokenMasking(aggregator_class=lax), MessageType.UNMASK, _flip(share_of_another))
    liar = stage.cast.cohort[0]
    if isinstance(stage.aggregator.state, Aborted):
        innocent = [name for name in _blamed(stage) if name != liar]
        assert innocent
        return learned(f"the round is lost, and {innocent[0]} is blamed for what {liar} did")
    assert stage.result is not None
    assert same_sums(stage.result, stage.cast.expected(stage.cast.cohort))
    return refused(f"{stage.refusals[0].error}; the others' shares opened the exact sum")


def _wrong_share_dealt(guard: Guard) -> Outcome:
    """A dealer commits to, and seals, shares of something else than what it masks with."""
    commitment = FRAME_BYTES + 2 * 32  # self_commitment, the third field of a deal
    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            anything = types.SimpleNamespace(compare_digest=lambda *_: True)
            without.enter_context(patch.object(masking_opening, "hmac", anything))
        stage = _play(Masking(threads=1), MessageType.SHARES, _flip(commitment))
    if isinstance(stage.aggregator.state, Finished):
        return learned("a secret that is not the one committed to was summed")
    assert isinstance(stage.aggregator.state, Aborted)
    assert _blamed(stage) == (stage.cast.cohort[0],)
    return refused(stage.aggregator.state.reason)


# Wrong encapsulations


def _wrong_ciphertext(guard: Guard) -> Outcome:
    """A dealer sends another client a KEM ciphertext that gives another secret than it uses itself."""
    first_parcel = FRAME_BYTES + Deal.SIZE + SIGNATURE_BYTES + escrow_bytes(3)
    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            without.enter_context(patch.object(Accumulator, "canaries_hold", lambda *_: True))
        stage = _play(Masking(threads=1), MessageType.SHARES, _flip(first_parcel + KEM_CIPHERTEXT_BYTES // 2))
    return _spoiled(stage)


def _wrong_escrow(guard: Guard) -> Outcome:
    """A dealer puts nonsense into its escrow, and drops out."""
    escrow = FRAME_BYTES + Deal.SIZE + SIGNATURE_BYTES

    def unchecked(*_: object, ciphertexts: Mapping[int, bytes], **__: object) -> dict[int, bytes]:
        return dict.fromkeys(ciphertexts, bytes(32))

    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            without.enter_context(patch.object(masking_opening, "open_escrow", unchecked))
        stage = _play(Masking(threads=1), MessageType.SHARES, _flip(escrow + 20), leaves={0: "masked-input"})
    state = stage.aggregator.state
    assert isinstance(state, Aborted)
    if not _blamed(stage):
        return learned("the round is lost, and nobody is blamed")
    assert _blamed(stage) == (stage.cast.cohort[0],)
    return refused(state.reason)


def _spoiled(stage: Stage) -> Outcome:
    state = stage.aggregator.state
    if isinstance(state, Aborted):
        return refused(state.reason)
    result = stage.result
    assert result is not None
    assert not same_sums(result, stage.cast.expected(result.survivors))
    return learned("nonsense, published as the exact sum")


# Copies


def _copied_input(guard: Guard) -> Outcome:
    """A client sends another client's masked input as its own."""
    cast = Cast.make(Masking(threads=1), _MASKING, clients=4, threshold=3)
    rng = InsecureSeededRng(1)
    body = FRAME_BYTES + InputHeader.SIZE + SIGNATURE_BYTES
    stage = Stage(cast, rng=rng)
    stage.start()
    copied = False

    def copy(now: Stage) -> bool:
        nonlocal copied
        inputs = [one for one in now.in_flight if kind_of(one.payload) is MessageType.MASKED_INPUT]
        if len(inputs) == len(cast.cohort) and not copied:
            copied = True
            victim, thief = inputs[1], inputs[0]
            payload = thief.payload[:body] + victim.payload[body:]
            stolen = reseal(cast, Envelope(thief.sender, thief.recipient, payload), Repair.BINDINGS)
            own_up(now.parties[thief.sender], before=thief.payload, after=stolen.payload)
            now.in_flight[now.in_flight.index(thief)] = stolen
        return False

    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            without.enter_context(patch.object(Accumulator, "canaries_hold", lambda *_: True))
        stage.carry(until=copy)
    assert copied
    return _spoiled(stage)


def _longer_message(guard: Guard) -> Outcome:
    """Bytes after the end of a message, which nobody looks at."""
    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            without.enter_context(patch.object(masking_aggregator, "check_size", lambda *_, **__: None))
        stage = _play(
            Masking(threads=1), MessageType.ADVERTISE, lambda payload: payload.extend(b"and something else")
        )
    assert stage.result is not None
    liar = stage.cast.cohort[0]
    if liar in stage.result.survivors:
        return learned("a message of two encodings was taken")
    return refused(stage.refusals[0].error)


def _replayed_signature(guard: Guard) -> Outcome:
    """A client sends another client's signed message under its own name."""
    cast = Cast.make(Masking(threads=1), _MASKING, clients=4, threshold=3)
    rng = InsecureSeededRng(1)
    thief = cast.cohort[0]
    stage = Stage(cast, rng=rng)
    stage.start()
    stolen = bytearray(stage.in_flight[1].payload)
    stolen[FRAME_BYTES - 2 : FRAME_BYTES] = (1).to_bytes(2, "little")
    stage.in_flight[0] = Envelope(thief, stage.in_flight[0].recipient, bytes(stolen))
    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            without.enter_context(patch.object(masking_aggregator, "verify_body", lambda *_, **__: None))
        stage.carry(until=lambda now: len(now.in_flight) <= len(cast.cohort) - 1)
    if stage.refusals:
        return refused(stage.refusals[0].error)
    return learned("one client's keys, taken for those of two")


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="send a wrong share of another client's secret",
        line="wrong Shamir share",
        guard="commitments to every share",
        play=_wrong_share_held,
    ),
    Attack(
        name="commit to one secret and deal another",
        line="wrong Shamir share",
        guard="the commitment to the secret",
        play=_wrong_share_dealt,
    ),
    Attack(
        name="send a KEM ciphertext that gives another secret",
        line="wrong KEM ciphertext",
        guard="canaries",
        play=_wrong_ciphertext,
    ),
    Attack(
        name="put nonsense into the escrow and drop out",
        line="wrong escrow",
        guard="the escrow is authenticated under a key from the root",
        play=_wrong_escrow,
    ),
    Attack(
        name="send another client's masked input as one's own",
        line="a replayed or copied input of another client",
        guard="canaries",
        play=_copied_input,
    ),
    Attack(
        name="send another client's signed keys as one's own",
        line="a replayed input of another client",
        guard="signatures name their sender",
        play=_replayed_signature,
    ),
    Attack(
        name="add bytes to a signed message",
        line="extended messages, also re-signed",
        guard="every message has one size",
        play=_longer_message,
    ),
)
