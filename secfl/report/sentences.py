"""A run's verdict in plain sentences, worst news first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from secfl.guarantees import Behaviour, View
from secfl.ledger.explain import clauses
from secfl.ledger.statement import Statement
from secfl.ledger.words import plural
from secfl.report.facts import RunFacts

__all__ = ["AdversaryRow", "Line", "Tone", "adversary_rows", "verdict_lines"]


class Tone(StrEnum):
    """How a sentence is to be taken."""

    GOOD = "good"
    CARE = "care"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One sentence of the verdict.

    Attributes:
        tone: How it is to be taken; the page says it in words too, not in colour alone.
        topic: What it is about, in a word or two.
        text: The sentence.
    """

    tone: Tone
    topic: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversaryRow:
    """One row of the adversary table.

    Attributes:
        statement: The ledger's own row.
        who: The adversary.
        sentence: What that one could learn.
        breaks: What would break it.
        meaning: ε as a number with its size in words, or why there is none.
    """

    statement: Statement
    who: str
    sentence: str
    breaks: str
    meaning: str


def verdict_lines(facts: RunFacts) -> tuple[Line, ...]:
    """What was learned, what each adversary can know, whether the ledger holds, what audits found."""
    return tuple(
        line
        for line in (
            _learned(facts),
            _ledger(facts),
            *_cohorts(facts),
            _privacy(facts),
            _custody(facts),
            *_audits(facts),
        )
        if line is not None
    )


def adversary_rows(facts: RunFacts) -> tuple[AdversaryRow, ...]:
    """The ledger's rows with their sentences; nothing for a ledger that does not verify."""
    if facts.verdict is None:
        return ()
    return tuple(_adversary(row) for row in facts.verdict.statements)


def _learned(facts: RunFacts) -> Line:
    summary = facts.summary
    if summary is None:
        done = len(facts.metrics)
        return Line(
            tone=Tone.CARE,
            topic="unfinished",
            text=f"The run has not finished: {done} of {facts.config.training.rounds} rounds are on record.",
        )
    rounds = plural(summary["rounds_completed"], "round")
    start = (
        f"{plural(len(summary['sites']), 'site')} trained {summary['model']} "
        f"({summary['parameters']:,} parameters) in {rounds}"
    )
    dice: Mapping[str, Any] | None = (summary.get("evaluation_only") or {}).get("dice")
    if dice is None or dice["mean"] is None:
        return Line(tone=Tone.GOOD, topic="result", text=f"{start}; nothing was evaluated.")
    return Line(
        tone=Tone.GOOD,
        topic="result",
        text=f"{start}; on the sites' test images it reaches a mean Dice of {dice['mean']:.3f}, "
        f"at the worst site, {dice['worst_site']}, {dice['worst']:.3f}.",
    )


def _ledger(facts: RunFacts) -> Line:
    verdict = facts.verdict
    if verdict is None:
        return Line(
            tone=Tone.BAD,
            topic="ledger",
            text=f"The privacy ledger does NOT verify: {facts.broken}. No privacy statement can be made.",
        )
    if verdict.status.value == "open":
        return Line(
            tone=Tone.CARE,
            topic="ledger",
            text="The privacy ledger verifies so far but is open: the run has not ended, or the file was cut off.",
        )
    missing = f"; not signed by {', '.join(verdict.missing)}" if verdict.missing else ""
    findings = f"; it departs from the plan: {'; '.join(verdict.findings)}" if verdict.findings else ""
    return Line(
        tone=Tone.CARE if verdict.missing or verdict.findings else Tone.GOOD,
        topic="ledger",
        text=f"The privacy ledger verifies and is closed: {verdict.entries} entries in an unbroken chain, signed by "
        f"{plural(len(verdict.signers), 'site')} with the keys stated in it{missing}{findings}.",
    )


def _cohorts(facts: RunFacts) -> list[Line]:
    lines = []
    for cohort in facts.cohorts:
        start = f"The ledger of the sites that average {cohort.name}"
        if cohort.verdict is None:
            text, tone = f"{start} does NOT verify: {cohort.broken}.", Tone.BAD
        else:
            closed = cohort.verdict.status.value == "closed"
            alone = next(row for row in cohort.verdict.statements if row.view is View.AGGREGATOR)
            epsilon = "no ε" if alone.epsilon is None else f"ε = {alone.epsilon:.2f}"
            text = f"{start} verifies and is {cohort.verdict.status.value}; an aggregator alone: {epsilon}."
            tone = Tone.GOOD if closed else Tone.CARE
        lines.append(Line(tone=tone, topic="ledger of a cohort", text=text))
    return lines


def _privacy(facts: RunFacts) -> Line | None:
    if facts.verdict is None:
        return None
    rows = facts.verdict.statements
    alone = next(
        row
        for row in rows
        if row.view is View.AGGREGATOR and row.adversary is Behaviour.CURIOUS and not row.colluders
    )
    hidden = "every single client's update" not in alone.sees
    sees = f"An honest-but-curious aggregator alone sees {alone.sees}"
    if alone.epsilon is None:
        return Line(
            tone=Tone.CARE if hidden else Tone.BAD,
            topic="privacy",
            text=f"{sees}. There is no differential privacy (ε is null): nothing limits what the sums and the model "
            "themselves reveal about a patient.",
        )
    broken = next(row for row in rows if row.view is View.CRYPTO_BROKEN)
    beyond = (
        "without limit"
        if broken.epsilon is None
        else f"with ε = {broken.epsilon:.2f}, if all cryptography broke"
    )
    return Line(
        tone=Tone.GOOD if hidden and alone.epsilon <= _STRONG else Tone.CARE,
        topic="privacy",
        text=f"{sees}; about one {alone.unit} it learns at most ε = {alone.epsilon:.2f} "
        f"(δ = {alone.delta:g}, relation {alone.relation}, {_size(alone.epsilon)}); {beyond}.",
    )


def _custody(facts: RunFacts) -> Line | None:
    if facts.verdict is None or not facts.verdict.simulated:
        return None
    return Line(
        tone=Tone.CARE,
        topic="simulated",
        text="This was a simulation: one process held all keys and all images. The statements say what the protocol "
        "hides from each adversary once every site runs its own process.",
    )


def _audits(facts: RunFacts) -> list[Line]:
    tones = {"REFUTED": Tone.BAD, "FAILED": Tone.BAD, "SUSPECT": Tone.CARE}
    return [
        Line(
            tone=tones.get(audit.verdict, Tone.GOOD),
            topic="audit",
            text=f"{audit.what}: {audit.verdict}. An audit can refute a claim; it cannot prove one.",
        )
        for audit in facts.audits
    ]


_STRONG = 1.0


def _size(epsilon: float | None) -> str:
    """How strong an ε is, in the words of Ponomareva et al., How to DP-fy ML (2023): tiers, no theorem."""
    if epsilon is None:
        return "no guarantee"
    if epsilon == 0:
        return "nothing is revealed"
    if epsilon <= _STRONG:
        return "a strong guarantee"
    if epsilon <= 10:
        return "a reasonable guarantee"
    return "a weak guarantee or none"


def _adversary(row: Statement) -> AdversaryRow:
    name, meaning, breaks = clauses(row)
    return AdversaryRow(
        statement=row,
        who=name if row.site is None else f"{name} (patients of {row.site})",
        sentence=f"{meaning[0].upper()}{meaning[1:]}.",
        breaks=f"{breaks[0].upper()}{breaks[1:]}.",
        meaning=_size(row.epsilon),
    )
