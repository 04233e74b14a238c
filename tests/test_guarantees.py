"""The words of a guarantee and what they say about each adversary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secfl.guarantees import Adversary, Assumption, Behaviour, Guarantee, UnitOfPrivacy, View, Visibility

ORDER = [Visibility.NOTHING, Visibility.SUM, Visibility.EVERY_UPDATE]


def guarantee(**changes) -> Guarantee:
    fields = {
        "scheme": "masking",
        "key_mode": "pairwise",
        "cohort_size": 5,
        "survivors": 5,
        "threshold": 4,
        "curious_colluders": 3,
        "malicious_colluders": 2,
        "network_sees": Visibility.NOTHING,
        "client_with_network": Visibility.SUM,
        "assumptions": (),
        "advantage_log2": -100.0,
    }
    return Guarantee(**(fields | changes))


def test_the_names_of_the_views_are_fixed():
    assert [view.value for view in View] == [
        "network",
        "aggregator",
        "aggregator_colluders",
        "client",
        "final_model",
        "crypto_broken",
    ]
    assert [behaviour.value for behaviour in Behaviour] == ["curious", "malicious"]
    assert [unit.value for unit in UnitOfPrivacy] == ["patient", "client"]


def test_views_other_than_the_aggregator_see_what_the_scheme_states():
    stated = guarantee()
    assert stated.visibility(Adversary(view=View.NETWORK)) is Visibility.NOTHING
    assert stated.visibility(Adversary(view=View.CLIENT)) is Visibility.SUM
    assert stated.visibility(Adversary(view=View.FINAL_MODEL)) is Visibility.SUM
    assert stated.visibility(Adversary(view=View.CRYPTO_BROKEN)) is Visibility.EVERY_UPDATE


@given(st.integers(-1, 6), st.integers(-1, 6), st.integers(0, 6), st.sampled_from(Behaviour))
def test_the_aggregator_sees_every_update_beyond_the_bound_and_only_there(
    curious, malicious, colluders, behaviour
):
    stated = guarantee(curious_colluders=curious, malicious_colluders=malicious)
    bound = curious if behaviour is Behaviour.CURIOUS else malicious
    for view in (View.AGGREGATOR, View.AGGREGATOR_COLLUDERS):
        seen = stated.visibility(Adversary(view=view, behaviour=behaviour, colluders=colluders))
        assert seen is (Visibility.SUM if colluders <= bound else Visibility.EVERY_UPDATE)


@given(st.sampled_from(View), st.sampled_from(Behaviour), st.integers(0, 6))
def test_no_adversary_sees_less_with_one_more_colluder(view, behaviour, colluders):
    stated = guarantee()
    few, more = (
        stated.visibility(Adversary(view=view, behaviour=behaviour, colluders=count))
        for count in (colluders, colluders + 1)
    )
    assert ORDER.index(few) <= ORDER.index(more)


def test_post_quantum_needs_every_assumption():
    lattice = Assumption(name="ml-kem-768", statement="ML-KEM-768 hides its secret.", post_quantum=True)
    curve = Assumption(name="x25519", statement="X25519 hides its secret.", post_quantum=False)
    assert guarantee(assumptions=(lattice,)).post_quantum
    assert not guarantee(assumptions=(lattice, curve)).post_quantum
