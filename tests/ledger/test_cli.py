from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from secfl.cli.ledger import app
from secfl.errors import ConfigError, LedgerCorrupted, LedgerOpen
from secfl.ledger import Account, Budget, PrivacyLedger
from secfl.randomness import InsecureSeededRng


def run(*arguments):
    """Output, or the error that reaches the entry point, which turns it into an exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path, workshop):
    """A run directory with a closed ledger, keys and a kept checkpoint beside it."""
    root = tmp_path / "run"
    root.mkdir()
    with PrivacyLedger.create(root / "ledger.jsonl", workshop.header()) as ledger:
        ledger.commit(ledger.reserve(workshop.noise(count=20), workshop.guarantee()))
        kept = ledger.checkpoint(workshop.identities)
        ledger.commit(ledger.reserve(workshop.noise(count=20), workshop.guarantee()), survivors="abcd")
        ledger.close(co_signers=workshop.identities)
    keys = {name: key.hex() for name, key in workshop.directory.keys.items()}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}))
    (tmp_path / "kept.json").write_text(json.dumps(kept.to_json()))
    return root


@pytest.fixture
def open_folder(tmp_path, workshop):
    root = tmp_path / "open"
    root.mkdir()
    with PrivacyLedger.create(root / "ledger.jsonl", workshop.header()) as ledger:
        ledger.reserve(workshop.noise(count=20), workshop.guarantee())
    return root


class TestShow:
    def test_terminal(self, folder):
        output = run("show", folder)
        for words in ("aggregator_colluders", "crypto_broken", "malicious", "at most 2 may", "unprotected"):
            assert words in output
        assert "simulated: one process held all keys" in re.sub(r"\s+", " ", output)
        assert max(len(line) for line in output.splitlines()) <= 80
        assert "…" not in output

    def test_markdown(self, folder):
        lines = run("show", folder, "--markdown").splitlines()
        table = [line for line in lines if line.startswith("|")]
        assert len({line.count("|") for line in table}) == 1
        assert len(table) == 2 + 15

    def test_json(self, folder):
        shown = json.loads(run("show", folder, "--json"))
        assert shown["status"] == "closed"
        assert {row["view"] for row in shown["views"]} == {
            "network", "aggregator", "aggregator_colluders", "client", "final_model", "crypto_broken",
        }  # fmt: skip

    def test_an_open_ledger_is_shown(self, open_folder):
        assert "open, 1 unsettled" in " ".join(run("show", open_folder).split())

    def test_an_account_is_shown(self, tmp_path):
        account = Account.open(
            tmp_path / "account", budget=Budget(epsilon=8.0, delta=1e-5), rng=InsecureSeededRng(1)
        )
        output = run("show", tmp_path / "account")
        assert account.identity in output
        assert "cap: epsilon 8 at delta 1e-05" in output
        assert json.loads(run("show", tmp_path / "account", "--json"))["charges"] == 0

    def test_the_accounts_of_several_sites_are_shown(self, tmp_path):
        budget = Budget(epsilon=8.0, delta=1e-5)
        for number, site in enumerate(("north", "south")):
            Account.open(tmp_path / "sites" / site, budget=budget, rng=InsecureSeededRng(number))
        output = run("show", tmp_path / "sites")
        assert output.count("cap: epsilon 8 at delta 1e-05") == 2
        assert output.startswith("north: account ")
        shown = json.loads(run("show", tmp_path / "sites", "--json"))
        assert list(shown["accounts"]) == ["north", "south"]


class TestVerify:
    def test_closed(self, folder, tmp_path):
        output = run(
            "verify", folder, "--keys", tmp_path / "keys.json", "--checkpoint", tmp_path / "kept.json"
        )
        assert output.startswith("closed: 8 entries, 2 committed")
        assert "this proves:" in output
        assert "no file can prove:" in output
        assert "simulated: one process held all keys" in output
        assert "with the keys you gave" in output

    def test_json(self, folder):
        verdict = json.loads(run("verify", folder / "ledger.jsonl", "--json"))
        assert (verdict["status"], verdict["keys_pinned"]) == ("closed", False)

    def test_open(self, open_folder):
        with pytest.raises(LedgerOpen) as caught:
            run("verify", open_folder)
        assert caught.value.exit_code == 6
        assert "open: 3 entries" in run("verify", open_folder, "--allow-open")

    def test_corrupted(self, folder):
        path = folder / "ledger.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"noise_multiplier":1,', b'"noise_multiplier":9,'))
        for command in ("verify", "show", "explain", "export", "diff"):
            with pytest.raises(LedgerCorrupted, match=r"entry 1: body\.event") as caught:
                run(command, folder, *([folder] if command == "diff" else []))
            assert caught.value.exit_code == 5

    def test_cut_off(self, folder, tmp_path):
        path = folder / "ledger.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
        run("verify", folder, "--allow-open")
        with pytest.raises(LedgerCorrupted, match="cut off"):
            run("verify", folder, "--allow-open", "--checkpoint", tmp_path / "kept.json")

    @pytest.mark.parametrize("delta", ["0", "1", "-1", "nan"])
    def test_impossible_deltas(self, folder, delta):
        with pytest.raises(ConfigError, match="--delta"):
            run("verify", folder, "--delta", delta)

    def test_no_ledger(self, tmp_path):
        with pytest.raises(ConfigError, match="no such ledger"):
            run("verify", tmp_path)


def test_explain(folder):
    output = run("explain", folder)
    assert output.count("\n- ") == 15
    assert json.loads(run("explain", folder, "--json"))[0]["sentence"].startswith("Somebody who records")


def test_prove_and_check(folder, tmp_path):
    for arguments in (("--entry", 3), ("--from", tmp_path / "kept.json")):
        run("prove", folder, *arguments, "--out", tmp_path / "proof.json")
        assert run("prove", folder, *arguments) == (tmp_path / "proof.json").read_text()
        assert "not checked" in run("check", tmp_path / "proof.json")
        checked = run("check", tmp_path / "proof.json", "--keys", tmp_path / "keys.json", "--json")
        assert json.loads(checked)["keys_pinned"]
    run("check", tmp_path / "proof.json", "--checkpoint", tmp_path / "kept.json")
    broken = (tmp_path / "proof.json").read_text().replace('"old_size": 4', '"old_size": 3')
    (tmp_path / "proof.json").write_text(broken)
    with pytest.raises(LedgerCorrupted):
        run("check", tmp_path / "proof.json")
    for arguments in ((), ("--entry", 1, "--from", tmp_path / "kept.json")):
        with pytest.raises(ConfigError, match="either"):
            run("prove", folder, *arguments)


def test_diff(folder, open_folder):
    output = run("diff", folder, open_folder)
    assert "committed" in output
    assert json.loads(run("diff", folder, open_folder, "--json"))["rounds"]["committed"] == [2, 0]


def test_what_is_printed_for_machines_states_its_version(folder, open_folder, tmp_path):
    Account.open(tmp_path / "account", budget=Budget(epsilon=8.0, delta=1e-5), rng=InsecureSeededRng(1))
    run("prove", folder, "--entry", 2, "--out", tmp_path / "proof.json")
    for command in (
        ("show", folder),
        ("show", tmp_path / "account"),
        ("verify", folder),
        ("verify", open_folder, "--allow-open"),
        ("diff", folder, open_folder),
        ("check", tmp_path / "proof.json"),
    ):
        assert json.loads(run(*command, "--json"))["format_version"] == 1, command


def test_export(folder, tmp_path):
    for form in ("dp-accounting", "csv", "registry", "nist"):
        assert run("export", folder, "--format", form)
    run("export", folder, "--format", "csv", "--out", tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == run("export", folder)
    with pytest.raises(ConfigError, match="--format yaml: expected one of dp-accounting"):
        run("export", folder, "--format", "yaml")
    with pytest.raises(ConfigError, match="--out"):
        run("export", folder, "--out", tmp_path)


def test_verify_answers_quickly_and_without_torch(folder):
    """Under a second on an idle machine; here it only must not load what takes longer than that."""
    code = (
        "import sys, secfl.cli.ledger as ledger\n"
        "try: ledger.app(['verify', sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'monai', 'opacus', 'dp_accounting', 'scipy', 'tenseal'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
