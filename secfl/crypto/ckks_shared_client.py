"""One client in a round of CKKS with one shared key.

Every client holds the key, so whoever may ask one of them to decrypt can read everybody. The guard: nothing that
derives from a decryption leaves this client unless the sum it decrypted is one that it computed itself, from the
signed ciphertexts of at least the threshold of enrolled clients, its own unchanged among them, all under its own
key, and only once in the round. Without the guard a single client's ciphertext offered as "the sum" is decrypted for
the asker, and the chosen ciphertext ``(0, 2**40)`` gives away the key through its rounded decryption
(docs/protocol.md, section 4).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, Self

from secfl.crypto.aggregation import Envelope, Finished, PartyState, Running
from secfl.crypto.attachments import Words
from secfl.crypto.ckks_ring import CiphertextSum, Uniform, encrypt, open_sum, small_polynomial
from secfl.crypto.ckks_shared_client_memory import ClientMemory
from secfl.crypto.ckks_shared_messages import (
    KEY_SEED_BYTES,
    NONCE_BYTES,
    SEALING_BODY_BYTES,
    SealedKey,
    SharedInput,
    SharedRound,
    SharedSums,
    key_context,
    key_identifier,
)
from secfl.crypto.ckks_shared_phases import SHARED_CLIENT_STEPS
from secfl.crypto.hazmat.ring_noise import RingNoise
from secfl.crypto.hazmat.sealed import HYBRID_SEED_BYTES, SealingKey, derive, seal_to
from secfl.crypto.identity import SIGNATURE_BYTES, Directory, Identity
from secfl.crypto.masking_phases import Step
from secfl.crypto.wire import (
    AGGREGATOR_INDEX,
    MessageType,
    Phase,
    Reader,
    Roster,
    Signed,
    check_size,
    frame,
    open_frame,
    sign_body,
    take_signed,
    verify_body,
)
from secfl.errors import LocalProtocolError, RemoteProtocolError, RoundAborted
from secfl.randomness import Rng
from secfl.types import AGGREGATOR

__all__ = ["SharedKeyClient"]

_ERROR_KEY_BYTES: Final = 32


class SharedKeyClient:
    """A client's party. Build it with `create` or `restore`."""

    __slots__ = ("_directory", "_identity", "_index", "_memory", "_round")

    def __init__(
        self, shared: SharedRound, identity: Identity, *, directory: Directory, memory: ClientMemory
    ) -> None:
        shared.parties.check_parties(directory)
        self._round = shared
        self._identity = identity
        self._index = shared.parties.check_identity(identity, directory)
        self._directory = directory
        self._memory = memory

    @classmethod
    def create(
        cls,
        shared: SharedRound,
        identity: Identity,
        *,
        directory: Directory,
        vectors: Mapping[str, Words],
        rng: Rng,
    ) -> Self:
        """A fresh client with its input.

        Args:
            shared: The round's shape.
            identity: The client's signing key; must be the enrolled one.
            directory: The enrolled keys; must be the ones that the round is bound to.
            vectors: Vector name -> residues. They are not copied and must not change until they were sent.
            rng: Source of this client's secrets for this round.

        Raises:
            LocalProtocolError: Input, identity or directory do not match the round.
        """
        shared.parties.check_vectors(vectors)
        memory = ClientMemory(
            sealing_seed=rng.bytes(HYBRID_SEED_BYTES),
            lead_seed=rng.bytes(KEY_SEED_BYTES),
            nonce=rng.bytes(NONCE_BYTES),
            error_key=rng.bytes(_ERROR_KEY_BYTES),
            inputs=dict(vectors),
        )
        return cls(shared, identity, directory=directory, memory=memory)

    @property
    def state(self) -> PartyState:
        """`Running` with the phase whose request the client waits for, or `Finished`."""
        phase = self._memory.phase
        return Finished() if phase is None else Running(phase.value)

    def __repr__(self) -> str:
        return f"SharedKeyClient({self._identity.name}, {self.state!r})"

    def start(self) -> list[Envelope]:
        """Advertise a key to which the round's key can be sealed.

        Raises:
            LocalProtocolError: It was started already.
        """
        if self._memory.phase is not Phase.ADVERTISE:
            raise LocalProtocolError(f"{self._identity.name}: the party was already started")
        signed = self._sign(Phase.ADVERTISE, SealingKey(self._memory.sealing_seed).public())
        self._memory.advert = signed
        return self._go_on(SHARED_CLIENT_STEPS[Phase.ADVERTISE][0], signed.encode())

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Take a request of the aggregator and answer it; see `Party.receive`."""
        if envelope.recipient != self._identity.name:
            raise LocalProtocolError(
                f"{self._identity.name}: an envelope for {envelope.recipient} was delivered here"
            )
        if envelope.sender != AGGREGATOR:
            raise RemoteProtocolError(envelope.sender, "clients take messages from the aggregator only")
        kind, content = open_frame(
            envelope.payload, peer=AGGREGATOR, digest=self._round.digest, sender=AGGREGATOR_INDEX
        )
        phase = self._memory.phase
        steps = () if phase is None else SHARED_CLIENT_STEPS[phase]
        step = next((one for one in steps if one.accepts is kind), None)
        if step is None:
            raise RemoteProtocolError(AGGREGATOR, f"unexpected {kind.name.lower()} message")
        return self._go_on(step, *self._handler(kind)(content))

    def phase_over(self) -> list[Envelope]:
        """Nothing: a client collects from nobody."""
        return []

    def _handler(self, kind: MessageType) -> Callable[[memoryview], tuple[bytes, ...]]:
        match kind:
            case MessageType.CKKS_DIRECTORY:
                return self._deal
            case MessageType.CKKS_DELIVERY:
                return self._encrypt
            case MessageType.CKKS_OPEN:
                return self._open
            case _:
                return self._close

    # Phase 2: this client is the lead

    def _deal(self, content: memoryview) -> tuple[bytes, ...]:
        memory = self._memory
        if not memory.lead_seed:
            raise RemoteProtocolError(AGGREGATOR, "asked twice for the round's key")
        adverts = self._take_roster(
            Reader(content, peer=AGGREGATOR), content, Phase.ADVERTISE, SEALING_BODY_BYTES
        )
        self._check_own(adverts, memory.advert)
        digest, name = self._round.digest, self._identity.name
        identifier = key_identifier(memory.lead_seed, digest=digest)
        parts = []
        for index, advert in adverts.items():
            recipient = self._round.parties.name_of(index)
            try:
                box = seal_to(
                    advert.body,
                    memory.lead_seed,
                    info=key_context(digest=digest, lead=name, recipient=recipient),
                )
            except ValueError:
                raise RemoteProtocolError(recipient, "its advertised key is not one") from None
            body = SealedKey(recipient=index, identifier=identifier, box=box).encode()
            parts.append(self._sign(Phase.CKKS_KEY, body).encode())
        memory.lead_seed = b""  # it comes back in the delivery, like everybody's
        return tuple(parts)

    # Phase 3: input

    def _encrypt(self, content: memoryview) -> tuple[bytes, ...]:
        memory, digest = self._memory, self._round.digest
        check_size(content, 2 + SealedKey.SIZE + SIGNATURE_BYTES, peer=AGGREGATOR)
        reader = Reader(content, peer=AGGREGATOR)
        lead_index = struct.unpack("<H", reader.view(2))[0]
        if lead_index >= len(self._round.spec.cohort):
            raise RemoteProtocolError(AGGREGATOR, "named a lead outside the cohort")
        lead = self._round.parties.name_of(lead_index)
        signed = take_signed(reader, body_bytes=SealedKey.SIZE)
        self._verify(Phase.CKKS_KEY, lead_index, signed)
        sealed = SealedKey.decode(signed.body, peer=lead)
        if sealed.recipient != self._index:
            raise RemoteProtocolError(AGGREGATOR, "delivered another client's key")
        try:
            seed = SealingKey(memory.sealing_seed).open(
                sealed.box, info=key_context(digest=digest, lead=lead, recipient=self._identity.name)
            )
        except ValueError:
            raise RemoteProtocolError(lead, "its sealed key does not open") from None
        if key_identifier(seed, digest=digest) != sealed.identifier:
            raise RemoteProtocolError(lead, "its sealed key is not the one it committed to")
        assert memory.inputs is not None
        ciphertext = encrypt(
            memory.inputs,
            self._round.layout,
            uniform=self._uniform(self._index, memory.nonce),
            key=small_polynomial(self._key_noise(seed)),
            noise=RingNoise(memory.error_key),
        )
        header = SharedInput(
            identifier=sealed.identifier,
            nonce=memory.nonce,
            ciphertext_digest=self._round.ciphertext_digest(ciphertext),
        )
        memory.header = self._sign(Phase.CKKS_INPUT, header.encode())
        memory.key_seed = seed
        memory.inputs = None
        memory.sealing_seed = memory.lead_seed = memory.error_key = b""
        return memory.header.encode(), ciphertext

    # Phase 4: this client is the opener

    def _open(self, content: memoryview) -> tuple[bytes, ...]:
        memory, shared = self._memory, self._round
        reader = Reader(content, peer=AGGREGATOR)
        headers = self._take_roster(
            reader, content, Phase.CKKS_INPUT, SharedInput.SIZE, more_each=shared.layout.packed_bytes
        )
        self._check_own(headers, memory.header)
        total = CiphertextSum(shared.layout)
        uniforms = []
        for index, signed in headers.items():
            peer = shared.parties.name_of(index)
            header = SharedInput.decode(signed.body, peer=peer)
            ciphertext = reader.view(shared.layout.packed_bytes)
            if header.identifier != key_identifier(memory.key_seed, digest=shared.digest):
                raise RemoteProtocolError(peer, "encrypted under another key")
            if shared.ciphertext_digest(ciphertext) != header.ciphertext_digest:
                raise RemoteProtocolError(AGGREGATOR, f"replaced the ciphertext of {peer}")
            total.check(peer, ciphertext)
            total.add(peer, ciphertext)
            uniforms.append(self._uniform(index, header.nonce))
        try:
            sums = open_sum(
                total,
                shared.layout,
                uniforms=tuple(uniforms),
                key=small_polynomial(self._key_noise(memory.key_seed)),
            )
        except RoundAborted as error:
            # One of the signed ciphertexts is not what its sender was to make; the sum cannot tell which.
            raise RemoteProtocolError(AGGREGATOR, str(error)) from None
        packed = shared.pack_sums(sums)
        body = SharedSums(
            survivors_digest=shared.survivors_digest(headers), sums_digest=shared.sums_digest(packed)
        ).encode()
        memory.key_seed = b""
        return self._sign(Phase.CKKS_OPEN, body).encode(), packed

    def _close(self, content: memoryview) -> tuple[bytes, ...]:
        check_size(content, 0, peer=AGGREGATOR)
        self._memory.key_seed = b""
        return ()

    # Helpers

    def _key_noise(self, seed: bytes) -> RingNoise:
        return RingNoise(derive(seed, b"ckks-shared/ring-key", self._round.digest))

    def _uniform(self, index: int, nonce: bytes) -> Uniform:
        name = self._round.parties.name_of(index)
        return Uniform(b"shared", self._round.digest, name.encode(), nonce)

    def _take_roster(
        self, reader: Reader, content: memoryview, phase: Phase, body_bytes: int, *, more_each: int = 0
    ) -> dict[int, Signed]:
        """At least a threshold of clients' statements, all verified, in rising order of position."""
        members = Roster.read_members(content, peer=AGGREGATOR, clients=len(self._round.spec.cohort))
        expected = Roster.size(len(members), body_bytes=body_bytes) + len(members) * more_each
        check_size(content, expected, peer=AGGREGATOR)
        if len(members) < self._round.spec.threshold:
            raise RemoteProtocolError(
                AGGREGATOR, f"{len(members)} clients in {phase}, expected {self._round.spec.threshold}"
            )
        roster = Roster.take(reader, members=members, body_bytes=body_bytes)
        for index, signed in roster.members.items():
            self._verify(phase, index, signed)
        return dict(roster.members)

    def _verify(self, phase: Phase, index: int, signed: Signed) -> None:
        sender = self._round.parties.name_of(index)
        try:
            verify_body(self._directory, phase, digest=self._round.digest, sender=sender, signed=signed)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(AGGREGATOR, f"relayed a false statement: {error}") from None

    def _check_own(self, statements: Mapping[int, Signed], own: Signed | None) -> None:
        relayed = statements.get(self._index)
        if relayed is None:
            raise RemoteProtocolError(AGGREGATOR, f"left {self._identity.name} out")
        if own is None or relayed.body != own.body:
            raise RemoteProtocolError(AGGREGATOR, f"replaced the message of {self._identity.name}")

    def _sign(self, phase: Phase, body: bytes) -> Signed:
        return sign_body(self._identity, phase, digest=self._round.digest, body=body)

    def _go_on(self, step: Step, *parts: bytes) -> list[Envelope]:
        """Move on, and the one envelope that this step sends, if it sends one."""
        self._memory.phase = step.following
        if step.sends is None:
            return []
        head = frame(step.sends, digest=self._round.digest, sender=self._index)
        return [Envelope(self._identity.name, AGGREGATOR, b"".join((head, *parts)))]

    # Snapshots

    def snapshot(self) -> bytes:
        """Everything needed to continue; see `Party.snapshot` and `secfl.crypto.snapshots`."""
        return self._memory.encode(self._round, self._identity)

    @classmethod
    def restore(cls, shared: SharedRound, *, directory: Directory, snapshot: bytes) -> Self:
        """Continue from `snapshot`; `LocalProtocolError` when it is damaged or of another round."""
        memory, identity = ClientMemory.decode(snapshot, shared)
        return cls(shared, identity, directory=directory, memory=memory)
