"""Check a ledger without trusting whoever wrote it: the file and the public keys are enough."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from secfl.crypto.identity import Directory
from secfl.errors import ConfigError, LedgerCorrupted
from secfl.ledger.checkpoints import Checkpoint, check_kept
from secfl.ledger.entry import KeyCustody
from secfl.ledger.plans import plan_findings
from secfl.ledger.reader import replay, skim
from secfl.ledger.state import LedgerState
from secfl.ledger.statement import Statement
from secfl.ledger.views import statements
from secfl.ledger.words import plural

__all__ = ["CANNOT_PROVE", "OUTPUT_FORMAT_VERSION", "Depth", "Status", "Verdict", "load", "verify_file"]

OUTPUT_FORMAT_VERSION: Final = 1
"""Version of what ``secfl ledger`` prints with ``--json``."""

CANNOT_PROVE = (
    "that a site really clipped, sampled and added its noise as stated",
    "that a site's data are what it says they are, or that its host is not watched",
    "that nothing left a site outside the recorded rounds",
)


class Depth(StrEnum):
    """How much of the file is checked.

    ``full``: everything. ``quick``: hashes, chain, rules between entries, roots and signatures, but not the
    form of each line; for display of large files.
    """

    FULL = "full"
    QUICK = "quick"


class Status(StrEnum):
    """How a ledger that verifies stands. One that does not raises `LedgerCorrupted`."""

    CLOSED = "closed"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What verification found.

    Attributes:
        status: Closed, or open: it verifies so far but may have been cut off.
        entries: Number of entries.
        rounds: Attempts that were committed, aborted, and left unsettled (spent), and torn lines (spent).
        signers: Clients that signed the close entry, or the last checkpoint of an open ledger.
        missing: Enrolled clients that did not.
        root: Merkle root over all entries, hexadecimal.
        keys_pinned: Whether the keys were given, or taken from the file itself.
        depth: How much of the file was checked.
        simulated: Whether one process held all keys, so that nothing was hidden from it.
        findings: Where what was recorded departs from the stated plan.
        proves: What is now certain, one sentence each.
        cannot_prove: What no file can prove.
        statements: ε per adversary, computed just now.
    """

    status: Status
    entries: int
    rounds: dict[str, int]
    signers: tuple[str, ...]
    missing: tuple[str, ...]
    root: str
    keys_pinned: bool
    depth: Depth
    simulated: bool
    findings: tuple[str, ...]
    proves: tuple[str, ...]
    cannot_prove: tuple[str, ...]
    statements: tuple[Statement, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "format_version": OUTPUT_FORMAT_VERSION,
            "status": self.status.value,
            "entries": self.entries,
            "rounds": self.rounds,
            "signers": list(self.signers),
            "missing": list(self.missing),
            "root": self.root,
            "keys_pinned": self.keys_pinned,
            "depth": self.depth.value,
            "simulated": self.simulated,
            "findings": list(self.findings),
            "proves": list(self.proves),
            "cannot_prove": list(self.cannot_prove),
            "views": [statement.to_json() for statement in self.statements],
        }


def load(path: Path | str, *, depth: Depth = Depth.FULL) -> LedgerState:
    """Read a ledger and check form, hashes, chain, roots and signatures.

    Raises:
        ConfigError: The file cannot be read.
        LedgerCorrupted: Names the first wrong entry and its field.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    found = replay(data) if depth is Depth.FULL else skim(data)
    if found.fragment:
        raise LedgerCorrupted(
            found.state.size,
            f"cut off after {plural(len(found.fragment), 'byte')} (resuming recovers it as a spent round)",
        )
    found.state.header  # noqa: B018 - an empty file is refused here
    return found.state


def verify_file(
    path: Path | str,
    *,
    directory: Directory | None = None,
    checkpoint: Checkpoint | None = None,
    delta: float | None = None,
    depth: Depth = Depth.FULL,
) -> Verdict:
    """Verify a ledger and derive its statements.

    Args:
        path: The file.
        directory: The public keys as pinned at enrolment; without them, those in the file are used, which
            only shows that it is consistent with itself.
        checkpoint: One that a client kept: shows that nothing before it was changed or cut off.
        delta: δ of the statements; the header's by default.
        depth: How much of the file is checked.

    Raises:
        ConfigError: The file cannot be read.
        LedgerCorrupted: It does not verify; names the first wrong entry and its field.
    """
    state = load(path, depth=depth)
    header = state.header
    if directory is not None and dict(directory.keys) != dict(header.directory.keys):
        raise LedgerCorrupted(0, "body.keys: not the keys that were given")
    if checkpoint is not None:
        check_kept(checkpoint, run_id=header.run_id, size=state.size, root_at=state.tree.root)
    last = state.checkpoints[-1] if state.checkpoints else None
    signers = () if last is None else last.signers
    closed = state.closed is not None
    return Verdict(
        status=Status.CLOSED if closed else Status.OPEN,
        entries=state.size,
        rounds={
            "committed": len(state.commits),
            "aborted": len(state.aborts),
            "unsettled": len(state.reservations) - len(state.commits) - len(state.aborts),
            "torn": len(state.recovered),
        },
        signers=signers,
        missing=tuple(name for name in header.cohort if name not in signers),
        root=state.tree.root().hex(),
        keys_pinned=directory is not None,
        depth=depth,
        simulated=header.custody is KeyCustody.ONE_PROCESS,
        findings=plan_findings(state),
        proves=_proves(state, pinned=directory is not None, kept=checkpoint is not None),
        cannot_prove=CANNOT_PROVE,
        statements=tuple(statements(state, delta)),
    )


def _proves(state: LedgerState, *, pinned: bool, kept: bool) -> tuple[str, ...]:
    keys = "the keys you gave" if pinned else "the keys stated in the file (pin them to know whose they are)"
    lines = [
        "arithmetic: every epsilon was computed again from the recorded mechanisms, by two accountants",
        f"completeness: {state.size} entries in one unbroken hash chain",
    ]
    if state.closed is not None:
        lines.append(
            f"signatures: the end of the run was signed by {plural(len(state.closed.signers), 'client')} "
            f"with {keys}"
        )
    elif state.checkpoints:
        lines.append(
            f"signatures: the first {state.checkpoints[-1].size} entries were signed by "
            f"{plural(len(state.checkpoints[-1].signers), 'client')} with {keys}; later ones are not signed"
        )
    else:
        lines.append("signatures: none yet")
    if kept:
        lines.append("history: it continues the checkpoint that you kept")
    return tuple(lines)
