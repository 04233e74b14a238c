"""Homes and a coordinator without keys: the run of a simulation, and what a site refuses."""

from __future__ import annotations

import datetime as dt
from contextlib import contextmanager

import pytest

from secfl.config import RunConfig
from secfl.crypto.identity import Identity
from secfl.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from secfl.federation.deployment import SiteHome, announce_run, coordinate, read_members
from secfl.federation.engines import RemoteEngine
from secfl.federation.keyfiles import Manifest, PublicEntry, write_identity, write_manifest
from secfl.federation.observer import SilentObserver
from secfl.federation.requests import AskWitness, Opened, OpenRun, decode_reply, encode
from secfl.federation.simulation import simulate
from secfl.ledger.verify import verify_file
from secfl.randomness import SystemRng

FACTORY = "secfl.testing.tasks:linear_task"
TODAY = dt.date(2030, 1, 1)
NAMES = ("site-00", "site-01", "site-02", "site-03")
RUN = bytes(range(16))


def configuration(**changes) -> RunConfig:
    tree = {"clients": 4, "threads": 1, "training": {"rounds": 2}, "secure_agg": {"scheme": "masking"}}
    return RunConfig.model_validate(tree | changes)


class Federation:
    """Four homes on disk, and an exchange that asks them by a call."""

    def __init__(self, root, config: RunConfig) -> None:
        self.root, self.config = root, config
        identities = {name: Identity.generate(name, SystemRng()) for name in NAMES}
        manifest = Manifest()
        for identity in identities.values():
            expires = TODAY + dt.timedelta(days=30)
            manifest = manifest.enroll(PublicEntry.issue(identity, created=TODAY, expires=expires))
        for identity in identities.values():
            manifest = manifest.signed_by(identity)
        for name, identity in identities.items():
            home = root / name
            home.mkdir(parents=True)
            write_identity(home / f"{name}.key", identity, passphrase=None)
            write_manifest(home / "manifest.json", manifest)
            (home / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        self.silent: set[tuple[str, int]] = set()
        self.batch = 0

    def open(self, name) -> SiteHome:
        return SiteHome.open(self.root / name, name, today=TODAY, task_factory=FACTORY)

    def exchange(self, requests, *, seconds):
        """Every request comes to a new process of the site."""
        self.batch += 1
        for name, request in requests.items():
            if (name, self.batch) in self.silent:
                continue
            home = self.open(name)
            try:
                yield name, home.handle(request)
            finally:
                home.close()

    def gather(self):
        """Nobody is waited for."""

    def run(self, **facts):
        @contextmanager
        def opener(setting):
            absent = announce_run(
                self, NAMES, run_id=setting.run_id, config_digest=self.config.digest(), seconds=5
            )
            assert absent == {}
            yield RemoteEngine(setting, self, most_bytes=1 << 22)

        return coordinate(
            self.config,
            directory=read_members(self.root / NAMES[0] / "manifest.json", TODAY),
            out=self.root / "run",
            opener=opener,
            observer=SilentObserver(),
            task_factory=FACTORY,
            facts=facts,
        )


@pytest.fixture
def federation(tmp_path):
    def make(**changes):
        return Federation(tmp_path / "homes", configuration(**changes))

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
    # One batch opens the run, a round of masking has five, and co-signing asks each site twice one by one.
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

    def test_two_processes_do_not_serve_one_home(self, federation):
        one = federation()
        announce_run(one, NAMES, run_id=RUN, config_digest=one.config.digest(), seconds=5)
        first, second = one.open(NAMES[0]), one.open(NAMES[0])
        first.handle(encode(AskWitness(run_id=RUN)))
        reply = decode_reply(second.handle(encode(AskWitness(run_id=RUN))), peer="a", most_bytes=999)
        assert "journal" in reply.reason
        first.close()
        second.close()

    def test_a_damaged_pin_stops_the_site(self, federation):
        one = federation()
        home = one.open(NAMES[0])
        home.handle(encode(OpenRun(run_id=RUN, config_digest=one.config.digest())))
        (home.state / "run.json").write_text("{}", encoding="utf-8")
        reply = decode_reply(home.handle(encode(AskWitness(run_id=RUN))), peer="a", most_bytes=999)
        assert "run.json: damaged" in reply.reason

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


class TestCoordinator:
    def test_a_manifest_with_other_members_is_refused(self, federation, tmp_path):
        one = federation()
        one.config = configuration(clients=3)
        with pytest.raises(ConfigError, match="the manifest has the members site-00"):
            one.run()

    def test_a_run_whose_sites_are_gone_at_the_end_stays_open(self, federation):
        one = federation()
        one.silent = {(name, batch) for name in NAMES[:2] for batch in range(12, 200)}
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
