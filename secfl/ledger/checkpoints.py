"""Co-signed checkpoints: what every client keeps, so that nobody can show two histories.

A checkpoint says "the log of this run had this root at this size". Clients sign it with their identity keys
after checking that it extends the last one they signed; `Witness` is that client side.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from secfl.crypto.identity import Directory, Identity
from secfl.errors import ConfigError, LedgerCorrupted, RemoteProtocolError
from secfl.ledger.canonical import MAX_LINE_BYTES, canonical, parse_line
from secfl.ledger.merkle import verify_consistency
from secfl.ledger.storage import sync_folder
from secfl.types import ClientId, join_fields

__all__ = [
    "Checkpoint",
    "CoSigner",
    "EachInTurn",
    "Panel",
    "Witness",
    "check_kept",
    "read_checkpoint",
    "signed_by",
]

_PURPOSE = {"checkpoint": b"ledger-checkpoint", "close": b"ledger-close"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A statement about a log, and who signed it.

    Attributes:
        kind: ``checkpoint``, or ``close`` when the run has ended.
        run_id: 16 bytes.
        size: Entries covered: all before the entry that holds this checkpoint.
        root: Merkle root over their hashes.
        time: When it was proposed, UTC.
        reason: Why the run ended; empty for ``checkpoint``.
        signers: The clients that sign, sorted; part of what is signed.
        signatures: Ed25519 signatures, one per signer.
    """

    kind: str
    run_id: bytes
    size: int
    root: bytes
    time: str
    signers: tuple[ClientId, ...]
    reason: str = ""
    signatures: Mapping[ClientId, bytes] = field(default_factory=dict, repr=False)

    def fields(self) -> tuple[bytes, ...]:
        """The length-prefixed fields that a signature covers."""
        return (
            self.run_id,
            struct.pack("<Q", self.size),
            self.root,
            self.time.encode(),
            self.reason.encode(),
            join_fields(*(name.encode() for name in self.signers)),
        )

    @property
    def purpose(self) -> bytes:
        """The label that starts every signed byte string."""
        return _PURPOSE[self.kind]

    def check_signatures(self, directory: Directory) -> None:
        """Refuse missing, extra and invalid signatures.

        Raises:
            RemoteProtocolError: Names the client whose signature does not hold.
        """
        for name in (*self.signers, *self.signatures):
            if name not in self.signers or name not in self.signatures:
                raise RemoteProtocolError(name, "signers and signatures differ")
            directory.verify(name, self.signatures[name], self.purpose, *self.fields())

    def body(self) -> dict[str, Any]:
        """The body of the entry that holds this checkpoint."""
        body: dict[str, Any] = {
            "size": self.size,
            "root": self.root.hex(),
            "signers": list(self.signers),
            "signatures": {name: signature.hex() for name, signature in self.signatures.items()},
        }
        return body | {"reason": self.reason} if self.kind == "close" else body

    def to_json(self) -> dict[str, Any]:
        """The file that a client keeps."""
        return {"kind": self.kind, "run_id": self.run_id.hex(), "time": self.time} | self.body()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Checkpoint:
        """Read `to_json` back; `ConfigError` when a member is missing or malformed."""
        try:
            if value["kind"] not in _PURPOSE:
                raise ConfigError(f"checkpoint: kind {value['kind']!r}, expected checkpoint or close")
            signers = value["signers"]
            if not isinstance(signers, list) or not all(isinstance(name, str) for name in signers):
                raise ConfigError("checkpoint: signers, expected a list of names")
            return cls(
                kind=value["kind"],
                run_id=bytes.fromhex(value["run_id"]),
                size=int(value["size"]),
                root=bytes.fromhex(value["root"]),
                time=str(value["time"]),
                reason=str(value.get("reason", "")),
                signers=tuple(ClientId(name) for name in signers),
                signatures={
                    ClientId(name): bytes.fromhex(text) for name, text in value["signatures"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"checkpoint: {type(error).__name__}: {error}") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a kept checkpoint; `ConfigError` names the file when that is impossible."""
    try:
        return Checkpoint.from_json(parse_line(path.read_bytes().strip()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{path}: expected a checkpoint file: {error}") from None


@runtime_checkable
class CoSigner(Protocol):
    """One client's side of a checkpoint, in this process or at the other end of a connection."""

    @property
    def name(self) -> ClientId:
        """The client's name."""
        ...

    @property
    def last_size(self) -> int:
        """Size of the last checkpoint that it signed; 0 for none."""
        ...

    def co_sign(self, proposal: Checkpoint, proof: Sequence[bytes]) -> bytes:
        """Sign a proposal after checking ``proof``, the consistency proof from `last_size`.

        Raises:
            RemoteProtocolError: The proposal is older than, or forks from, what this client signed before.
        """
        ...


@runtime_checkable
class Panel(Protocol):
    """All clients' side of a checkpoint at once: over a network each of them is asked twice, all at the same time."""

    def sizes(self) -> Mapping[ClientId, int]:
        """Size of the last checkpoint that each signed, 0 for none; without clients that cannot be reached."""
        ...

    def co_sign(
        self, proposal: Checkpoint, proofs: Mapping[ClientId, Sequence[bytes]]
    ) -> Mapping[ClientId, bytes]:
        """A signature of every signer of the proposal that is not gone; see `CoSigner.co_sign`.

        Raises:
            RemoteProtocolError: One of them refuses.
        """
        ...


class EachInTurn:
    """A panel of co-signers, asked one after the other; a `Panel`.

    Args:
        signers: Of this process, as a rule.
    """

    def __init__(self, signers: Sequence[CoSigner]) -> None:
        self._signers = {signer.name: signer for signer in signers}

    def sizes(self) -> Mapping[ClientId, int]:
        """See `Panel.sizes`."""
        return {name: signer.last_size for name, signer in self._signers.items()}

    def co_sign(
        self, proposal: Checkpoint, proofs: Mapping[ClientId, Sequence[bytes]]
    ) -> Mapping[ClientId, bytes]:
        """See `Panel.co_sign`."""
        return {
            name: self._signers[name].co_sign(proposal, proofs.get(name, ())) for name in proposal.signers
        }


class Witness:
    """A client that signs checkpoints, keeps the last one, and refuses older and forked ones.

    Args:
        identity: The client's identity.
        run_id: The only run it signs for.
        keep: File that survives restarts, or ``None`` to keep the checkpoint in memory (simulation).
    """

    def __init__(self, identity: Identity, *, run_id: bytes, keep: Path | None = None) -> None:
        self._identity = identity
        self._run_id = run_id
        self._keep = keep
        self._last: Checkpoint | None = None
        if keep is not None and keep.exists():
            self._last = read_checkpoint(keep)
            if self._last.run_id != run_id:
                raise ConfigError(f"{keep}: a checkpoint of another run")

    @property
    def name(self) -> ClientId:
        """The client's name."""
        return self._identity.name

    @property
    def last(self) -> Checkpoint | None:
        """The last checkpoint that this client signed."""
        return self._last

    @property
    def last_size(self) -> int:
        """Its size; 0 for none."""
        return 0 if self._last is None else self._last.size

    def co_sign(self, proposal: Checkpoint, proof: Sequence[bytes]) -> bytes:
        """See `CoSigner.co_sign`. The proposal is kept (fsynced) before the signature is returned."""
        if proposal.run_id != self._run_id:
            raise RemoteProtocolError("aggregator", "checkpoint of another run")
        if self.name not in proposal.signers:
            raise RemoteProtocolError("aggregator", f"checkpoint does not list {self.name} as a signer")
        if self._last is not None:
            self._check_extends(self._last, proposal, proof)
        signature = self._identity.sign(proposal.purpose, *proposal.fields())
        kept = Checkpoint(
            kind=proposal.kind,
            run_id=proposal.run_id,
            size=proposal.size,
            root=proposal.root,
            time=proposal.time,
            reason=proposal.reason,
            signers=proposal.signers,
            signatures={self.name: signature},
        )
        line = canonical(kept.to_json())
        if len(line) > MAX_LINE_BYTES:
            raise RemoteProtocolError("aggregator", "checkpoint larger than one that could be read again")
        if self._keep is not None:
            _replace_file(self._keep, line + b"\n")
        self._last = kept
        return signature

    @staticmethod
    def _check_extends(last: Checkpoint, proposal: Checkpoint, proof: Sequence[bytes]) -> None:
        if last.kind == "close" and (proposal.kind, proposal.size) != ("close", last.size):
            raise RemoteProtocolError("aggregator", "checkpoint after the run was closed")
        if proposal.size < last.size:
            raise RemoteProtocolError(
                "aggregator", f"checkpoint of {proposal.size} entries is older than the kept {last.size}"
            )
        if not verify_consistency(
            old_size=last.size, old_root=last.root, size=proposal.size, root=proposal.root, proof=proof
        ):
            raise RemoteProtocolError(
                "aggregator", f"checkpoint of {proposal.size} entries forks from the kept {last.size}"
            )


def signed_by(
    proposal: Checkpoint, panel: Panel, *, proofs: Mapping[ClientId, Sequence[bytes]]
) -> Checkpoint:
    """The proposal with a signature from every co-signer that answers.

    Args:
        proposal: What to sign; its ``signers`` are of this panel.
        panel: Asks them.
        proofs: Consistency proof from each signer's last checkpoint.
    """
    signatures = panel.co_sign(proposal, proofs)
    return Checkpoint(
        kind=proposal.kind,
        run_id=proposal.run_id,
        size=proposal.size,
        root=proposal.root,
        time=proposal.time,
        reason=proposal.reason,
        signers=proposal.signers,
        signatures={name: signatures[name] for name in proposal.signers if name in signatures},
    )


def check_kept(kept: Checkpoint, *, run_id: bytes, size: int, root_at: Callable[[int], bytes]) -> None:
    """Compare a kept checkpoint with a log; see `secfl.ledger.verify`."""
    if kept.run_id != run_id:
        raise LedgerCorrupted(None, "the kept checkpoint belongs to another run")
    if kept.size > size:
        raise LedgerCorrupted(None, f"cut off: it has {size} entries, the kept checkpoint covers {kept.size}")
    if root_at(kept.size) != kept.root:
        raise LedgerCorrupted(None, f"forked: the first {kept.size} entries differ from the kept checkpoint")


def _replace_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
