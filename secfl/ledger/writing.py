"""Steps of the writer: encode through the verifier's own checks, recover a torn end, start a budget's meter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from secfl.dp.accounting import Relation
from secfl.errors import ConfigError, LedgerCorrupted, LocalProtocolError
from secfl.ledger.accounts import Account
from secfl.ledger.budget import Meter
from secfl.ledger.canonical import canonical, parse_line
from secfl.ledger.entry import GENESIS, Entry, EntryType, RunHeader, encode_entry
from secfl.ledger.reader import read_entry, replay
from secfl.ledger.sights import releases
from secfl.ledger.site_accounts import SiteAccounts
from secfl.ledger.state import LedgerState
from secfl.ledger.storage import LedgerFile
from secfl.ledger.views import planned_charge

__all__ = ["check_account", "check_resumable", "make_entry", "meter_of", "recover"]


def check_account(header: RunHeader, account: Account | SiteAccounts | None) -> None:
    """Refuse a header and an account that do not belong together (`ConfigError`)."""
    stated, given = header.account, None if account is None else account.identity
    if stated != given:
        raise ConfigError(f"ledger: the header names account {stated}, but {given} was given")
    if account is not None and (header.unit, header.relation) != (account.unit, account.relation):
        raise ConfigError(
            f"ledger: the account counts {account.unit} under {account.relation}, the run states "
            f"{header.unit} under {header.relation}"
        )


def meter_of(state: LedgerState) -> Meter | None:
    """The run's own budget, with everything that counts as spent."""
    header = state.header
    if header.budget is None:
        return None
    meter = Meter(header.budget, relation=header.relation or Relation.ADD_REMOVE)
    for release in releases(state):
        charge = planned_charge(release.terms, header.budget, opened=release.opened)
        meter.add(charge, release.count)
    return meter


def check_resumable(state: LedgerState, header: RunHeader | None, path: Path) -> None:
    """Refuse to go on under another header (`ConfigError`) or after the end (`LocalProtocolError`)."""
    if header is not None and canonical(header.to_json()) != canonical(state.header.to_json()):
        raise ConfigError(f"{path}: this ledger was started with another header")
    if state.closed is not None:
        raise LocalProtocolError(f"{path}: the ledger is closed")


def make_entry(state: LedgerState, kind: EntryType, body: dict[str, Any], time: str) -> tuple[bytes, Entry]:
    """Encode the next entry and read it back through the same checks as `verify`."""
    previous = state.last_hash.hex() if state.size else GENESIS
    line, _ = encode_entry(index=state.size, kind=kind.value, body=body, time=time, previous=previous)
    return line, read_entry(line, state)


def recover(file: LedgerFile, clock: Callable[[], str]) -> LedgerState:
    """Replay the file and repair a torn end.

    Raises:
        LedgerCorrupted: More than the last line is damaged.
    """
    found = replay(file.read())
    state, fragment = found.state, found.fragment
    if not fragment:
        state.header  # noqa: B018 - an empty file is refused here
        return state
    try:
        parse_line(fragment)
        entry = read_entry(fragment, state)
        state.apply(entry)
    except (ValueError, LedgerCorrupted):
        terms = None if state.latest_terms is None else state.latest_terms.index
        body = {"fragment": fragment.hex(), "terms": terms}
        line, entry = make_entry(state, EntryType.RECOVERED, body, clock())
        state.apply(entry)
        file.overwrite_tail(found.good_bytes, line + b"\n")
    else:
        # Only the newline was lost.
        file.append(b"\n")
    return state
