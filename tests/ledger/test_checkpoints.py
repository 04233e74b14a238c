"""Checkpoints from files and proposals that somebody else made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from secfl.errors import ConfigError, RemoteProtocolError
from secfl.ledger.canonical import MAX_LINE_BYTES
from secfl.ledger.checkpoints import Checkpoint, Witness, read_checkpoint


@pytest.fixture
def signed(make_ledger, workshop):
    return make_ledger(workshop).checkpoint(workshop.identities[:2])


@pytest.mark.parametrize("signers", ["ab", {"a": 1, "b": 2}, ["a", 1], [["a"], "b"], None])
def test_signers_are_a_list_of_names(signed, signers):
    """A text would be taken for a signer with each letter, a table for its keys."""
    assert Checkpoint.from_json(signed.to_json()) == signed
    with pytest.raises(ConfigError, match="checkpoint: signers, expected a list of names"):
        Checkpoint.from_json(signed.to_json() | {"signers": signers})


@pytest.mark.parametrize("keep", ["in a file", "in memory"])
def test_a_witness_keeps_nothing_that_it_could_not_read_again(signed, workshop, tmp_path, keep):
    """One proposal with an endless reason would lock the site out of the run for ever."""
    file = tmp_path / "kept.json" if keep == "in a file" else None
    witness = Witness(workshop.identities[0], run_id=signed.run_id, keep=file)
    endless = replace(signed, kind="close", reason="x" * MAX_LINE_BYTES, signatures={})
    with pytest.raises(RemoteProtocolError, match="larger than one that could be read again"):
        witness.co_sign(endless, ())
    assert witness.last is None
    assert list(tmp_path.glob("kept.json*")) == []
    witness.co_sign(replace(signed, signatures={}), ())
    assert witness.last.size == signed.size
    if file is not None:
        assert read_checkpoint(file) == witness.last
