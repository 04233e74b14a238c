from __future__ import annotations

import subprocess
import sys

import pytest

from secfl.crypto.identity import Directory
from secfl.errors import ConfigError, LedgerCorrupted
from secfl.ledger import NonPrivate, PrivacyLedger, Witness, event_from_plan
from secfl.ledger.checkpoints import Checkpoint
from secfl.ledger.verify import Status, verify_file


@pytest.fixture
def closed(tmp_path, workshop):
    path = tmp_path / "closed.jsonl"
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        for _ in range(3):
            ledger.commit(ledger.reserve(workshop.noise(count=5), workshop.guarantee()))
        kept = ledger.checkpoint(workshop.identities)
        ledger.commit(ledger.reserve(workshop.noise(count=5), workshop.guarantee()))
        ledger.close(co_signers=workshop.identities)
    return path, kept


def test_closed(closed, workshop):
    verdict = verify_file(closed[0], directory=workshop.directory, checkpoint=closed[1])
    assert (verdict.status, verdict.missing, verdict.keys_pinned) == (Status.CLOSED, (), True)
    assert verdict.rounds == {"committed": 4, "aborted": 0, "unsettled": 0, "torn": 0}
    assert any("continues the checkpoint" in line for line in verdict.proves)
    assert any("really clipped, sampled and added its noise" in line for line in verdict.cannot_prove)


def test_a_verdict_says_whose_keys_were_used(closed, workshop):
    assert "pin them" in " ".join(verify_file(closed[0]).proves)
    assert "the keys you gave" in " ".join(verify_file(closed[0], directory=workshop.directory).proves)


def test_other_keys_are_refused(closed, workshop):
    others = dict(workshop.directory.keys) | {"a": workshop.variant(seed=5).identities[0].public_key()}
    with pytest.raises(LedgerCorrupted, match="keys") as caught:
        verify_file(closed[0], directory=Directory(others))
    assert caught.value.entry == 0


def test_a_kept_checkpoint_turns_a_cut_file_from_open_into_corrupted(closed, tmp_path):
    path, kept = closed
    lines = path.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    for length in range(1, len(lines)):
        cut.write_bytes(b"".join(lines[:length]))
        assert verify_file(cut).status is Status.OPEN
        if length < kept.size:
            with pytest.raises(LedgerCorrupted, match="cut off"):
                verify_file(cut, checkpoint=kept)
        else:
            assert verify_file(cut, checkpoint=kept).status is Status.OPEN


def test_a_kept_checkpoint_finds_a_rewritten_history(closed, workshop, tmp_path):
    path = tmp_path / "rewritten.jsonl"
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        for _ in range(5):
            ledger.commit(ledger.reserve(workshop.noise(count=1), workshop.guarantee()))
        ledger.close(co_signers=workshop.identities)  # even with the clients' keys
    assert verify_file(path, directory=workshop.directory).status is Status.CLOSED
    with pytest.raises(LedgerCorrupted, match="forked"):
        verify_file(path, checkpoint=closed[1])


def test_a_checkpoint_of_another_run_is_refused(closed, workshop):
    other = Checkpoint(kind="checkpoint", run_id=b"x" * 16, size=1, root=bytes(32), time="", signers=())
    with pytest.raises(LedgerCorrupted, match="another run"):
        verify_file(closed[0], checkpoint=other)


def test_open_ledgers_say_what_is_signed(tmp_path, workshop):
    path = tmp_path / "open.jsonl"
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        assert "none yet" in " ".join(verify_file(path).proves)
        ledger.checkpoint([Witness(item, run_id=ledger.header.run_id) for item in workshop.identities[:2]])
        verdict = verify_file(path)
    assert (verdict.status, verdict.signers, verdict.missing) == (Status.OPEN, ("a", "b"), ("c", "d", "e"))
    assert "later ones are not signed" in " ".join(verdict.proves)


def test_both_accountants_are_run_each_time(closed):
    for row in verify_file(closed[0]).statements:
        assert row.epsilon <= row.epsilon_rdp


def test_delta_can_be_chosen(closed):
    tight, loose = verify_file(closed[0], delta=1e-9), verify_file(closed[0], delta=1e-3)
    assert tight.statements[0].epsilon > loose.statements[0].epsilon


class TestPlans:
    def findings(self, workshop, tmp_path, plan, event, rounds=1):
        path = tmp_path / "planned.jsonl"
        with PrivacyLedger.create(path, workshop.header(plan=plan.to_dict())) as ledger:
            for _ in range(rounds):
                ledger.commit(ledger.reserve(event, workshop.guarantee()))
        return verify_file(path).findings

    def test_a_run_that_follows_its_plan(self, workshop, tmp_path):
        plan = workshop.plan()
        assert self.findings(workshop, tmp_path, plan, event_from_plan(plan, count=5), rounds=2) == ()

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"noise_multiplier": 0.9}, "noise_multiplier"),
            ({"sampling_rate": 0.05}, "sampling_rate"),
            ({"grid_norm": 8192}, "sensitivity"),
            ({"dimension": 999}, "dimension"),
        ],
    )
    def test_another_mechanism_is_named(self, workshop, tmp_path, changes, named):
        (finding,) = self.findings(
            workshop, tmp_path, workshop.plan(), event_from_plan(workshop.plan(**changes))
        )
        assert finding.startswith("entry 1 records " + named)

    def test_more_releases_than_planned(self, workshop, tmp_path):
        plan = workshop.plan()
        assert self.findings(workshop, tmp_path, plan, event_from_plan(plan, count=11)) == (
            "11 releases count as spent, the plan has 10",
        )

    def test_a_release_without_privacy(self, workshop, tmp_path):
        (finding,) = self.findings(
            workshop, tmp_path, workshop.plan(), NonPrivate(reason="a seed made the noise")
        )
        assert "a seed made the noise" in finding

    def test_a_header_that_contradicts_its_plan(self, workshop, tmp_path):
        plan = workshop.plan(threshold=5, delta=1e-6)
        found = self.findings(workshop, tmp_path, plan, event_from_plan(plan))
        assert [finding.split()[3] for finding in found] == ["delta", "threshold"]

    def test_a_plan_of_another_program(self, workshop, tmp_path):
        path = tmp_path / "other.jsonl"
        PrivacyLedger.create(path, workshop.header(plan={"sigma": 3})).release()
        assert "not one that this program can carry out" in verify_file(path).findings[0]


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        verify_file(tmp_path / "nothing.jsonl")


def test_a_stored_epsilon_has_no_place(closed):
    """ε is derived: there is no field that a forger could write it into."""
    assert b"epsilon" not in closed[0].read_bytes().replace(b'"budget"', b"")


def test_verification_loads_neither_torch_nor_a_library_accountant(closed):
    code = (
        "import sys; from secfl.ledger import verify_file; verify_file(sys.argv[1]); "
        "print(sorted({'torch', 'monai', 'opacus', 'dp_accounting', 'scipy', 'tenseal', 'pydantic', 'jsonschema'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(closed[0])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
