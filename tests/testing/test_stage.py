"""A round carried by hand."""

import pytest

from secfl.crypto.aggregation import Aborted, Envelope, Finished, RoundResult, Running
from secfl.crypto.plain import Plain
from secfl.errors import BelowThreshold, LocalProtocolError, RemoteProtocolError
from secfl.randomness import InsecureSeededRng
from secfl.testing.stage import Cast, Stage, exact_sums, phase_of, rehearse, same_sums
from secfl.types import AGGREGATOR, RoundId, SchemeSpec, VectorSpec


@pytest.fixture
def cast():
    return Cast.make(Plain(threads=1), SchemeSpec(name="plain"), clients=4, threshold=3)


def stage_of(cast, **more):
    return Stage(cast, rng=InsecureSeededRng(1), **more)


def test_a_round_plays_to_its_end(cast):
    stage = stage_of(cast)
    result = stage.play()
    assert result.survivors == cast.cohort
    assert same_sums(result, cast.expected(cast.cohort))
    assert len(stage.sent) == 4
    assert not stage.refusals
    assert stage.result is not None


def test_sums_are_naive_integers_modulo_the_width():
    vector = VectorSpec(name="v", length=2, modulus_bits=4)
    rows = [{"v": [15, 3]}, {"v": [2, 4]}]
    assert exact_sums((vector,), rows) == {"v": [1, 7]}


def test_another_sum_is_not_the_same(cast):
    result = stage_of(cast).play()
    wrong = {"update": [value ^ 1 for value in cast.expected(cast.cohort)["update"]]}
    assert not same_sums(result, wrong)
    assert not same_sums(result, {})


def test_who_leaves_says_nothing_more(cast):
    stage = stage_of(cast, leaves={cast.cohort[2]: "plain-input"})
    assert stage.is_silent(cast.cohort[2])
    assert stage.play().survivors == (cast.cohort[0], cast.cohort[1], cast.cohort[3])


def test_too_few_abort(cast):
    stage = stage_of(cast, leaves=dict.fromkeys(cast.cohort[:2], "plain-input"))
    assert stage.play() is None
    assert isinstance(stage.aggregator.state, Aborted)
    assert isinstance(stage.aggregator.state.reason, BelowThreshold)
    with pytest.raises(LocalProtocolError, match="without a result"):
        rehearse(cast, rng=InsecureSeededRng(1), leaves=dict.fromkeys(cast.cohort[:2], "plain-input"))


def test_a_refusal_is_kept_and_the_round_goes_on(cast):
    stage = stage_of(cast)
    stage.start()
    error = stage.hand_over(Envelope(cast.cohort[0], AGGREGATOR, b"nonsense"))
    assert isinstance(error, RemoteProtocolError)
    stage.carry()
    assert [refusal.error for refusal in stage.refusals] == [error]
    assert stage.result.survivors == cast.cohort


def test_order_restart_fork_and_copy(cast):
    stage = stage_of(cast)
    stage.start()
    stage.deliver(3)
    other = stage.copy()
    stage.restart(AGGREGATOR)
    fork = stage.fork(AGGREGATOR)
    assert phase_of(fork.state) == "plain-input"
    assert [envelope.sender for envelope in stage.in_flight] == list(cast.cohort[:3])
    stage.carry(order=lambda count: count - 1)
    assert stage.result.survivors == cast.cohort
    assert other.result is None, "the copy was moved by the original"
    other.carry()
    assert same_sums(other.result, cast.expected(cast.cohort))


def test_a_rehearsal_has_every_step(cast):
    steps = rehearse(cast, rng=InsecureSeededRng(1))
    assert [step.envelope.sender for step in steps] == list(cast.cohort)
    assert [step.state for step in steps] == ["plain-input"] * 3 + ["finished"]
    party = cast.restore(steps[-1].snapshot)
    party.receive(steps[-1].envelope)
    assert isinstance(party.state, Finished)


def test_phases_have_names():
    assert phase_of(Running("share")) == "share"
    assert phase_of(Finished(RoundResult(sums={}, survivors=()))) == "finished"
    assert phase_of(Aborted(BelowThreshold("few"))) == "aborted"


def test_casts_differ_in_what_they_are_told(cast):
    other = cast.with_spec(round_id=RoundId(8))
    assert other.spec.digest() != cast.spec.digest()
    assert other.identities == cast.identities
    assert (
        Cast.make(cast.scheme, cast.spec.scheme, clients=4, threshold=3, seed=1).directory != cast.directory
    )
