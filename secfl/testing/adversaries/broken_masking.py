"""Masking with one thing wrong: negative controls (see `secfl.testing.adversaries.broken`). Never use one of these."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from secfl.crypto.aggregation import Envelope, Party, PartyState, Running
from secfl.crypto.hazmat.sealed import check_hybrid_public
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.masking import Masking
from secfl.crypto.masking_aggregator import MaskingAggregator
from secfl.crypto.masking_aggregator_memory import AGGREGATOR_RECORD
from secfl.crypto.masking_client import MaskingClient
from secfl.crypto.masking_phases import CLIENT_STEPS, phase_accepting
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.messages import Advertise
from secfl.crypto.snapshots import record_kind
from secfl.crypto.wire import Phase, Signed
from secfl.errors import RemoteProtocolError
from secfl.randomness import Rng
from secfl.testing.adversaries.forging import kind_of
from secfl.types import PrivatizedUpdate, RoundSpec

__all__ = [
    "AggregatorWithoutTranscript",
    "BrittleAggregator",
    "BrokenMasking",
    "ClientWithoutTranscript",
    "FoldedRng",
    "LeakyClient",
    "ObligingClient",
    "OneSecretClient",
    "SecretiveAggregator",
]

_NO_DIGEST: Final = bytes(32)


class BrokenMasking(Masking):
    """Masking with other classes of parties.

    Args:
        client_class: Of the clients.
        aggregator_class: Of the aggregator.
        wrong_rng: Changes the source from which a client draws.
    """

    __slots__ = ("_aggregator_class", "_client_class", "_wrong_rng")

    def __init__(
        self,
        *,
        client_class: type[MaskingClient] = MaskingClient,
        aggregator_class: type[MaskingAggregator] = MaskingAggregator,
        wrong_rng: Callable[[Rng], Rng] = lambda rng: rng,
    ) -> None:
        super().__init__(threads=1)
        self._client_class = client_class
        self._aggregator_class = aggregator_class
        self._wrong_rng = wrong_rng

    def client(
        self, spec: RoundSpec, identity: Identity, *, directory: Directory, update: PrivatizedUpdate, rng: Rng
    ) -> Party:
        """A client of the broken class."""
        return self._client_class.create(
            self._round(spec),
            identity,
            directory=directory,
            vectors=update.vectors,
            rng=self._wrong_rng(rng),
        )

    def aggregator(self, spec: RoundSpec, *, directory: Directory) -> Party:
        """An aggregator of the broken class."""
        return self._aggregator_class.create(self._round(spec), directory=directory)

    def restore(self, spec: RoundSpec, *, directory: Directory, snapshot: bytes) -> Party:
        """A party of the broken class."""
        masked = self._round(spec)
        if record_kind(snapshot) == AGGREGATOR_RECORD:
            return self._aggregator_class.restore(masked, directory=directory, snapshot=snapshot)
        return self._client_class.restore(masked, directory=directory, snapshot=snapshot)


class LeakyClient(MaskingClient):
    """Sends its first coordinate in clear, where a random nonce should be."""

    @classmethod
    def create(cls, masked: MaskedRound, identity: Identity, **arguments: Any) -> LeakyClient:
        """Draws its secrets properly, then replaces the escrow's nonce."""
        client = super().create(masked, identity, **arguments)
        memory = client._memory  # noqa: SLF001 - this class breaks its parent
        assert memory.secrets is not None
        assert memory.inputs is not None
        first = int(memory.inputs[masked.vectors[0].name][0])
        leak = first.to_bytes(8, "little") + memory.secrets.nonce[8:]
        memory.secrets = replace(memory.secrets, nonce=leak)
        return client


class OneSecretClient(MaskingClient):
    """Its root is the seed of its self mask, which the aggregator learns in every round."""

    @classmethod
    def create(cls, masked: MaskedRound, identity: Identity, **arguments: Any) -> OneSecretClient:
        """Draws its secrets properly, then uses one of them twice."""
        client = super().create(masked, identity, **arguments)
        memory = client._memory  # noqa: SLF001 - this class breaks its parent
        assert memory.secrets is not None
        memory.secrets = replace(memory.secrets, root=memory.secrets.self_mask)
        return client


class FoldedRng:
    """Every draw is folded to a few bits and expanded again, as a 32-byte secret was to seed a 32-bit generator."""

    def __init__(self, inner: Rng, *, bits: int = 8) -> None:
        self._inner = inner
        self._bits = bits

    @property
    def is_secret(self) -> bool:
        """What it claims."""
        return self._inner.is_secret

    def bytes(self, count: int) -> bytes:
        """``count`` bytes with ``bits`` bits of entropy."""
        folded = 0
        for word in struct.unpack("<4Q", self._inner.bytes(32)):
            folded ^= word
        seed = struct.pack("<Q", folded % (1 << self._bits))
        return hashlib.shake_256(seed).digest(count)

    def fork(self, label: str) -> FoldedRng:
        """A folded fork."""
        return FoldedRng(self._inner.fork(label), bits=self._bits)


class ObligingClient(MaskingClient):
    """Answers a second, different request for its confirmation and for its shares: both shares of one client."""

    __slots__ = ()

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """As often as it is asked."""
        memory = self._memory
        kind = kind_of(envelope.payload)
        phase = None if kind is None else phase_accepting(CLIENT_STEPS, kind)
        stood = memory.phase
        digest = hashlib.sha256(envelope.payload).digest()
        if phase in {Phase.CONSISTENCY, Phase.UNMASK} and memory.answered.get(phase, digest) != digest:
            memory.phase = phase
        try:
            answer = super().receive(envelope)
        except RemoteProtocolError:
            memory.phase = stood
            raise
        return answer

    def _unmask(self, content: memoryview) -> list[Envelope]:
        held = self._memory.held
        answer = super()._unmask(content)
        self._memory.held = held
        return answer


class ClientWithoutTranscript(MaskingClient):
    """Does not bind its masked input to the members for whom it masked it."""

    __slots__ = ()

    def _masked_input(
        self, members: tuple[int, ...], digest: bytes, ciphertexts: Mapping[int, bytes]
    ) -> tuple[Signed, list[bytes]]:
        del digest
        return super()._masked_input(members, _NO_DIGEST, ciphertexts)

    def _mask(self, content: memoryview) -> list[Envelope]:
        answer = super()._mask(content)
        self._memory.members_digest = _NO_DIGEST
        return answer


class AggregatorWithoutTranscript(MaskingAggregator):
    """Does not compare the members of different clients."""

    __slots__ = ()

    def _advance(self) -> list[Envelope]:
        sent = super()._advance()
        if self._memory.members_digest:
            self._memory.members_digest = _NO_DIGEST
        return sent


class BrittleAggregator(MaskingAggregator):
    """Lets a library's own error through when a signed key is malformed."""

    __slots__ = ()

    def _take_advertise(self, index: int, signed: Signed, *_: object) -> None:
        advert = Advertise.decode(signed.body, peer=self._masked.name_of(index))
        check_hybrid_public(advert.mask_key)
        check_hybrid_public(advert.sealing)


class SecretiveAggregator(MaskingAggregator):
    """Does not say whose inputs it is about to open."""

    __slots__ = ()

    @property
    def state(self) -> PartyState:
        """Without survivors."""
        state = super().state
        return Running(state.phase) if isinstance(state, Running) else state
