"""Homes and a coordinator without keys: the run of a simulation, and what a site refuses."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from secfl.config import RunConfig
from secfl.crypto.identity import Identity
from secfl.errors import ConfigError, LocalProtocolError, RemoteProtocolError, RoundAborted
from secfl.federation import site_setup
from secfl.federation.deployment import Beginning, CoordinatorHome, announce_run
from secfl.federation.failures import Reports
from secfl.federation.keyfiles import PASSPHRASE_VARIABLE, write_identity
from secfl.federation.manifest import Manifest, PublicEntry, write_manifest
from secfl.federation.observer import SilentObserver
from secfl.federation.policy import ATTEMPTS
from secfl.federation.request_codec import decode_reply, encode
from secfl.federation.requests import (
    AskWitness,
    Declined,
    Failed,
    OfferRound,
    Opened,
    OpenRun,
    Refused,
    Sent,
    Signature,
    WitnessAt,
)
from secfl.federation.schemes import scheme_spec
from secfl.federation.signed_requests import sign_request
from secfl.federation.simulation import simulate
from secfl.federation.site_home import SiteHome, leave_home
from secfl.ledger.verify import verify_file
from secfl.randomness import SystemRng
from secfl.testing.tasks import LinearTask
from secfl.types import RoundId

FACTORY = "secfl.testing.tasks:linear_task"
TODAY = dt.date(2030, 1, 1)
NAMES = ("site-00", "site-01", "site-02", "site-03")
RUN = bytes(range(16))


def configuration(**changes) -> RunConfig:
    tree = {"clients": 4, "threads": 1, "training": {"rounds": 2}, "secure_agg": {"scheme": "masking"}}
    return RunConfig.model_validate(tree | changes)


class Federation:
    """Four homes on disk, one of a coordinator, and an exchange that asks the sites by a call."""

    def __init__(self, root, config: RunConfig, *, head: Identity | None = None, phrase=None) -> None:
        self.root, self.config = root, config
        identities = {name: Identity.generate(name, SystemRng()) for name in NAMES}
        manifest = Manifest()
        for identity in identities.values():
            expires = TODAY + dt.timedelta(days=30)
            manifest = manifest.enroll(PublicEntry.issue(identity, created=TODAY, expires=expires))
        if head is not None:
            manifest = manifest.coordinated_by(PublicEntry.issue(head, created=TODAY, expires=expires))
        for identity in identities.values():
            manifest = manifest.signed_by(identity)
        for name, identity in {**identities, "coordinator": head}.items():
            home = root / name
            home.mkdir(parents=True)
            if identity is not None:
                write_identity(home / f"{identity.name}.key", identity, passphrase=phrase)
            write_manifest(home / "manifest.json", manifest)
            (home / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        self.coordinator = root / "coordinator"
        self.said: list[bytes] = []
        self.silent: set[tuple[str, int]] = set()
        self.batch = 0
        self.dies_at = 0

    def open(self, name) -> SiteHome:
        return SiteHome.open(self.root / name, name, today=TODAY, task_factory=FACTORY)

    def exchange(self, requests, *, seconds):
        """Every request comes to a new process of the site."""
        self.batch += 1
        if self.batch == self.dies_at:
            raise KeyboardInterrupt
        for name, request in requests.items():
            if (name, self.batch) in self.silent:
                continue
            home = self.open(name)
            try:
                self.said.append(home.handle(request))
                yield name, self.said[-1]
            finally:
                home.close()

    def gather(self):
        """Nobody is waited for."""

    def run(self, beginning=Beginning.NEW, **facts):
        home = CoordinatorHome.open(self.coordinator, today=TODAY)
        return replace(home, config=self.config).run(
            self.root / "run",
            connect=lambda _setting: self,
            task_factory=FACTORY,
            facts=facts,
            beginning=beginning,
        )


@pytest.fixture
def federation(tmp_path):
    def make(head=None, phrase=None, **changes):
        return Federation(tmp_path / "homes", configuration(**changes), head=head, phrase=phrase)

    return make


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_the_model_is_that_of_a_simulation_and_nobody_held_all_keys(tmp_path, federation, scheme):
    one = federation(secure_agg={"scheme": scheme})
    there = one.run(tls=True)
    here = simulate(one.config, out=tmp_path / "here", observer=SilentObserver(), task_factory=FACTORY)
    assert there["final_model_sha256"] == here["final_model_sha256"]
    assert (there["simulated"], here["simulated"], there["tls"]) == (False, True, True)
    verdict = verify_file(one.root / "run" / "ledger.jsonl")
    assert verdict.status == "closed"
    assert not verdict.simulated
    # A site tells nothing of its own work: the figures of single sites are not in the run directory.
    assert there["time_s"]["train"] == 0


def test_a_site_that_is_away_for_a_round_drops_out_and_comes_back(federation):
    one = federation(training={"rounds": 3})
    # One batch opens the run, a round of masking has five, and co-signing two.
    one.silent = {(NAMES[1], batch) for batch in range(2, 7)}
    summary = one.run()
    assert summary["dropouts"]["by_round"] == {"0": [NAMES[1]]}
    assert verify_file(one.root / "run" / "ledger.jsonl").status == "closed"


class TestHomes:
    def test_another_configuration_is_not_joined(self, federation):
        one = federation()
        other = configuration(training={"rounds": 3})
        absent = announce_run(one, NAMES, run_id=RUN, config_digest=other.digest(), seconds=5)
        assert set(absent.values()) == {"opens a run with another configuration than this site has"}

    def test_a_second_run_is_not_joined(self, federation):
        one = federation()
        digest = one.config.digest()
        assert announce_run(one, NAMES, run_id=RUN, config_digest=digest, seconds=5) == {}
        assert announce_run(one, NAMES, run_id=RUN, config_digest=digest, seconds=5) == {}
        absent = announce_run(one, NAMES, run_id=bytes(16), config_digest=digest, seconds=5)
        assert set(absent.values()) == {"opens another run than this site has joined"}

    def test_nothing_is_answered_before_a_run_is_open(self, federation):
        home = federation().open(NAMES[0])
        reply = decode_reply(home.handle(encode(AskWitness(run_id=RUN))), peer="a", most_bytes=999)
        assert reply.reason == "asks before it has opened a run"
        assert not (home.state / "run.json").exists()

    @pytest.mark.parametrize("rubbish", [b"", b"SFR1", bytes(5000)])
    def test_rubbish_is_answered_in_one_line(self, federation, rubbish):
        assert b"SFR1" in federation().open(NAMES[0]).handle(rubbish)

    def test_two_processes_do_not_serve_one_home(self, federation, caplog):
        one = federation()
        announce_run(one, NAMES, run_id=RUN, config_digest=one.config.digest(), seconds=5)
        first, second = one.open(NAMES[0]), one.open(NAMES[0])
        first.handle(encode(AskWitness(run_id=RUN)))
        reply = decode_reply(second.handle(encode(AskWitness(run_id=RUN))), peer="a", most_bytes=999)
        assert reply.reason == "cannot use its own files; its own log says why"
        assert "another process holds this journal" in caplog.text
        first.close()
        second.close()

    def test_a_damaged_pin_stops_the_site(self, federation, caplog):
        one = federation()
        home = one.open(NAMES[0])
        home.handle(encode(OpenRun(run_id=RUN, config_digest=one.config.digest())))
        (home.state / "run.json").write_text("{}", encoding="utf-8")
        reply = decode_reply(home.handle(encode(AskWitness(run_id=RUN))), peer="a", most_bytes=999)
        assert reply.reason == "its configuration cannot be used; its own log says why"
        assert "run.json: damaged" in caplog.text

    def test_a_key_that_is_not_the_enrolled_one(self, federation):
        one = federation()
        key = one.root / NAMES[0] / f"{NAMES[0]}.key"
        key.unlink()
        write_identity(key, Identity.generate(NAMES[0], SystemRng()), passphrase=None)
        with pytest.raises(ConfigError, match="is not the key of site-00 in the manifest"):
            one.open(NAMES[0])

    def test_an_expired_manifest(self, federation):
        one = federation()
        with pytest.raises(ConfigError, match="expired on 2030-01-31"):
            SiteHome.open(one.root / NAMES[0], NAMES[0], today=dt.date(2030, 2, 1), task_factory=FACTORY)


def joined_run(one) -> bytes:
    text = (one.root / NAMES[0] / "state" / "run.json").read_text(encoding="utf-8")
    return bytes.fromhex(json.loads(text)["run_id"])


class TestHostileCoordinator:
    """It keeps no ledger and offers what it likes to a site without a policy; each request is a new process."""

    def offers(self, one, rounds):
        """Replies to offers with rising numbers, for these rounds of training."""
        announce_run(one, NAMES, run_id=RUN, config_digest=one.config.digest(), seconds=5)
        return self.offers_of(one, RUN, rounds)

    def offers_of(self, one, run_id, rounds):
        replies = []
        for number, index in enumerate(rounds):
            home = one.open(NAMES[0])
            request = OfferRound(
                run_id=run_id,
                round_id=RoundId(number),
                round_index=index,
                cohort=NAMES,
                threshold=3,
                scheme=scheme_spec(one.config.secure_agg),
                model=np.zeros(51, np.float32),
            )
            replies.append(decode_reply(home.handle(encode(request)), peer="a", most_bytes=1 << 22))
            home.close()
        return replies

    def test_one_round_is_not_tried_for_ever(self, federation):
        one = federation()
        replies = self.offers(one, [0] * (ATTEMPTS + 3))
        assert [type(reply) for reply in replies] == [Sent] * ATTEMPTS + [Declined] * 3
        assert "attempts: found 17 for round 1, allowed 16" in replies[-1].reason
        journal = one.root / NAMES[0] / "state" / "journal"
        size = journal.stat().st_size
        self.offers(one, [0] * (ATTEMPTS + 9))
        assert journal.stat().st_size == size  # what is declined is not even written down

    def test_without_the_guard_it_is(self, federation, monkeypatch):
        monkeypatch.setattr(site_setup, "site_guard", lambda *_args, **_more: None)
        replies = self.offers(federation(), [0] * (ATTEMPTS + 3))
        assert {type(reply) for reply in replies} == {Sent}

    def test_there_is_no_round_after_the_last(self, federation):
        replies = self.offers(federation(), [0, 1, 2, 3, 1])
        assert [type(reply) for reply in replies] == [Sent, Sent, Declined, Declined, Sent]
        assert "the offer's round: found 4, allowed 2" in replies[3].reason

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"noise_multiplier": 4.0}, "the agreed plan: epsilon.aggregator"),
            ({"epsilon": 20.0}, "the agreed plan: budget"),
        ],
    )
    def test_noise_is_not_averaged_out(self, federation, changes, words):
        """Under `plain` every offer is answered by the noisy update itself: two were planned, so two are sent."""
        noise = {"mode": "client", "accept_weak": True} | changes
        one = federation(secure_agg={"scheme": "plain"}, privacy=noise)
        replies = self.offers(one, [0, 0, 1, 1])
        assert [type(reply) for reply in replies] == [Sent, Sent, Declined, Declined]
        assert words in replies[2].reason

    def test_attempts_in_which_nothing_was_sent_cost_no_epsilon(self, federation):
        """Under masking a client has said its keys and no more, and a later round closes the one before."""
        one = federation(privacy={"mode": "client", "noise_multiplier": 4.0, "accept_weak": True})
        replies = self.offers(one, [0] * 5 + [1] * 5)
        assert {type(reply) for reply in replies} == {Sent}

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{}")])
    def test_a_count_that_was_set_back_stops_the_site(self, federation, damage, caplog):
        one = federation()
        assert isinstance(self.offers(one, [0])[0], Sent)
        damage(next((one.root / NAMES[0] / "state").glob("attempts-*")))
        replies = self.offers(one, [0, 1])
        assert isinstance(replies[1], Failed)
        assert "attempts-" in caplog.text

    def test_a_journal_that_was_lost_makes_nothing_free(self, federation, caplog):
        """The journal tells in which attempts nothing was sent, and the count must not take its silence for that."""
        noise = {"mode": "client", "accept_weak": True, "noise_multiplier": 4.0}
        one = federation(secure_agg={"scheme": "plain"}, privacy=noise)
        assert {type(reply) for reply in self.offers(one, [0, 1])} == {Sent}
        (one.root / NAMES[0] / "state" / "journal").unlink()
        assert Sent not in {type(reply) for reply in self.offers(one, [0, 1, 1, 1])}
        assert "it was set back or lost" in caplog.text


def test_an_error_of_the_training_is_told_to_nobody(federation, monkeypatch, caplog):
    """Engines send an exception's text to the server, and this one names a patient."""

    def train(*_args, **_more):
        raise ValueError("mueller-anna.png: broken")

    monkeypatch.setattr(LinearTask, "train", train)
    replies = TestHostileCoordinator().offers(federation(), [0])
    assert isinstance(replies[0], Failed)
    assert "mueller" not in replies[0].reason
    assert "mueller-anna.png: broken" in caplog.text


def test_a_run_that_its_sites_decline_ends_with_what_it_has(federation):
    """Two sites fall silent after the others have sent their inputs: the sites count that, and stop at the plan's ε."""
    noise = {"mode": "client", "noise_multiplier": 4.0, "accept_weak": True}
    one = federation(privacy=noise, training={"rounds": 3})
    # Batch 1 opens the run, 2 is the first offer, 3 asks for shares, 4 for inputs.
    one.silent = {(name, 4) for name in NAMES[:2]}
    summary = one.run()
    assert (summary["rounds_aborted"], summary["rounds_completed"], summary["stopped"]) == (2, 2, "budget")
    assert "sites decline; site-0" in summary["stopped_because"]
    assert verify_file(one.root / "run" / "ledger.jsonl").status == "closed"


class TestCoordinatorsKey:
    """The members' manifest names a coordinator: whoever else is on the link gets nothing."""

    @pytest.fixture
    def head(self):
        return Identity.generate("head-office", SystemRng())

    def opening(self, one) -> bytes:
        return encode(OpenRun(run_id=RUN, config_digest=one.config.digest()))

    def answer(self, one, request, site=NAMES[0]):
        home = one.open(site)
        try:
            return decode_reply(home.handle(request), peer="a", most_bytes=1 << 22)
        finally:
            home.close()

    def test_the_run_is_the_same(self, tmp_path, federation, head):
        one = federation(head=head)
        there = one.run()
        here = simulate(one.config, out=tmp_path / "here", observer=SilentObserver(), task_factory=FACTORY)
        assert there["final_model_sha256"] == here["final_model_sha256"]
        assert there["dropouts"]["total"] == 0
        assert verify_file(one.root / "run" / "ledger.jsonl").status == "closed"

    def test_somebody_on_the_link_opens_no_run(self, federation, head):
        """Without the guard the site would be bound to a run that nobody wanted: see the line after it."""
        one, stranger = federation(head=head), Identity.generate("head-office", SystemRng())
        request = self.opening(one)
        wrong = [
            request,
            sign_request(stranger, request, site=NAMES[0], run_id=RUN),
            sign_request(head, request, site=NAMES[1], run_id=RUN),
            sign_request(head, request, site=NAMES[0], run_id=RUN)[:-1],
            sign_request(head, request, site=NAMES[0], run_id=RUN)[:40],
        ]
        for attempt in wrong:
            reply = self.answer(one, attempt)
            assert isinstance(reply, Refused)
            assert "that head-office has not signed" in reply.reason
        assert not (one.root / NAMES[0] / "state").exists()
        assert isinstance(self.answer(one, sign_request(head, request, site=NAMES[0], run_id=RUN)), Opened)

    def test_without_a_coordinator_in_the_manifest_anybody_may(self, federation):
        one = federation()
        assert isinstance(self.answer(one, self.opening(one)), Opened)

    def test_a_request_of_another_run_is_not_answered_again(self, federation, head):
        one = federation(head=head)
        self.answer(one, sign_request(head, self.opening(one), site=NAMES[0], run_id=RUN))
        old = sign_request(head, encode(AskWitness(run_id=RUN)), site=NAMES[0], run_id=bytes(16))
        assert "another run" in self.answer(one, old).reason

    def test_a_coordinator_without_its_key_does_not_start(self, federation, head):
        one = federation(head=head)
        key = one.coordinator / "head-office.key"
        key.unlink()
        with pytest.raises(ConfigError, match=r"head-office\.key: cannot be read"):
            one.run()
        write_identity(key, Identity.generate("head-office", SystemRng()), passphrase=None)
        with pytest.raises(ConfigError, match="is not the key of the coordinator in the manifest"):
            one.run()

    def test_keys_under_a_passphrase(self, federation, head, tmp_path, monkeypatch):
        one = federation(head=head, phrase=b"correct horse")
        monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
        with pytest.raises(ConfigError, match="needs a passphrase"):
            one.open(NAMES[0])
        phrase = tmp_path / "phrase"
        monkeypatch.setenv(PASSPHRASE_VARIABLE, str(phrase))
        with pytest.raises(ConfigError, match="phrase: cannot be read"):
            one.open(NAMES[0])
        phrase.write_text("correct horse\nand whatever\n", encoding="utf-8")
        phrase.chmod(0o600)
        assert one.run()["dropouts"]["total"] == 0


def test_nothing_of_a_single_site_leaves_it(federation, monkeypatch):
    """All that sites say in a deployed run: envelopes of the protocol, and no figure of their own work.

    The same bytes of sites that report show that the search finds what it looks for.
    """

    def open_as(reports):
        def open_home(one, name):
            home = SiteHome.open(one.root / name, name, today=TODAY, task_factory=FACTORY)
            home.reports = reports
            return home

        return open_home

    def figures(reports):
        one = federation()
        monkeypatch.setattr(Federation, "open", open_as(reports))
        summary = one.run()
        replies = [decode_reply(data, peer="a", most_bytes=1 << 22) for data in one.said]
        told = [reply for reply in replies if isinstance(reply, Sent) and (reply.report or reply.seconds)]
        shutil.rmtree(one.root)
        return told, summary["time_s"]["train"], {type(reply) for reply in replies}

    told, seconds, kinds = figures(Reports.NOTHING)
    assert (told, seconds) == ([], 0)
    assert kinds == {Opened, Sent, WitnessAt, Signature}
    told, seconds, _ = figures(Reports.SIMULATION)
    assert told
    assert seconds > 0


class TestTheEnd:
    def snapshots(self, one, name):
        return list((one.root / name / "state" / "snapshots").iterdir())

    def left_in_the_middle(self, one):
        """Every site has entered a round, and the coordinator does not come back."""
        one.silent = {(name, batch) for name in NAMES for batch in range(3, 99)}
        with pytest.raises(RoundAborted):
            one.run()
        assert all(len(self.snapshots(one, name)) == 1 for name in NAMES)

    def test_a_finished_run_leaves_no_secrets_and_is_not_answered(self, federation):
        one = federation()
        one.run()
        assert not any(self.snapshots(one, name) for name in NAMES)
        replies = TestHostileCoordinator().offers_of(one, joined_run(one), [1])
        assert "the run is finished" in replies[0].reason

    def test_a_run_that_is_given_up_leaves_no_secrets_and_is_not_answered(self, federation):
        one = federation()
        self.left_in_the_middle(one)
        home = one.root / NAMES[0]
        assert leave_home(home, NAMES[0])
        assert self.snapshots(one, NAMES[0]) == []
        assert leave_home(home, NAMES[0])
        replies = TestHostileCoordinator().offers_of(one, joined_run(one), [1])
        assert "the run is finished" in replies[0].reason

    def test_a_run_that_is_given_up_before_its_first_round_is_not_answered(self, federation):
        one = federation()
        announce_run(one, NAMES, run_id=RUN, config_digest=one.config.digest(), seconds=5)
        assert leave_home(one.root / NAMES[0], NAMES[0])
        replies = TestHostileCoordinator().offers_of(one, RUN, [0])
        assert "the run is finished" in replies[0].reason

    def test_there_may_be_nothing_to_leave(self, federation):
        assert not leave_home(federation().root / NAMES[0], NAMES[0])

    def test_what_another_run_left_is_destroyed(self, federation):
        one = federation()
        self.left_in_the_middle(one)
        state = one.root / NAMES[0] / "state"
        (state / "run.json").unlink()
        home = one.open(NAMES[0])
        home.handle(encode(OpenRun(run_id=RUN, config_digest=one.config.digest())))
        home.handle(encode(AskWitness(run_id=RUN)))
        home.close()
        assert self.snapshots(one, NAMES[0]) == []


class TestCoordinator:
    @pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 16, 17])
    def test_one_that_died_goes_on(self, tmp_path, federation, batch):
        """In every phase of both rounds: the model is the same, and no round id is used twice."""
        one = federation()
        one.dies_at = batch
        with pytest.raises(KeyboardInterrupt):
            one.run()
        there = one.run(Beginning.RESUMED)
        here = simulate(one.config, out=tmp_path / "here", observer=SilentObserver(), task_factory=FACTORY)
        assert there["final_model_sha256"] == here["final_model_sha256"]
        verdict = verify_file(one.root / "run" / "ledger.jsonl")
        assert verdict.status == "closed"
        assert verdict.rounds["committed"] in (
            2,
            3,
        )  # a round that died after its sum could be opened is spent

    def test_only_the_same_run_is_resumed(self, federation, tmp_path):
        one = federation()
        with pytest.raises(ConfigError, match="expected a run directory"):
            one.run(Beginning.RESUMED)
        one.run()
        with pytest.raises(ConfigError, match="the run is finished"):
            one.run(Beginning.RESUMED)
        (one.root / "run" / "summary.json").unlink()
        one.config = configuration(training={"rounds": 3})
        with pytest.raises(ConfigError, match="another configuration"):
            one.run(Beginning.RESUMED)

    def test_other_members_do_not_go_on(self, federation, tmp_path):
        one = federation()
        one.dies_at = 3
        with pytest.raises(KeyboardInterrupt):
            one.run()
        other = Federation(tmp_path / "other", one.config)
        (one.root / "run").rename(other.root / "run")
        with pytest.raises(ConfigError, match="other members"):
            other.run(Beginning.RESUMED)

    def test_a_manifest_with_other_members_is_refused(self, federation, tmp_path):
        one = federation()
        one.config = configuration(clients=3)
        with pytest.raises(ConfigError, match="the manifest has the members site-00"):
            one.run()

    def test_a_run_whose_sites_are_gone_at_the_end_stays_open(self, federation):
        one = federation()
        one.silent = {(name, batch) for name in NAMES[:2] for batch in range(14, 200)}
        with pytest.raises((LocalProtocolError, RemoteProtocolError)):
            one.run()
        assert verify_file(one.root / "run" / "ledger.jsonl").status == "open"

    def test_absent_sites_are_named(self, federation):
        one = federation()
        one.silent = {(NAMES[2], 1)}
        absent = announce_run(one, NAMES, run_id=RUN, config_digest=one.config.digest(), seconds=5)
        assert absent == {NAMES[2]: "did not answer"}

    def test_an_answer_about_another_run_does_not_count(self, federation):
        one = federation()

        class Liar:
            def exchange(self, requests, *, seconds):
                for name in requests:
                    yield name, encode(Opened(run_id=bytes(16)))

        absent = announce_run(Liar(), NAMES, run_id=RUN, config_digest=one.config.digest(), seconds=5)
        assert set(absent) == set(NAMES)
