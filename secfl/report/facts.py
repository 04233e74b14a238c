"""What a page says about a run, read from its directory and checked on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfl.config import RunConfig
from secfl.errors import DataError, LedgerCorrupted
from secfl.federation.rundir import RunDirectory, read_summary
from secfl.ledger.verify import Verdict, verify_file
from secfl.report.audits import AuditResult, read_audits
from secfl.report.history import EpsilonHistory, epsilon_history
from secfl.report.pictures import Picture, read_pictures

__all__ = ["LedgerFacts", "RunFacts", "read_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFacts:
    """A ledger that was verified just now.

    Attributes:
        name: What it is about: empty for the run's own, else the model family of a cohort.
        verdict: What verification found; ``None`` when it does not verify.
        broken: Why it does not verify; empty when it does.
    """

    name: str
    verdict: Verdict | None
    broken: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run as its directory shows it.

    Attributes:
        name: Of the directory.
        config: Every setting.
        summary: Content of ``summary.json``; ``None`` for a run that has not finished.
        metrics: One row per completed round, in order.
        verdict: What verifying the ledger found; ``None`` when it does not verify.
        broken: Why it does not verify; empty when it does.
        cohorts: The ledgers of cohorts that average their weights apart, in a federation of unlike models.
        history: ε of each adversary over the rounds; ``None`` without a ledger that verifies, or without noise.
        audits: What the audits of this run found.
        pictures: Previews, where they may be shown.
    """

    name: str
    config: RunConfig
    summary: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]
    verdict: Verdict | None
    broken: str
    cohorts: tuple[LedgerFacts, ...]
    history: EpsilonHistory | None
    audits: tuple[AuditResult, ...]
    pictures: tuple[Picture, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """The clients, in order."""
        if self.summary is not None:
            return tuple(self.summary["sites"])
        return tuple(sorted({site for row in self.metrics for site in row["bytes_up"]}))

    @property
    def phantom(self) -> bool:
        """Whether the images were drawn and belong to nobody."""
        return self.config.data.source == "phantom"


def read_run(run: Path, *, audits: Sequence[Path] = (), include_images: bool = False) -> RunFacts:
    """Read a run directory and verify its ledger.

    Args:
        run: The directory, of a finished run or of one under way.
        audits: Further files written by ``secfl audit … --json``, besides the run's own ``audit.json``.
        include_images: Show previews also when they are of real images; those of phantoms are always shown.

    Raises:
        ConfigError: Not a run directory.
        DataError: A file of it is damaged, or newer than this secfl reads.
    """
    directory = RunDirectory.open(run)
    config = directory.config()
    main = _verified(directory.root / "ledger.jsonl", name="")
    history = None
    if main.verdict is not None:
        history = epsilon_history((directory.root / "ledger.jsonl").read_bytes())
    folders = sorted((directory.root / "cohorts").glob("*/"))
    own = [path for path in (directory.root / "audit.json",) if path.is_file()]
    shown = include_images or config.data.source == "phantom"
    return RunFacts(
        name=directory.root.resolve().name,
        config=config,
        summary=read_summary(directory.root) if (directory.root / "summary.json").exists() else None,
        metrics=_rounds(directory),
        verdict=main.verdict,
        broken=main.broken,
        cohorts=tuple(_verified(folder / "ledger.jsonl", name=folder.name) for folder in folders),
        history=history,
        audits=read_audits([*own, *audits]),
        pictures=read_pictures(directory.root / "previews") if shown else (),
    )


def _verified(ledger: Path, *, name: str) -> LedgerFacts:
    if not ledger.is_file():
        return LedgerFacts(name=name, verdict=None, broken="there is no ledger")
    try:
        return LedgerFacts(name=name, verdict=verify_file(ledger), broken="")
    except LedgerCorrupted as error:
        return LedgerFacts(name=name, verdict=None, broken=str(error))


def _rounds(directory: RunDirectory) -> tuple[Mapping[str, Any], ...]:
    rows = directory.read_metrics()
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not {"round", "bytes_up", "bytes_down", "seconds", "dropped"} <= set(
            row
        ):
            raise DataError(f"{directory.metrics}: line {number}: expected the metrics of a round")
    return tuple(rows)
