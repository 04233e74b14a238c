"""The scheme ``plain``: signed inputs in clear, for comparison and for tests.

It gives the same integers as every other scheme and protects nothing: the aggregator, and everybody on the
network, sees every update. Its guarantee says so.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final, Self

import numpy as np

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party, PartyState, RoundResult, Running
from secfl.crypto.attachments import Words
from secfl.crypto.hazmat.prg import usable_threads
from secfl.crypto.identity import SIGNATURE_BYTES, Directory, Identity
from secfl.crypto.inputs import Accumulator, encode_vector, input_digest
from secfl.crypto.masking_client_memory import join_signed, split_signed
from secfl.crypto.messages import PlainHeader
from secfl.crypto.snapshots import (
    decode_record,
    encode_record,
    join_indexed,
    record_kind,
    restoring,
    split_fields,
    split_indexed,
)
from secfl.crypto.wire import (
    Equivocation,
    MessageType,
    Phase,
    Reader,
    Signed,
    check_size,
    frame,
    open_frame,
    sign_body,
    take_signed,
    verify_body,
)
from secfl.errors import BelowThreshold, ConfigError, LocalProtocolError, RemoteProtocolError
from secfl.guarantees import Guarantee, Visibility
from secfl.randomness import Rng
from secfl.types import AGGREGATOR, ClientId, PrivatizedUpdate, RoundSpec, client_id, join_fields

__all__ = ["Plain", "PlainAggregator", "PlainClient"]

_CLIENT_RECORD: Final = "plain-client"
_AGGREGATOR_RECORD: Final = "plain-aggregator"


class PlainClient:
    """Sends its vectors once, signed."""

    __slots__ = ("_identity", "_index", "_inputs", "_spec", "_threads")

    def __init__(
        self,
        spec: RoundSpec,
        identity: Identity,
        *,
        directory: Directory,
        inputs: Mapping[str, Words] | None,
        threads: int,
    ) -> None:
        _check_parties(spec, directory)
        self._index = spec.index(identity.name)
        if directory.keys[identity.name] != identity.public_key():
            raise LocalProtocolError(f"{identity.name}: the signing key is not the enrolled one")
        self._spec = spec
        self._identity = identity
        self._inputs = inputs
        self._threads = threads

    def __repr__(self) -> str:
        return f"PlainClient({self._identity.name}, {self.state!r})"

    @property
    def state(self) -> PartyState:
        """`Running` until the input was sent."""
        return Finished() if self._inputs is None else Running(Phase.PLAIN_INPUT.value)

    def start(self) -> list[Envelope]:
        """Send the input.

        Raises:
            LocalProtocolError: It was started already.
        """
        if self._inputs is None:
            raise LocalProtocolError(f"{self._identity.name}: the party was already started")
        digest = self._spec.digest()
        parts = [
            encode_vector(vector, self._inputs[vector.name], canaries=0, streams=(), threads=self._threads)
            for vector in self._spec.vectors
        ]
        size = sum(part.size for part in parts)
        covered = input_digest(digest, size, [piece for part in parts for piece in part.hashes])
        signed = sign_body(
            self._identity, Phase.PLAIN_INPUT, digest=digest, body=PlainHeader(covered).encode()
        )
        head = frame(MessageType.PLAIN_INPUT, digest=digest, sender=self._index)
        payload = b"".join((head, signed.encode(), *(piece for part in parts for piece in part.pieces)))
        self._inputs = None
        return [Envelope(self._identity.name, AGGREGATOR, payload)]

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Refuse: a client of this scheme expects no message.

        Raises:
            RemoteProtocolError: Always, for an envelope that is meant for this client.
            LocalProtocolError: The envelope is for somebody else.
        """
        if envelope.recipient != self._identity.name:
            raise LocalProtocolError(
                f"{self._identity.name}: an envelope for {envelope.recipient} was delivered here"
            )
        raise RemoteProtocolError(envelope.sender, "clients of the scheme plain take no messages")

    def phase_over(self) -> list[Envelope]:
        """Nothing: a client collects from nobody."""
        return []

    def snapshot(self) -> bytes:
        """Everything needed to continue; see `Party.snapshot`."""
        inputs = self._inputs
        words = (
            b""
            if inputs is None
            else join_fields(
                *(
                    inputs[vector.name].astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()
                    for vector in self._spec.vectors
                )
            )
        )
        identity = join_fields(self._identity.name.encode(), self._identity.seed)
        return encode_record(
            _CLIENT_RECORD, {"round": self._spec.digest(), "identity": identity, "inputs": words}
        )

    @classmethod
    def restore(cls, spec: RoundSpec, *, directory: Directory, snapshot: bytes, threads: int) -> Self:
        """Continue from `snapshot`; `LocalProtocolError` when it is damaged or of another round."""
        record = decode_record(snapshot, _CLIENT_RECORD)
        with restoring("client"):
            if record["round"] != spec.digest():
                raise LocalProtocolError("snapshot: belongs to another round")
            name, seed = split_fields(record["identity"])
            identity = Identity(client_id(name.decode()), seed)
            inputs: dict[str, Words] | None = None
            if record["inputs"]:
                parts = split_fields(record["inputs"])
                inputs = {
                    vector.name: np.frombuffer(part, vector.dtype.newbyteorder("<")).astype(vector.dtype)
                    for vector, part in zip(spec.vectors, parts, strict=True)
                }
                PrivatizedUpdate.without_noise(inputs).check(spec)
            return cls(spec, identity, directory=directory, inputs=inputs, threads=threads)


class PlainAggregator:
    """Adds the inputs that arrive with a valid signature."""

    __slots__ = ("_digest", "_directory", "_evidence", "_failure", "_result", "_spec", "_statements", "_sums")

    def __init__(self, spec: RoundSpec, *, directory: Directory, threads: int) -> None:
        _check_parties(spec, directory)
        self._spec = spec
        self._digest = spec.digest()
        self._directory = directory
        self._statements: dict[int, Signed] = {}
        self._evidence: dict[int, Signed] = {}
        self._failure: BelowThreshold | None = None
        self._result: RoundResult | None = None
        canaries = {vector.name: 0 for vector in spec.vectors}
        self._sums = Accumulator(spec.vectors, canaries=canaries, threads=threads)

    def __repr__(self) -> str:
        return f"PlainAggregator({self.state!r})"

    @property
    def state(self) -> PartyState:
        """`Running` until everybody answered or the deadline passed."""
        if self._failure is not None:
            return Aborted(self._failure)
        return Running(Phase.PLAIN_INPUT.value) if self._result is None else Finished(self._result)

    @property
    def evidence(self) -> tuple[Equivocation, ...]:
        """Pairs of signed inputs by which clients contradicted themselves, at most one per client."""
        return tuple(
            Equivocation(
                phase=Phase.PLAIN_INPUT,
                sender=self._spec.cohort[index],
                first=self._statements[index],
                second=second,
            )
            for index, second in self._evidence.items()
        )

    def start(self) -> list[Envelope]:
        """Nothing: clients speak first."""
        return []

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Take a client's input; see `Party.receive`."""
        if envelope.recipient != AGGREGATOR:
            raise LocalProtocolError(f"aggregator: an envelope for {envelope.recipient} was delivered here")
        peer = envelope.sender
        if peer not in self._spec.cohort:
            raise RemoteProtocolError(peer, "is not in the cohort of this round")
        index = self._spec.index(peer)
        kind, content = open_frame(envelope.payload, peer=peer, digest=self._digest, sender=index)
        if kind is not MessageType.PLAIN_INPUT:
            raise RemoteProtocolError(peer, f"unexpected {kind.name.lower()} message")
        if not isinstance(self.state, Running):
            raise RemoteProtocolError(peer, "input after the end of the round")
        check_size(content, PlainHeader.SIZE + SIGNATURE_BYTES + self._sums.input_bytes, peer=peer)
        reader = Reader(content, peer=peer)
        signed = take_signed(reader, body_bytes=PlainHeader.SIZE)
        verify_body(self._directory, Phase.PLAIN_INPUT, digest=self._digest, sender=peer, signed=signed)
        self._check_first(index, signed)
        data = reader.view(self._sums.input_bytes)
        covered = input_digest(self._digest, len(data), self._sums.hashes(data))
        if covered != PlainHeader.decode(signed.body, peer=peer).input_digest:
            raise RemoteProtocolError(peer, "its input is not the one that it signed")
        self._sums.check(peer, data)
        self._sums.add(data)
        self._statements[index] = signed
        if len(self._statements) == len(self._spec.cohort):
            self._finish()
        return []

    def phase_over(self) -> list[Envelope]:
        """Finish with those who answered; abort when they are fewer than the threshold."""
        if isinstance(self.state, Running):
            self._finish()
        return []

    def _check_first(self, index: int, signed: Signed) -> None:
        peer, first = self._spec.cohort[index], self._statements.get(index)
        if first is None:
            return
        if first.body == signed.body:
            raise RemoteProtocolError(peer, "input repeated")
        self._evidence.setdefault(index, signed)
        raise RemoteProtocolError(peer, "second input differs from the first")

    def _finish(self) -> None:
        answered = len(self._statements)
        if answered < self._spec.threshold:
            self._failure = BelowThreshold(f"plain: {answered} inputs, threshold {self._spec.threshold}")
            return
        self._sums.reduce()
        survivors: tuple[ClientId, ...] = tuple(
            self._spec.cohort[index] for index in sorted(self._statements)
        )
        self._result = RoundResult(sums=self._sums.result(), survivors=survivors)

    def snapshot(self) -> bytes:
        """Everything needed to continue; see `Party.snapshot`."""
        return encode_record(
            _AGGREGATOR_RECORD,
            {
                "round": self._digest,
                "statements": join_signed(self._statements),
                "evidence": join_indexed({i: (signed.encode(),) for i, signed in self._evidence.items()}),
                "sums": self._sums.snapshot(),
                "over": struct.pack("<B", not isinstance(self.state, Running)),
            },
        )

    @classmethod
    def restore(cls, spec: RoundSpec, *, directory: Directory, snapshot: bytes, threads: int) -> Self:
        """Continue from `snapshot`; `LocalProtocolError` when it is damaged or of another round."""
        record = decode_record(snapshot, _AGGREGATOR_RECORD)
        aggregator = cls(spec, directory=directory, threads=threads)
        with restoring("aggregator"):
            if record["round"] != aggregator._digest:
                raise LocalProtocolError("snapshot: belongs to another round")
            aggregator._statements = split_signed(record["statements"])
            aggregator._evidence = {
                index: Signed.decode(one) for index, (one,) in split_indexed(record["evidence"]).items()
            }
            aggregator._sums.restore(split_fields(record["sums"]))
            if record["over"] != b"\x00":
                aggregator._finish()
        return aggregator


class Plain:
    """The scheme ``plain``, from one client on.

    Args:
        threads: How many threads pack and add; by default the cores at hand, at most 4.
    """

    __slots__ = ("_threads",)

    def __init__(self, *, threads: int | None = None) -> None:
        self._threads = usable_threads() if threads is None else threads

    @property
    def name(self) -> str:
        """``plain``."""
        return "plain"

    def client(
        self,
        spec: RoundSpec,
        identity: Identity,
        *,
        directory: Directory,
        update: PrivatizedUpdate,
        rng: Rng,  # noqa: ARG002 - part of the interface; nothing here is secret
    ) -> Party:
        """The client's party; see `SecureAggregation.client`."""
        self._check(spec)
        update.check(spec)
        inputs = dict(update.vectors)
        return PlainClient(spec, identity, directory=directory, inputs=inputs, threads=self._threads)

    def aggregator(self, spec: RoundSpec, *, directory: Directory) -> Party:
        """The aggregator's party; see `SecureAggregation.aggregator`."""
        self._check(spec)
        return PlainAggregator(spec, directory=directory, threads=self._threads)

    def restore(self, spec: RoundSpec, *, directory: Directory, snapshot: bytes) -> Party:
        """Continue a party; see `SecureAggregation.restore`."""
        self._check(spec)
        kind = record_kind(snapshot)
        if kind == _CLIENT_RECORD:
            return PlainClient.restore(spec, directory=directory, snapshot=snapshot, threads=self._threads)
        if kind == _AGGREGATOR_RECORD:
            return PlainAggregator.restore(
                spec, directory=directory, snapshot=snapshot, threads=self._threads
            )
        raise LocalProtocolError("snapshot: not one of a party of plain")

    def guarantee(self, spec: RoundSpec, *, survivors: int) -> Guarantee:
        """Every update is visible, to the aggregator and on the network.

        Raises:
            LocalProtocolError: The survivors are not 1 to the cohort's size.
        """
        self._check(spec)
        if not 1 <= survivors <= len(spec.cohort):
            raise LocalProtocolError(f"{survivors} survivors, expected 1 to {len(spec.cohort)}")
        return Guarantee(
            scheme=self.name,
            key_mode="none",
            cohort_size=len(spec.cohort),
            survivors=survivors,
            threshold=spec.threshold,
            curious_colluders=-1,
            malicious_colluders=-1,
            network_sees=Visibility.EVERY_UPDATE,
            client_with_network=Visibility.EVERY_UPDATE,
            assumptions=(),
            advantage_log2=-math.inf,
            notes=("Every update is visible to the aggregator and to whoever reads the network.",),
        )

    def _check(self, spec: RoundSpec) -> None:
        if spec.scheme.name != self.name:
            raise ConfigError(f"the round's scheme is {spec.scheme.name!r}, expected {self.name!r}")


def _check_parties(spec: RoundSpec, directory: Directory) -> None:
    if directory.digest() != spec.manifest_digest:
        raise LocalProtocolError("the directory of identities is not the one that the round is bound to")
    missing = [name for name in spec.cohort if name not in directory.keys]
    if missing:
        raise LocalProtocolError(f"not enrolled in the manifest: {', '.join(missing)}")
