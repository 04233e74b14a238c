"""What leaves a site when it cannot go on: why, and nothing about its disk or its data."""

import pytest

from secfl.errors import (
    BelowThreshold,
    BudgetExhausted,
    ConfigError,
    DataError,
    LocalProtocolError,
    RemoteProtocolError,
)
from secfl.federation.failures import Reports, reply_to
from secfl.federation.request_codec import decode_reply, encode
from secfl.federation.requests import Declined, Failed, Refused
from secfl.types import RoundId


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (RemoteProtocolError("aggregator", "a replay"), Refused, "a replay"),
        (BudgetExhausted("one more is too many"), Declined, "one more is too many"),
        (BudgetExhausted("policy /etc/secfl/policy.toml: epsilon"), Declined, "cannot use its own files"),
        (LocalProtocolError("round 3 was entered before"), Failed, "round 3 was entered before"),
        (LocalProtocolError("/var/lib/secfl/journal: No space left"), Failed, "cannot use its own files"),
        (LocalProtocolError(r"C:\secfl\journal: damaged"), Failed, "cannot use its own files"),
        (BelowThreshold("2 of 4"), Failed, "2 of 4"),
        (DataError("mueller-anna.nii.gz: damaged"), Failed, "its data cannot be used"),
        (OSError(28, "No space left on device", "x"), Failed, "cannot use its own files"),
        (ConfigError("data.root: missing"), Failed, "its configuration cannot be used"),
        (ValueError("mueller-anna.png: not a picture"), Failed, "it failed; its own log says why"),
        (RuntimeError("loader of /data/mueller"), Failed, "it failed; its own log says why"),
    ],
)
def test_the_coordinator_hears_why_and_the_log_hears_all(caplog, error, kind, reason):
    reply = reply_to(error, round_id=RoundId(7), reports=Reports.NOTHING)
    assert isinstance(reply, kind)
    assert reply.reason.startswith(reason)
    assert decode_reply(encode(reply), peer="a", most_bytes=999) == reply
    assert str(error) in caplog.text
    for secret in ("/", "\\", "mueller"):
        assert secret not in reply.reason


def test_a_simulation_tells_all():
    error = LocalProtocolError("/tmp/run/journal: No space left")
    assert reply_to(error, round_id=RoundId(7), reports=Reports.SIMULATION).reason == str(error)
