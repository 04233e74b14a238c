"""Sites that are asked by requests: the same sums as in one process, whatever happens to messages."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from secfl.errors import BelowThreshold, DataError, LocalProtocolError, RemoteProtocolError, RoundAborted
from secfl.federation.exchange import Deadlines, ExchangeDriver
from secfl.federation.inprocess import InProcessDriver
from secfl.federation.request_codec import decode_reply, decode_request, encode
from secfl.federation.requests import (
    Failed,
    OfferRound,
    Refused,
    Sent,
)
from secfl.federation.site_agent import Reports
from secfl.types import SchemeSpec

_SPEC = importlib.util.spec_from_file_location("remote_stage", Path(__file__).with_name("remote_stage.py"))
remote = sys.modules["remote_stage"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(remote)

ALL = sorted(remote.SCHEMES)


@pytest.fixture
def stage(tmp_path):
    opened = []

    def make(scheme="masking", **changes):
        opened.append(remote.Stage(tmp_path / str(len(opened)), scheme, **changes))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def replied(exchange, kind):
    decoded = [(name, decode_reply(data, peer=name, most_bytes=1 << 22)) for name, data in exchange.replies]
    return [(name, reply) for name, reply in decoded if isinstance(reply, kind)]


@pytest.mark.parametrize("scheme", ALL)
class TestEveryScheme:
    def test_the_sum_is_that_of_one_process(self, stage, scheme):
        one = stage(scheme)
        states = []
        carriage, sites = one.run(remote.DirectExchange(one), watch=states.append)
        assert carriage.result.survivors == tuple("abcd")
        assert carriage.refusals == []
        assert sum(carriage.bytes_up.values()) > 4 * remote.LENGTH * 2
        assert all(site.report.train_seconds == 1.5 for site in sites.values())
        # Whoever keeps a ledger hears of the survivors before the sum is opened.
        if scheme != "plain":
            assert any(getattr(state, "survivors", ()) for state in states[:-1])

    @pytest.mark.parametrize("sends", [0, 1])
    def test_one_that_falls_silent_is_left_out(self, stage, scheme, sends):
        one = stage(scheme)
        carriage, _ = one.run(remote.DirectExchange(one), drops={"b": sends})
        # The one message of plain is the input: whoever sent it is in the sum.
        in_the_sum = scheme == "plain" and sends == 1
        assert carriage.result.survivors == tuple("abcd" if in_the_sum else "acd")

    def test_two_that_fall_silent_are_too_many(self, stage, scheme):
        one = stage(scheme)
        with pytest.raises(BelowThreshold):
            one.run(remote.DirectExchange(one), drops={"b": 0, "c": 0})

    def test_one_killed_before_every_request_goes_on(self, stage, scheme):
        one = stage(scheme)

        def fault(name, batch, request):
            if name == "b" and batch > 1:
                one.restart("b")
            return [request]

        carriage, _ = one.run(remote.DirectExchange(one, fault=fault))
        assert carriage.result.survivors == tuple("abcd")
        assert one.work["b"].calls == 1

    def test_asked_twice_it_says_the_same(self, stage, scheme):
        one = stage(scheme)

        def fault(name, _batch, request):
            return [request, request] if name == "c" else [request]

        exchange = remote.DirectExchange(one, fault=fault)
        carriage, _ = one.run(exchange)
        assert carriage.result.survivors == tuple("abcd")
        payloads = [reply.payloads for name, reply in replied(exchange, Sent) if name == "c"]
        assert payloads[::2] == payloads[1::2]
        assert one.work["c"].calls == 1


@pytest.mark.parametrize("end", ["finished", "left open"])
def test_an_earlier_offer_that_comes_late_does_not_end_the_round_under_way(stage, end):
    """It gets what it always got, or an error; the site goes on where it stands."""
    one = stage()
    first = remote.DirectExchange(
        one, fault=lambda _name, batch, request: [request] if end == "finished" or batch == 1 else []
    )
    if end == "finished":
        one.run(first, round_id=1)
    else:
        with pytest.raises(RoundAborted):
            one.run(first, round_id=1)
    offer = next(request for name, request in first.asked if name == "b")

    def fault(name, batch, request):
        return [offer, request] if name == "b" and batch > 1 else [request]

    second = remote.DirectExchange(one, fault=fault)
    carriage, _ = one.run(second, round_id=2)
    assert carriage.result.survivors == tuple("abcd")
    assert carriage.refusals == []
    assert ("b", offer) in second.asked
    assert one.work["b"].calls == 2


class TestTheRoundFile:
    """What a new process of a site goes on from, when somebody has been at the disk."""

    def tampered(self, one, change):
        def fault(name, batch, request):
            if name == "b" and batch == 2:
                path = one.folder / "b" / "round.json"
                path.write_bytes(change(path.read_bytes()))
                one.restart("b")
            return [request]

        exchange = remote.DirectExchange(one, fault=fault)
        carriage, _ = one.run(exchange)
        assert carriage.result.survivors == tuple("acd")
        return {reply.reason for _, reply in replied(exchange, Failed)}

    def test_another_specification_is_not_the_journals(self, stage):
        reasons = self.tampered(stage(), lambda data: data.replace(b'"threshold": 3', b'"threshold": 4'))
        assert reasons == {"round 1 was entered under another specification"}

    def test_another_manifest(self, stage, caplog):
        one = stage(reports=Reports.NOTHING)
        digest = one.terms.directory.digest().hex().encode()
        (reason,) = self.tampered(one, lambda data: data.replace(digest, b"00" * 32))
        assert reason == "cannot use its own files; its own log says why"
        assert "of another run or manifest" in caplog.text
        assert str(one.folder) in caplog.text

    @pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[" * 100_000])
    def test_rubbish(self, stage, data, caplog):
        (reason,) = self.tampered(stage(reports=Reports.NOTHING), lambda _: data)
        assert reason == "cannot use its own files; its own log says why"
        assert "damaged round file" in caplog.text


class TestWhatASiteRefuses:
    def refused(self, stage, **changes):
        exchange = remote.DirectExchange(stage)
        with pytest.raises((RoundAborted, RemoteProtocolError)):
            stage.run(exchange, **changes)
        reasons = {reply.reason for _, reply in replied(exchange, Refused)}
        assert all(work.calls == 0 for work in stage.work.values())
        return reasons

    def test_another_threshold(self, stage):
        assert self.refused(stage(), threshold=4) == {"offers a threshold that this site did not agree to"}

    def test_another_scheme(self, stage):
        reasons = self.refused(stage(), scheme=SchemeSpec(name="plain"))
        assert reasons == {"offers a scheme that this site did not agree to"}

    def test_a_part_of_the_cohort(self, stage):
        one = stage()
        exchange = remote.DirectExchange(one)
        reply = one.agents["a"].handle(
            encode(
                OfferRound(
                    run_id=remote.RUN,
                    round_id=1,
                    round_index=0,
                    cohort=("a", "b", "c"),
                    threshold=3,
                    scheme=one.terms.scheme,
                    model=np.zeros(remote.LENGTH, np.float32),
                )
            )
        )
        assert "cohort" in decode_reply(reply, peer="a", most_bytes=1000).reason
        assert exchange.asked == []

    def test_a_model_of_another_size(self, stage):
        reasons = self.refused(stage(), state={"weight": np.zeros(3, np.float32)})
        assert reasons == {f"offers a model of 3 elements, expected {remote.LENGTH}"}

    def test_another_run(self, stage):
        assert self.refused(stage(), run_id=bytes(16)) == {"asks about a run that this site did not join"}

    def test_an_earlier_round(self, stage):
        one = stage()
        one.run(remote.DirectExchange(one), round_id=5)
        exchange = remote.DirectExchange(one)
        with pytest.raises(RoundAborted):
            one.run(exchange, round_id=4)
        assert all("rounds rise" in reply.reason for _, reply in replied(exchange, Failed))
        assert all(work.calls == 1 for work in one.work.values())

    def test_another_model_for_one_site_alone(self, stage):
        """The sites' signatures are over the round that each computes: one with another model is left out."""
        one = stage()

        def fault(name, batch, request):
            if name != "d" or batch != 1:
                return [request]
            offer = decode_request(request, peer="x", most_bytes=1 << 20)
            return [encode(dataclasses.replace(offer, model=offer.model + 1))]

        carriage, _ = one.run(remote.DirectExchange(one, fault=fault))
        assert carriage.result.survivors == tuple("abc")

    def test_large_and_foreign_bytes(self, stage):
        one = stage()
        for request in (b"", b"GET / HTTP/1.1", bytes(1 << 23)):
            assert isinstance(
                decode_reply(one.agents["a"].handle(request), peer="a", most_bytes=999), Refused
            )

    def test_a_delivery_out_of_nowhere(self, stage):
        from secfl.federation.requests import Deliver

        one = stage()
        reply = one.agents["a"].handle(encode(Deliver(round_id=3, payloads=(b"x",))))
        assert "no round is under way" in decode_reply(reply, peer="a", most_bytes=999).reason


class TestWhatASiteTells:
    """In deployment a reply is its envelopes and a phase; `secfl.audit.contents` accounts for the envelopes."""

    @pytest.mark.parametrize("scheme", ALL)
    def test_nothing_beside_its_envelopes(self, stage, scheme):
        one = stage(scheme, reports=Reports.NOTHING)
        exchange = remote.DirectExchange(one)
        one.run(exchange)
        for name, data in exchange.replies:
            reply = decode_reply(data, peer=name, most_bytes=1 << 20)
            assert isinstance(reply, Sent)
            assert reply.report == {}
            assert reply.seconds == 0
            # magic, kind, four fixed fields and each envelope, with a length of 8 bytes before every field
            fixed = len(b"SFR1") + 1 + 8 + len(reply.phase) + 8 + len("{}") + 4 * 8
            assert len(data) == fixed + sum(8 + len(payload) for payload in reply.payloads)

    @pytest.mark.parametrize("reports", list(Reports))
    def test_not_which_file_is_bad(self, stage, reports, caplog):
        """Errors about data name files, and files name patients: in deployment they stay in the site's log."""
        one = stage(reports=reports)

        def contribute(offer, spec):
            raise DataError("a/images/DOE-JANE-1961.png: holds NaN")

        one.work["a"].contribute = contribute
        exchange = remote.DirectExchange(one)
        one.run(exchange)
        (reason,) = {reply.reason for _, reply in replied(exchange, Failed)}
        if reports is Reports.SIMULATION:
            assert "DOE-JANE" in reason
        else:
            assert not any(b"DOE" in data for _, data in exchange.replies)
            assert reason == "its data cannot be used; its own log says why"
            assert "DOE-JANE" in caplog.text


class TestWhatACoordinatorRefuses:
    @pytest.mark.parametrize("garbage", [b"", b"SFR1", b"\0" * 64, bytes(1 << 22)])
    def test_a_site_that_answers_rubbish_is_left_out(self, stage, garbage):
        one = stage()

        class Rubbish(remote.DirectExchange):
            def exchange(self, requests, *, seconds):
                for name, reply in super().exchange(requests, seconds=seconds):
                    yield name, garbage if name == "a" else reply

        carriage, _ = one.run(Rubbish(one))
        assert carriage.result.survivors == tuple("bcd")
        assert carriage.refusals[0].startswith("a: ")

    def test_replies_of_an_earlier_round_are_passed_over(self, stage):
        one = stage()
        first = remote.DirectExchange(one)
        one.run(first, round_id=1)

        class Late(remote.DirectExchange):
            def exchange(self, requests, *, seconds):
                yield from first.replies
                yield from super().exchange(requests, seconds=seconds)

        carriage, _ = one.run(Late(one), round_id=2)
        assert carriage.result.survivors == tuple("abcd")
        assert carriage.refusals == []

    def test_a_name_that_nobody_asked_is_passed_over(self, stage):
        one = stage()

        class Stranger(remote.DirectExchange):
            def exchange(self, requests, *, seconds):
                for name, reply in super().exchange(requests, seconds=seconds):
                    yield "mallory", reply
                    yield name, reply

        carriage, _ = one.run(Stranger(one))
        assert carriage.result.survivors == tuple("abcd")

    def test_parties_of_this_process_are_not_for_this_driver(self, stage):
        one = stage()
        driver = ExchangeDriver(remote.DirectExchange(one), deadlines=Deadlines())
        with pytest.raises(LocalProtocolError, match="remote parties only"):
            driver.carry(None, {"a": object()}, watch=lambda _: None)

    def test_remote_parties_are_not_for_the_other_driver(self, stage):
        one = stage()
        offer = one.offer()
        parties = {name: site.join(offer) for name, site in one.sites().items()}
        spec = offer.specification(one.round_terms, one.terms.directory)
        with pytest.raises(LocalProtocolError, match="lives at its site"):
            InProcessDriver().carry(
                one.scheme.aggregator(spec, directory=one.terms.directory), parties, watch=lambda _: None
            )


def test_in_deployment_nothing_about_a_site_is_told(stage):
    one = stage(reports=Reports.NOTHING)
    exchange = remote.DirectExchange(one)
    _, sites = one.run(exchange)
    assert all(reply.report == {} and reply.seconds == 0 for _, reply in replied(exchange, Sent))
    assert all(site.report is None for site in sites.values())
