"""One client in one masking round.

Bonawitz et al., CCS 2017, Figure 4 (double masking with a consistency round), with hybrid pair secrets, every
statement signed and bound to the round, and the members' transcript in every header. docs/protocol.md,
section 3, is normative.

The client answers each phase once. It computes who dropped out itself, from the members for which it masked
and the survivors whose headers it was shown, so an aggregator has no way to ask for both secrets of anyone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NoReturn, Self

from secfl.crypto.aggregation import Envelope, Finished, PartyState, Running
from secfl.crypto.attachments import Words
from secfl.crypto.hazmat.prg import MaskStream
from secfl.crypto.hazmat.sealed import AgreementKey
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.masking_client_memory import ClientMemory
from secfl.crypto.masking_dealing import deal_out, open_parcel
from secfl.crypto.masking_input import mask_input
from secfl.crypto.masking_keys import (
    ClientSecrets,
    directory_digest,
    mask_key_pair,
    members_digest,
    survivors_digest,
)
from secfl.crypto.masking_phases import CLIENT_STEPS, phase_accepting
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.masking_streams import pair_stream, self_stream
from secfl.crypto.messages import SECRET_BYTES, Advertise, Consistency, Deal, Delivery, InputHeader, Unmask
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
    verify_body,
)
from secfl.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from secfl.randomness import Rng
from secfl.types import AGGREGATOR, ClientId, VectorSpec

__all__ = ["MaskingClient"]


class MaskingClient:
    """A client's party. Build it with `create` or `restore`."""

    __slots__ = ("_digest", "_directory", "_identity", "_index", "_masked", "_memory", "_threads")

    def __init__(
        self,
        masked: MaskedRound,
        identity: Identity,
        *,
        directory: Directory,
        memory: ClientMemory,
        threads: int,
    ) -> None:
        masked.check_parties(directory)
        self._masked = masked
        self._digest = masked.digest
        self._identity = identity
        self._index = masked.check_identity(identity, directory)
        self._directory = directory
        self._memory = memory
        self._threads = threads

    @classmethod
    def create(
        cls,
        masked: MaskedRound,
        identity: Identity,
        *,
        directory: Directory,
        vectors: Mapping[str, Words],
        rng: Rng,
        attachment: bytes | None = None,
        minimum: int = 0,
        threads: int = 1,
    ) -> Self:
        """A fresh client with its input.

        Args:
            masked: The round's shape.
            identity: The client's signing key; must be the enrolled one.
            directory: The enrolled keys; must be the ones that the round is bound to.
            vectors: Vector name -> residues, one array for each of ``masked.vectors``. They are not copied
                and must not change until the masked input was sent.
            rng: Source of this client's secrets for this round.
            attachment: ``masked.attachment_bytes`` bytes; ``None`` when the round has no attachment.
            minimum: The client's own least number of members and survivors, where it wants more than the
                round's threshold.
            threads: How many threads mask expansion may use.

        Raises:
            LocalProtocolError: Input, identity or directory do not match the round.
            ConfigError: The client's own minimum is above the cohort.
        """
        masked.check_vectors(vectors)
        if len(attachment or b"") != masked.attachment_bytes:
            raise LocalProtocolError(
                f"masking: attachment of {len(attachment or b'')} bytes, expected {masked.attachment_bytes}"
            )
        if minimum > len(masked.spec.cohort):
            raise ConfigError(
                f"masking: own minimum of {minimum} clients is above the cohort's {len(masked.spec.cohort)}"
            )
        memory = ClientMemory(
            minimum=max(minimum, masked.spec.threshold),
            secrets=ClientSecrets.draw(rng, threshold=masked.spec.threshold),
            inputs=dict(vectors),
            attachment=attachment or b"",
        )
        return cls(masked, identity, directory=directory, memory=memory, threads=threads)

    @classmethod
    def restore(cls, masked: MaskedRound, *, directory: Directory, snapshot: bytes, threads: int = 1) -> Self:
        """Continue from `snapshot`; `LocalProtocolError` when it is damaged or of another round."""
        memory, identity = ClientMemory.decode(snapshot, masked)
        return cls(masked, identity, directory=directory, memory=memory, threads=threads)

    def snapshot(self) -> bytes:
        """Everything needed to continue; see `Party.snapshot` and `secfl.crypto.snapshots`."""
        return self._memory.encode(self._masked, self._identity)

    def __repr__(self) -> str:
        return f"MaskingClient({self._name}, {self.state!r})"

    @property
    def state(self) -> PartyState:
        """`Running` with the phase whose request the client waits for, or `Finished`."""
        phase = self._memory.phase
        return Finished() if phase is None else Running(phase.value)

    @property
    def conflicts(self) -> Mapping[Phase, bytes]:
        """Phase -> SHA-256 of the first request that contradicted the one already answered."""
        return MappingProxyType(self._memory.conflicts)

    @property
    def _name(self) -> ClientId:
        return self._identity.name

    def start(self) -> list[Envelope]:
        """Advertise fresh public keys.

        Raises:
            LocalProtocolError: It was started already.
        """
        if self._memory.phase is not Phase.ADVERTISE:
            raise LocalProtocolError(f"{self._name}: the party was already started")
        body = self._mask_keys().public() + self._secrets().sealing.public()
        return self._answer(Phase.ADVERTISE, self._sign(Phase.ADVERTISE, body))

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Take a request of the aggregator and answer it; see `Party.receive`."""
        if envelope.recipient != self._name:
            raise LocalProtocolError(f"{self._name}: an envelope for {envelope.recipient} was delivered here")
        peer = envelope.sender
        if peer != AGGREGATOR:
            raise RemoteProtocolError(peer, "clients take messages from the aggregator only")
        kind, content = open_frame(envelope.payload, peer=peer, digest=self._digest, sender=AGGREGATOR_INDEX)
        phase = self._memory.phase
        if phase is None or kind is not CLIENT_STEPS[phase].accepts:
            self._refuse(kind, envelope.payload)
        answer = self._handler(phase)(content)
        self._memory.answered[phase] = hashlib.sha256(envelope.payload).digest()
        return answer

    def phase_over(self) -> list[Envelope]:
        """Nothing: a client collects from nobody."""
        return []

    def _handler(self, phase: Phase) -> Callable[[memoryview], list[Envelope]]:
        match phase:
            case Phase.SHARE:
                return self._share
            case Phase.MASKED_INPUT:
                return self._mask
            case Phase.CONSISTENCY:
                return self._confirm
            case _:
                return self._unmask

    def _refuse(self, kind: MessageType, payload: bytes) -> NoReturn:
        """Raise for a message that is not the one this phase waits for."""
        name = kind.name.lower()
        phase = phase_accepting(CLIENT_STEPS, kind)
        first = None if phase is None else self._memory.answered.get(phase)
        if phase is None or first is None:
            raise RemoteProtocolError(AGGREGATOR, f"unexpected {name} message")
        second = hashlib.sha256(payload).digest()
        if second == first:
            raise RemoteProtocolError(AGGREGATOR, f"{name} message repeated: it was already answered")
        self._memory.conflicts.setdefault(phase, second)
        raise RemoteProtocolError(AGGREGATOR, f"second {name} message differs from the one already answered")

    # Phase 2: Share

    def _share(self, content: memoryview) -> list[Envelope]:
        adverts = self._take_roster(content, Phase.ADVERTISE, Advertise.SIZE, at_least=self._memory.minimum)
        self._check_own(adverts, Phase.ADVERTISE)
        directory = directory_digest(self._digest, self._masked.spec.cohort, adverts)
        dealt = deal_out(
            self._masked,
            self._index,
            self._secrets(),
            adverts=self._decoded(adverts),
            directory=directory,
        )
        deal = self._sign(Phase.SHARE, dealt.deal.encode())
        memory = self._memory
        memory.adverts = adverts
        memory.directory_digest = directory
        memory.encapsulated = dealt.encapsulated
        memory.held = {self._index: dealt.own_share}
        parcels = (dealt.parcels[index] for index in sorted(dealt.parcels))
        return self._answer(Phase.SHARE, deal, dealt.escrow, *parcels)

    # Phase 3: Masked input

    def _mask(self, content: memoryview) -> list[Envelope]:
        cohort, memory = self._masked.spec.cohort, self._memory
        delivery = Delivery.decode(content, peer=AGGREGATOR, recipient=self._index, clients=len(cohort))
        statements = dict(delivery.deals.members)
        self._check_members(statements, within=set(memory.adverts), at_least=self._memory.minimum)
        self._verify_all(Phase.SHARE, statements)
        self._check_own(statements, Phase.SHARE)
        deals = {index: Deal.decode(signed.body, peer=cohort[index]) for index, signed in statements.items()}
        if any(deal.directory_digest != memory.directory_digest for deal in deals.values()):
            raise RemoteProtocolError(AGGREGATOR, "showed different directories to different clients")
        held = dict(memory.held)
        ciphertexts = {}
        for index, (encoded, path) in delivery.parcels.items():
            held[index], ciphertexts[index] = open_parcel(
                self._masked,
                self._secrets().sealing,
                encoded,
                dealer=index,
                holder=self._index,
                path=path,
                deal=deals[index],
            )
        members = tuple(sorted(statements))
        digest = members_digest(self._digest, cohort, adverts=self._memory.adverts, deals=statements)
        header, pieces = self._masked_input(members, digest, ciphertexts)
        memory.held = held
        memory.members = members
        memory.members_digest = digest
        memory.forget_inputs()
        return self._answer(Phase.MASKED_INPUT, header, *pieces)

    def _masked_input(
        self, members: tuple[int, ...], digest: bytes, ciphertexts: Mapping[int, bytes]
    ) -> tuple[Signed, list[bytes]]:
        """The signed header of the masked input, and the input in pieces."""
        memory = self._memory
        assert memory.inputs is not None
        covered, pieces = mask_input(
            self._masked,
            self._index,
            self._mask_keys(),
            inputs=memory.inputs,
            attachment=memory.attachment,
            adverts=self._decoded(memory.adverts),
            encapsulated={
                index: memory.encapsulated.get(index, (b"", ciphertexts[index]))
                for index in members
                if index != self._index
            },
            streams=self._streams,
            threads=self._threads,
        )
        body = InputHeader(members_digest=digest, input_digest=covered).encode()
        return self._sign(Phase.MASKED_INPUT, body), pieces

    def _streams(self, vector: VectorSpec, seeds: Mapping[int, bytes]) -> list[MaskStream]:
        return [
            self_stream(self._masked, self._index, self._secrets().self_mask, vector),
            *(
                pair_stream(self._masked, self._index, index, seed=seed, vector=vector)
                for index, seed in seeds.items()
            ),
        ]

    # Phase 4: Consistency

    def _confirm(self, content: memoryview) -> list[Envelope]:
        memory = self._memory
        headers = self._take_roster(
            content, Phase.MASKED_INPUT, InputHeader.SIZE, at_least=self._memory.minimum
        )
        self._check_members(headers, within=set(memory.members), at_least=self._memory.minimum)
        self._check_own(headers, Phase.MASKED_INPUT)
        for index, signed in headers.items():
            header = InputHeader.decode(signed.body, peer=self._masked.name_of(index))
            if header.members_digest != memory.members_digest:
                raise RemoteProtocolError(AGGREGATOR, "told different clients of different members")
        digest = survivors_digest(self._digest, self._masked.spec.cohort, headers)
        body = Consistency(members_digest=memory.members_digest, survivors_digest=digest).encode()
        statement = self._sign(Phase.CONSISTENCY, body)
        memory.survivors = tuple(sorted(headers))
        memory.survivors_digest = digest
        return self._answer(Phase.CONSISTENCY, statement)

    # Phase 5: Unmask

    def _unmask(self, content: memoryview) -> list[Envelope]:
        spec, memory = self._masked.spec, self._memory
        statements = self._take_roster(content, Phase.CONSISTENCY, Consistency.SIZE, at_least=spec.threshold)
        self._check_members(statements, within=set(memory.survivors), at_least=spec.threshold)
        expected = Consistency(
            members_digest=memory.members_digest, survivors_digest=memory.survivors_digest
        ).encode()
        if any(signed.body != expected for signed in statements.values()):
            raise RemoteProtocolError(AGGREGATOR, "told different clients of different survivors")
        shares = []
        for index in memory.members:
            root_part, self_part = memory.held[index][:SECRET_BYTES], memory.held[index][SECRET_BYTES:]
            shares.append(self_part if index in memory.survivors else root_part)
        memory.forget_shares()
        return self._answer(Phase.UNMASK, self._sign(Phase.UNMASK, Unmask(shares).encode()))

    # Helpers

    def _take_roster(
        self, content: memoryview, phase: Phase, body_bytes: int, *, at_least: int
    ) -> dict[int, Signed]:
        """Statements of clients for one phase, all of them verified, in rising order of position."""
        members = Roster.read_members(content, peer=AGGREGATOR, clients=len(self._masked.spec.cohort))
        check_size(content, Roster.size(len(members), body_bytes=body_bytes), peer=AGGREGATOR)
        if len(members) < at_least:
            raise RemoteProtocolError(AGGREGATOR, f"{len(members)} clients in {phase}, expected {at_least}")
        roster = Roster.take(Reader(content, peer=AGGREGATOR), members=members, body_bytes=body_bytes)
        statements = dict(roster.members)
        self._verify_all(phase, statements)
        return statements

    def _verify_all(self, phase: Phase, statements: Mapping[int, Signed]) -> None:
        for index, signed in statements.items():
            sender = self._masked.name_of(index)
            try:
                verify_body(self._directory, phase, digest=self._digest, sender=sender, signed=signed)
            except RemoteProtocolError as error:
                # The aggregator checked the signature before it relayed the statement, or should have.
                raise RemoteProtocolError(AGGREGATOR, f"relayed a false statement: {error}") from None

    def _check_own(self, statements: Mapping[int, Signed], phase: Phase) -> None:
        relayed = statements.get(self._index)
        if relayed is None:
            raise RemoteProtocolError(AGGREGATOR, f"left {self._name} out of its own {phase} roster")
        if relayed.body != self._memory.own[phase].body:
            raise RemoteProtocolError(AGGREGATOR, f"replaced the {phase} message of {self._name}")

    def _check_members(self, statements: Mapping[int, Signed], *, within: set[int], at_least: int) -> None:
        if not set(statements) <= within:
            raise RemoteProtocolError(AGGREGATOR, "named clients that took no part in the phase before")
        if len(statements) < at_least:
            raise RemoteProtocolError(AGGREGATOR, f"{len(statements)} clients, expected at least {at_least}")

    def _decoded(self, adverts: Mapping[int, Signed]) -> dict[int, Advertise]:
        return {
            index: Advertise.decode(signed.body, peer=self._masked.name_of(index))
            for index, signed in adverts.items()
        }

    def _secrets(self) -> ClientSecrets:
        assert self._memory.secrets is not None
        return self._memory.secrets

    def _mask_keys(self) -> AgreementKey:
        return mask_key_pair(self._secrets().root, digest=self._digest, client=self._name)

    def _sign(self, phase: Phase, body: bytes) -> Signed:
        return sign_body(self._identity, phase, digest=self._digest, body=body)

    def _answer(self, phase: Phase, signed: Signed, *parts: bytes) -> list[Envelope]:
        """Move on, and the one envelope that this phase sends."""
        step = CLIENT_STEPS[phase]
        assert step.sends is not None
        self._memory.own[phase] = signed
        self._memory.phase = step.following
        head = frame(step.sends, digest=self._digest, sender=self._index)
        payload = b"".join((head, signed.body, signed.signature, *parts))
        return [Envelope(self._name, AGGREGATOR, payload)]
