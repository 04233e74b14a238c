"""Homes for everybody of a federation that lives on one host: for simulations over real engines and for demonstrations.

On real hosts every site makes its own key (``secfl keys``), and nobody holds two.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Sequence
from pathlib import Path

from secfl.crypto.identity import Identity
from secfl.errors import ConfigError
from secfl.federation.keyfiles import Manifest, PublicEntry, write_identity, write_manifest
from secfl.randomness import Rng

__all__ = ["make_homes"]

_LIFETIME = dt.timedelta(days=2)


def make_homes(
    template: Path, folder: Path, *, sites: Sequence[str], coordinator: str, today: dt.date, rng: Rng
) -> None:
    """A home for every site and for the coordinator, with fresh keys and a manifest that all have signed.

    Args:
        template: A folder with ``config.toml``, and ``task`` and ``code`` where the task is one of your own.
        folder: Where the homes go, by name; must not exist.
        sites: The sites.
        coordinator: Name of the coordinator's home.
        today: The keys are good for two days from here.
        rng: Source of the keys.

    Raises:
        ConfigError: The template has no ``config.toml``.
    """
    if not (template / "config.toml").is_file():
        raise ConfigError(f"{template}: has no config.toml")
    identities = [Identity.generate(site, rng) for site in sites]
    manifest = Manifest()
    for identity in identities:
        entry = PublicEntry.issue(identity, created=today, expires=today + _LIFETIME)
        manifest = manifest.enroll(entry)
    for identity in identities:
        manifest = manifest.signed_by(identity)
    folder.mkdir(mode=0o700, parents=True)
    for name in (coordinator, *sites):
        home = folder / name
        home.mkdir(mode=0o700)
        write_manifest(home / "manifest.json", manifest)
        for given in ("config.toml", "task"):
            if (template / given).is_file():
                shutil.copyfile(template / given, home / given)
        if (template / "code").is_dir():
            shutil.copytree(template / "code", home / "code", ignore=shutil.ignore_patterns("__pycache__"))
    for identity in identities:
        write_identity(folder / identity.name / f"{identity.name}.key", identity, passphrase=None)
