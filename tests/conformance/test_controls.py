"""Broken schemes: the suite fails each at the checks that are meant for it, and at no other.

In the fast test the masking controls run without the statistical checks, unless those are meant for them; the slow
test runs everything.
"""

from dataclasses import dataclass, field, replace

import pytest

from secfl.crypto.masking import Masking
from secfl.crypto.plain import Plain
from secfl.testing.adversaries import broken_masking as masking
from secfl.testing.adversaries import broken_plain as plain
from secfl.testing.adversaries.broken import BrokenScheme
from secfl.testing.adversaries.forging import Repair, reseal
from secfl.testing.conformance import (
    CHECKS,
    Capabilities,
    Inputs,
    PhaseRule,
    SecureAggregationConformance,
    Transcripts,
    failed_checks,
)

ON_PLAIN = Capabilities(
    phases=(PhaseRule(name="plain-input"),),
    input_phase="plain-input",
    inputs=Inputs.VISIBLE,
    transcripts=Transcripts.REPRODUCIBLE,
)
PLAIN_AS_SECURE = Capabilities(
    phases=(PhaseRule(name="plain-input"),), input_phase="plain-input", transcripts=Transcripts.REPRODUCIBLE
)
ON_MASKING = Capabilities(
    phases=tuple(
        PhaseRule(name=name) for name in ("advertise", "share", "masked-input", "consistency", "unmask")
    ),
    input_phase="masked-input",
    clients=(3, 4),
)
STATISTICAL = {"test_equal_sums_look_alike", "test_key_material_never_repeats"}


@dataclass(frozen=True, kw_only=True)
class Control:
    build: object
    fails: set[str] = field(default_factory=set)
    may_fail: set[str] = field(default_factory=set)  # sees it only where chance leads there
    capabilities: Capabilities = ON_PLAIN
    examples: int = 60  # for the checks that must fail; the others run with few


CONTROLS = {
    "plain presented as secure": Control(
        build=lambda: Plain(threads=1),
        capabilities=PLAIN_AS_SECURE,
        fails={
            "test_equal_sums_look_alike",
            "test_bytes_follow_from_randomness",
            "test_survivors_are_named_before_anything_is_opened",
            "test_the_guarantee_says_what_is_tested",
        },
    ),
    "one coordinate leaks": Control(
        build=lambda: masking.BrokenMasking(client_class=masking.LeakyClient),
        capabilities=ON_MASKING,
        fails={"test_equal_sums_look_alike"},
    ),
    "short seeds": Control(
        build=lambda: masking.BrokenMasking(wrong_rng=masking.FoldedRng),
        capabilities=ON_MASKING,
        fails={"test_key_material_never_repeats"},
    ),
    "both shares of one client": Control(
        build=lambda: masking.BrokenMasking(client_class=masking.ObligingClient),
        capabilities=ON_MASKING,
        fails={"test_a_client_answers_once"},
    ),
    "no transcript of the members": Control(
        build=lambda: masking.BrokenMasking(
            client_class=masking.ClientWithoutTranscript,
            aggregator_class=masking.AggregatorWithoutTranscript,
        ),
        capabilities=ON_MASKING,
        fails={"test_clients_with_different_views_never_both_go_on"},
    ),
    "a library's error escapes": Control(
        build=lambda: masking.BrokenMasking(aggregator_class=masking.BrittleAggregator),
        capabilities=ON_MASKING,
        fails={"test_valid_signatures_do_not_help"},
        may_fail={"test_a_round_ends_whatever_one_client_sends"},
    ),
    "survivors are not named": Control(
        build=lambda: masking.BrokenMasking(aggregator_class=masking.SecretiveAggregator),
        capabilities=ON_MASKING,
        fails={"test_survivors_are_named_before_anything_is_opened"},
    ),
    "off by one": Control(
        build=lambda: BrokenScheme(wrong_aggregator=plain.InaccurateAggregator),
        fails={
            "test_the_sum_is_exact",
            "test_survivors_alone_are_summed",
            "test_parties_continue_from_their_snapshots",
            "test_misuse_is_the_callers_fault",
            "test_any_order_of_events",
        },
    ),
    "opens sums of too few": Control(
        build=lambda: plain.BrokenPlain(aggregator_class=plain.LenientAggregator),
        fails={"test_one_dropout_too_many_opens_nothing"},
        may_fail={"test_any_order_of_events"},
    ),
    "believes every signature": Control(
        build=lambda: plain.BrokenPlain(believed=plain.CredulousDirectory.of),
        fails={"test_hostile_bytes_are_refused"},
        may_fail={"test_any_order_of_events"},
    ),
    "parses before it checks sizes": Control(
        build=lambda: BrokenScheme(wrong_aggregator=plain.FragileParty),
        fails={
            "test_hostile_bytes_are_refused",
            "test_any_order_of_events",
            "test_valid_signatures_do_not_help",
            "test_a_round_ends_whatever_one_client_sends",
        },
        examples=150,
    ),
    "believes the sender that a message names": Control(
        build=lambda: BrokenScheme(wrong_aggregator=plain.AnonymousAggregator),
        fails={"test_foreign_messages_are_refused"},
    ),
    "prints its input": Control(
        build=lambda: BrokenScheme(wrong_client=plain.TalkativeClient),
        fails={"test_secrets_do_not_print"},
    ),
    "starts twice": Control(
        build=lambda: BrokenScheme(wrong_client=plain.RestartableClient),
        fails={"test_misuse_is_the_callers_fault"},
    ),
    "takes messages after the end": Control(
        build=lambda: BrokenScheme(wrong_aggregator=plain.NumbAggregator),
        fails={"test_the_state_table_is_complete", "test_foreign_messages_are_refused"},
    ),
    "gives up at the first deadline": Control(
        build=lambda: plain.BrokenPlain(aggregator_class=plain.ImpatientAggregator),
        fails={"test_survivors_alone_are_summed", "test_parties_continue_from_their_snapshots"},
    ),
    "forgets its input": Control(
        build=plain.ForgetfulScheme, fails={"test_parties_continue_from_their_snapshots"}
    ),
    "ignores damage to snapshots": Control(
        build=plain.CarelessScheme, fails={"test_damaged_snapshots_are_refused"}
    ),
    "promises too much": Control(
        build=plain.BoastfulScheme, fails={"test_the_guarantee_says_what_is_tested"}
    ),
    "takes widths that it does not claim to carry": Control(
        build=lambda: Plain(threads=1),
        capabilities=replace(ON_PLAIN, modulus_bits=(2, 40)),
        fails={"test_what_does_not_fit_is_refused_beforehand"},
    ),
    "takes any input": Control(
        build=plain.UncheckingScheme, fails={"test_what_contradicts_the_round_is_refused"}
    ),
}


def suite_for(control, *, number):
    class Suite(SecureAggregationConformance):
        capabilities = control.capabilities
        examples = number
        shrink = False

        def scheme(self):
            return control.build()

        def reseal(self, cast, envelope, source):
            return reseal(cast, envelope, list(Repair)[int(source.integers(1, len(Repair)))])

    return Suite()


def run(control, checks):
    few = 2 if control.capabilities is ON_MASKING else 5
    failures = failed_checks(suite_for(control, number=control.examples), checks=sorted(control.fails))
    others = checks - control.fails
    failures |= failed_checks(suite_for(control, number=few), checks=sorted(others))
    found = {check: str(error) for check, error in failures.items()}
    assert control.fails <= set(failures) <= control.fails | control.may_fail, found


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_fails_where_it_must_and_nowhere_else(name):
    control = CONTROLS[name]
    skipped = STATISTICAL if control.capabilities is ON_MASKING else set()
    run(control, set(CHECKS) - skipped)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONTROLS if CONTROLS[name].capabilities is ON_MASKING])
def test_a_masking_control_fails_where_it_must_and_nowhere_else_with_every_check(name):
    run(CONTROLS[name], set(CHECKS))


def test_every_check_is_failed_by_some_control():
    assert set().union(*(control.fails for control in CONTROLS.values())) == set(CHECKS)


def test_the_sound_schemes_pass_under_the_same_rules():
    run(Control(build=lambda: Plain(threads=1)), set(CHECKS))
    run(Control(build=lambda: Masking(threads=1), capabilities=ON_MASKING), set(CHECKS) - STATISTICAL)


@pytest.mark.slow
def test_seeds_of_twenty_bits_are_found_with_more_rounds():
    class Suite(SecureAggregationConformance):
        capabilities = ON_MASKING
        collision_rounds = 2048

        def scheme(self):
            return masking.BrokenMasking(wrong_rng=lambda rng: masking.FoldedRng(rng, bits=20))

    # 3 clients, 2048 rounds: 6 repeats are expected; none has probability exp(-6) = 0.0025.
    assert set(failed_checks(Suite(), checks=["test_key_material_never_repeats"])) == {
        "test_key_material_never_repeats"
    }
