"""``secfl ledger``: show, verify, explain, prove, check, diff and export a privacy ledger."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secfl.errors import ConfigError, LedgerOpen

if TYPE_CHECKING:
    from secfl.crypto.identity import Directory
    from secfl.ledger.checkpoints import Checkpoint
    from secfl.ledger.state import LedgerState
    from secfl.ledger.verify import Verdict

__all__ = ["app"]

app = typer.Typer(
    name="ledger",
    help="The privacy ledger: one ε per adversary, verifiable by anybody who has the file and the public keys.",
    no_args_is_help=True,
    add_completion=False,
)

_LARGE = 1 << 20  # bytes; above, `show` leaves the form of each line to `verify`

_Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, a ledger file, or a folder with accounts.")
]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
_Delta = Annotated[
    float | None, typer.Option(metavar="D", help="δ of the statements; the ledger's own if absent.")
]
_Keys = Annotated[
    Path | None,
    typer.Option("--keys", metavar="FILE", help="The clients' public keys as pinned at enrolment."),
]
_Kept = Annotated[
    Path | None, typer.Option("--checkpoint", metavar="FILE", help="A checkpoint that a client kept.")
]
_Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write to a file instead of stdout.")
]


@app.command()
def show(
    run: _Run,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
    as_json: _Json = False,
    delta: _Delta = None,
) -> None:
    """One row per adversary: what it sees, which ε holds, and under which assumption.

    Example: secfl ledger show RUN
    """
    from secfl.cli import ledger_table

    accounts = _account_folders(run)
    if accounts:
        _show_accounts(run, accounts, as_json=as_json)
        return
    verdict = _verify(run, delta=delta, quick_above=_LARGE)
    if as_json:
        typer.echo(json.dumps(verdict.to_json(), indent=2))
    elif markdown:
        typer.echo(ledger_table.markdown(verdict))
    else:
        ledger_table.print_table(verdict, name=str(run))


@app.command()
def verify(
    run: _Run,
    *,
    keys: _Keys = None,
    checkpoint: _Kept = None,
    allow_open: Annotated[
        bool, typer.Option("--allow-open", help="Exit 0 also when the ledger has no close entry yet.")
    ] = False,
    as_json: _Json = False,
    delta: _Delta = None,
) -> None:
    """Check chain, Merkle roots and signatures, and compute every ε again.

    Exit codes: 0 closed, 6 open, 5 corrupted (the message names the entry and the field).

    Example: secfl ledger verify RUN
    """
    verdict = _verify(run, keys=keys, checkpoint=checkpoint, delta=delta)
    if as_json:
        typer.echo(json.dumps(verdict.to_json(), indent=2))
    else:
        _print_verdict(verdict)
    if verdict.status == "open" and not allow_open:
        raise LedgerOpen(
            "the ledger verifies so far but is open: it may have been cut off (--allow-open accepts it)"
        )


@app.command()
def explain(run: _Run, as_json: _Json = False, delta: _Delta = None) -> None:
    """Each row in one plain sentence, with what would break it.

    Example: secfl ledger explain RUN
    """
    from secfl.ledger.explain import explain as sentence
    from secfl.ledger.words import SIMULATED

    verdict = _verify(run, delta=delta)
    rows = verdict.statements
    if as_json:
        typer.echo(json.dumps([row.to_json() | {"sentence": sentence(row)} for row in rows], indent=2))
        return
    if verdict.simulated:
        typer.echo(SIMULATED)
    for row in rows:
        typer.echo(f"- {sentence(row)}")


@app.command()
def prove(
    run: _Run,
    entry: Annotated[
        int | None, typer.Option(metavar="N", help="Prove that entry N is in the signed log.")
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Prove that the log continues a kept checkpoint."),
    ] = None,
    out: _Out = None,
) -> None:
    """Write an inclusion proof (--entry) or a consistency proof (--from).

    Example: secfl ledger prove RUN --entry 5 --out proof.json
    """
    from secfl.ledger.checkpoints import read_checkpoint
    from secfl.ledger.proofs import prove_consistency, prove_inclusion

    if (entry is None) == (since is None):
        raise ConfigError("prove: give either --entry or --from")
    path, state = _load(run)
    if entry is not None:
        proof = prove_inclusion(path.read_bytes(), state, entry)
    else:
        proof = prove_consistency(state, read_checkpoint(since or Path()))
    _write(json.dumps(proof, sort_keys=True) + "\n", out)


@app.command()
def check(
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="A file written by `secfl ledger prove`.")],
    keys: _Keys = None,
    checkpoint: _Kept = None,
    as_json: _Json = False,
) -> None:
    """Check a proof without the ledger. Exit code 5 when it does not hold.

    Example: secfl ledger check proof.json
    """
    from secfl.ledger.proofs import check_proof, read_proof

    finding = check_proof(read_proof(proof), directory=_directory(keys), kept=_kept(checkpoint))
    if as_json:
        from secfl.ledger.verify import OUTPUT_FORMAT_VERSION

        typer.echo(json.dumps({"format_version": OUTPUT_FORMAT_VERSION} | finding.to_json(), indent=2))
        return
    typer.echo(f"holds: {finding.shows}")
    signers = ", ".join(finding.signers) or "nobody"
    if finding.keys_pinned:
        typer.echo(f"signed by {signers}, checked against the keys you gave")
    else:
        typer.echo(f"said to be signed by {signers}; not checked: give the public keys with --keys")


@app.command()
def diff(left: _Run, right: _Run, as_json: _Json = False, delta: _Delta = None) -> None:
    """What differs between two runs: settings, rounds, and ε row by row.

    Example: secfl ledger diff runs/masking runs/ckks
    """
    from secfl.cli import ledger_table
    from secfl.ledger.compare import compare

    comparison = compare(_load(left)[1], _load(right)[1], delta=delta)
    if as_json:
        from secfl.ledger.verify import OUTPUT_FORMAT_VERSION

        typer.echo(json.dumps({"format_version": OUTPUT_FORMAT_VERSION} | comparison.to_json(), indent=2))
    else:
        ledger_table.print_comparison(comparison, left=str(left), right=str(right))


@app.command()
def export(
    run: _Run,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="dp-accounting, csv, registry or nist.")
    ] = "csv",
    out: _Out = None,
    delta: _Delta = None,
) -> None:
    """The ledger in another format, derived from the file at this moment.

    Example: secfl ledger export RUN --format csv --out ledger.csv
    """
    from secfl.ledger.export import ExportFormat
    from secfl.ledger.export import export as write

    if form not in set(ExportFormat):
        raise ConfigError(f"--format {form}: expected one of {', '.join(ExportFormat)}")
    _write(write(_load(run)[1], ExportFormat(form), delta=delta), out)


def _print_verdict(verdict: Verdict) -> None:
    from secfl.ledger.words import SIMULATED

    rounds = ", ".join(f"{count} {name}" for name, count in verdict.rounds.items() if count) or "no rounds"
    typer.echo(f"{verdict.status}: {verdict.entries} entries, {rounds}")
    typer.echo(f"root {verdict.root}")
    if verdict.simulated:
        typer.echo(SIMULATED)
    if verdict.missing:
        typer.echo(f"not signed by {', '.join(verdict.missing)}")
    if verdict.findings:
        typer.echo("departs from the plan:")
        for line in verdict.findings:
            typer.echo(f"  {line}")
    typer.echo("this proves:")
    for line in verdict.proves:
        typer.echo(f"  {line}")
    typer.echo("no file can prove:")
    for line in verdict.cannot_prove:
        typer.echo(f"  {line}")
    for row in verdict.statements:
        if row.view == "aggregator":
            value = "null" if row.epsilon is None else f"{row.epsilon:.4f}"
            delta = "" if row.delta is None or row.epsilon is None else f" at delta {row.delta:g}"
            typer.echo(f"epsilon of a {row.adversary} aggregator alone: {value}{delta}")


def _verify(
    run: Path,
    *,
    keys: Path | None = None,
    checkpoint: Path | None = None,
    delta: float | None = None,
    quick_above: float = math.inf,
) -> Verdict:
    from secfl.ledger.verify import Depth, verify_file

    path = _ledger_file(run)
    return verify_file(
        path,
        directory=_directory(keys),
        checkpoint=_kept(checkpoint),
        delta=_checked(delta),
        depth=Depth.QUICK if path.stat().st_size > quick_above else Depth.FULL,
    )


def _load(run: Path) -> tuple[Path, LedgerState]:
    from secfl.ledger.verify import load

    path = _ledger_file(run)
    return path, load(path)


def _directory(keys: Path | None) -> Directory | None:
    from secfl.ledger.proofs import read_keys

    return None if keys is None else read_keys(keys)


def _kept(checkpoint: Path | None) -> Checkpoint | None:
    from secfl.ledger.checkpoints import read_checkpoint

    return None if checkpoint is None else read_checkpoint(checkpoint)


def _checked(delta: float | None) -> float | None:
    if delta is not None and not 0 < delta < 1:
        raise ConfigError(f"--delta {delta:g}: expected a number between 0 and 1")
    return delta


def _ledger_file(run: Path) -> Path:
    if run.is_dir():
        run = run / "ledger.jsonl"
    if not run.is_file():
        raise ConfigError(f"{run}: no such ledger")
    return run


def _account_folders(run: Path) -> list[Path]:
    """The folder itself where it holds an account, or those below it that do: one for each site."""
    if not run.is_dir() or (run / "ledger.jsonl").exists():
        return []
    return [folder for folder in (run, *sorted(run.iterdir())) if (folder / "account.jsonl").is_file()]


def _show_accounts(run: Path, folders: list[Path], *, as_json: bool) -> None:
    from secfl.cli import ledger_table
    from secfl.ledger.accounts import Account
    from secfl.ledger.verify import OUTPUT_FORMAT_VERSION

    readings = {folder.name: Account.read(folder).reading().to_json() for folder in folders}
    if as_json:
        only = readings[folders[0].name] if folders == [run] else {"accounts": readings}
        typer.echo(json.dumps({"format_version": OUTPUT_FORMAT_VERSION} | only, indent=2))
        return
    for name, reading in readings.items():
        typer.echo(("" if folders == [run] else f"{name}: ") + ledger_table.account_text(reading))


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
