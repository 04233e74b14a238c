"""A round carried by hand, so that a test can stop it, drop from it, and lie in it anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from secfl.crypto.aggregation import Envelope, Finished, Running
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.masking import Masking
from secfl.crypto.wire import FRAME_BYTES, Phase, Reader, Roster, Signed, sign_body
from secfl.errors import RemoteProtocolError
from secfl.randomness import InsecureSeededRng
from secfl.types import AGGREGATOR, ClientId, PrivatizedUpdate, RoundId, RoundSpec, SchemeSpec, VectorSpec

SMALL = (VectorSpec(name="update", length=7, modulus_bits=16),)
SEVERAL = (
    VectorSpec(name="update", length=11, modulus_bits=22),
    VectorSpec(name="weights", length=1, modulus_bits=40),
    VectorSpec(name="votes", length=3, modulus_bits=2),
)
PHASES = ("advertise", "share", "masked-input", "consistency", "unmask")


def make_spec(identities, directory, *, threshold, vectors, scheme="masking", round_id=1, **digests):
    values = dict.fromkeys(("model_digest", "task_digest", "plan_digest"), bytes(32)) | digests
    return RoundSpec(
        run_id=b"run-of-the-tests",
        round_id=RoundId(round_id),
        cohort=tuple(sorted(identity.name for identity in identities)),
        threshold=threshold,
        vectors=vectors,
        scheme=SchemeSpec(name=scheme),
        manifest_digest=directory.digest(),
        **values,
    )


def random_inputs(names, vectors, seed):
    source = np.random.default_rng(seed)
    return {
        name: {
            vector.name: source.integers(0, 1 << vector.modulus_bits, vector.length, dtype=np.uint64).astype(
                vector.dtype
            )
            for vector in vectors
        }
        for name in names
    }


def expected_sums(vectors, inputs, survivors):
    """Python integers, one by one."""
    return {
        vector.name: [
            sum(int(inputs[name][vector.name][place]) for name in survivors) % (1 << vector.modulus_bits)
            for place in range(vector.length)
        ]
        for vector in vectors
    }


class Round:
    """Clients c0, c1, ... and the aggregator, between two messages of a round."""

    def __init__(
        self,
        clients=4,
        threshold=3,
        *,
        vectors=SMALL,
        scheme=None,
        seed=0,
        round_id=1,
        inputs=None,
        **digests,
    ):
        self.scheme = scheme or Masking(threads=1)
        self.rng = InsecureSeededRng(seed)
        self.identities = {
            ClientId(f"c{index:02d}"): Identity.generate(f"c{index:02d}", self.rng)
            for index in range(clients)
        }
        self.names = tuple(self.identities)
        self.directory = Directory.enroll(self.identities.values())
        self.vectors = vectors
        self.spec = make_spec(
            self.identities.values(),
            self.directory,
            threshold=threshold,
            vectors=vectors,
            scheme=self.scheme.name,
            round_id=round_id,
            **digests,
        )
        self.inputs = inputs or random_inputs(self.names, vectors, seed)
        self.parties = {name: self.client(name) for name in self.names}
        self.aggregator = self.scheme.aggregator(self.spec, directory=self.directory)
        self.transcript: list[Envelope] = []

    def client(self, name, *, spec=None, rng=None, scheme=None):
        return (scheme or self.scheme).client(
            spec or self.spec,
            self.identities[name],
            directory=self.directory,
            update=PrivatizedUpdate.without_noise(self.inputs[name]),
            rng=rng or self.rng.fork(name),
        )

    @property
    def phase(self):
        return self.aggregator.state.phase if isinstance(self.aggregator.state, Running) else None

    def start(self) -> list[Envelope]:
        return [envelope for party in self.parties.values() for envelope in party.start()]

    def deliver(self, envelope: Envelope) -> list[Envelope]:
        """Hand one envelope to its recipient."""
        self.transcript.append(envelope)
        party = self.aggregator if envelope.recipient == AGGREGATOR else self.parties[envelope.recipient]
        return party.receive(envelope)

    def collect(self, messages: Iterable[Envelope]) -> list[Envelope]:
        """Hand clients' messages to the aggregator, end its phase, and return what it sends."""
        phase = self.phase
        sent = [answer for envelope in messages for answer in self.deliver(envelope)]
        if self.phase == phase and phase is not None:
            sent += self.aggregator.phase_over()
        return sent

    def answer(self, requests: Iterable[Envelope]) -> list[Envelope]:
        """Hand the aggregator's messages to the clients and return their answers."""
        return [answer for envelope in requests for answer in self.deliver(envelope)]

    def run_until(self, phase: str, *, dropped=None) -> list[Envelope]:
        """Honestly up to the clients' messages of ``phase``, which are returned undelivered."""
        messages = self._keep(self.start(), dropped)
        while self.phase != phase:
            messages = self._keep(self.answer(self.collect(messages)), dropped)
            assert self.phase is not None, "the round ended before that phase"
        return messages

    def requests_until(self, phase: str, *, dropped=None) -> list[Envelope]:
        """Honestly up to the aggregator's messages that open ``phase`` for the clients."""
        before = PHASES[PHASES.index(phase) - 1]
        return self.collect(self.run_until(before, dropped=dropped))

    def finish(self, messages=None, *, dropped=None):
        """Carry the round to its end; returns the aggregator's state."""
        messages = self._keep(self.start() if messages is None else messages, dropped)
        while self.phase is not None:
            messages = self._keep(self.answer(self.collect(messages)), dropped)
        return self.aggregator.state

    def _keep(self, messages, dropped):
        """Without those clients who are lost in this phase or were before: phase -> names."""
        if not dropped or self.phase is None:
            return messages
        so_far = PHASES[: PHASES.index(self.phase) + 1] if self.phase in PHASES else (self.phase,)
        gone = {name for phase in so_far for name in dropped.get(phase, ())}
        return [envelope for envelope in messages if envelope.sender not in gone]

    def check(self, state=None):
        """The sums are those of the survivors; returns the survivors."""
        state = state or self.aggregator.state
        assert isinstance(state, Finished), state
        survivors = state.result.survivors
        found = {name: values.tolist() for name, values in state.result.sums.items()}
        assert found == expected_sums(self.vectors, self.inputs, survivors)
        return survivors

    def index(self, name):
        return self.names.index(name)


def content_of(envelope):
    """A message without its frame."""
    return envelope.payload[FRAME_BYTES:]


def replaced(envelope, content):
    """The same frame around other content."""
    return Envelope(envelope.sender, envelope.recipient, envelope.payload[:FRAME_BYTES] + content)


def resigned(case: Round, envelope: Envelope, phase: Phase, body: bytes, rest: bytes) -> Envelope:
    """A client's message with another body under its own valid signature."""
    identity = case.identities[envelope.sender]
    signed = sign_body(identity, phase, digest=case.spec.digest(), body=body)
    return replaced(envelope, signed.encode() + rest)


def outcome(call: Callable[[], object]) -> RemoteProtocolError | None:
    """The refusal that a call ends in, if it does. Any other exception escapes."""
    try:
        call()
    except RemoteProtocolError as error:
        return error
    return None


def refusal(call: Callable[[], object]) -> RemoteProtocolError:
    """The refusal that a call ends in."""
    error = outcome(call)
    assert error is not None, "expected a refusal"
    return error


def roster_of(request, body_bytes, clients):
    """The statements in an aggregator's request, by position."""
    content = memoryview(content_of(request))
    members = Roster.read_members(content, peer="test", clients=clients)
    return dict(Roster.take(Reader(content, peer="test"), members=members, body_bytes=body_bytes).members)


def request_for(requests, name):
    return next(envelope for envelope in requests if envelope.recipient == name)


def message_of(messages, name):
    return next(envelope for envelope in messages if envelope.sender == name)


def forged_request(request, members):
    """The aggregator's request with another roster."""
    return replaced(request, Roster(members).encode())


def signed_part(message, body_bytes):
    content = content_of(message)
    return Signed(content[:body_bytes], content[body_bytes : body_bytes + 64])


def refused(party, envelope):
    """The refusal, after checking that it left no trace in the party."""
    before = party.snapshot()
    error = refusal(lambda: party.receive(envelope))
    if not getattr(party, "evidence", ()) and not getattr(party, "conflicts", ()):
        assert party.snapshot() == before
    return error
