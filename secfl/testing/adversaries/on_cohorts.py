"""Attacks that small cohorts and low thresholds would allow."""

from __future__ import annotations

from unittest.mock import patch

from secfl.crypto import masking_round
from secfl.crypto.masking import Masking
from secfl.errors import ConfigError
from secfl.randomness import InsecureSeededRng
from secfl.testing.adversaries.attacks import Attack, Guard, Outcome, learned, refused
from secfl.testing.adversaries.on_masking import attacker_on, verdict
from secfl.testing.stage import Cast, Stage
from secfl.types import SchemeSpec

__all__ = ["ATTACKS"]

_MASKING = SchemeSpec(name="masking")


def _own_minimum(guard: Guard) -> Outcome:
    """The aggregator lets two of five clients drop; one of the others had asked for five."""
    insists = 0 if guard is Guard.REMOVED else 5
    cast = Cast.make(Masking(threads=1), _MASKING, clients=5, threshold=3)
    picky = Cast.make(Masking(threads=1, minimum=insists), _MASKING, clients=5, threshold=3)
    name = cast.cohort[0]
    parties = {name: picky.client(name, InsecureSeededRng(4))}
    stage = Stage(
        cast, rng=InsecureSeededRng(1), parties=parties, leaves=dict.fromkeys(cast.cohort[3:], "masked-input")
    )
    result = stage.play()
    if result is not None and name in result.survivors:
        return learned(f"a sum of {len(result.survivors)} with a client that wants 5")
    return refused(next(refusal.error for refusal in stage.refusals if refusal.envelope.recipient == name))


def _half_is_enough(guard: Guard) -> Outcome:
    """Threshold 3 of 6: two disjoint groups of honest clients each confirm another set of survivors."""

    def play() -> Outcome:
        attacker = attacker_on(Masking(threads=1), clients=6, threshold=3)
        attacker.collect_inputs()
        for group in ((0, 1, 2), (3, 4, 5)):
            for index in group:
                attacker.show_survivors(index, group)
            for index in group:
                attacker.show_signers(index, group)
        return verdict(attacker, (0,), "the whole input of one client, though each answered once")

    if guard is Guard.REMOVED:
        with patch.object(masking_round, "check_cohort", lambda *_: None):
            return play()
    try:
        return play()
    except ConfigError as error:
        return refused(error)


def _sum_of_two(guard: Guard) -> Outcome:
    """Threshold 2 of 3: a client takes its own input off the sum of two."""

    def play() -> Outcome:
        cast = Cast.make(Masking(threads=1), _MASKING, clients=3, threshold=2)
        stage = Stage(cast, rng=InsecureSeededRng(1), leaves={cast.cohort[2]: "masked-input"})
        result = stage.play()
        assert result is not None
        mine, other = (cast.inputs[name]["update"] for name in result.survivors)
        mask = (1 << cast.spec.vectors[0].modulus_bits) - 1
        assert ((result.sums["update"] - mine) & mask == other).all()
        return learned("the input of the only other survivor, by subtraction")

    if guard is Guard.REMOVED:
        with patch.object(masking_round, "check_cohort", lambda *_: None):
            return play()
    try:
        return play()
    except ConfigError as error:
        return refused(error)


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="go on with fewer clients than one of them wants",
        line="a client's own minimum cohort not met",
        guard="the client's minimum",
        play=_own_minimum,
    ),
    Attack(
        name="let two halves of the cohort confirm different survivors",
        line="2t <= n",
        guard="the threshold must be more than half",
        play=_half_is_enough,
    ),
    Attack(
        name="take one's own input off a sum of two",
        line="t < 3",
        guard="the threshold must be at least three",
        play=_sum_of_two,
    ),
)
