"""Names, digests and the ladder from an update to what a scheme accepts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from secfl.errors import ConfigError, LocalProtocolError
from secfl.types import (
    ClippedUpdate,
    PrivatizedUpdate,
    RoundId,
    RoundSpec,
    SchemeSpec,
    Update,
    VectorSpec,
    client_id,
    exact_square_norm,
    join_fields,
)

COHORT = tuple(client_id(name) for name in ("ward-a", "ward-b", "ward-c"))


def make_spec(**changes) -> RoundSpec:
    fields = {
        "run_id": bytes(16),
        "round_id": RoundId(3),
        "cohort": COHORT,
        "threshold": 3,
        "vectors": (VectorSpec(name="update", length=4, modulus_bits=18),),
        "scheme": SchemeSpec(name="masking", parameters=(("graph", "complete"),)),
        "manifest_digest": b"m" * 32,
        "model_digest": b"w" * 32,
        "task_digest": b"t" * 32,
        "plan_digest": b"p" * 32,
    }
    return RoundSpec(**(fields | changes))


CHANGES = {
    "run_id": b"r" * 16,
    "round_id": RoundId(4),
    "cohort": (*COHORT[:2], client_id("ward-d")),
    "threshold": 2,
    "vectors": (VectorSpec(name="update", length=4, modulus_bits=19),),
    "scheme": SchemeSpec(name="masking", parameters=(("graph", "sparse"),)),
    "manifest_digest": b"x" * 32,
    "model_digest": b"x" * 32,
    "task_digest": b"x" * 32,
    "plan_digest": b"x" * 32,
}


class TestNames:
    @pytest.mark.parametrize("name", ["a", "Clinic.7", "STARE", "x" * 64, "0_-."])
    def test_good_client_names_pass(self, name):
        assert client_id(name) == name

    @pytest.mark.parametrize("name", ["", "aggregator", "a b", "-a", "x" * 65, "a/b", "a\n", "å", "../a"])
    def test_bad_client_names_are_refused(self, name):
        with pytest.raises(ConfigError, match="expected 1 to 64"):
            client_id(name)

    @given(st.lists(st.binary(max_size=12), max_size=4), st.lists(st.binary(max_size=12), max_size=4))
    def test_joined_fields_are_equal_only_for_equal_fields(self, left, right):
        assert (join_fields(*left) == join_fields(*right)) == (left == right)

    def test_joining_is_not_concatenation(self):
        assert join_fields(b"ab", b"c") != join_fields(b"a", b"bc")


class TestRoundSpec:
    @pytest.mark.parametrize("name", sorted(CHANGES))
    def test_the_digest_binds_every_field(self, name):
        assert make_spec(**{name: CHANGES[name]}).digest() != make_spec().digest()

    def test_no_field_is_left_out_of_the_test_above(self):
        assert {field.name for field in dataclasses.fields(RoundSpec)} == set(CHANGES)

    def test_the_digest_is_stable(self):
        assert make_spec().digest() == make_spec().digest()
        assert len(make_spec().digest()) == 32

    @pytest.mark.parametrize(
        "change",
        [
            {"run_id": b"short"},
            {"round_id": -1},
            {"round_id": 2**63},
            {"cohort": COHORT[::-1]},
            {"cohort": (COHORT[0], COHORT[0], COHORT[1])},
            {"cohort": ("aggregator", "b", "c")},
            {"threshold": 0},
            {"threshold": 4},
            {"vectors": ()},
            {"vectors": (VectorSpec(name="v", length=1, modulus_bits=8),) * 2},
            {"model_digest": b"short"},
        ],
    )
    def test_impossible_rounds_are_refused(self, change):
        with pytest.raises(ConfigError):
            make_spec(**change)

    def test_lookups(self):
        spec = make_spec()
        assert spec.index(COHORT[2]) == 2
        assert spec.vector("update").length == 4
        with pytest.raises(LocalProtocolError, match="stranger"):
            spec.index("stranger")
        with pytest.raises(LocalProtocolError, match="weights"):
            spec.vector("weights")

    @pytest.mark.parametrize(
        "fields",
        [
            {"name": "", "length": 1, "modulus_bits": 8},
            {"name": "v", "length": 0, "modulus_bits": 8},
            {"name": "v", "length": 2**32, "modulus_bits": 8},
            {"name": "v", "length": 1, "modulus_bits": 1},
            {"name": "v", "length": 1, "modulus_bits": 63},
        ],
    )
    def test_impossible_vectors_are_refused(self, fields):
        with pytest.raises(ConfigError):
            VectorSpec(**fields)

    @pytest.mark.parametrize(("bits", "dtype"), [(2, np.uint32), (32, np.uint32), (33, np.uint64)])
    def test_words_hold_the_modulus(self, bits, dtype):
        assert VectorSpec(name="v", length=1, modulus_bits=bits).dtype == dtype

    def test_scheme_parameters_have_one_order(self):
        with pytest.raises(ConfigError, match="sorted"):
            SchemeSpec(name="ckks", parameters=(("b", "1"), ("a", "2")))
        with pytest.raises(ConfigError, match="sorted"):
            SchemeSpec(name="ckks", parameters=(("a", "1"), ("a", "2")))

    def test_scheme_parameters_are_found_by_name(self):
        scheme = SchemeSpec(name="ckks", parameters=(("key", "shared"),))
        assert scheme.parameter("key") == "shared"
        assert scheme.parameter("scale", "1") == "1"
        with pytest.raises(ConfigError, match="'scale' is missing"):
            scheme.parameter("scale")


class TestLadder:
    def test_an_update_names_the_tensor_of_an_element(self):
        update = Update(values=np.zeros(5, np.float32), names=("w", "b"), sizes=(3, 2))
        assert [update.tensor_at(index) for index in range(5)] == ["w", "w", "w", "b", "b"]
        with pytest.raises(LocalProtocolError, match="outside"):
            update.tensor_at(5)

    @pytest.mark.parametrize(
        ("values", "names", "sizes"),
        [
            (np.zeros(3, np.float64), ("w",), (3,)),
            (np.zeros((1, 3), np.float32), ("w",), (3,)),
            (np.zeros(3, np.float32), ("w",), (2,)),
            (np.zeros(3, np.float32), ("w", "b"), (3,)),
        ],
    )
    def test_updates_of_another_shape_are_refused(self, values, names, sizes):
        with pytest.raises(LocalProtocolError):
            Update(values=values, names=names, sizes=sizes)

    @given(
        npst.arrays(np.int64, st.integers(0, 40), elements=st.integers(-(2**63), 2**63 - 1))
        | npst.arrays(np.int32, st.integers(0, 40), elements=st.integers(-(2**31), 2**31 - 1))
    )
    def test_the_square_norm_is_exact_at_any_size(self, values):
        assert exact_square_norm(values) == sum(int(value) ** 2 for value in values)

    def test_the_square_norm_is_exact_over_many_blocks(self):
        values = np.full(100_000, 2**31 - 1, np.int32)
        assert exact_square_norm(values) == 100_000 * (2**31 - 1) ** 2

    def test_a_clipped_update_proves_its_bound(self):
        values = np.array([3, -4], np.int32)
        assert ClippedUpdate(values=values, norm_bound=5).norm_bound == 5
        with pytest.raises(LocalProtocolError, match="above the bound 4"):
            ClippedUpdate(values=values, norm_bound=4)

    def test_a_float_vector_is_no_clipped_update(self):
        with pytest.raises(LocalProtocolError, match="int32 or int64"):
            ClippedUpdate(values=np.zeros(2, np.float32), norm_bound=5)

    @pytest.mark.parametrize(
        ("vectors", "message"),
        [
            ({"other": np.zeros(4, np.uint32)}, "names differ"),
            ({"update": np.zeros(4, np.uint32), "more": np.zeros(4, np.uint32)}, "names differ"),
            ({"update": np.zeros(5, np.uint32)}, "expected 4 elements"),
            ({"update": np.zeros((4, 1), np.uint32)}, "expected 4 elements"),
            ({"update": np.zeros(4, np.uint64)}, "of uint32"),
            ({"update": np.zeros(4, np.int32)}, "of uint32"),
            ({"update": np.array([0, 0, 0, 2**18], np.uint32)}, "more than 18 bits"),
        ],
    )
    def test_what_does_not_fit_the_round_is_refused(self, vectors, message):
        with pytest.raises(LocalProtocolError, match=message):
            PrivatizedUpdate.without_noise(vectors).check(make_spec())

    def test_what_fits_the_round_passes(self):
        update = PrivatizedUpdate.without_noise({"update": np.array([0, 1, 2, 2**18 - 1], np.uint32)})
        update.check(make_spec())
        assert update.noise == "none"

    def test_values_do_not_print(self):
        values = np.array([777_777], np.int32)
        for secret in (
            Update(values=values.astype(np.float32), names=("w",), sizes=(1,)),
            ClippedUpdate(values=values, norm_bound=10**6),
            PrivatizedUpdate.without_noise({"update": values.astype(np.uint32)}),
        ):
            assert "777" not in repr(secret)
