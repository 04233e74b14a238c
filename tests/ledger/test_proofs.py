from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secfl.errors import ConfigError, LedgerCorrupted
from secfl.ledger import PrivacyLedger
from secfl.ledger.canonical import parse_line
from secfl.ledger.checkpoints import read_checkpoint
from secfl.ledger.entry import GENESIS, encode_entry
from secfl.ledger.proofs import check_proof, prove_consistency, prove_inclusion, read_keys, read_proof
from secfl.ledger.verify import load


@pytest.fixture
def run(tmp_path, workshop):
    """A ledger, and the checkpoint that was kept in the middle of it."""
    path = tmp_path / "run.jsonl"
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        ledger.commit(ledger.reserve(workshop.noise(count=1), workshop.guarantee()))
        kept = ledger.checkpoint(workshop.identities)
        for _ in range(5):
            ledger.commit(ledger.reserve(workshop.noise(count=1), workshop.guarantee()))
        ledger.close(co_signers=workshop.identities)
    return path, kept


def test_every_entry_under_the_close_can_be_proved(run, workshop):
    path, _ = run
    state, data = load(path), path.read_bytes()
    for index in range(state.size - 1):
        finding = check_proof(prove_inclusion(data, state, index), directory=workshop.directory, kept=None)
        assert f"entry {index} " in finding.shows
        assert finding.signers == ("a", "b", "c", "d", "e")
    with pytest.raises(ConfigError, match="no checkpoint"):
        prove_inclusion(data, state, state.size - 1)  # the close itself is under no later root
    for index in (-1, state.size):
        with pytest.raises(ConfigError, match="entries 0 to"):
            prove_inclusion(data, state, index)


def test_the_log_continues_a_kept_checkpoint(run, workshop):
    path, kept = run
    proof = prove_consistency(load(path), kept)
    finding = check_proof(proof, directory=workshop.directory, kept=kept)
    assert f"only appended to the one of {kept.size}" in finding.shows


def test_proofs_survive_a_file(run, workshop, tmp_path):
    path, kept = run
    state = load(path)
    for proof in (prove_consistency(state, kept), prove_inclusion(path.read_bytes(), state, 2)):
        file = tmp_path / "proof.json"
        file.write_text(json.dumps(proof))
        check_proof(read_proof(file), directory=workshop.directory, kept=None)
    (tmp_path / "kept.json").write_text(json.dumps(kept.to_json()))
    assert read_checkpoint(tmp_path / "kept.json") == kept
    keys = {name: key.hex() for name, key in workshop.directory.keys.items()}
    for content in (keys, {"keys": keys}):
        (tmp_path / "keys.json").write_text(json.dumps(content))
        assert read_keys(tmp_path / "keys.json").keys == workshop.directory.keys


def test_a_proof_for_another_history_does_not_hold(run, workshop, tmp_path):
    _, kept = run
    path = tmp_path / "other.jsonl"
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        for _ in range(9):
            ledger.commit(ledger.reserve(workshop.noise(count=2), workshop.guarantee()))
        ledger.close(co_signers=workshop.identities)
    proof = prove_consistency(load(path), kept)
    with pytest.raises(LedgerCorrupted, match="changed"):
        check_proof(proof, directory=workshop.directory, kept=kept)
    forged = dict(proof, old_root=load(path).tree.root(kept.size).hex())
    check_proof(forged, directory=workshop.directory, kept=None)  # consistent, but from another start
    with pytest.raises(LedgerCorrupted, match="start from the kept"):
        check_proof(forged, directory=workshop.directory, kept=kept)


def test_an_inclusion_proof_can_be_tied_to_a_kept_checkpoint(run, workshop):
    path, kept = run
    proof = prove_inclusion(path.read_bytes(), load(path), 2)
    with pytest.raises(LedgerCorrupted, match="another checkpoint"):
        check_proof(proof, directory=workshop.directory, kept=kept)


def test_signatures_are_checked_against_the_readers_keys(run, workshop):
    path, _ = run
    proof = prove_inclusion(path.read_bytes(), load(path), 2)
    assert not check_proof(proof, directory=None, kept=None).keys_pinned
    with pytest.raises(LedgerCorrupted, match="signature"):
        check_proof(proof, directory=workshop.variant(seed=3).directory, kept=None)
    unsigned = copy.deepcopy(proof)
    unsigned["checkpoint"] |= {"signers": [], "signatures": {}}
    with pytest.raises(LedgerCorrupted, match="nobody signed"):
        check_proof(unsigned, directory=workshop.directory, kept=None)


def test_a_checkpoint_of_another_run_gives_no_proof(run, workshop):
    path, kept = run
    other = type(kept).from_json(kept.to_json() | {"run_id": "ff" * 16})
    with pytest.raises(ConfigError, match="another run"):
        prove_consistency(load(path), other)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_proof_never_holds(run, workshop, data):
    path, kept = run
    state = load(path)
    proof = data.draw(
        st.sampled_from([prove_consistency(state, kept), prove_inclusion(path.read_bytes(), state, 3)])
    )
    text = json.dumps(proof)
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:place] + data.draw(st.sampled_from('0123456789abcdefx"{}[],: ')) + text[place + 1 :]
    try:
        value = json.loads(damaged)
    except ValueError:
        return
    if value == proof or not isinstance(value, dict):
        return
    with pytest.raises((ConfigError, LedgerCorrupted)):
        check_proof(value, directory=workshop.directory, kept=kept if "old_size" in proof else None)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"kind":"inclusion"}', '{"format_version":1,"kind":"x"}', "\udcff"]
)
def test_other_files_are_refused(tmp_path, content):
    file = tmp_path / "file"
    file.write_text(content, errors="surrogateescape")
    with pytest.raises(ConfigError):
        check_proof(read_proof(file), directory=None, kept=None)
    for reader in (read_checkpoint, read_proof, read_keys):
        with pytest.raises(ConfigError, match="No such file"):
            reader(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["x", None, ["inclusion"]])
def test_a_proof_of_another_kind_is_refused_by_name(kind):
    with pytest.raises(ConfigError, match="kind inclusion or consistency is expected"):
        check_proof({"format_version": 1, "kind": kind}, directory=None, kept=None)


def test_an_entry_that_no_reader_would_take_is_not_proved(workshop):
    """It is under the root that its writer made; a reader of the whole file would refuse it."""
    line, digest = encode_entry(
        index=0, kind="open", body={"delta": 1e-9}, time="2026-01-02T03:04:05Z", previous=GENESIS
    )
    checkpoint = {"kind": "checkpoint", "run_id": "00" * 16, "time": "2026-01-02T03:04:05Z", "size": 1}
    checkpoint |= {"root": digest.hex(), "signers": [], "signatures": {}}
    proof = {"format_version": 1, "kind": "inclusion", "entry": parse_line(line), "index": 0, "path": []}
    with pytest.raises(LedgerCorrupted, match=r"proof: entry\.body"):
        check_proof(proof | {"checkpoint": checkpoint}, directory=None, kept=None)


def test_key_files_with_other_content_are_refused(tmp_path):
    for content in ('{"keys":{"a":"zz"}}', '{"keys":{"a":"00"}}', '{"keys":[1]}', '{"a":1}', '{"a b":"00"}'):
        (tmp_path / "keys.json").write_text(content)
        with pytest.raises(ConfigError):
            read_keys(tmp_path / "keys.json")
