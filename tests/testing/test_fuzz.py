"""The fuzzer finds nothing in sound schemes, and finds what is planted."""

from unittest.mock import patch

import pytest

from secfl.crypto import masking_aggregator
from secfl.crypto.masking_client import MaskingClient
from secfl.errors import RemoteProtocolError
from secfl.testing import fuzz as fuzzer
from secfl.testing.fuzz import SCHEMES, Outcome, fuzz, main


@pytest.fixture(scope="module")
def report():
    return fuzz(6000, seed=5)


class TestSoundSchemes:
    def test_nothing_but_remote_protocol_error_comes_out(self, report):
        assert report.messages == 6000
        assert not report.failures, report.failures[0]

    def test_nothing_unsigned_is_accepted(self, report):
        assert not [key for key in report.counts if key[3] == "no" and key[4] is not Outcome.REFUSED]

    def test_signed_messages_reach_what_lies_behind_and_some_are_accepted(self, report):
        accepted = sum(count for key, count in report.counts.items() if key[4] is Outcome.ACCEPTED)
        assert accepted > 100
        assert report.carried > 5

    def test_half_of_the_messages_are_signed_again(self, report):
        assert sum(count for key, count in report.counts.items() if key[3] == "yes") == 3000

    def test_every_party_is_met_in_every_phase(self, report):
        met = {key[:3] for key in report.counts}
        masking_phases = {"share", "masked-input", "consistency", "unmask"}
        for scheme in ("masking", "ckks-sum-key"):
            assert {
                phase for name, role, phase in met if (name, role) == (scheme, "client")
            } == masking_phases
            assert {phase for name, role, phase in met if (name, role) == (scheme, "aggregator")} == {
                "advertise",
                *masking_phases,
            }
        assert {phase for name, role, phase in met if (name, role) == ("ckks-shared", "client")} == {
            "ckks-key",
            "ckks-open",
        }
        assert ("plain", "aggregator", "plain-input") in met

    def test_the_table_names_every_scheme(self, report):
        table = report.table()
        assert all(scheme in table for scheme in SCHEMES)
        assert "6000 messages" in table
        assert "0 failures" in table


class TestPlantedFaults:
    """The fuzzer is itself tested: each planted fault must be found."""

    def test_a_librarys_error_is_found(self):
        def careless(public):
            if public[:4] == bytes(4):
                raise KeyError("a library's own error")

        with patch.object(masking_aggregator, "check_hybrid_public", careless):
            report = fuzz(2500, seed=1, schemes=["masking"])
        assert any("KeyError" in failure.what for failure in report.failures)
        assert "a library's own error" in report.failures[0].trace

    def test_an_error_later_in_the_round_is_found(self):
        def fragile(self, content):
            raise ZeroDivisionError

        with (
            patch.object(fuzzer, "_CARRY_ON", 1),
            patch.object(MaskingClient, "_confirm", MaskingClient._confirm),
        ):
            target = fuzzer._Fuzzer("masking", SCHEMES["masking"], report := fuzzer.Report(), seed=0)
            source = fuzzer.ExperimentSeed(0).generator("fuzz")
            with patch.object(MaskingClient, "_confirm", fragile):
                for number in range(400):
                    target.message(number, source)
        assert any("later in the round: ZeroDivisionError" in failure.what for failure in report.failures)

    def test_a_missing_signature_check_is_found(self):
        with patch.object(masking_aggregator, "verify_body", lambda *_, **__: None):
            report = fuzz(300, schemes=["masking"])
        assert any("accepted without a valid signature" in failure.what for failure in report.failures)

    def test_wrong_blame_is_found(self):
        honest = MaskingClient.receive

        def blames_a_stranger(self, envelope):
            try:
                return honest(self, envelope)
            except RemoteProtocolError as error:
                raise RemoteProtocolError("stranger", error.reason) from None

        with patch.object(MaskingClient, "receive", blames_a_stranger):
            report = fuzz(100, schemes=["masking"])
        assert any("stranger was blamed" in failure.what for failure in report.failures)


class TestCommand:
    def test_it_prints_counts_and_succeeds(self, capsys):
        assert main(["--messages", "300", "--schemes", "plain"]) == 0
        printed = capsys.readouterr().out
        assert "plain         aggregator  plain-input" in printed
        assert "300 messages" in printed

    def test_it_fails_and_shows_what_came_out(self, capsys):
        with patch.object(fuzzer._Fuzzer, "message", lambda self, *_: self._report.failures.append(_FAILURE)):
            assert main(["--messages", "3", "--schemes", "plain"]) == 1
        assert "message 7: somewhere: planted" in capsys.readouterr().out

    def test_an_unknown_scheme_is_refused(self):
        with pytest.raises(SystemExit):
            main(["--schemes", "rot13"])


_FAILURE = fuzzer.Failure(7, "somewhere", "planted", "a traceback\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_messages():
    report = fuzz(1_000_000, seed=2)
    assert report.messages == 1_000_000
    assert not report.failures, report.failures[0]
