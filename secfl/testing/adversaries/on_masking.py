"""Attacks of a malicious aggregator on masking, without the help of any client."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import numpy as np

from secfl.crypto import masking_streams
from secfl.crypto.aggregation import Envelope, Party
from secfl.crypto.hazmat.prg import MaskStream
from secfl.crypto.identity import Identity
from secfl.crypto.inputs import Accumulator
from secfl.crypto.masking import Masking
from secfl.crypto.masking_client import MaskingClient
from secfl.crypto.masking_keys import pair_key, self_key
from secfl.crypto.messages import SECRET_BYTES, Unmask
from secfl.crypto.wire import Phase
from secfl.randomness import InsecureSeededRng
from secfl.testing.adversaries.attacks import Attack, Guard, Outcome, learned, refused
from secfl.testing.adversaries.broken_masking import BrokenMasking, ClientWithoutTranscript, ObligingClient
from secfl.testing.adversaries.broken_plain import CredulousDirectory
from secfl.testing.adversaries.masking_view import MaliciousAggregator
from secfl.testing.stage import DEFAULT_VECTORS, Cast, Stage, exact_sums, same_sums
from secfl.types import ClientId, SchemeSpec, VectorSpec

__all__ = ["ATTACKS", "ask_for_both_secrets", "attacker_on", "verdict"]

_MASKING = SchemeSpec(name="masking")


def attacker_on(
    scheme: Masking,
    *,
    clients: int = 4,
    threshold: int = 3,
    vectors: tuple[VectorSpec, ...] = DEFAULT_VECTORS,
) -> MaliciousAggregator:
    """A malicious aggregator and its clients."""
    cast = Cast.make(scheme, _MASKING, clients=clients, threshold=threshold, vectors=vectors)
    rng = InsecureSeededRng(1)
    return MaliciousAggregator(cast, {name: cast.client(name, rng.fork(name)) for name in cast.cohort})


def verdict(attacker: MaliciousAggregator, targets: tuple[int, ...], what: str) -> Outcome:
    """Let the attacker open its targets' inputs, and compare with the truth."""
    opened = attacker.open_inputs(targets)
    if opened is None:
        return refused(next(iter(attacker.refusals), "the masks did not come off"))
    inputs = [attacker.cast.inputs[attacker.cast.cohort[target]] for target in targets]
    assert opened == exact_sums(attacker.cast.spec.vectors, inputs), (
        "the canaries hold, but it is another sum"
    )
    return learned(what)


# Two sets of survivors


def ask_for_both_secrets(
    attacker: MaliciousAggregator, *, in_between: Callable[[], Mapping[ClientId, Party]] = dict
) -> Outcome:
    """Ask the others twice: with the first client among the survivors, and with it dropped.

    Args:
        attacker: Has collected the inputs.
        in_between: Called between the requests; returns parties that take the clients' places.
    """
    victim, *others = attacker.everybody
    for survivors in (attacker.everybody, tuple(others)):
        for index in others:
            attacker.show_survivors(index, survivors)
        for index in others:
            attacker.show_signers(index, others)
        attacker.clients.update(in_between())
    return verdict(attacker, (victim,), "the whole input of one client, from both of its secrets")


def _both_shares(guard: Guard) -> Outcome:
    oblige = ObligingClient if guard is Guard.REMOVED else MaskingClient
    attacker = attacker_on(BrokenMasking(client_class=oblige))
    attacker.collect_inputs()
    return ask_for_both_secrets(attacker)


class _ClientWithoutConsistency(MaskingClient):
    """Gives its shares without seeing that others confirmed the same survivors."""

    __slots__ = ()

    def _unmask(self, content: memoryview) -> list[Envelope]:
        del content
        memory = self._memory
        shares = [
            memory.held[index][SECRET_BYTES:]
            if index in memory.survivors
            else memory.held[index][:SECRET_BYTES]
            for index in memory.members
        ]
        return self._answer(Phase.UNMASK, self._sign(Phase.UNMASK, Unmask(shares).encode()))


def _two_survivor_sets(guard: Guard) -> Outcome:
    """Every client hears of another set of three survivors; together their shares open the sum of two."""
    naive = _ClientWithoutConsistency if guard is Guard.REMOVED else MaskingClient
    attacker = attacker_on(BrokenMasking(client_class=naive), clients=5)
    attacker.collect_inputs()
    told = {0: (0, 1, 3), 1: (0, 1, 2), 2: (0, 1, 2), 3: (0, 1, 3), 4: (0, 1, 4)}
    for index, survivors in told.items():
        attacker.show_survivors(index, survivors)
    for index, survivors in told.items():
        attacker.show_signers(index, survivors)
    return verdict(attacker, (0, 1), "the sum of two clients, where three are the least")


# Two sets of members


class _LonelyClient(ClientWithoutTranscript):
    """Neither binds its input to the members, nor minds how few they are."""

    __slots__ = ()

    @classmethod
    def create(cls, *arguments: Any, **more: Any) -> _LonelyClient:
        """Without a minimum."""
        client = super().create(*arguments, **more)
        client._memory.minimum = 1  # noqa: SLF001 - this class breaks its parent
        return client


class _ClientWithoutMinimum(MaskingClient):
    """Checks the transcript, but does not mind how few members there are."""

    __slots__ = ()

    @classmethod
    def create(cls, *arguments: Any, **more: Any) -> _ClientWithoutMinimum:
        """Without a minimum."""
        client = super().create(*arguments, **more)
        client._memory.minimum = 1  # noqa: SLF001 - this class breaks its parent
        return client


def _two_member_sets(client_class: type[MaskingClient]) -> Outcome:
    """One client is told that it is alone: its input has only its self mask, which the others help to remove."""
    attacker = attacker_on(BrokenMasking(client_class=client_class))
    victim, *others = attacker.everybody
    attacker.start()
    for index in attacker.everybody:
        attacker.show_directory(index, attacker.everybody)
    attacker.show_members(victim, [victim])
    for index in others:
        attacker.show_members(index, attacker.everybody)
    for index in others:
        if victim in attacker.inputs:
            attacker.show_survivors(index, attacker.everybody)
    for index in others:
        attacker.show_signers(index, others)
    return verdict(attacker, (victim,), "the whole input of the client that was told it is alone")


def _two_member_sets_transcript(guard: Guard) -> Outcome:
    return _two_member_sets(_LonelyClient if guard is Guard.REMOVED else _ClientWithoutMinimum)


def _two_member_sets_minimum(guard: Guard) -> Outcome:
    return _two_member_sets(_LonelyClient if guard is Guard.REMOVED else ClientWithoutTranscript)


# An input that comes late


class _ClientWithoutSelfMask(MaskingClient):
    """Masks towards the others only."""

    __slots__ = ()

    def _streams(self, vector: VectorSpec, seeds: Mapping[int, bytes]) -> list[MaskStream]:
        return super()._streams(vector, seeds)[1:]


def _late_input(guard: Guard) -> Outcome:
    """A client is declared dropped, its pair masks are recovered, and then its input arrives after all."""
    single = _ClientWithoutSelfMask if guard is Guard.REMOVED else MaskingClient
    attacker = attacker_on(BrokenMasking(client_class=single))
    attacker.collect_inputs()
    victim, *others = attacker.everybody
    for index in others:
        attacker.show_survivors(index, others)
    for index in others:
        attacker.show_signers(index, others)
    canaries = {vector.name: attacker.masked.canaries(vector) for vector in attacker.masked.vectors}
    late = Accumulator(attacker.masked.vectors, canaries=canaries)
    late.add(memoryview(attacker.inputs[victim]))
    for vector in attacker.masked.vectors:
        streams = []
        for other in others:
            seed = attacker.pair_seed(victim, other)
            assert seed is not None, "the root of a dropped client is known"
            stream = masking_streams.pair_stream(attacker.masked, victim, other, seed=seed, vector=vector)
            streams.append(MaskStream(stream.key, stream.sign.opposite()))
        late.apply(vector, streams)
    late.reduce()
    if not late.canaries_hold(1):
        return refused("the self mask of a client that dropped out stays on its input")
    truth = attacker.cast.inputs[attacker.cast.cohort[victim]]
    assert {name: words.tolist() for name, words in late.result().items()} == exact_sums(
        attacker.cast.spec.vectors, [truth]
    )
    return learned("the whole input of a client that was slow")


# Keys


class _Impersonated(CredulousDirectory):
    """Has another's keys under the pinned digest, so that an attacker's own parties start at all."""

    def digest(self) -> bytes:
        """The pinned one."""
        return self.pinned

    pinned: bytes = b""


def _replaced_key(guard: Guard) -> Outcome:
    """The aggregator plays all other clients itself, with keys of its own."""
    scheme = Masking(threads=1)
    cast = Cast.make(scheme, _MASKING, clients=3, threshold=3)
    victim, *others = cast.cohort
    rng = InsecureSeededRng(99)
    fakes = {name: Identity.generate(name, rng) for name in others}
    keys = dict(cast.directory.keys) | {name: fake.public_key() for name, fake in fakes.items()}
    forged = _Impersonated(keys)
    object.__setattr__(forged, "pinned", cast.directory.digest())
    zeros = {
        name: {vector.name: np.zeros(vector.length, vector.dtype) for vector in cast.spec.vectors}
        for name in others
    }
    mine = Cast(
        scheme=scheme,
        spec=cast.spec,
        identities=fakes,
        directory=forged,
        inputs={victim: cast.inputs[victim], **zeros},
    )
    believed = CredulousDirectory.of(cast.directory) if guard is Guard.REMOVED else cast.directory
    trusting = Cast(
        scheme=scheme, spec=cast.spec, identities=cast.identities, directory=believed, inputs=cast.inputs
    )
    parties = {victim: trusting.client(victim, InsecureSeededRng(1))}
    stage = Stage(mine, rng=InsecureSeededRng(2), parties=parties)
    result = stage.play()
    if result is None or victim not in result.survivors:
        own = [refusal.error for refusal in stage.refusals if refusal.envelope.recipient == victim]
        return refused(own[0])
    assert same_sums(result, cast.expected([victim]))
    return learned("the whole input of one client, in a cohort of the aggregator's own inventions")


# Streams


def _one_stream_for_two_vectors(guard: Guard) -> Outcome:
    """Whoever sees one masked input subtracts its two vectors from each other."""
    vectors = tuple(VectorSpec(name=name, length=16, modulus_bits=32) for name in ("a", "b"))
    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            for module_name, derive in (("self_key", self_key), ("pair_key", pair_key)):
                without.enter_context(patch.object(masking_streams, module_name, _for_one_vector(derive)))
        attacker = attacker_on(Masking(threads=1), vectors=vectors)
        attacker.collect_inputs()
    words = np.frombuffer(attacker.inputs[0], np.uint32).reshape(2, -1)[:, :16]
    truth = attacker.cast.inputs[attacker.cast.cohort[0]]
    if (words[0] - words[1] == truth["a"] - truth["b"]).all():
        return learned("the difference of a client's two vectors, from its masked input alone")
    return refused("the two vectors are masked by unrelated streams")


def _for_one_vector(derive: Callable[..., bytes]) -> Callable[..., bytes]:
    """A key derivation that gives every vector the key of the vector ``a``."""
    first = VectorSpec(name="a", length=16, modulus_bits=32)
    return lambda seed, _vector, **more: derive(seed, first, **more)


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="ask every client for both of a client's secrets",
        line="both shares of one client; an unmask or consistency request repeated with other content",
        guard="a client answers each phase once",
        play=_both_shares,
    ),
    Attack(
        name="tell every client of other survivors",
        line="two survivor sets",
        guard="the consistency round",
        play=_two_survivor_sets,
    ),
    Attack(
        name="tell one client that it is alone, and have the others unmask it",
        line="two U2 sets",
        guard="T2, the transcript of the members, in every header (and no minimum)",
        play=_two_member_sets_transcript,
    ),
    Attack(
        name="the same against the minimum alone",
        line="two U2 sets; a client's own minimum cohort not met",
        guard="the minimum of members (and no T2)",
        play=_two_member_sets_minimum,
    ),
    Attack(
        name="declare a slow client dropped and wait for its input",
        line="both shares of one client",
        guard="the self mask",
        play=_late_input,
    ),
    Attack(
        name="replace all other clients' keys by keys of one's own",
        line="a replaced public key",
        guard="signatures under the pinned manifest",
        play=_replaced_key,
    ),
    Attack(
        name="subtract two vectors of one masked input",
        line="two vectors under one mask label",
        guard="a stream key per vector",
        play=_one_stream_for_two_vectors,
    ),
)
