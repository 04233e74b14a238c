"""Masking: the sums are exact, whoever drops out, in whatever order, across restarts."""

from __future__ import annotations

import math
import struct
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party, Running, SecureAggregation
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.masking import Masking, advantage_log2, default_threshold
from secfl.crypto.masking_aggregator import MaskingAggregator
from secfl.crypto.masking_client import MaskingClient
from secfl.crypto.masking_client_memory import ClientMemory
from secfl.crypto.masking_keys import ClientSecrets
from secfl.crypto.masking_phases import AGGREGATOR_STEPS, CLIENT_STEPS, phase_accepting
from secfl.crypto.masking_round import MaskedRound, check_cohort
from secfl.crypto.messages import Advertise, Deal, Parcel, escrow_bytes
from secfl.crypto.plain import Plain
from secfl.crypto.wire import FRAME_BYTES, MessageType, Phase
from secfl.errors import BelowThreshold, ConfigError, LocalProtocolError, RemoteProtocolError
from secfl.guarantees import Adversary, Behaviour, View, Visibility
from secfl.randomness import InsecureSeededRng, SystemRng
from secfl.types import AGGREGATOR, ClientId, PrivatizedUpdate, VectorSpec

MASKING_PHASES = ("advertise", "share", "masked-input", "consistency", "unmask")


# The sum


@pytest.mark.parametrize(("clients", "threshold"), [(3, 3), (4, 3), (5, 4), (7, 5)])
def test_the_sums_are_those_of_python_integers(rounds, clients, threshold):
    case = rounds.Round(clients, threshold, vectors=rounds.SEVERAL)
    case.finish()
    assert case.check() == case.names


@given(
    bits=st.integers(2, 62),
    length=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    lost=st.sampled_from(MASKING_PHASES),
)
def test_every_width_and_length_survives_a_drop_out(rounds, bits, length, seed, lost):
    vectors = (VectorSpec(name="update", length=length, modulus_bits=bits),)
    case = rounds.Round(4, 3, vectors=vectors, seed=seed)
    case.finish(dropped={lost: {case.names[seed % 4]}})
    survivors = case.check()
    counted = lost in ("consistency", "unmask")
    assert len(survivors) == (4 if counted else 3)


@settings(max_examples=20)
@given(
    lost=st.lists(st.sampled_from(MASKING_PHASES), min_size=1, max_size=3),
    who=st.permutations(range(7)),
    seed=st.integers(0, 2**32),
)
def test_drop_outs_in_several_phases(rounds, lost, who, seed):
    case = rounds.Round(7, 4, seed=seed)
    dropped = {}
    for phase, index in zip(lost, who, strict=False):
        dropped.setdefault(phase, set()).add(case.names[index])
    case.finish(dropped=dropped)
    early = set().union(*(dropped.get(phase, ()) for phase in MASKING_PHASES[:3]))
    assert set(case.check()) == set(case.names) - early


@pytest.mark.parametrize("phase", MASKING_PHASES)
def test_one_drop_out_too_many_aborts_and_opens_nothing(rounds, phase):
    case = rounds.Round(5, 4)
    state = case.finish(dropped={phase: set(case.names[:2])})
    assert isinstance(state, Aborted)
    assert isinstance(state.reason, BelowThreshold)
    assert "threshold 4" in str(state.reason)
    assert case.aggregator._memory.sums is None
    assert refusal_names_sender(case, phase)


def refusal_names_sender(case, phase):
    late = [envelope for envelope in case.transcript if envelope.recipient == AGGREGATOR]
    if not late:
        return True
    with pytest.raises(RemoteProtocolError) as caught:
        case.aggregator.receive(late[-1])
    return caught.value.peer == late[-1].sender


def test_below_the_threshold_in_unmask_no_secret_is_reconstructed(rounds):
    case = rounds.Round(5, 4)
    messages = case.run_until("unmask")
    case.collect(messages[:3])
    assert isinstance(case.aggregator.state, Aborted)


@settings(max_examples=15)
@given(st.data())
def test_the_order_of_arrival_does_not_matter(rounds, data):
    case = rounds.Round(4, 3)
    messages = case.start()
    while case.phase is not None:
        messages = case.answer(case.collect(data.draw(st.permutations(messages))))
    assert case.check() == case.names


def test_a_round_that_nobody_stalls_needs_no_deadline(rounds):
    case = rounds.Round(4, 3)
    queue = case.start()
    while queue:
        queue += case.deliver(queue.pop(0))
    assert case.check() == case.names
    assert all(isinstance(party.state, Finished) for party in case.parties.values())


def test_masking_and_plain_return_the_same_integers(rounds):
    masked = rounds.Round(5, 4, vectors=rounds.SEVERAL, seed=3)
    plain = rounds.Round(5, 4, vectors=rounds.SEVERAL, seed=3, scheme=Plain(threads=1))
    masked.finish(dropped={"masked-input": {masked.names[1]}})
    plain.finish(dropped={"plain-input": {plain.names[1]}})
    assert masked.check() == plain.check()


def test_threads_and_blocks_do_not_change_the_sums(rounds):
    vectors = (VectorSpec(name="long", length=300_001, modulus_bits=21),)
    case = rounds.Round(3, 3, vectors=vectors, scheme=Masking(threads=3))
    case.finish()
    want = sum(case.inputs[name]["long"].astype(np.uint64) for name in case.names) % 2**21
    assert np.array_equal(case.aggregator.state.result.sums["long"], want.astype(np.uint32))


@pytest.mark.slow
def test_sixty_four_clients(rounds):
    case = rounds.Round(64, 43)
    case.finish(dropped={"share": set(case.names[:2]), "masked-input": set(case.names[60:])})
    assert len(case.check()) == 58


def test_two_rounds_with_the_same_inputs_have_nothing_in_common_on_the_wire(rounds):
    """Transcripts are not deterministic; sums are."""
    cases = [rounds.Round(3, 3, seed=5), rounds.Round(3, 3, seed=5)]
    inputs = []
    for case in cases:
        messages = case.run_until("masked-input")
        inputs.append([rounds.content_of(envelope)[128:] for envelope in messages])
        case.finish(messages)
        case.check()
    assert all(a != b for a, b in zip(*inputs, strict=True))


# An independent computation of the same round


def recompute(rounds, naive, case, dropped=None):
    """Run a round and rebuild a naive `Checker` from the clients' secrets and the transcript."""
    secrets = {}
    for name, party in case.parties.items():
        memory, _ = ClientMemory.decode(party.snapshot(), party._masked)
        secrets[case.index(name)] = (str(name), memory.secrets.root, memory.secrets.self_mask)
    case.finish(dropped=dropped)
    ciphertexts, inputs = {}, {}
    members, directory = (
        set(),
        {case.index(e.sender) for e in case.transcript if e.payload[4] == MessageType.ADVERTISE},
    )
    for envelope in case.transcript:
        content, kind = rounds.content_of(envelope), envelope.payload[4]
        if kind == MessageType.SHARES:
            sender = case.index(envelope.sender)
            members.add(sender)
            place = Deal.SIZE + 64 + escrow_bytes(sum(to > sender for to in directory))
            for to in sorted(directory - {sender}):
                size = Parcel.size(sender=sender, recipient=to)
                if to > sender:
                    ciphertexts[sender, to] = content[place : place + 1088]
                place += size
        if kind == MessageType.MASKED_INPUT:
            inputs[case.index(envelope.sender)] = content[128:]
    checker = naive.Checker(case.spec.digest(), secrets, ciphertexts=ciphertexts, members=sorted(members))
    return checker, inputs


@pytest.mark.parametrize(
    "dropped",
    [{}, {"share": {"c01"}}, {"masked-input": {"c00"}}, {"share": {"c04"}, "masked-input": {"c02"}}],
)
def test_a_naive_computation_gives_the_same_bytes_and_the_same_sums(rounds, naive, dropped):
    case = rounds.Round(5, 3, vectors=rounds.SEVERAL, seed=9)
    checker, inputs = recompute(rounds, naive, case, dropped)
    survivors = [case.index(name) for name in case.check()]
    start = dict.fromkeys(inputs, 0)
    for vector in rounds.SEVERAL:
        size = -(-(vector.length + -(-64 // vector.modulus_bits)) * vector.modulus_bits // 8)
        packed = {index: data[start[index] : start[index] + size] for index, data in inputs.items()}
        start = {index: start[index] + size for index in inputs}
        for index in inputs:
            values = case.inputs[case.names[index]][vector.name].tolist()
            assert packed[index] == checker.masked(index, vector.name, values, vector.modulus_bits)
        opened = checker.opened(packed, survivors, vector.name, vector.length, vector.modulus_bits)
        sums = case.aggregator.state.result.sums[vector.name].tolist()
        assert opened[: vector.length] == sums
        assert set(opened[vector.length :]) == {len(survivors) % (1 << vector.modulus_bits)}


def test_a_naive_computation_gives_the_same_digests_and_signatures(rounds, naive):
    case = rounds.Round(3, 3)
    case.finish()
    digest = case.spec.digest()
    bodies = {phase: {} for phase in MASKING_PHASES}
    sizes = {1: Advertise.SIZE, 3: Deal.SIZE, 5: 64, 7: 64, 9: 96}
    for envelope in case.transcript:
        kind = envelope.payload[4]
        if envelope.recipient != AGGREGATOR:
            continue
        phase, size = MASKING_PHASES[kind // 2], sizes[kind]
        content = rounds.content_of(envelope)
        body, signature = content[:size], content[size : size + 64]
        bodies[phase][envelope.sender.encode()] = body
        recipient = "aggregator" if phase == "unmask" else "all"
        statement = naive.signed_statement(phase, digest, envelope.sender, recipient, body)
        key = Ed25519PublicKey.from_public_bytes(case.directory.keys[envelope.sender])
        key.verify(signature, statement)
    directory = naive.transcript(b"directory", digest, {n: (b,) for n, b in bodies["advertise"].items()})
    assert all(deal[:32] == directory for deal in bodies["share"].values())
    rows = {name: (bodies["advertise"][name], bodies["share"][name]) for name in bodies["share"]}
    members = naive.transcript(b"members", digest, rows)
    assert all(header[:32] == members for header in bodies["masked-input"].values())
    headers = {name: (body,) for name, body in bodies["masked-input"].items()}
    survivors = naive.transcript(b"survivors", digest, headers)
    assert all(body == members + survivors for body in bodies["consistency"].values())


# Tables, states, misuse


@pytest.mark.parametrize("steps", [CLIENT_STEPS, AGGREGATOR_STEPS])
def test_the_transition_tables_are_complete(steps):
    phases = [Phase(name) for name in MASKING_PHASES]
    assert list(steps) == phases
    reached, phase = [], Phase.ADVERTISE
    while phase is not None:
        reached.append(phase)
        phase = steps[phase].following
    assert reached == phases
    accepted = [step.accepts for step in steps.values() if step.accepts is not None]
    assert len(set(accepted)) == len(accepted)
    for kind in MessageType:
        assert (phase_accepting(steps, kind) is not None) == (kind in accepted)


def test_what_one_role_sends_the_other_accepts():
    for role, other in ((CLIENT_STEPS, AGGREGATOR_STEPS), (AGGREGATOR_STEPS, CLIENT_STEPS)):
        for step in role.values():
            assert step.sends is None or phase_accepting(other, step.sends) is not None
    kinds = {step.sends for steps in (CLIENT_STEPS, AGGREGATOR_STEPS) for step in steps.values()} - {None}
    assert {int(kind) for kind in kinds} == set(range(1, 10))


@pytest.mark.parametrize("phase", MASKING_PHASES)
@pytest.mark.parametrize("kind", list(MessageType))
def test_every_other_message_type_is_refused_in_every_phase(rounds, phase, kind):
    case = rounds.Round(3, 3)
    case.run_until(phase)
    for party, sender, index in (
        (case.aggregator, case.names[0], 0),
        (case.parties[case.names[0]], AGGREGATOR, -1),
    ):
        steps = AGGREGATOR_STEPS if index == 0 else CLIENT_STEPS
        waiting = party.state
        if isinstance(waiting, Running) and steps[Phase(waiting.phase)].accepts is kind:
            continue
        payload = b"SFL1" + bytes([kind]) + case.spec.digest() + struct.pack("<H", index + 1) + bytes(500)
        recipient = AGGREGATOR if index == 0 else case.names[0]
        envelope = Envelope(sender, recipient, payload)
        error = rounds.refusal(lambda p=party, e=envelope: p.receive(e))
        assert error.peer == sender
        assert party.state == waiting


def test_states_name_the_phase_that_is_waited_for(rounds):
    case = rounds.Round(3, 3)
    seen = [(case.parties["c00"].state.phase, case.phase)]
    messages = case.start()
    while case.phase is not None:
        seen.append((getattr(case.parties["c00"].state, "phase", None), case.phase))
        messages = case.answer(case.collect(messages))
    assert seen == [
        ("advertise", "advertise"),
        ("share", "advertise"),
        ("masked-input", "share"),
        ("consistency", "masked-input"),
        ("unmask", "consistency"),
        (None, "unmask"),
    ]


def test_parties_and_scheme_have_the_published_interface(rounds):
    case = rounds.Round(3, 3)
    scheme: SecureAggregation = case.scheme
    assert scheme.name == "masking"
    for party in (case.aggregator, *case.parties.values()):
        assert isinstance(party, Party)
    assert case.aggregator.start() == []
    assert case.parties["c00"].phase_over() == []


def test_misuse_is_a_local_error(rounds):
    case = rounds.Round(3, 3)
    case.start()
    with pytest.raises(LocalProtocolError, match="already started"):
        case.parties["c00"].start()
    with pytest.raises(LocalProtocolError, match="delivered here"):
        case.parties["c00"].receive(Envelope(AGGREGATOR, "c01", b""))
    with pytest.raises(LocalProtocolError, match="delivered here"):
        case.aggregator.receive(Envelope("c00", "c01", b""))
    stranger = Identity.generate("c00", SystemRng())
    with pytest.raises(LocalProtocolError, match="not the enrolled one"):
        case.scheme.client(
            case.spec,
            stranger,
            directory=case.directory,
            update=PrivatizedUpdate.without_noise(case.inputs["c00"]),
            rng=SystemRng(),
        )


@pytest.mark.parametrize("change", ["one more client", "a client's key replaced"])
def test_the_manifest_is_the_one_that_the_round_is_bound_to(rounds, change):
    """An aggregator that hands out a manifest with keys of its own names another digest, or is not believed."""
    case = rounds.Round(3, 3)
    keys = dict(case.directory.keys)
    name = ClientId("x" if change == "one more client" else "c02")
    keys[name] = Identity.generate(name, SystemRng()).public_key()
    other = Directory(keys)
    update = PrivatizedUpdate.without_noise(case.inputs["c00"])
    snapshot = case.parties["c00"].snapshot()
    for make in (
        lambda: case.scheme.aggregator(case.spec, directory=other),
        lambda: case.scheme.client(
            case.spec, case.identities["c00"], directory=other, update=update, rng=SystemRng()
        ),
        lambda: case.scheme.restore(case.spec, directory=other, snapshot=snapshot),
    ):
        with pytest.raises(LocalProtocolError, match="not the one that the round is bound to"):
            make()


def test_a_directory_holds_whole_keys():
    with pytest.raises(ConfigError, match="the key of c00 has 31 bytes"):
        Directory({ClientId("c00"): bytes(31)})


def test_an_enrolled_key_is_required_of_the_whole_cohort(rounds):
    case = rounds.Round(3, 3)
    fewer = Directory.enroll(list(case.identities.values())[:2])
    spec = rounds.make_spec(case.identities.values(), fewer, threshold=3, vectors=case.vectors)
    with pytest.raises(LocalProtocolError, match="not enrolled in the manifest: c02"):
        case.scheme.aggregator(spec, directory=fewer)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: {}, "names differ"),
        (lambda v: {"update": v[:-1]}, "expected 7 elements"),
        (lambda v: {"update": v.astype(np.uint64)}, "uint64"),
        (lambda v: {"update": v | np.uint32(1 << 16)}, "more than 16 bits"),
    ],
)
def test_inputs_that_do_not_match_the_round_are_refused(rounds, change, reason):
    case = rounds.Round(3, 3)
    case.inputs["c00"] = change(case.inputs["c00"]["update"])
    with pytest.raises(LocalProtocolError, match=reason):
        case.client("c00")


def test_the_round_of_another_scheme_is_refused(rounds):
    case = rounds.Round(3, 3)
    spec = rounds.make_spec(
        case.identities.values(), case.directory, threshold=3, vectors=case.vectors, scheme="plain"
    )
    with pytest.raises(ConfigError, match="'plain', expected 'masking'"):
        case.scheme.aggregator(spec, directory=case.directory)


def test_secrets_do_not_print(rounds):
    case = rounds.Round(3, 3)
    party = case.parties["c00"]
    memory, identity = ClientMemory.decode(party.snapshot(), party._masked)
    secrets = memory.secrets
    texts = [repr(value) for value in (party, memory, secrets, secrets.sealing, case.aggregator, identity)]
    for secret in (secrets.root, secrets.self_mask, secrets.coefficients, identity.seed):
        for text in texts:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


# Snapshots


def test_every_party_can_be_put_down_and_picked_up_before_every_message(rounds):
    case = rounds.Round(5, 3, vectors=rounds.SEVERAL)

    def deliver(envelope):
        name = envelope.recipient
        if name == AGGREGATOR:
            case.aggregator = restore(case.aggregator)
            return case.aggregator.receive(envelope)
        case.parties[name] = restore(case.parties[name])
        return case.parties[name].receive(envelope)

    def restore(party):
        again = case.scheme.restore(case.spec, directory=case.directory, snapshot=party.snapshot())
        assert type(again.state) is type(party.state)
        assert again.snapshot() == party.snapshot()
        return again

    case.deliver = deliver
    case.parties = {name: restore(party) for name, party in case.parties.items()}
    case.finish(dropped={"share": {"c01"}, "masked-input": {"c03"}})
    assert case.check() == ("c00", "c02", "c04")
    finished = restore(case.aggregator)
    case.check(finished.state)
    with pytest.raises(LocalProtocolError):
        restore(case.parties["c00"]).start()


def test_a_restored_client_sends_the_same_input(rounds):
    """Masks are fixed by what was drawn at the start: a snapshot continues exactly, it does not redraw."""
    case = rounds.Round(3, 3)
    requests = case.requests_until("masked-input")
    again = case.scheme.restore(case.spec, directory=case.directory, snapshot=case.parties["c00"].snapshot())
    request = next(envelope for envelope in requests if envelope.recipient == "c00")
    assert case.parties["c00"].receive(request) == again.receive(request)


def test_an_aborted_aggregator_stays_aborted(rounds):
    case = rounds.Round(3, 3)
    case.aggregator.phase_over()
    again = case.scheme.restore(case.spec, directory=case.directory, snapshot=case.aggregator.snapshot())
    assert isinstance(again.state, Aborted)
    assert isinstance(again.state.reason, BelowThreshold)
    assert str(again.state.reason) == str(case.aggregator.state.reason)


def test_an_aborted_aggregator_keeps_nothing_that_it_could_open_later(rounds):
    case = rounds.Round(4, 3)
    messages = case.run_until("masked-input")
    memory = case.aggregator._memory
    assert memory.escrows
    assert memory.sums is not None
    case.aggregator.receive(messages[0])
    case.aggregator.phase_over()
    assert isinstance(case.aggregator.state, Aborted)
    assert (memory.escrows, memory.parcels, memory.sums) == ({}, {}, None)


def test_snapshots_of_another_round_or_damaged_ones_are_refused(rounds):
    case, other = rounds.Round(3, 3), rounds.Round(3, 3, round_id=2)
    for party in (case.parties["c00"], case.aggregator):
        snapshot = party.snapshot()
        with pytest.raises(LocalProtocolError, match="another round"):
            other.scheme.restore(other.spec, directory=other.directory, snapshot=snapshot)
        for place in range(0, len(snapshot), 97):
            damaged = snapshot[:place] + bytes([snapshot[place] ^ 1]) + snapshot[place + 1 :]
            with pytest.raises(LocalProtocolError):
                case.scheme.restore(case.spec, directory=case.directory, snapshot=damaged)
        for size in range(0, len(snapshot), 211):
            with pytest.raises(LocalProtocolError):
                case.scheme.restore(case.spec, directory=case.directory, snapshot=snapshot[:size])


@pytest.mark.parametrize("words", [np.full(7, 1 << 16, np.uint32), np.zeros(6, np.uint32)])
def test_a_snapshot_holds_inputs_of_the_round(rounds, words):
    """A whole snapshot, with a digest that fits: an input out of range would leave its place in the sum."""
    case = rounds.Round(3, 3)
    party = case.parties["c00"]
    memory, identity = ClientMemory.decode(party.snapshot(), party._masked)
    memory.inputs = {"update": words}
    with pytest.raises(LocalProtocolError, match="vector update: "):
        ClientMemory.decode(memory.encode(party._masked, identity), party._masked)


def test_secrets_of_another_threshold_are_not_restored():
    """Their coefficients would be cut off, and some shares with them."""
    secrets = ClientSecrets.draw(SystemRng(), threshold=4).encode()
    assert ClientSecrets.decode(secrets, threshold=4).encode() == secrets
    with pytest.raises(LocalProtocolError, match="another size"):
        ClientSecrets.decode(secrets, threshold=3)


def test_secrets_are_destroyed_as_soon_as_possible(rounds):
    case = rounds.Round(3, 3)
    party = case.parties["c00"]
    secrets = party._memory.secrets
    messages = case.run_until("masked-input")
    snapshot = party.snapshot()
    assert party._memory.secrets is None
    assert party._memory.inputs is None
    for secret in (secrets.root, secrets.self_mask, secrets.sealing.seed, secrets.coefficients):
        assert secret not in snapshot
    assert party._memory.held
    case.finish(messages)
    assert not party._memory.held


# What is promised


@pytest.mark.parametrize("clients", range(3, 65))
def test_the_default_threshold_is_always_allowed(rounds, clients):
    threshold = default_threshold(clients)
    assert threshold == max(3, math.floor(2 * clients / 3) + 1)
    assert 2 * threshold > clients >= threshold


@pytest.mark.parametrize(
    ("clients", "threshold", "reason"),
    [
        (2, 2, "2 clients, expected at least 3"),
        (3, 2, "threshold 2, expected at least 3"),
        (6, 3, "expected more than half"),
        (65, 44, "65 clients, expected at most 64"),
    ],
)
def test_cohorts_that_masking_cannot_protect_are_refused(rounds, clients, threshold, reason):
    with pytest.raises(ConfigError, match=reason):
        rounds.Round(clients, threshold)


def test_a_threshold_that_nobody_can_reach_is_refused():
    with pytest.raises(ConfigError, match="threshold 5 is above the cohort's 4"):
        check_cohort(4, 5)


def test_attachments_have_a_size(rounds):
    case = rounds.Round(3, 3)
    with pytest.raises(ConfigError, match="attachment of -1 bytes"):
        MaskedRound(spec=case.spec, vectors=case.vectors, attachment_bytes=-1)


@pytest.mark.parametrize(
    ("clients", "threshold", "survivors", "curious", "malicious"),
    [
        (3, 3, 3, 1, 1),
        (4, 3, 4, 2, 1),
        (5, 4, 5, 3, 2),
        (5, 4, 4, 2, 2),
        (5, 3, 5, 2, 0),
        (64, 43, 58, 42, 21),
    ],
)
def test_the_guarantee_states_the_colluders_it_tolerates(
    rounds, clients, threshold, survivors, curious, malicious
):
    case = rounds.Round(clients, threshold)
    guarantee = case.scheme.guarantee(case.spec, survivors=survivors)
    assert guarantee.curious_colluders == curious == min(threshold - 1, survivors - 2)
    assert guarantee.malicious_colluders == malicious == min(2 * threshold - clients - 1, threshold - 2)
    assert guarantee.network_sees is guarantee.client_with_network is Visibility.SUM
    assert guarantee.post_quantum
    names = {assumption.name for assumption in guarantee.assumptions}
    assert {"x25519-or-ml-kem-768", "aes-256", "ed25519-at-run-time", "host-not-rolled-back"} <= names
    for behaviour, limit in ((Behaviour.CURIOUS, curious), (Behaviour.MALICIOUS, malicious)):
        for colluders in (limit, limit + 1):
            adversary = Adversary(view=View.AGGREGATOR_COLLUDERS, behaviour=behaviour, colluders=colluders)
            sees = guarantee.visibility(adversary)
            assert sees is (Visibility.SUM if colluders <= limit else Visibility.EVERY_UPDATE)


def test_the_guarantee_is_about_possible_survivors_only(rounds):
    case = rounds.Round(5, 4)
    for survivors in (3, 6):
        with pytest.raises(LocalProtocolError, match=f"{survivors} survivors"):
            case.scheme.guarantee(case.spec, survivors=survivors)


def test_the_advantage_counts_every_hybrid(rounds):
    case = rounds.Round(4, 3)
    masked = MaskedRound(spec=case.spec, vectors=case.spec.vectors)
    # 6 pairs and 12 boxes, each twice; 32 + 24 derived values, 10 streams, 4 escrows.
    count = 2 * (6 + 12) + 32 + 24 + 10 + 4
    assert advantage_log2(masked) == pytest.approx(math.log2(count) - 64, abs=1e-9)
    sizes = [
        advantage_log2(
            MaskedRound(spec=case.spec, vectors=(VectorSpec(name="v", length=length, modulus_bits=32),))
        )
        for length in (1, 2**20, 2**32 - 1)
    ]
    assert sizes == sorted(sizes)
    assert sizes[2] > sizes[0]
    many = rounds.Round(64, 43)
    assert -55 < many.scheme.guarantee(many.spec, survivors=64).advantage_log2 < -45


# Attachments


class Concatenation:
    """A sink that keeps what it was given; the result is the XOR of the attachments beside the sums."""

    def __init__(self, size):
        self.expected_size = size
        self.total = bytes(size)
        self.peers = []

    def check(self, peer, data):
        if data[0] == 0xFF:
            raise RemoteProtocolError(peer, "attachment starts with 0xff")

    def add(self, peer, data):
        self.total = bytes(a ^ b for a, b in zip(self.total, data, strict=True))
        self.peers.append(peer)

    def finish(self, sums, survivors):
        assert sorted(self.peers) == list(survivors)
        return {**sums, "attached": np.frombuffer(self.total, np.uint8).astype(np.uint32)}

    def snapshot(self):
        return self.total + "|".join(self.peers).encode()

    def restore(self, snapshot):
        self.total = snapshot[: self.expected_size]
        self.peers = (
            snapshot[self.expected_size :].decode().split("|") if snapshot[self.expected_size :] else []
        )


@pytest.fixture
def attached(rounds):
    """A round with another vector than the specification's, and attachments of 5 bytes."""
    case = rounds.Round(4, 3)
    key = VectorSpec(name="key", length=6, modulus_bits=9)
    masked = MaskedRound(spec=case.spec, vectors=(key,), attachment_bytes=5)
    case.vectors = (key,)
    case.inputs = rounds.random_inputs(case.names, (key,), 1)
    attachments = {name: bytes([index, 2, 3, 4, 5 + index]) for index, name in enumerate(case.names)}
    case.attachments = attachments
    case.masked = masked
    case.parties = {
        name: MaskingClient.create(
            masked,
            case.identities[name],
            directory=case.directory,
            vectors=case.inputs[name],
            attachment=attachments[name],
            rng=SystemRng(),
        )
        for name in case.names
    }
    case.aggregator = MaskingAggregator.create(masked, directory=case.directory, sink=Concatenation(5))
    return case


def test_attachments_of_the_survivors_reach_the_sink(rounds, attached):
    state = attached.finish(dropped={"masked-input": {"c02"}})
    sums = state.result.sums
    assert (
        sums["key"].tolist()
        == rounds.expected_sums(attached.vectors, attached.inputs, state.result.survivors)["key"]
    )
    assert sums["attached"].tolist() == [0 ^ 1 ^ 3, 2, 3, 4, 5 ^ 6 ^ 8]


def test_a_refused_attachment_changes_nothing(rounds, attached):
    bad = MaskingClient.create(
        attached.masked,
        attached.identities["c00"],
        directory=attached.directory,
        vectors=attached.inputs["c00"],
        attachment=b"\xff2345",
        rng=SystemRng(),
    )
    attached.parties["c00"] = bad
    messages = attached.run_until("masked-input")
    before = attached.aggregator.snapshot()
    first = next(envelope for envelope in messages if envelope.sender == "c00")
    assert rounds.refusal(lambda: attached.aggregator.receive(first)).peer == "c00"
    assert attached.aggregator.snapshot() == before
    state = attached.finish([envelope for envelope in messages if envelope is not first])
    assert state.result.survivors == ("c01", "c02", "c03")


def test_an_attachment_is_covered_by_the_signed_header(rounds, attached):
    messages = attached.run_until("masked-input")
    flipped = messages[0].payload[:-1] + bytes([messages[0].payload[-1] ^ 1])
    error = rounds.refusal(
        lambda: attached.aggregator.receive(Envelope(messages[0].sender, AGGREGATOR, flipped))
    )
    assert "not the one that it signed" in error.reason


def test_a_round_with_attachments_survives_restarts(attached):
    original = attached.deliver

    def deliver(envelope):
        if envelope.recipient == AGGREGATOR:
            attached.aggregator = MaskingAggregator.restore(
                attached.masked,
                directory=attached.directory,
                snapshot=attached.aggregator.snapshot(),
                sink=Concatenation(5),
            )
        else:
            attached.parties[envelope.recipient] = MaskingClient.restore(
                attached.masked,
                directory=attached.directory,
                snapshot=attached.parties[envelope.recipient].snapshot(),
            )
        return original(envelope)

    attached.deliver = deliver
    state = attached.finish()
    assert state.result.sums["attached"].tolist() == [0 ^ 1 ^ 2 ^ 3, 0, 0, 0, 5 ^ 6 ^ 7 ^ 8]


def test_attachments_of_another_size_are_refused(attached):
    with pytest.raises(LocalProtocolError, match="attachment of 4 bytes, expected 5"):
        MaskingClient.create(
            attached.masked,
            attached.identities["c00"],
            directory=attached.directory,
            vectors=attached.inputs["c00"],
            attachment=b"1234",
            rng=SystemRng(),
        )
    for sink in (None, Concatenation(6)):
        with pytest.raises(LocalProtocolError, match="another size"):
            MaskingAggregator.create(attached.masked, directory=attached.directory, sink=sink)


def test_a_seeded_source_gives_reproducible_secrets_only(rounds):
    case = rounds.Round(3, 3)
    first = [case.client("c00", rng=InsecureSeededRng(1)).start() for _ in range(2)]
    assert first[0] == first[1]


def test_survivor_subsets_of_a_small_cohort_are_all_right(rounds):
    names = ("c00", "c01", "c02", "c03", "c04")
    for size in (0, 1, 2):
        for gone in combinations(names, size):
            case = rounds.Round(5, 3)
            case.finish(dropped={"masked-input": set(gone)})
            assert set(case.check()) == set(names) - set(gone)


def test_frames_are_as_long_as_they_say():
    assert FRAME_BYTES == 4 + 1 + 32 + 2
