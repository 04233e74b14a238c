"""A malicious aggregator of masking: what it collects, what it can say to clients, and what it can compute.

It holds no key of anybody. Everything it says is made of statements that clients signed (and of whatever a test gives
it); `MaliciousAggregator.open_inputs` takes the masks off the inputs of any set of clients for whom it has learned
enough secrets, and checks by the canaries that it succeeded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from secfl.crypto.aggregation import Aborted, Envelope, Party
from secfl.crypto.hazmat import merkle, shamir
from secfl.crypto.hazmat.prg import MaskStream
from secfl.crypto.identity import SIGNATURE_BYTES
from secfl.crypto.inputs import Accumulator
from secfl.crypto.masking_dealing import open_escrow
from secfl.crypto.masking_keys import ShareKind, mask_key_pair
from secfl.crypto.masking_streams import agree, pair_stream, self_stream
from secfl.crypto.messages import (
    SECRET_BYTES,
    Advertise,
    Consistency,
    Deal,
    Delivery,
    InputHeader,
    Parcel,
    escrow_bytes,
)
from secfl.crypto.wire import (
    AGGREGATOR_INDEX,
    FRAME_BYTES,
    MessageType,
    Phase,
    Reader,
    Roster,
    Signed,
    frame,
    take_signed,
)
from secfl.errors import RemoteProtocolError
from secfl.testing.adversaries.forging import kind_of, masked_round
from secfl.testing.stage import Cast
from secfl.types import AGGREGATOR, ClientId

__all__ = ["MaliciousAggregator"]

_BODIES = {
    MessageType.ADVERTISE: (Phase.ADVERTISE, Advertise.SIZE),
    MessageType.SHARES: (Phase.SHARE, Deal.SIZE),
    MessageType.MASKED_INPUT: (Phase.MASKED_INPUT, InputHeader.SIZE),
    MessageType.CONSISTENCY: (Phase.CONSISTENCY, Consistency.SIZE),
}


class MaliciousAggregator:
    """Talks to clients as it likes.

    Args:
        cast: The round.
        clients: The clients, honest or without some guard.

    Attributes:
        statements: By phase and position, the last statement of each client.
        inputs: By position, the masked input (vectors and attachment).
        refusals: What clients refused, in their words.
    """

    def __init__(self, cast: Cast, clients: Mapping[ClientId, Party]) -> None:
        self.cast = cast
        self.masked = masked_round(cast)
        self.clients = dict(clients)
        self.statements: dict[Phase, dict[int, Signed]] = {phase: {} for phase, _ in _BODIES.values()}
        self.escrows: dict[int, bytes] = {}
        self.parcels: dict[int, dict[int, bytes]] = {}
        self.inputs: dict[int, bytes] = {}
        self.shares: dict[tuple[ShareKind, int], dict[int, bytes]] = {}
        self.members: dict[int, tuple[int, ...]] = {}
        self.told: dict[int, frozenset[int]] = {}
        self.refusals: list[str] = []

    @property
    def everybody(self) -> tuple[int, ...]:
        """All cohort positions."""
        return tuple(range(len(self.cast.cohort)))

    # Speaking

    def start(self) -> None:
        """Let every client advertise."""
        for party in self.clients.values():
            for envelope in party.start():
                self.take(envelope)

    def send(self, to: int, kind: MessageType, content: bytes) -> list[Envelope]:
        """Say something to a client, and return its answer; nothing when it refuses."""
        name = self.cast.cohort[to]
        payload = frame(kind, digest=self.masked.digest, sender=AGGREGATOR_INDEX) + content
        try:
            answer = self.clients[name].receive(Envelope(AGGREGATOR, name, payload))
        except RemoteProtocolError as error:
            self.refusals.append(f"{name}: {error}")
            return []
        state = self.clients[name].state
        if isinstance(state, Aborted):
            self.refusals.append(str(state.reason))
        return answer

    def ask(self, to: int, kind: MessageType, content: bytes) -> bool:
        """Say something to a client and remember its answer; whether there was one."""
        answer = self.send(to, kind, content)
        for envelope in answer:
            self.take(envelope)
        return bool(answer)

    def show_directory(self, to: int, members: Collection[int]) -> None:
        """Phase 2: these are who advertised."""
        self.ask(to, MessageType.DIRECTORY, self._roster(Phase.ADVERTISE, members))

    def show_members(self, to: int, members: Collection[int]) -> None:
        """Phase 3: these are U2."""
        places = len(self.cast.cohort)
        parcels = {
            dealer: (
                self.parcels[dealer][to],
                merkle.path(self.parcels[dealer], to, places=places),
            )
            for dealer in sorted(members)
            if dealer != to
        }
        deals = Roster({index: self.statements[Phase.SHARE][index] for index in sorted(members)})
        if self.ask(to, MessageType.DELIVERY, Delivery(deals=deals, parcels=parcels).encode()):
            self.members[to] = tuple(sorted(members))

    def show_survivors(self, to: int, members: Collection[int]) -> None:
        """Phase 4: these are U3."""
        if self.ask(to, MessageType.SURVIVORS, self._roster(Phase.MASKED_INPUT, members)):
            self.told[to] = frozenset(members)

    def show_signers(self, to: int, members: Collection[int]) -> None:
        """Phase 5: these confirmed."""
        known = self.statements[Phase.CONSISTENCY]
        self.ask(to, MessageType.SIGNERS, self._roster(Phase.CONSISTENCY, [m for m in members if m in known]))

    def collect_inputs(self) -> None:
        """Phases 1 to 3, honestly."""
        self.start()
        for index in self.everybody:
            self.show_directory(index, self.everybody)
        for index in self.everybody:
            self.show_members(index, self.everybody)

    def _roster(self, phase: Phase, members: Collection[int]) -> bytes:
        return Roster({index: self.statements[phase][index] for index in sorted(members)}).encode()

    # Listening

    def take(self, envelope: Envelope) -> None:
        """Remember what a client said."""
        kind, sender = kind_of(envelope.payload), self.cast.spec.index(envelope.sender)
        content = memoryview(envelope.payload)[FRAME_BYTES:]
        if kind is MessageType.UNMASK:
            self._take_shares(sender, bytes(content[:-SIGNATURE_BYTES]))
            return
        assert kind in _BODIES, f"a client said {kind}"
        phase, size = _BODIES[kind]
        reader = Reader(content, peer=envelope.sender)
        self.statements[phase][sender] = take_signed(reader, body_bytes=size)
        rest = bytes(content[size + SIGNATURE_BYTES :])
        if kind is MessageType.MASKED_INPUT:
            self.inputs[sender] = rest
        elif kind is MessageType.SHARES:
            others = [index for index in self.statements[Phase.ADVERTISE] if index != sender]
            start = escrow_bytes(sum(index > sender for index in others))
            self.escrows[sender] = rest[:start]
            self.parcels[sender] = {}
            for index in sorted(others):
                size = Parcel.size(sender=sender, recipient=index)
                self.parcels[sender][index] = rest[start : start + size]
                start += size

    def _take_shares(self, holder: int, body: bytes) -> None:
        for place, member in enumerate(self.members[holder]):
            kind = ShareKind.SELF_MASK if member in self.told[holder] else ShareKind.ROOT
            share = body[place * SECRET_BYTES : (place + 1) * SECRET_BYTES]
            self.shares.setdefault((kind, member), {})[holder] = share

    # Computing

    def secret(self, kind: ShareKind, member: int) -> bytes | None:
        """A client's self-mask seed or root, when a threshold of its shares is known."""
        held = self.shares.get((kind, member), {})
        threshold = self.cast.spec.threshold
        if len(held) < threshold:
            return None
        return shamir.combine([(holder + 1, share) for holder, share in sorted(held.items())[:threshold]])

    def open_inputs(self, targets: Sequence[int]) -> dict[str, list[int]] | None:
        """The sum of the targets' inputs and of nobody else's; ``None`` when the masks do not come off.

        Needs the self-mask seed of every target and, for every pair of a target and another client for whom it masked
        its input, the root of one of the two.
        """
        canaries = {vector.name: self.masked.canaries(vector) for vector in self.masked.vectors}
        sums = Accumulator(self.masked.vectors, canaries=canaries)
        for target in targets:
            if target not in self.inputs or target not in self.members:
                return None
            sums.add(memoryview(self.inputs[target])[: sums.input_bytes])
        for vector in self.masked.vectors:
            streams = []
            for target in targets:
                seed = self.secret(ShareKind.SELF_MASK, target)
                if seed is None:
                    return None
                streams.append(self_stream(self.masked, target, seed, vector))
                for other in self.members[target]:
                    if other in targets:
                        continue
                    pair = self.pair_seed(target, other)
                    if pair is None:
                        return None
                    streams.append(pair_stream(self.masked, target, other, seed=pair, vector=vector))
            sums.apply(vector, [MaskStream(stream.key, stream.sign.opposite()) for stream in streams])
        sums.reduce()
        if not sums.canaries_hold(len(targets)):
            return None
        return {name: words.tolist() for name, words in sums.result().items()}

    def pair_seed(self, target: int, other: int) -> bytes | None:
        """The seed of a pair, from the root of one of the two; ``None`` while neither is known."""
        for one, peer in ((other, target), (target, other)):
            root = self.secret(ShareKind.ROOT, one)
            if root is not None:
                return self._pair_seed_of(one, peer, root)
        return None

    def _pair_seed_of(self, one: int, peer: int, root: bytes) -> bytes:
        adverts = {
            index: Advertise.decode(signed.body, peer=AGGREGATOR)
            for index, signed in self.statements[Phase.ADVERTISE].items()
        }
        encapsulated = b"", self._parcel(peer, one).kem_ciphertext
        if one < peer:
            ciphertexts = {
                index: self._parcel(one, index).kem_ciphertext for index in self.parcels[one] if index > one
            }
            deal = Deal.decode(self.statements[Phase.SHARE][one].body, peer=AGGREGATOR)
            secrets = open_escrow(
                self.masked,
                one,
                root=root,
                escrow=self.escrows[one],
                ciphertexts=ciphertexts,
                directory=deal.directory_digest,
            )
            encapsulated = secrets[peer], ciphertexts[peer]
        keys = mask_key_pair(root, digest=self.masked.digest, client=self.masked.name_of(one))
        return agree(self.masked, one, peer, keys=keys, adverts=adverts, encapsulated=encapsulated)

    def _parcel(self, dealer: int, recipient: int) -> Parcel:
        data = self.parcels[dealer][recipient]
        return Parcel.decode(data, peer=AGGREGATOR, sender=dealer, recipient=recipient)
