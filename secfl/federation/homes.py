"""Homes for everybody of a federation that lives on one host: for simulations over real engines and for demonstrations.

On real hosts every site makes its own key (``secfl keys``), and nobody holds two.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from secfl.crypto.identity import Identity
from secfl.errors import ConfigError
from secfl.federation.keyfiles import write_identity
from secfl.federation.manifest import Manifest, PublicEntry, write_manifest
from secfl.randomness import Rng

__all__ = ["homes_of", "make_homes"]

_LIFETIME = dt.timedelta(days=2)


def make_homes(
    template: Path, folder: Path, *, sites: Sequence[str], coordinator: str, today: dt.date, rng: Rng
) -> None:
    """A home for every site and for the coordinator, with fresh keys and a manifest that all have signed.

    Args:
        template: A folder with ``config.toml``, and ``task`` and ``code`` where the task is one of your own.
        folder: Where the homes go, by name; must not exist.
        sites: The sites.
        coordinator: Name of the coordinator's home, which has no key.
        today: The keys are good for two days from here.
        rng: Source of the keys.

    Raises:
        ConfigError: The template has no ``config.toml``.
    """
    if not (template / "config.toml").is_file():
        raise ConfigError(f"{template}: has no config.toml")
    given = {
        name: (template / name).read_text(encoding="utf-8")
        for name in ("config.toml", "task")
        if (template / name).is_file()
    }
    homes_of(folder, given, sites=sites, keyless=(coordinator,), today=today, rng=rng)
    if (template / "code").is_dir():
        for name in (coordinator, *sites):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(template / "code", folder / name / "code", ignore=ignored)


def homes_of(
    folder: Path,
    files: Mapping[str, str],
    *,
    sites: Sequence[str],
    today: dt.date,
    rng: Rng,
    keyless: Sequence[str] = (),
) -> list[Identity]:
    """A home for every name, with these files, a fresh key for every site, and a manifest that all sites have signed.

    Args:
        folder: Where the homes go, by name; must not exist.
        files: Text by file name, the same for all.
        sites: The sites.
        today: The keys are good for two days from here.
        rng: Source of the keys.
        keyless: Names that get a home without a key.

    Returns:
        The sites' identities.
    """
    identities = [Identity.generate(site, rng) for site in sites]
    manifest = Manifest()
    for identity in identities:
        entry = PublicEntry.issue(identity, created=today, expires=today + _LIFETIME)
        manifest = manifest.enroll(entry)
    for identity in identities:
        manifest = manifest.signed_by(identity)
    folder.mkdir(mode=0o700, parents=True)
    for name in (*keyless, *sites):
        home = folder / name
        home.mkdir(mode=0o700)
        write_manifest(home / "manifest.json", manifest)
        for file, text in files.items():
            (home / file).write_text(text, encoding="utf-8")
    for identity in identities:
        write_identity(folder / identity.name / f"{identity.name}.key", identity, passphrase=None)
    return identities
