"""The scheme `ckks` as a whole: both key modes, drop-outs, snapshots, guarantees."""

import math
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.aggregation import Aborted, Finished, Running
from secfl.crypto.ckks import Ckks, KeyMode
from secfl.crypto.identity import Directory, Identity
from secfl.errors import BelowThreshold, CapacityError, ConfigError, LocalProtocolError, RoundAborted
from secfl.guarantees import Adversary, Behaviour, View, Visibility
from secfl.randomness import InsecureSeededRng
from secfl.types import AGGREGATOR, PrivatizedUpdate, RoundId, RoundSpec, SchemeSpec, VectorSpec

MODES = ["sum-key", "shared"]
VECTORS = (
    VectorSpec(name="update", length=700, modulus_bits=19),
    VectorSpec(name="weight", length=1, modulus_bits=33),
)


class World:
    """A cohort, its inputs, and a driver with drop-outs at any send."""

    def __init__(self, mode, *, clients=5, threshold=4, vectors=VECTORS, seed=0, round_id=1):
        self.rng = InsecureSeededRng(seed)
        identities = [Identity.generate(f"site-{i:02d}", self.rng.fork(f"id{i}")) for i in range(clients)]
        self.identities = {identity.name: identity for identity in identities}
        self.directory = Directory.enroll(identities)
        self.spec = RoundSpec(
            run_id=bytes(16),
            round_id=RoundId(round_id),
            cohort=tuple(self.identities),
            threshold=threshold,
            vectors=vectors,
            scheme=SchemeSpec(name="ckks", parameters=(("key_mode", mode),)),
            manifest_digest=self.directory.digest(),
            model_digest=bytes(32),
            task_digest=bytes(32),
            plan_digest=bytes(32),
        )
        generator = np.random.default_rng(seed)
        self.inputs = {
            name: {
                v.name: generator.integers(0, 2**v.modulus_bits, v.length, dtype=np.uint64).astype(v.dtype)
                for v in vectors
            }
            for name in self.identities
        }
        self.scheme = Ckks(threads=1)

    def client(self, name):
        return self.scheme.client(
            self.spec,
            self.identities[name],
            directory=self.directory,
            update=PrivatizedUpdate.without_noise(self.inputs[name]),
            rng=self.rng.fork(name),
        )

    def parties(self):
        aggregator = self.scheme.aggregator(self.spec, directory=self.directory)
        return {AGGREGATOR: aggregator} | {name: self.client(name) for name in self.identities}

    def restored(self, party):
        return self.scheme.restore(self.spec, directory=self.directory, snapshot=party.snapshot())

    def run(self, *, sends=None, snapshots=False, shuffle=None):
        """Carry a round; ``sends`` says how many messages a client sends before it falls silent."""
        parties, queue, left = self.parties(), deque(), dict(sends or {})

        def speak(name, step, *arguments):
            if left.get(name, 1) > 0:
                envelopes = getattr(parties[name], step)(*arguments)
                left[name] = left.get(name, 10**6) - bool(envelopes)
                queue.extend(envelopes)

        for name in parties:
            speak(name, "start")
        while queue or isinstance(parties[AGGREGATOR].state, Running):
            if not queue:
                speak(AGGREGATOR, "phase_over")
                continue
            queue.rotate(int(shuffle.integers(len(queue))) if shuffle is not None else 0)
            envelope = queue.popleft()
            if snapshots:
                parties[envelope.recipient] = self.restored(parties[envelope.recipient])
            speak(envelope.recipient, "receive", envelope)
        return parties

    def check(self, result):
        for vector in self.spec.vectors:
            exact = sum(self.inputs[name][vector.name].astype(object) for name in result.survivors)
            assert result.sums[vector.name].dtype == vector.dtype
            assert result.sums[vector.name].tolist() == (exact % 2**vector.modulus_bits).tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("snapshots", [False, True])
def test_the_sum_is_exact(mode, snapshots):
    world = World(mode)
    parties = world.run(snapshots=snapshots)
    result = parties[AGGREGATOR].state.result
    assert result.survivors == world.spec.cohort
    world.check(result)
    assert all(isinstance(party.state, Finished) for party in parties.values())
    assert all(
        world.restored(party).state == party.state for name, party in parties.items() if name != AGGREGATOR
    )
    world.check(world.restored(parties[AGGREGATOR]).state.result)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25)
@given(
    st.integers(3, 7),
    st.dictionaries(st.integers(0, 6), st.integers(0, 4), max_size=3),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_drop_outs_anywhere_leave_an_exact_sum_or_none(mode, clients, drops, seed, snapshots):
    threshold = max(3, clients // 2 + 1)
    vectors = (VectorSpec(name="u", length=9, modulus_bits=2 + seed % 49),)
    world = World(mode, clients=clients, threshold=threshold, vectors=vectors, seed=seed)
    names = world.spec.cohort
    sends = {names[i]: count for i, count in drops.items() if i < clients}
    parties = world.run(sends=sends, snapshots=snapshots, shuffle=np.random.default_rng(seed))
    state = parties[AGGREGATOR].state
    if isinstance(state, Finished):
        assert len(state.result.survivors) >= threshold
        assert all(name in state.result.survivors for name in names if name not in sends)
        world.check(state.result)
    else:
        assert isinstance(state, Aborted)
        assert len(sends) > clients - threshold


@pytest.mark.parametrize("mode", MODES)
def test_one_drop_out_too_many_opens_nothing(mode):
    world = World(mode)
    names = world.spec.cohort
    state = world.run(sends={names[1]: 1, names[3]: 1})[AGGREGATOR].state
    assert isinstance(state, Aborted)
    assert isinstance(state.reason, BelowThreshold)


def test_another_client_leads_and_opens_when_the_first_is_silent():
    world = World("shared", threshold=3)
    first, second = world.spec.cohort[:2]
    # The first client advertises and is asked for the key, but never sends it.
    result = world.run(sends={first: 1})[AGGREGATOR].state.result
    assert result.survivors == world.spec.cohort[1:]
    world.check(result)
    # It sends key and input, but never opens; then the second one does not either.
    result = world.run(sends={first: 3, second: 2})[AGGREGATOR].state.result
    assert result.survivors == world.spec.cohort
    world.check(result)


def test_nobody_left_to_deal_or_open_aborts():
    world = World("shared", clients=3, threshold=3)
    for sends in (1, 3):  # the lead sends one message more than the others before the opening
        silent = {name: min(sends, 2) if i else sends for i, name in enumerate(world.spec.cohort)}
        state = world.run(sends=silent)[AGGREGATOR].state
        assert isinstance(state, Aborted)
        assert isinstance(state.reason, RoundAborted)


@pytest.mark.parametrize("mode", MODES)
def test_the_aggregator_names_the_survivors_before_it_opens(mode):
    world = World(mode)
    parties = world.parties()
    queue = deque(envelope for party in parties.values() for envelope in party.start())
    seen = []
    while queue:
        envelope = queue.popleft()
        state = parties[AGGREGATOR].state
        if isinstance(state, Running):
            seen.append((state.survivors, state.inputs_digest))
        queue.extend(parties[envelope.recipient].receive(envelope))
    assert seen[0] == ((), b"")
    assert seen[-1][0] == world.spec.cohort
    assert len(seen[-1][1]) == 32


@pytest.mark.parametrize("mode", MODES)
def test_both_modes_return_the_same_integers(mode):
    result = World(mode, seed=5).run()[AGGREGATOR].state.result
    other = World("sum-key", seed=5).run()[AGGREGATOR].state.result
    for name, values in result.sums.items():
        np.testing.assert_array_equal(values, other.sums[name])


@pytest.mark.parametrize("mode", MODES)
def test_upload_size(mode):
    vectors = (VectorSpec(name="u", length=2 * 8192, modulus_bits=20),)
    world = World(mode, clients=10, threshold=7, vectors=vectors)
    parties, up = world.parties(), dict.fromkeys(world.spec.cohort, 0)
    queue = deque(envelope for party in parties.values() for envelope in party.start())
    while queue:
        envelope = queue.popleft()
        if envelope.recipient == AGGREGATOR and envelope.sender != world.spec.cohort[0]:
            up[envelope.sender] = max(up[envelope.sender], len(envelope.payload))
        queue.extend(parties[envelope.recipient].receive(envelope))
    largest = max(up.values())
    assert 3.75 * 2 * 8192 < largest < 3.75 * 2 * 8192 + 7000


@pytest.mark.parametrize("mode", MODES)
def test_what_a_round_refuses(mode):
    with pytest.raises(ConfigError, match="at least 3"):
        World(mode, clients=2, threshold=2).parties()
    with pytest.raises(ConfigError, match="threshold"):
        World(mode, clients=5, threshold=2).parties()
    with pytest.raises(ConfigError, match="more than half"):
        World(mode, clients=6, threshold=3).parties()
    world = World(mode)
    world.inputs[world.spec.cohort[0]]["update"][3] = 2**19
    with pytest.raises(LocalProtocolError, match="19 bits"):
        world.client(world.spec.cohort[0])
    world = World(mode)
    world.directory = Directory.enroll(world.identities[name] for name in world.spec.cohort[:-1])
    with pytest.raises(LocalProtocolError, match="directory"):
        world.parties()
    stranger = World(mode, seed=1).identities["site-00"]
    world = World(mode)
    world.identities["site-00"] = stranger
    with pytest.raises(LocalProtocolError, match="enrolled"):
        world.client("site-00")


@pytest.mark.parametrize("mode", MODES)
def test_capacity_is_refused_before_anything_is_sent(mode, monkeypatch):
    monkeypatch.setattr("secfl.crypto.ckks_layout.SIGMA", 2.0**55)
    with pytest.raises(CapacityError):
        World(mode).client("site-00")


@pytest.mark.parametrize(
    "scheme",
    [
        SchemeSpec(name="masking"),
        SchemeSpec(name="ckks", parameters=(("key_mode", "threshold"),)),
        SchemeSpec(name="ckks", parameters=(("degree", "8192"),)),
    ],
)
def test_other_schemes_and_parameters_are_refused(scheme):
    world = World("shared")
    world.spec = replace(world.spec, scheme=scheme)
    with pytest.raises(ConfigError):
        world.parties()


@pytest.mark.parametrize(("wanted", "proposed"), [("sum-key", "shared"), ("shared", "sum-key")])
def test_a_client_that_insists_on_a_key_mode_takes_part_in_no_other(wanted, proposed):
    """Whoever proposes rounds could otherwise turn sums under a fresh key into updates under a shared one."""
    world = World(proposed)
    world.scheme = Ckks(key_mode=KeyMode(wanted), threads=1)
    with pytest.raises(ConfigError, match=f"has key_mode '{proposed}', expected '{wanted}'"):
        world.client("site-00")
    world = World(wanted)
    world.scheme = Ckks(key_mode=KeyMode(wanted), threads=1)
    world.client("site-00")


def test_a_minimum_that_a_shared_key_cannot_keep_is_refused():
    world = World("shared")
    world.scheme = Ckks(minimum=world.spec.threshold + 1, threads=1)
    with pytest.raises(ConfigError, match="own minimum needs key_mode 'sum-key'"):
        world.client("site-00")
    world.scheme = Ckks(minimum=world.spec.threshold, threads=1)
    world.client("site-00")


def test_sum_key_is_the_default():
    spec = replace(World("shared").spec, scheme=SchemeSpec(name="ckks"))
    assert KeyMode.of(spec) is KeyMode.SUM_KEY


@pytest.mark.parametrize("mode", MODES)
def test_snapshots_of_another_round_mode_or_scheme_are_refused(mode):
    world = World(mode)
    other = World(MODES[1 - MODES.index(mode)])
    later = World(mode, round_id=2)
    for party in world.parties().values():
        party.start()
        for elsewhere in (other, later):
            with pytest.raises(LocalProtocolError):
                elsewhere.restored(party)
        for damaged in (b"", party.snapshot()[:-1], b"x" + party.snapshot()):
            with pytest.raises(LocalProtocolError):
                world.scheme.restore(world.spec, directory=world.directory, snapshot=damaged)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_secret_is_printed(mode):
    world = World(mode)
    for name, party in world.parties().items():
        assert repr(party).endswith(f"{party.state!r})")
        assert len(repr(party)) < 160
        if name != AGGREGATOR:
            assert world.identities[name].seed.hex()[:8] not in repr(party)
            assert repr(world.identities[name].seed) not in repr(party)


def test_the_guarantee_of_sum_key_is_that_of_masking_and_rlwe():
    world = World("sum-key")
    guarantee = world.scheme.guarantee(world.spec, survivors=5)
    assert (guarantee.scheme, guarantee.key_mode) == ("ckks", "sum-key")
    assert guarantee.curious_colluders == 3
    assert guarantee.malicious_colluders == 2
    assert guarantee.post_quantum
    assert "hint-rlwe-4096-60" in {assumption.name for assumption in guarantee.assumptions}
    assert -64 < guarantee.advantage_log2 < -40
    assert guarantee.client_with_network is Visibility.SUM


def test_the_guarantee_of_shared_admits_what_a_shared_key_means():
    world = World("shared")
    guarantee = world.scheme.guarantee(world.spec, survivors=4)
    assert guarantee.key_mode == "shared"

    def sees(view, behaviour, colluders):
        return guarantee.visibility(Adversary(view=view, behaviour=behaviour, colluders=colluders))

    assert sees(View.AGGREGATOR, Behaviour.CURIOUS, 0) is Visibility.SUM
    assert sees(View.AGGREGATOR_COLLUDERS, Behaviour.CURIOUS, 1) is Visibility.EVERY_UPDATE
    assert sees(View.AGGREGATOR, Behaviour.MALICIOUS, 0) is Visibility.EVERY_UPDATE
    assert guarantee.client_with_network is Visibility.EVERY_UPDATE
    assert math.isfinite(guarantee.advantage_log2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("survivors", [0, 3, 6])
def test_no_guarantee_for_impossible_survivors(mode, survivors):
    world = World(mode)
    with pytest.raises(LocalProtocolError):
        world.scheme.guarantee(world.spec, survivors=survivors)
