"""``secfl keys``: identity keys and the manifest of a federation."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Annotated

import typer

from secfl.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(
    help="Identity keys and the signed list of who takes part.",
    epilog="A site: keys new, send the .public.json. One of you: keys enroll. Everybody: compare the digest by "
    "telephone, then keys manifest --sign.",
    no_args_is_help=True,
)

_Passphrase = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="File whose first line encrypts the key."),
]
_Days = Annotated[int, typer.Option("--days", min=1, max=3650, help="How long the key is accepted.")]
_Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="The list of members.")]


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site, as all others will know it.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for both files.")] = Path(),
    passphrase_file: _Passphrase = None,
    days: _Days = 365,
) -> None:
    """Make a site's key: NAME.key stays here, NAME.public.json is for the others.

    Example: secfl keys new north --out /etc/secfl --passphrase-file phrase
    """
    from secfl.crypto.identity import Identity
    from secfl.federation.keyfiles import read_passphrase, write_identity
    from secfl.federation.manifest import PublicEntry
    from secfl.randomness import SystemRng

    identity = Identity.generate(name, SystemRng())
    today = _today()
    entry = PublicEntry.issue(identity, created=today, expires=today + dt.timedelta(days=days))
    public = out / f"{name}.public.json"
    if public.exists():
        raise ConfigError(f"{public}: exists already; expected a new file, or: secfl keys rotate")
    write_identity(out / f"{name}.key", identity, passphrase=read_passphrase(passphrase_file))
    _write_entry(public, entry)
    typer.echo(f"{out / f'{name}.key'}: the signing key; it never leaves this host")
    typer.echo(f"{public}: send this one; expires {entry.expires}")
    typer.echo(f"fingerprint {entry.fingerprint()}")


@app.command("rotate")
def rotate(
    key: Annotated[Path, typer.Argument(metavar="NAME.key", help="The key that is replaced.")],
    passphrase_file: _Passphrase = None,
    days: _Days = 365,
) -> None:
    """Replace a key: the old one signs the new entry and stays as NAME.key.old until you destroy it.

    Example: secfl keys rotate north.key
    """
    from secfl.crypto.identity import Identity
    from secfl.federation.keyfiles import read_identity, read_passphrase, write_identity
    from secfl.federation.manifest import PublicEntry
    from secfl.randomness import SystemRng

    name = key.name.removesuffix(".key")
    phrase = read_passphrase(passphrase_file)
    old = read_identity(key, name, passphrase=phrase)
    fresh = Identity.generate(name, SystemRng())
    today = _today()
    entry = PublicEntry.issue(fresh, created=today, expires=today + dt.timedelta(days=days), previous=old)
    kept = key.with_name(f"{key.name}.old")
    if kept.exists():
        raise ConfigError(f"{kept}: exists already; destroy it first")
    made = key.with_name(f"{key.name}.new")
    write_identity(made, fresh, passphrase=phrase)
    key.rename(kept)
    made.rename(key)
    _write_entry(key.with_name(f"{name}.public.json"), entry)
    typer.echo(f"{key}: the new signing key; {kept}: the old one, destroy it when the manifest has the new")
    typer.echo(f"fingerprint {entry.fingerprint()}")


@app.command("enroll")
def enroll(
    manifest: _Manifest,
    entries: Annotated[list[Path], typer.Argument(metavar="NAME.public.json ...")],
    coordinator: Annotated[
        Path | None,
        typer.Option(
            "--coordinator", metavar="NAME.public.json", help="Who alone may ask the members for anything."
        ),
    ] = None,
) -> None:
    """Put members into a manifest. All signatures under it fall away.

    Example: secfl keys enroll manifest.json north.public.json south.public.json
    """
    from secfl.federation.manifest import Manifest, read_manifest, read_public_entry, write_manifest

    listed = read_manifest(manifest) if manifest.exists() else Manifest()
    for path in entries:
        listed = listed.enroll(read_public_entry(path))
    if coordinator is not None:
        listed = listed.coordinated_by(read_public_entry(coordinator))
    write_manifest(manifest, listed)
    typer.echo(f"{manifest}: {len(listed.members)} members, digest {listed.digest().hex()}")


@app.command("manifest")
def show(
    manifest: _Manifest,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="NAME.key", help="Sign it with a member's key.")
    ] = None,
    passphrase_file: _Passphrase = None,
    check: Annotated[
        bool, typer.Option("--check", help="Fail unless everybody has signed and no key has expired.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show a manifest, sign it, or check that it may be used.

    Example: secfl keys manifest manifest.json --sign north.key
    """
    from secfl.federation.keyfiles import read_identity, read_passphrase
    from secfl.federation.manifest import read_manifest, write_manifest

    listed = read_manifest(manifest)
    if sign is not None:
        name = sign.name.removesuffix(".key")
        identity = read_identity(sign, name, passphrase=read_passphrase(passphrase_file))
        listed = listed.signed_by(identity)
        write_manifest(manifest, listed)
    if check:
        listed.check(_today())
    digest = listed.digest().hex()
    if as_json:
        rows = [
            {
                "name": entry.name,
                "fingerprint": entry.fingerprint(),
                "expires": entry.expires.isoformat(),
                "signed": entry.name in listed.signatures,
            }
            for entry in listed.members
        ]
        document = {"format_version": 1, "digest": digest, "members": rows, "usable": _usable(listed)}
        if listed.coordinator is not None:
            document["coordinator"] = {
                "name": listed.coordinator.name,
                "fingerprint": listed.coordinator.fingerprint(),
                "expires": listed.coordinator.expires.isoformat(),
            }
        typer.echo(json.dumps(document, indent=2))
        return
    for entry in listed.members:
        signed = "signed" if entry.name in listed.signatures else "not signed"
        typer.echo(f"{entry.name}  expires {entry.expires}  {signed}")
        typer.echo(f"  {entry.fingerprint()}")
    if listed.coordinator is not None:
        typer.echo(f"{listed.coordinator.name}  expires {listed.coordinator.expires}  coordinator")
        typer.echo(f"  {listed.coordinator.fingerprint()}")
    typer.echo(f"digest {digest}")


def _usable(manifest: object) -> bool:
    from secfl.federation.manifest import Manifest

    assert isinstance(manifest, Manifest)
    try:
        manifest.check(_today())
    except ConfigError:
        return False
    return True


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


def _write_entry(path: Path, entry: object) -> None:
    from secfl.federation.checkpoint import write_atomically
    from secfl.federation.manifest import PublicEntry

    assert isinstance(entry, PublicEntry)
    write_atomically(path, (json.dumps(entry.to_json(), indent=2) + "\n").encode())
