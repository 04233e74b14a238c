"""Sites co-sign the ledger over an exchange: all at once, twice, and whoever does not is told from whoever will not."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path

import pytest

from secfl.errors import RemoteProtocolError
from secfl.federation.request_codec import decode_request, encode
from secfl.federation.requests import CoSign, Declined, Signature, WitnessAt
from secfl.ledger.checkpoints import Checkpoint
from secfl.ledger.merkle import MerkleTree
from secfl.ledger.signing import CoSigners
from secfl.types import RoundId

_SPEC = importlib.util.spec_from_file_location("remote_stage", Path(__file__).with_name("remote_stage.py"))
remote = sys.modules["remote_stage"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(remote)


@pytest.fixture
def one(tmp_path):
    stage = remote.Stage(tmp_path, "masking")
    yield stage
    stage.close()


def proposal(size, *, signers="abcd", root=bytes(32)):
    return Checkpoint(
        kind="checkpoint", run_id=remote.RUN, size=size, root=root, time="now", signers=tuple(signers)
    )


class Counted:
    """Counts the batches that go through an exchange."""

    def __init__(self, inner) -> None:
        self.inner, self.batches = inner, []

    def exchange(self, requests, *, seconds):
        self.batches.append(sorted(requests))
        yield from self.inner.exchange(requests, seconds=seconds)


def test_all_are_asked_at_once_and_remember_over_a_restart(one):
    exchange = Counted(remote.DirectExchange(one))
    panel = one.panel(exchange)
    assert panel.sizes() == dict.fromkeys("abcd", 0)
    asked = proposal(4)
    signatures = panel.co_sign(asked, {})
    for name in "abcd":
        one.terms.directory.verify(name, signatures[name], asked.purpose, *asked.fields())
    one.restart("a")
    assert panel.sizes() == dict.fromkeys("abcd", 4)
    assert exchange.batches == [list("abcd")] * 3


def test_an_older_or_forked_ledger_is_not_signed(one):
    panel = one.panel(remote.DirectExchange(one))
    panel.co_sign(proposal(4), {})
    with pytest.raises(RemoteProtocolError, match="older"):
        panel.co_sign(proposal(3), {})
    with pytest.raises(RemoteProtocolError, match="forks"):
        panel.co_sign(proposal(5, root=bytes(range(32))), {name: [bytes(32)] for name in "abcd"})


def test_whoever_is_away_is_not_asked_to_sign(one):
    panel = one.panel(
        remote.DirectExchange(one, fault=lambda name, _batch, request: [] if name == "b" else [request])
    )
    assert sorted(panel.sizes()) == ["a", "c", "d"]
    assert sorted(panel.co_sign(proposal(1), {})) == ["a", "c", "d"]
    assert sorted(panel.co_sign(proposal(1, signers="acd"), {})) == ["a", "c", "d"]


class Scripted:
    """Says what it was told to say, whatever it is asked."""

    def __init__(self, *replies) -> None:
        self.replies = replies

    def exchange(self, _requests, *, seconds):
        yield from self.replies


def test_rubbish_is_no_answer_and_strangers_are_nobody(one):
    stranger = ("x", encode(WitnessAt(size=9)))
    late = ("b", encode(Signature(value=bytes(64))))
    panel = one.panel(Scripted(("a", b"rubbish"), late, ("b", encode(WitnessAt(size=2))), stranger))
    assert panel.sizes() == {"b": 2}
    with pytest.raises(RemoteProtocolError, match="a: does not sign the ledger: not a request or reply"):
        panel.co_sign(proposal(1), {})


def test_a_late_answer_about_a_round_is_none_about_the_ledger(one):
    late = ("a", encode(Declined(round_id=RoundId(7), reason="no budget")))
    assert one.panel(Scripted(late, ("a", encode(WitnessAt(size=2))))).sizes() == {"a": 2}
    panel = one.panel(Scripted(late, ("a", encode(Signature(value=bytes(64))))))
    assert panel.co_sign(proposal(1, signers="a"), {}) == {"a": bytes(64)}


def test_nothing_is_kept_that_could_not_be_read_again(one):
    """A site that kept it would never start again."""
    panel = one.panel(remote.DirectExchange(one))
    longest = len(encode(CoSign(checkpoint=proposal(4), proof=())))
    huge = dataclasses.replace(proposal(4), kind="close", reason="x" * ((1 << 20) - longest))
    with pytest.raises(RemoteProtocolError, match=r"a: does not sign the ledger: .*larger"):
        panel.co_sign(huge, {})
    one.restart("a")
    assert panel.sizes() == dict.fromkeys("abcd", 0)
    assert sorted(panel.co_sign(proposal(4), {})) == list("abcd")


@pytest.mark.parametrize("kind", ["checkpoint", "close"])
def test_whoever_falls_silent_between_the_questions_does_not_stop_the_others(one, kind):
    """The others sign once more, a checkpoint that does not list the one who is gone."""

    def silent(name, _batch, request):
        return (
            []
            if name == "b" and isinstance(decode_request(request, peer="p", most_bytes=1 << 20), CoSign)
            else [request]
        )

    state = types.SimpleNamespace(size=1, tree=MerkleTree())
    state.tree.append(bytes(32))
    panel = one.panel(remote.DirectExchange(one, fault=silent))
    signed = CoSigners(remote.RUN).sign(state, panel, kind=kind, time="now", reason="")
    assert signed.signers == ("a", "c", "d")
    signed.check_signatures(one.terms.directory)
    assert panel.sizes() == {"a": 1, "b": 0, "c": 1, "d": 1}
