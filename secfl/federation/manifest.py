"""The manifest: whose keys take part, signed by every member.

It is a list of public entries, and its digest is what each site pins (docs/protocol.md, section 2): read it aloud to
each other once. A key is replaced by an entry that the old key signed, so that nobody else can replace it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from secfl.crypto.identity import Directory, Identity
from secfl.errors import ConfigError, RemoteProtocolError
from secfl.federation.checkpoint import write_atomically
from secfl.federation.keyfiles import read_small_file
from secfl.types import ClientId, client_id, join_fields

__all__ = [
    "KEYS_FORMAT_VERSION",
    "Manifest",
    "PublicEntry",
    "read_manifest",
    "read_public_entry",
    "read_usable_manifest",
    "write_manifest",
]

KEYS_FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicEntry:
    """One member's public key, as its owner signed it.

    Attributes:
        name: The site.
        public_key: 32 bytes, Ed25519.
        created: Date, UTC.
        expires: First day on which the key is refused.
        signature: By this key over the entry.
        previous_key: The key that this one replaces; empty for a first key.
        previous_signature: By the replaced key over the same entry.
    """

    name: ClientId
    public_key: bytes
    created: dt.date
    expires: dt.date
    signature: bytes = field(default=b"", repr=False)
    previous_key: bytes = b""
    previous_signature: bytes = field(default=b"", repr=False)

    @classmethod
    def issue(
        cls, identity: Identity, *, created: dt.date, expires: dt.date, previous: Identity | None = None
    ) -> PublicEntry:
        """A signed entry for a key, and by the key that it replaces.

        Raises:
            ConfigError: It would expire before it begins, or replace another site's key.
        """
        if expires <= created:
            raise ConfigError(f"key of {identity.name}: expires {expires}, expected a day after {created}")
        if previous is not None and previous.name != identity.name:
            raise ConfigError(f"key of {identity.name}: cannot replace that of {previous.name}")
        bare = cls(
            name=identity.name,
            public_key=identity.public_key(),
            created=created,
            expires=expires,
            previous_key=b"" if previous is None else previous.public_key(),
        )
        return replace(
            bare,
            signature=identity.sign(b"key-entry", *bare.fields()),
            previous_signature=b"" if previous is None else previous.sign(b"key-entry", *bare.fields()),
        )

    def fields(self) -> tuple[bytes, ...]:
        """What the signatures cover."""
        dates = (self.created.isoformat().encode(), self.expires.isoformat().encode())
        return (self.name.encode(), self.public_key, *dates, self.previous_key)

    def check(self) -> None:
        """Refuse an entry that its own key, or the key that it replaces, did not sign.

        Raises:
            ConfigError: Names the site.
        """
        pairs = [(self.public_key, self.signature)]
        if self.previous_key:
            pairs.append((self.previous_key, self.previous_signature))
        for key, signature in pairs:
            try:
                Directory({self.name: key}).verify(self.name, signature, b"key-entry", *self.fields())
            except RemoteProtocolError as error:
                raise ConfigError(f"key of {self.name}: {error.reason}") from None

    def fingerprint(self) -> str:
        """The public key in groups of four digits, to be read aloud."""
        digits = self.public_key.hex()
        return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "format_version": KEYS_FORMAT_VERSION,
            "name": self.name,
            "public_key": self.public_key.hex(),
            "created": self.created.isoformat(),
            "expires": self.expires.isoformat(),
            "signature": self.signature.hex(),
            "previous_key": self.previous_key.hex(),
            "previous_signature": self.previous_signature.hex(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PublicEntry:
        """Read `to_json` back and check the signatures; `ConfigError` otherwise."""
        _check_version(value)
        try:
            entry = cls(
                name=client_id(str(value["name"])),
                public_key=bytes.fromhex(value["public_key"]),
                created=dt.date.fromisoformat(value["created"]),
                expires=dt.date.fromisoformat(value["expires"]),
                signature=bytes.fromhex(value["signature"]),
                previous_key=bytes.fromhex(value["previous_key"]),
                previous_signature=bytes.fromhex(value["previous_signature"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"key entry: {type(error).__name__}: {error}") from None
        entry.check()
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Who takes part, each member's signature under the whole list.

    Attributes:
        members: Sorted by name.
        signatures: By member, over `fields`.
        coordinator: Who alone may ask the members, where they want to know; it takes no part in the sums.
    """

    members: tuple[PublicEntry, ...] = ()
    signatures: Mapping[ClientId, bytes] = field(default_factory=dict, repr=False)
    coordinator: PublicEntry | None = None

    @property
    def directory(self) -> Directory:
        """The members' keys."""
        return Directory({entry.name: entry.public_key for entry in self.members})

    def fields(self) -> tuple[bytes, ...]:
        """What members sign: every entry, in order, and the coordinator's, which has a field more."""
        listed = tuple(join_fields(*entry.fields()) for entry in self.members)
        if self.coordinator is None:
            return listed
        return (*listed, join_fields(b"coordinator", *self.coordinator.fields()))

    def digest(self) -> bytes:
        """What people compare by telephone, 32 bytes: names and keys of the members and of the coordinator."""
        members = self.directory.digest()
        if self.coordinator is None:
            return members
        name, key = self.coordinator.name.encode(), self.coordinator.public_key
        return hashlib.sha256(join_fields(b"manifest-with-coordinator", members, name, key)).digest()

    def enroll(self, entry: PublicEntry) -> Manifest:
        """The manifest with one more member, or with a member's new key. All signatures fall away.

        Raises:
            ConfigError: The member has another key, and that one did not sign the new entry.
        """
        if self.coordinator is not None and entry.name == self.coordinator.name:
            raise ConfigError(f"{entry.name}: is the coordinator; expected another name for a member")
        known = {one.name: one for one in self.members}
        old = known.get(entry.name)
        _check_successor(old, entry)
        if old == entry:
            return self
        known[entry.name] = entry
        return Manifest(members=tuple(known[name] for name in sorted(known)), coordinator=self.coordinator)

    def coordinated_by(self, entry: PublicEntry) -> Manifest:
        """The manifest with this coordinator, or with its new key. All signatures fall away.

        Raises:
            ConfigError: It is a member, or the coordinator has another key, and that one did not sign the new entry.
        """
        if entry.name in self.directory.keys:
            raise ConfigError(f"{entry.name}: is a member; expected another name for the coordinator")
        old = self.coordinator
        _check_successor(old if old is not None and old.name == entry.name else None, entry)
        return self if old == entry else Manifest(members=self.members, coordinator=entry)

    def signed_by(self, identity: Identity) -> Manifest:
        """The manifest with one member's signature.

        Raises:
            ConfigError: The identity is no member, or its key is not the enrolled one.
        """
        if self.directory.keys.get(identity.name) != identity.public_key():
            raise ConfigError(f"{identity.name}: this key is not the one in the manifest")
        signature = identity.sign(b"manifest", *self.fields())
        return replace(self, signatures={**self.signatures, identity.name: signature})

    def missing(self) -> tuple[ClientId, ...]:
        """Members that have not signed."""
        return tuple(entry.name for entry in self.members if entry.name not in self.signatures)

    def check(self, today: dt.date) -> Directory:
        """The directory, once everybody has signed and no key has expired.

        Raises:
            ConfigError: Names the member.
        """
        directory = self.directory
        others = () if self.coordinator is None else (self.coordinator,)
        for entry in (*self.members, *others):
            entry.check()
            if entry.expires <= today:
                raise ConfigError(
                    f"key of {entry.name}: expired on {entry.expires}; make a new one by: secfl keys rotate"
                )
        for name, signature in self.signatures.items():
            try:
                directory.verify(name, signature, b"manifest", *self.fields())
            except RemoteProtocolError as error:
                raise ConfigError(f"manifest: {name}: {error.reason}") from None
        if missing := self.missing():
            raise ConfigError(f"manifest: not signed by {', '.join(missing)}")
        return directory

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "format_version": KEYS_FORMAT_VERSION,
            "members": [entry.to_json() for entry in self.members],
            "signatures": {name: value.hex() for name, value in sorted(self.signatures.items())},
        } | ({} if self.coordinator is None else {"coordinator": self.coordinator.to_json()})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """Read `to_json` back; entries are checked, expiry and the members' signatures are for `check`.

        Raises:
            ConfigError: Not a manifest, members out of order or twice, or the coordinator among them.
        """
        _check_version(value)
        try:
            members = tuple(PublicEntry.from_json(one) for one in value["members"])
            signatures = {client_id(name): bytes.fromhex(text) for name, text in value["signatures"].items()}
            coordinator = PublicEntry.from_json(value["coordinator"]) if "coordinator" in value else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"manifest: {type(error).__name__}: {error}") from None
        names = [entry.name for entry in members]
        if names != sorted(set(names)):
            raise ConfigError("manifest: expected members sorted by name, each once")
        if coordinator is not None and coordinator.name in names:
            raise ConfigError(f"manifest: {coordinator.name} is a member and the coordinator")
        return cls(members=members, signatures=signatures, coordinator=coordinator)


def read_public_entry(path: Path) -> PublicEntry:
    """Read and check one member's entry; `ConfigError` names the file."""
    return PublicEntry.from_json(_read_json(path))


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; see `Manifest.check` for what must hold before it is used."""
    try:
        return Manifest.from_json(_read_json(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def read_usable_manifest(path: Path, today: dt.date) -> Manifest:
    """A manifest that everybody has signed, with keys that are good today.

    Raises:
        ConfigError: It cannot be read, somebody has not signed, or a key has expired.
    """
    manifest = read_manifest(path)
    try:
        manifest.check(today)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all."""
    write_atomically(path, (json.dumps(manifest.to_json(), indent=2) + "\n").encode())


def _check_successor(old: PublicEntry | None, entry: PublicEntry) -> None:
    """Refuse an entry that is not signed, or that replaces a key which did not sign it."""
    entry.check()
    if old is not None and old != entry and entry.previous_key != old.public_key:
        raise ConfigError(
            f"key of {entry.name}: the manifest has another one that did not sign this entry; "
            "expected an entry made by: secfl keys rotate"
        )


def _check_version(value: Mapping[str, Any]) -> None:
    version = value.get("format_version") if isinstance(value, Mapping) else None
    if not isinstance(version, int) or version < 1:
        raise ConfigError("expected a file written by secfl keys (format_version is missing)")
    if version > KEYS_FORMAT_VERSION:
        raise ConfigError(f"format_version {version} is newer than this secfl reads; upgrade secfl")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(read_small_file(path))
    except ValueError:
        raise ConfigError(f"{path}: expected a JSON file written by secfl keys") from None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: expected a JSON object written by secfl keys")
    return value
