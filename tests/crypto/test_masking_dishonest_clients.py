"""What docs/protocol.md, section 5, says of dishonest clients: refused, blamed, and never summed.

The attacker signs with its own valid key.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from secfl.crypto.aggregation import Aborted, Envelope
from secfl.crypto.hazmat import merkle
from secfl.crypto.hazmat.sealed import seal_to
from secfl.crypto.inputs import input_digest
from secfl.crypto.masking_client_memory import ClientMemory
from secfl.crypto.masking_keys import (
    ClientSecrets,
    ShareKind,
    mask_key_pair,
    self_key,
    share_commitment,
    share_context,
)
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.messages import (
    Advertise,
    Deal,
    Delivery,
    InputHeader,
    Parcel,
    Unmask,
    escrow_bytes,
)
from secfl.crypto.wire import FRAME_BYTES, Phase
from secfl.errors import ConfigError
from secfl.randomness import InsecureSeededRng
from secfl.types import AGGREGATOR, VectorSpec

PHASES = ("advertise", "share", "masked-input", "consistency", "unmask")


# Dishonest dealers


class Dealer:
    """A client that deals wrongly in phase 2, with its own valid signature on all of it."""

    def __init__(self, rounds, case, name, *, dropped=None):
        self.rounds, self.case, self.name, self.index = rounds, case, name, case.index(name)
        self.messages = case.run_until("share", dropped=dropped)
        own = rounds.message_of(self.messages, name)
        content = rounds.content_of(own)
        self.own = own
        self.deal = Deal.decode(content[: Deal.SIZE], peer="test")
        self.members = sorted(case.index(envelope.sender) for envelope in self.messages)
        start = Deal.SIZE + 64
        end = start + escrow_bytes(sum(to > self.index for to in self.members))
        self.escrow = content[start:end]
        self.parcels = {}
        for to in self.members:
            if to != self.index:
                size = Parcel.size(sender=self.index, recipient=to)
                self.parcels[to] = Parcel.decode(
                    content[end : end + size], peer="test", sender=self.index, recipient=to
                )
                end += size

    def reseal(self, to, share):
        """A parcel with another share, correctly committed to and sealed."""
        digest, dealer, holder = self.case.spec.digest(), self.name, self.case.names[to]
        adverts = self.case.aggregator._memory.statements[Phase.ADVERTISE]
        public = Advertise.decode(adverts[to].body, peer="test").sealing
        commit = {
            kind: share_commitment(part, kind, digest=digest, dealer=dealer, holder=holder)
            for kind, part in ((ShareKind.ROOT, share[:32]), (ShareKind.SELF_MASK, share[32:]))
        }
        self.parcels[to] = replace(
            self.parcels[to],
            sealed=seal_to(public, share, info=share_context(digest=digest, dealer=dealer, holder=holder)),
            root_commitment=commit[ShareKind.ROOT],
            self_commitment=commit[ShareKind.SELF_MASK],
        )

    def message(self, **changes):
        encoded = {to: parcel.encode() for to, parcel in self.parcels.items()}
        deal = replace(
            self.deal,
            escrow_digest=hashlib.sha256(self.escrow).digest(),
            parcels_root=merkle.root(encoded, places=len(self.case.names)),
            **changes,
        )
        rest = self.escrow + b"".join(encoded[to] for to in sorted(encoded))
        forged = self.rounds.resigned(self.case, self.own, Phase.SHARE, deal.encode(), rest)
        party = self.case.parties[self.name]
        party._memory.own[Phase.SHARE] = self.rounds.signed_part(forged, Deal.SIZE)
        return [forged if envelope is self.own else envelope for envelope in self.messages]


def test_a_share_that_does_not_open_is_blamed_on_its_dealer(rounds):
    case = rounds.Round(4, 3)
    dealer = Dealer(rounds, case, "c01")
    sealed = dealer.parcels[0].sealed
    dealer.parcels[0] = replace(dealer.parcels[0], sealed=sealed[:-1] + bytes([sealed[-1] ^ 1]))
    request = rounds.request_for(case.collect(dealer.message()), "c00")
    error = rounds.refused(case.parties["c00"], request)
    assert (error.peer, error.reason) == ("c01", "its sealed share does not open")


def test_a_share_sealed_for_another_client_does_not_open(rounds):
    case = rounds.Round(4, 3)
    dealer = Dealer(rounds, case, "c01")
    dealer.parcels[0] = replace(dealer.parcels[0], sealed=dealer.parcels[3].sealed)
    request = rounds.request_for(case.collect(dealer.message()), "c00")
    assert rounds.refused(case.parties["c00"], request).peer == "c01"


def test_a_share_other_than_committed_is_blamed_on_its_dealer(rounds):
    case = rounds.Round(4, 3)
    dealer = Dealer(rounds, case, "c01")
    dealer.parcels[0] = replace(dealer.parcels[0], root_commitment=bytes(32))
    request = rounds.request_for(case.collect(dealer.message()), "c00")
    error = rounds.refused(case.parties["c00"], request)
    assert (error.peer, error.reason) == ("c01", "its share differs from its commitment")


@pytest.mark.parametrize("lost", [{}, {"masked-input": {"c01"}}])
def test_shares_that_do_not_combine_are_blamed_on_their_dealer(rounds, lost):
    """Every share matches its commitment, but they lie on no common polynomial: nothing is summed."""
    case = rounds.Round(4, 3)
    dealer = Dealer(rounds, case, "c01")
    for to in dealer.parcels:
        dealer.reseal(to, bytes([to]) * 64)
    messages = case.answer(case.collect(dealer.message()))
    state = case.finish(messages, dropped=lost)
    assert isinstance(state, Aborted)
    assert case.aggregator.blamed == ("c01",)
    assert "c01: the shares that it dealt do not give what it committed to" in str(state.reason)
    again = case.scheme.restore(case.spec, directory=case.directory, snapshot=case.aggregator.snapshot())
    assert again.blamed == ("c01",)


def test_a_wrong_escrow_is_blamed_when_its_owner_drops_out(rounds):
    case = rounds.Round(4, 3)
    dealer = Dealer(rounds, case, "c01")
    dealer.escrow = dealer.escrow[:-1] + bytes([dealer.escrow[-1] ^ 1])
    state = case.finish(case.answer(case.collect(dealer.message())), dropped={"masked-input": {"c01"}})
    assert isinstance(state, Aborted)
    assert case.aggregator.blamed == ("c01",)
    assert "its escrow does not open" in str(state.reason)


def test_keys_that_do_not_follow_from_the_root_are_blamed_when_their_owner_drops_out(rounds):
    case = rounds.Round(4, 3)
    messages = case.start()
    own = rounds.message_of(messages, "c01")
    other = ClientSecrets.draw(InsecureSeededRng(5), threshold=3).sealing.public()
    advert = Advertise.decode(rounds.content_of(own)[: Advertise.SIZE], peer="test")
    forged = rounds.resigned(case, own, Phase.ADVERTISE, other + advert.sealing, b"")
    case.parties["c01"]._memory.own[Phase.ADVERTISE] = rounds.signed_part(forged, Advertise.SIZE)
    messages = case.answer(case.collect([forged if envelope is own else envelope for envelope in messages]))
    state = case.finish(messages, dropped={"masked-input": {"c01"}})
    assert isinstance(state, Aborted)
    assert case.aggregator.blamed == ("c01",)
    assert "its root does not give the keys that it advertised" in str(state.reason)


def test_a_wrong_kem_ciphertext_opens_nothing(rounds):
    """The pair's masks do not cancel: the canaries show it, and the sum of garbage is not handed out."""
    case = rounds.Round(4, 3)
    dealer = Dealer(rounds, case, "c00")
    ciphertext = dealer.parcels[2].kem_ciphertext
    dealer.parcels[2] = replace(dealer.parcels[2], kem_ciphertext=bytes([ciphertext[0] ^ 1]) + ciphertext[1:])
    state = case.finish(case.answer(case.collect(dealer.message())))
    assert isinstance(state, Aborted)
    assert "canaries" in str(state.reason)


def test_a_deal_for_another_directory_is_refused(rounds):
    case = rounds.Round(4, 3)
    dealer = Dealer(rounds, case, "c01")
    forged = rounds.message_of(dealer.message(directory_digest=bytes(32)), "c01")
    error = rounds.refused(case.aggregator, forged)
    assert (error.peer, error.reason) == ("c01", "dealt shares for another directory")


def test_parcels_and_escrow_are_covered_by_the_dealers_signature(rounds):
    case = rounds.Round(4, 3)
    messages = case.run_until("share")
    own = rounds.message_of(messages, "c01")
    content = rounds.content_of(own)
    places = {
        Deal.SIZE + 64: "escrow",
        Deal.SIZE + 64 + escrow_bytes(2): "parcels",
        len(content) - 1: "parcels",
    }
    for place, part in places.items():
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        error = rounds.refused(case.aggregator, rounds.replaced(own, flipped))
        assert error.peer == "c01"
        assert part in error.reason


def test_the_aggregator_cannot_exchange_parcels(rounds):
    case = rounds.Round(4, 3)
    request = rounds.request_for(case.requests_until("masked-input"), "c03")
    delivery = Delivery.decode(memoryview(rounds.content_of(request)), peer="test", recipient=3, clients=4)
    for change in (
        {0: delivery.parcels[1]},
        {0: (delivery.parcels[0][0], delivery.parcels[1][1])},
        {0: (delivery.parcels[0][0][:-1] + b"\0", delivery.parcels[0][1])},
    ):
        forged = Delivery(deals=delivery.deals, parcels=dict(delivery.parcels) | change)
        error = rounds.refused(case.parties["c03"], rounds.replaced(request, forged.encode()))
        assert error.peer == AGGREGATOR
        assert "the parcel from c00 is not the one that it signed" in error.reason


# Dishonest holders and inputs


@pytest.mark.parametrize("lost", [{}, {"masked-input": {"c04"}}])
def test_a_wrong_share_is_blamed_and_not_used(rounds, lost):
    case = rounds.Round(5, 3)
    messages = case.run_until("unmask", dropped=lost)
    own = rounds.message_of(messages, "c00")
    body = rounds.content_of(own)[: Unmask.size(5)]
    for place in (0, 2, 4):
        wrong = body[: 32 * place] + bytes(32) + body[32 * (place + 1) :]
        error = rounds.refused(case.aggregator, rounds.resigned(case, own, Phase.UNMASK, wrong, b""))
        assert error.peer == "c00"
        assert f"a share of c{place:02d} that is not the one it holds" in error.reason
    case.finish([envelope for envelope in messages if envelope is not own])
    case.check()


def test_shares_of_the_other_kind_are_refused(rounds):
    """A holder that offers root shares of survivors would help to open single inputs."""
    case = rounds.Round(4, 3)
    held = None
    messages = case.start()
    while case.phase != "unmask":
        sent = case.collect(messages)
        held = dict(case.parties["c00"]._memory.held) or held
        messages = case.answer(sent)
    own = rounds.message_of(messages, "c00")
    body = b"".join(held[index][:32] for index in range(4))
    error = rounds.refused(case.aggregator, rounds.resigned(case, own, Phase.UNMASK, body, b""))
    assert error.peer == "c00"


def test_a_copied_input_does_not_count_as_the_copiers(rounds):
    """c01 signs the masked input of c00 as its own: the masks do not cancel, and the canaries show it."""
    case = rounds.Round(4, 3)
    messages = case.run_until("masked-input")
    victim, copier = rounds.message_of(messages, "c00"), rounds.message_of(messages, "c01")
    replayed = Envelope("c01", AGGREGATOR, victim.payload)
    assert "names another sender" in rounds.refused(case.aggregator, replayed).reason
    relabelled = rounds.replaced(copier, rounds.content_of(victim))
    assert "bad signature" in rounds.refused(case.aggregator, relabelled).reason
    content = rounds.content_of(victim)
    copied = rounds.resigned(case, copier, Phase.MASKED_INPUT, content[:64], content[128:])
    case.parties["c01"]._memory.own[Phase.MASKED_INPUT] = rounds.signed_part(copied, 64)
    state = case.finish([copied if envelope is copier else envelope for envelope in messages])
    assert isinstance(state, Aborted)
    assert "canaries" in str(state.reason)


def test_an_input_changed_on_the_way_is_refused(rounds):
    case = rounds.Round(4, 3, vectors=rounds.SEVERAL)
    messages = case.run_until("masked-input")
    payload = messages[0].payload
    for place in (FRAME_BYTES + 128, len(payload) - 1):
        flipped = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 :]
        error = rounds.refused(case.aggregator, Envelope("c00", AGGREGATOR, flipped))
        assert (error.peer, error.reason) == ("c00", "its input is not the one that it signed")


def test_unused_bits_of_an_input_are_zero(rounds):
    """One input has one encoding, also where the sender signs another."""
    vectors = (VectorSpec(name="update", length=3, modulus_bits=11),)
    case = rounds.Round(3, 3, vectors=vectors)
    own = case.run_until("masked-input")[0]
    content = rounds.content_of(own)
    data = content[128:-1] + bytes([content[-1] | 0x80])
    covered = input_digest(case.spec.digest(), len(data), [hashlib.sha256(data).digest()])
    body = InputHeader(members_digest=content[:32], input_digest=covered).encode()
    error = rounds.refused(case.aggregator, rounds.resigned(case, own, Phase.MASKED_INPUT, body, data))
    assert "unused bit" in error.reason


# Other rounds, models, tasks, and retries


@pytest.mark.parametrize("digest", ["model_digest", "task_digest", "plan_digest"])
def test_a_client_with_another_model_or_task_takes_no_part(rounds, digest):
    """Such as learning rate 0 for all but one, so that the sum would be that one's update."""
    case = rounds.Round(4, 3)
    other = rounds.Round(4, 3, **{digest: b"\x01" * 32})
    assert other.spec.digest() != case.spec.digest()
    case.parties["c00"] = other.parties["c00"]
    messages = case.start()
    error = rounds.refused(case.aggregator, rounds.message_of(messages, "c00"))
    assert (error.peer, error.reason) == ("c00", "advertise message of another round")
    request = rounds.request_for(case.collect([m for m in messages if m.sender != "c00"]), "c01")
    forged = Envelope(AGGREGATOR, "c00", request.payload)
    assert "another round" in rounds.refused(case.parties["c00"], forged).reason


def test_messages_of_another_round_are_refused_even_with_the_right_frame(rounds):
    case, later = rounds.Round(4, 3), rounds.Round(4, 3, round_id=2)
    for phase in PHASES[:1]:
        old = rounds.message_of(case.run_until(phase), "c00")
        moved = Envelope(
            "c00", AGGREGATOR, old.payload[:5] + later.spec.digest() + old.payload[FRAME_BYTES - 2 :]
        )
        error = rounds.refused(later.aggregator, moved)
        assert (error.peer, "bad signature" in error.reason) == ("c00", True)


def test_a_retry_has_fresh_masks_even_from_the_same_secrets(rounds):
    """Two rounds, one seed: a broken source of randomness repeats every secret, and still no mask repeats."""
    inputs = []
    for round_id in (1, 2):
        case = rounds.Round(3, 3, round_id=round_id, seed=4)
        party = case.parties["c00"]
        memory, _ = ClientMemory.decode(party.snapshot(), party._masked)
        inputs.append((memory.secrets, case))
    (first, one), (second, two) = inputs
    assert first.root == second.root
    vector = one.vectors[0]
    keys = [self_key(first.self_mask, vector, digest=c.spec.digest(), client="c00") for c in (one, two)]
    assert keys[0] != keys[1]
    pairs = [mask_key_pair(first.root, digest=c.spec.digest(), client="c00").public() for c in (one, two)]
    assert pairs[0] != pairs[1]


def test_two_vectors_never_share_a_mask(rounds):
    vectors = (
        VectorSpec(name="a", length=64, modulus_bits=32),
        VectorSpec(name="b", length=64, modulus_bits=32),
    )
    zeros = {v.name: np.zeros(64, np.uint32) for v in vectors}
    case = rounds.Round(3, 3, vectors=vectors, inputs={f"c{i:02d}": zeros for i in range(3)})
    data = rounds.content_of(case.run_until("masked-input")[0])[128:]
    words = np.frombuffer(data, "<u4").reshape(2, 66)
    assert not np.any(words[0] == words[1])
    with pytest.raises(ConfigError, match="distinct names"):
        MaskedRound(spec=case.spec, vectors=(vectors[0], replace(vectors[0], length=5)))


def test_a_masked_input_looks_uniform(rounds):
    """Zeros in, noise out: byte counts within 6 standard deviations. False alarms: 256 * 2e-9 = 5e-7."""
    vectors = (VectorSpec(name="update", length=1 << 16, modulus_bits=32),)
    zeros = {"update": np.zeros(1 << 16, np.uint32)}
    case = rounds.Round(3, 3, vectors=vectors, inputs={f"c{i:02d}": zeros for i in range(3)})
    data = rounds.content_of(case.run_until("masked-input")[0])[128:]
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    assert np.all(np.abs(counts - expected) < 6 * np.sqrt(expected))
    plain = np.bincount(zeros["update"].view(np.uint8), minlength=256)
    assert not np.all(np.abs(plain - expected) < 6 * np.sqrt(expected))
