"""Keys in files and the manifest: who may be put in whose place, and what is refused."""

from __future__ import annotations

import datetime as dt
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.identity import Identity
from secfl.errors import ConfigError
from secfl.federation.keyfiles import (
    Manifest,
    PublicEntry,
    read_identity,
    read_manifest,
    write_identity,
    write_manifest,
)
from secfl.randomness import InsecureSeededRng

TODAY = dt.date(2030, 1, 1)
LATER = TODAY + dt.timedelta(days=30)


def identity(name="a", seed=1):
    return Identity.generate(name, InsecureSeededRng(seed))


def entry(name="a", seed=1, **changes):
    return PublicEntry.issue(identity(name, seed), **({"created": TODAY, "expires": LATER} | changes))


@pytest.fixture
def signed():
    members = [identity(name, index) for index, name in enumerate("abc")]
    manifest = Manifest()
    for index, name in enumerate("cab"):
        manifest = manifest.enroll(entry(name, "abc".index(name)))
        assert len(manifest.members) == index + 1
    for one in members:
        manifest = manifest.signed_by(one)
    return manifest


class TestKeys:
    @pytest.mark.parametrize("passphrase", [None, b"correct horse"])
    def test_a_key_comes_back(self, tmp_path, passphrase):
        path = tmp_path / "a.key"
        write_identity(path, identity(), passphrase=passphrase)
        assert read_identity(path, "a", passphrase=passphrase) == identity()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert identity().seed.hex().encode() not in path.read_bytes()

    def test_a_key_is_never_written_over(self, tmp_path):
        path = tmp_path / "a.key"
        write_identity(path, identity(), passphrase=None)
        with pytest.raises(ConfigError, match="exists already"):
            write_identity(path, identity(seed=2), passphrase=None)
        assert read_identity(path, "a", passphrase=None) == identity()

    def test_a_key_that_others_can_read_is_refused(self, tmp_path):
        path = tmp_path / "a.key"
        write_identity(path, identity(), passphrase=None)
        path.chmod(0o640)
        with pytest.raises(ConfigError, match="mode 0640"):
            read_identity(path, "a", passphrase=None)

    @pytest.mark.parametrize(
        ("written", "read", "expected"),
        [
            (b"one", b"another", "another passphrase"),
            (b"one", None, "needs a passphrase"),
            (None, b"one", "expected no passphrase"),
        ],
    )
    def test_passphrases_must_fit(self, tmp_path, written, read, expected):
        path = tmp_path / "a.key"
        write_identity(path, identity(), passphrase=written)
        with pytest.raises(ConfigError, match=expected):
            read_identity(path, "a", passphrase=read)

    @pytest.mark.parametrize("content", [b"", b"not a key", b"x" * (1 << 21)])
    def test_what_is_no_key(self, tmp_path, content):
        path = tmp_path / "a.key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=r"a\.key"):
            read_identity(path, "a", passphrase=None)


class TestEntries:
    def test_an_entry_comes_back(self):
        assert PublicEntry.from_json(entry().to_json()) == entry()

    @pytest.mark.parametrize(
        "name", ["name", "public_key", "created", "expires", "signature", "previous_key"]
    )
    def test_a_changed_field_is_found(self, name):
        value = entry().to_json() | {name: entry("b", 2, expires=LATER + dt.timedelta(1)).to_json()[name]}
        if name == "created":
            value["created"] = "2029-12-31"
        if name == "previous_key":
            value["previous_key"] = "00" * 32
        with pytest.raises(ConfigError, match="key of"):
            PublicEntry.from_json(value)

    @settings(deadline=None, max_examples=100)
    @given(st.dictionaries(st.sampled_from(list(entry().to_json())), st.none() | st.integers() | st.text()))
    def test_rubbish_is_refused_in_one_line(self, changes):
        if not changes:
            return
        with pytest.raises(ConfigError):
            PublicEntry.from_json(entry().to_json() | changes | {"signature": "00"})

    def test_a_newer_format_is_refused(self):
        with pytest.raises(ConfigError, match="newer"):
            PublicEntry.from_json(entry().to_json() | {"format_version": 2})


class TestManifest:
    def test_the_directory_once_all_have_signed(self, signed, tmp_path):
        write_manifest(tmp_path / "m.json", signed)
        directory = read_manifest(tmp_path / "m.json").check(TODAY)
        assert sorted(directory.keys) == ["a", "b", "c"]
        assert directory.digest() == signed.directory.digest()

    def test_a_missing_signature(self, signed):
        value = signed.to_json()
        del value["signatures"]["b"]
        with pytest.raises(ConfigError, match="not signed by b"):
            Manifest.from_json(value).check(TODAY)

    def test_a_signature_by_somebody_else(self, signed):
        value = signed.to_json()
        value["signatures"]["b"] = value["signatures"]["a"]
        with pytest.raises(ConfigError, match="manifest: b: bad signature"):
            Manifest.from_json(value).check(TODAY)

    def test_an_expired_key(self, signed):
        with pytest.raises(ConfigError, match="key of a: expired on 2030-01-31"):
            signed.check(LATER)

    def test_a_member_that_was_put_in_later_voids_the_signatures(self, signed):
        assert signed.enroll(entry("d", 9)).signatures == {}

    def test_a_stranger_cannot_take_a_members_place(self, signed):
        with pytest.raises(ConfigError, match="did not sign this entry"):
            signed.enroll(entry("b", seed=77))
        thief = identity("b", 77)
        forged = PublicEntry.issue(thief, created=TODAY, expires=LATER, previous=identity("b", 78))
        with pytest.raises(ConfigError, match="did not sign this entry"):
            signed.enroll(forged)

    def test_a_member_replaces_its_own_key(self, signed):
        rotated = entry("b", seed=5, previous=identity("b", 1))
        assert signed.enroll(rotated).directory.keys["b"] == identity("b", 5).public_key()

    def test_only_members_sign(self, signed):
        with pytest.raises(ConfigError, match="not the one in the manifest"):
            signed.signed_by(identity("b", seed=3))

    def test_no_name_twice(self, signed):
        value = signed.to_json()
        value["members"].append(value["members"][0])
        with pytest.raises(ConfigError, match="each once"):
            Manifest.from_json(value)

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format_version": 1, "members": 3}', b"\xff"])
    def test_what_is_no_manifest(self, tmp_path, content):
        path = tmp_path / "m.json"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"m\.json"):
            read_manifest(path)
