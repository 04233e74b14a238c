import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.dp.effective import colluder_limit, unknown_shares, z_broken, z_effective
from secfl.errors import ConfigError
from secfl.guarantees import Behaviour

CURIOUS, MALICIOUS = Behaviour.CURIOUS, Behaviour.MALICIOUS


def z_of(colluders, behaviour, *, n=5, t=4, survivors=5, m=5):
    return z_effective(
        1.0, m, survivors=survivors, colluders=colluders, threshold=t, cohort_size=n, behaviour=behaviour
    )


def test_the_table_of_five_clients():
    assert [z_of(k, CURIOUS) ** 2 * 5 for k in range(5)] == pytest.approx([5, 4, 3, 2, 1])
    assert [z_of(k, MALICIOUS) ** 2 * 5 for k in range(5)] == pytest.approx([4, 3, 2, 1, 1])


def test_drop_outs_cost_their_shares_and_a_malicious_aggregator_invents_them():
    assert z_of(0, CURIOUS, survivors=4) == pytest.approx(math.sqrt(4 / 5))
    assert (
        z_of(0, MALICIOUS, survivors=5) == z_of(0, MALICIOUS, survivors=4) == pytest.approx(math.sqrt(4 / 5))
    )


def test_limits_of_collusion():
    assert colluder_limit(survivors=5, threshold=4, cohort_size=5, behaviour=CURIOUS) == 3
    assert colluder_limit(survivors=4, threshold=4, cohort_size=5, behaviour=CURIOUS) == 2
    assert colluder_limit(survivors=5, threshold=4, cohort_size=5, behaviour=MALICIOUS) == 2
    # With 2t - n = 1 a malicious aggregator and one client unmask somebody.
    assert colluder_limit(survivors=3, threshold=3, cohort_size=5, behaviour=MALICIOUS) == 0


@given(st.integers(3, 20), st.data())
def test_more_colluders_and_malice_never_help(n, data):
    t = data.draw(st.integers(n // 2 + 1, n))
    survivors = data.draw(st.integers(t, n))
    z = {
        behaviour: [z_of(k, behaviour, n=n, t=t, survivors=survivors, m=n) for k in range(n)]
        for behaviour in Behaviour
    }
    for row in z.values():
        assert all(a >= b for a, b in itertools.pairwise(row))
        assert min(row) >= z_broken(1.0, n) * (1 - 1e-12)
        assert row[-1] == pytest.approx(z_broken(1.0, n))
    assert all(m <= c + 1e-12 for m, c in zip(z[MALICIOUS], z[CURIOUS], strict=True))


def test_of_unequal_shares_the_largest_are_removed():
    shares = [0.4, 0.1, 0.2, 0.1, 0.2]
    keep = {"threshold": 4, "cohort_size": 5}
    assert math.fsum(unknown_shares(shares, colluders=0, behaviour=CURIOUS, **keep)) == pytest.approx(1.0)
    assert math.fsum(unknown_shares(shares, colluders=1, behaviour=CURIOUS, **keep)) == pytest.approx(0.6)
    assert math.fsum(unknown_shares(shares, colluders=1, behaviour=MALICIOUS, **keep)) == pytest.approx(0.4)
    assert unknown_shares(shares, colluders=4, behaviour=CURIOUS, **keep) == [0.1]


@pytest.mark.parametrize(
    "wrong", [{"z": 0.0}, {"m": 0}, {"t": 0}, {"t": 6}, {"survivors": 0}, {"survivors": 6}, {"colluders": -1}]
)
def test_nonsense_is_refused(wrong):
    values = {"z": 1.0, "m": 5, "t": 4, "survivors": 5, "colluders": 0, **wrong}
    with pytest.raises(ConfigError):
        z_effective(
            values["z"],
            values["m"],
            survivors=values["survivors"],
            colluders=values["colluders"],
            threshold=values["t"],
            cohort_size=5,
            behaviour=CURIOUS,
        )
