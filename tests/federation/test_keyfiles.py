"""Keys in files: who may read them, and under which passphrase."""

from __future__ import annotations

import datetime as dt
import stat

import pytest

from secfl.crypto.identity import Identity
from secfl.errors import ConfigError
from secfl.federation.keyfiles import read_identity, read_passphrase, write_identity
from secfl.federation.manifest import PublicEntry
from secfl.randomness import InsecureSeededRng

TODAY = dt.date(2030, 1, 1)
LATER = TODAY + dt.timedelta(days=30)


def identity(name="a", seed=1):
    return Identity.generate(name, InsecureSeededRng(seed))


def entry(name="a", seed=1, **changes):
    return PublicEntry.issue(identity(name, seed), **({"created": TODAY, "expires": LATER} | changes))


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

    def test_a_passphrase_that_everybody_can_read_is_refused(self, tmp_path):
        path = tmp_path / "phrase"
        path.write_bytes(b"correct horse\n")
        for mode in (0o604, 0o602, 0o660):
            path.chmod(mode)
            with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
                read_passphrase(path)
        for mode in (0o400, 0o440, 0o600):
            path.chmod(mode)
            assert read_passphrase(path) == b"correct horse"

    @pytest.mark.parametrize("content", [b"", b"not a key", b"x" * (1 << 21)])
    def test_what_is_no_key(self, tmp_path, content):
        path = tmp_path / "a.key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=r"a\.key"):
            read_identity(path, "a", passphrase=None)
