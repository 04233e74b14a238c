"""The rules between entries, for a caller who has entries from elsewhere than a file."""

from __future__ import annotations

import pytest

from secfl.errors import LedgerCorrupted
from secfl.ledger.reader import read_entry
from secfl.ledger.state import LedgerState


def test_entries_are_taken_in_their_order_and_once(make_ledger, workshop, tmp_path):
    """One that is left out or taken twice would leave the figures of another run."""
    ledger = make_ledger(workshop)
    ledger.commit(ledger.reserve(workshop.noise(), workshop.guarantee()))
    lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines()
    whole, entries = LedgerState(), []
    for line in lines:
        entries.append(read_entry(line, whole))
        whole.apply(entries[-1])
    state = LedgerState()
    state.apply(entries[0])
    for wrong in (entries[0], entries[2]):
        with pytest.raises(LedgerCorrupted, match=rf"index: {wrong.index}, expected 1") as caught:
            state.apply(wrong)
        assert caught.value.entry == 1
        assert state.size == 1
    for entry in entries[1:]:
        state.apply(entry)
    assert state.tree.root() == whole.tree.root()
