"""The manifest: who may be put in whose place, and what is refused."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.identity import Identity
from secfl.errors import ConfigError
from secfl.federation.manifest import Manifest, PublicEntry, read_manifest, write_manifest
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


class TestCoordinator:
    @pytest.fixture
    def headed(self, signed):
        headed = signed.coordinated_by(entry("head", 40))
        assert headed.signatures == {}
        for index, name in enumerate("abc"):
            headed = headed.signed_by(identity(name, index))
        return headed

    def test_it_comes_back_and_is_in_what_people_compare(self, signed, headed, tmp_path):
        write_manifest(tmp_path / "m.json", headed)
        back = read_manifest(tmp_path / "m.json")
        assert back == headed
        assert sorted(back.check(TODAY).keys) == ["a", "b", "c"]  # it is not in the sums
        other = signed.coordinated_by(entry("head", 41))
        assert len({signed.digest(), headed.digest(), other.digest()}) == 3

    @pytest.mark.parametrize("change", ["taken out", "replaced"])
    def test_whoever_changes_it_has_no_signatures(self, headed, change):
        value = headed.to_json()
        if change == "taken out":
            del value["coordinator"]
        else:
            value["coordinator"] = entry("head", 41).to_json()
        with pytest.raises(ConfigError, match="bad signature on manifest"):
            Manifest.from_json(value).check(TODAY)

    def test_its_key_expires_and_is_replaced_by_itself_alone(self, headed):
        late = headed.coordinated_by(
            entry("head", 42, previous=identity("head", 40), expires=TODAY + dt.timedelta(days=1))
        )
        with pytest.raises(ConfigError, match="key of head: expired"):
            late.check(TODAY + dt.timedelta(days=1))
        with pytest.raises(ConfigError, match="did not sign this entry"):
            headed.coordinated_by(entry("head", 43))

    def test_nobody_is_both(self, headed):
        with pytest.raises(ConfigError, match="a: is a member"):
            headed.coordinated_by(entry("a", 0))
        with pytest.raises(ConfigError, match="head: is the coordinator"):
            headed.enroll(entry("head", 40))
        value = headed.to_json()
        value["coordinator"] = entry("a", 0).to_json()
        with pytest.raises(ConfigError, match="a is a member and the coordinator"):
            Manifest.from_json(value)
