"""The error tree: what ends with which exit code."""

from __future__ import annotations

import inspect

import pytest

from secfl import errors

EXIT_CODES = {
    errors.SecflError: 2,
    errors.ConfigError: 2,
    errors.DataError: 2,
    errors.CapacityError: 2,
    errors.PrivacyError: 3,
    errors.BudgetExhausted: 3,
    errors.UnsupportedEvent: 3,
    errors.ProtocolError: 4,
    errors.LocalProtocolError: 4,
    errors.RemoteProtocolError: 4,
    errors.RoundAborted: 4,
    errors.BelowThreshold: 4,
    errors.SitesDecline: 4,
    errors.LedgerCorrupted: 5,
    errors.LedgerOpen: 6,
}


def test_every_error_has_its_exit_code():
    defined = {
        member for _, member in inspect.getmembers(errors, inspect.isclass) if issubclass(member, Exception)
    }
    assert defined == set(EXIT_CODES)
    for error, code in EXIT_CODES.items():
        assert error.exit_code == code
        assert issubclass(error, errors.SecflError)


def test_all_of_them_are_public():
    assert {error.__name__ for error in EXIT_CODES} == set(errors.__all__)


def test_a_remote_error_blames_its_peer():
    error = errors.RemoteProtocolError("ward-a", "truncated")
    assert (error.peer, error.reason) == ("ward-a", "truncated")
    assert str(error) == "ward-a: truncated"


@pytest.mark.parametrize(("entry", "start"), [(None, "ledger: "), (7, "ledger entry 7: ")])
def test_a_corrupted_ledger_names_its_entry(entry, start):
    error = errors.LedgerCorrupted(entry, "sigma: expected 2")
    assert str(error) == start + "sigma: expected 2"
    assert (error.entry, error.reason) == (entry, "sigma: expected 2")
