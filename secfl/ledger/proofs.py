"""Proofs as files: one entry is in a signed log, or a later log only appended to an earlier one.

Both follow RFC 9162. A proof carries the co-signed checkpoint that it leads to, so that whoever has the public
keys needs neither the ledger nor trust in who keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from secfl.crypto.identity import Directory
from secfl.errors import ConfigError, LedgerCorrupted, RemoteProtocolError
from secfl.ledger.canonical import JsonObject, canonical, parse_line
from secfl.ledger.checkpoints import Checkpoint
from secfl.ledger.entry import encode_entry
from secfl.ledger.merkle import verify_consistency, verify_inclusion
from secfl.ledger.reader import lines_of
from secfl.ledger.schema import check_entry
from secfl.ledger.state import LedgerState
from secfl.ledger.words import plural
from secfl.types import ClientId

__all__ = ["Finding", "check_proof", "prove_consistency", "prove_inclusion", "read_keys", "read_proof"]

PROOF_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a proof that holds shows.

    Attributes:
        shows: In words.
        signers: Clients whose signature on the checkpoint holds.
        keys_pinned: Whether their keys were given, or not checked at all.
    """

    shows: str
    signers: tuple[str, ...]
    keys_pinned: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {"shows": self.shows, "signers": list(self.signers), "keys_pinned": self.keys_pinned}


def prove_inclusion(data: bytes, state: LedgerState, index: int) -> JsonObject:
    """That entry ``index`` is under the last checkpoint of the ledger that covers it.

    Args:
        data: The ledger's bytes, whose last line is whole.
        state: What they say.
        index: The entry.

    Raises:
        ConfigError: There is no such entry, or no checkpoint covers it.
    """
    if not 0 <= index < state.size:
        raise ConfigError(f"entry {index}: the ledger has entries 0 to {state.size - 1}")
    checkpoint = _last_covering(state, index + 1)
    line = next(line for place, line in enumerate(lines_of(data)) if place == index)
    return {
        "kind": "inclusion",
        "format_version": PROOF_VERSION,
        "index": index,
        "entry": parse_line(line),
        "path": [node.hex() for node in state.tree.inclusion_proof(index, checkpoint.size)],
        "checkpoint": checkpoint.to_json(),
    }


def prove_consistency(state: LedgerState, kept: Checkpoint) -> JsonObject:
    """That the ledger's last checkpoint only appended to a kept one.

    Raises:
        ConfigError: No checkpoint of the ledger covers as much as the kept one, or it is of another run.
    """
    if kept.run_id != state.header.run_id:
        raise ConfigError("the kept checkpoint belongs to another run")
    checkpoint = _last_covering(state, kept.size)
    return {
        "kind": "consistency",
        "format_version": PROOF_VERSION,
        "old_size": kept.size,
        "old_root": kept.root.hex(),
        "path": [node.hex() for node in state.tree.consistency_proof(kept.size, checkpoint.size)],
        "checkpoint": checkpoint.to_json(),
    }


def check_proof(proof: Mapping[str, Any], *, directory: Directory | None, kept: Checkpoint | None) -> Finding:
    """Check a proof.

    Args:
        proof: As made by `prove_inclusion` or `prove_consistency`.
        directory: The public keys as pinned at enrolment; without them signatures are not checked.
        kept: A checkpoint that the reader kept; a consistency proof must start from it.

    Raises:
        ConfigError: It is not a proof of a known kind and version.
        LedgerCorrupted: It does not hold; names what is wrong.
    """
    if proof.get("format_version") != PROOF_VERSION:
        raise ConfigError(f"proof: format_version {PROOF_VERSION} is expected")
    checks: dict[Any, Callable[[Mapping[str, Any], Checkpoint, Checkpoint | None], str]] = {
        "inclusion": _check_inclusion,
        "consistency": _check_consistency,
    }
    kind = proof.get("kind")
    if not isinstance(kind, str) or kind not in checks:
        raise ConfigError("proof: kind inclusion or consistency is expected")
    try:
        checkpoint = Checkpoint.from_json(proof["checkpoint"])
        shows = checks[kind](proof, checkpoint, kept)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"proof: {type(error).__name__}: {error}") from None
    if directory is not None:
        try:
            checkpoint.check_signatures(directory)
        except RemoteProtocolError as error:
            raise LedgerCorrupted(
                None, f"proof: checkpoint.signatures.{error.peer}: {error.reason}"
            ) from None
        if not checkpoint.signers:
            raise LedgerCorrupted(None, "proof: checkpoint.signers: nobody signed")
    return Finding(shows=shows, signers=checkpoint.signers, keys_pinned=directory is not None)


def read_proof(path: Path) -> JsonObject:
    """Read a proof file; `ConfigError` names it when that is impossible."""
    return _read_object(path, "a proof file")


def read_keys(path: Path) -> Directory:
    """Read public keys: ``{"keys": {client: hex}}``, or the inner object alone.

    Raises:
        ConfigError: Names the file when it is something else.
    """
    value = _read_object(path, "a file of public keys")
    keys = value.get("keys", value)
    try:
        return Directory({ClientId(name): bytes.fromhex(key) for name, key in keys.items()})
    except (TypeError, ValueError, AttributeError):
        raise ConfigError(f"{path}: expected client names with hexadecimal keys") from None


def _read_object(path: Path, what: str) -> JsonObject:
    try:
        return parse_line(path.read_bytes().strip())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: expected {what}: {error}") from None


def _last_covering(state: LedgerState, size: int) -> Checkpoint:
    covering = [checkpoint for checkpoint in state.checkpoints if checkpoint.size >= size]
    if not covering:
        raise ConfigError(f"no checkpoint of this ledger covers {plural(size, 'entry')}")
    return covering[-1]


def _check_inclusion(proof: Mapping[str, Any], checkpoint: Checkpoint, kept: Checkpoint | None) -> str:
    entry, index = proof["entry"], proof["index"]
    problem = check_entry(entry)
    if problem is not None:
        raise LedgerCorrupted(None, f"proof: entry.{problem}")
    line, digest = encode_entry(
        index=entry["index"],
        kind=entry["type"],
        body=entry["body"],
        time=entry["time"],
        previous=entry["previous"],
    )
    if entry["index"] != index or line != canonical(entry):
        raise LedgerCorrupted(None, "proof: entry: its hash, marks or index do not fit its content")
    path = [bytes.fromhex(node) for node in proof["path"]]
    if not verify_inclusion(digest, index=index, size=checkpoint.size, proof=path, root=checkpoint.root):
        raise LedgerCorrupted(None, f"proof: entry {index} is not under the checkpoint's root")
    if kept is not None and (kept.run_id, kept.size, kept.root) != (
        checkpoint.run_id,
        checkpoint.size,
        checkpoint.root,
    ):
        raise LedgerCorrupted(None, "proof: it leads to another checkpoint than the kept one")
    return f"entry {index} ({entry['type']}) is one of the {checkpoint.size} entries under the checkpoint"


def _check_consistency(proof: Mapping[str, Any], checkpoint: Checkpoint, kept: Checkpoint | None) -> str:
    old_size, old_root = proof["old_size"], bytes.fromhex(proof["old_root"])
    if kept is not None and (kept.run_id, kept.size, kept.root) != (checkpoint.run_id, old_size, old_root):
        raise LedgerCorrupted(None, "proof: it does not start from the kept checkpoint")
    path = [bytes.fromhex(node) for node in proof["path"]]
    if not verify_consistency(
        old_size=old_size, old_root=old_root, size=checkpoint.size, root=checkpoint.root, proof=path
    ):
        raise LedgerCorrupted(None, f"proof: the first {old_size} entries were changed")
    return f"the log of {checkpoint.size} entries only appended to the one of {old_size}"
