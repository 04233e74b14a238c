"""Mutated messages against every party of every scheme at every phase: nothing but `RemoteProtocolError` may come out.

    python -m secfl.testing.fuzz --messages 1000000

Each message is an honest one that was damaged (`secfl.testing.faults`). Half of them are then signed again with the
valid keys of their signers, half of these after the hashes inside were made good as well, so that they get past
signatures and digests and reach what lies behind. What is not signed again must be refused. A party that refuses must
stay where it was and blame the sender (or, for what the aggregator only relays, the client who made it). A party that
accepts must be able to go on: its snapshot must restore, and for one accepted message in twenty the whole round is
carried to its end.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import numpy as np

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party, Running, SecureAggregation
from secfl.errors import RemoteProtocolError
from secfl.randomness import ExperimentSeed, InsecureSeededRng
from secfl.testing.adversaries.forging import Repair, reseal
from secfl.testing.faults import Fault, damage
from secfl.testing.stage import Cast, Stage, phase_of
from secfl.types import AGGREGATOR, ClientId, RoundId, SchemeSpec, VectorSpec

__all__ = ["SCHEMES", "Failure", "Outcome", "Report", "fuzz", "main"]

_VECTORS: Final = (
    VectorSpec(name="update", length=5, modulus_bits=17),
    VectorSpec(name="weight", length=1, modulus_bits=40),
)
_REFRESH: Final = 500
"""Refusals after which a party is restored, so that the evidence that it keeps does not grow."""
_CARRY_ON: Final = 20
_KEEP_SIZE: Final = (
    Fault.FLIP,
    Fault.HEADER,
    Fault.NUMBER,
    Fault.FIELD,
    Fault.NOISE,
    Fault.ZEROS,
    Fault.ONES,
    Fault.SWAP,
)
"""Damage that gets past the checks of sizes: drawn twice as often as the rest."""
_FAULTS: Final = (*Fault, *_KEEP_SIZE)


def _plain() -> SecureAggregation:
    from secfl.crypto.plain import Plain

    return Plain(threads=1)


def _masking() -> SecureAggregation:
    from secfl.crypto.masking import Masking

    return Masking(threads=1)


def _ckks() -> SecureAggregation:
    from secfl.crypto.ckks import Ckks

    return Ckks(threads=1)


@dataclass(frozen=True, slots=True)
class _Target:
    """A scheme to fuzz, its share of the messages, and phases in which a client falls silent in some rounds."""

    make: Callable[[], SecureAggregation]
    spec: SchemeSpec
    share: float
    leaving: tuple[str, ...]


SCHEMES: Final[Mapping[str, _Target]] = MappingProxyType(
    {
        "plain": _Target(_plain, SchemeSpec(name="plain"), 0.1, ()),
        "masking": _Target(
            _masking,
            SchemeSpec(name="masking"),
            0.4,
            ("advertise", "share", "masked-input", "consistency", "unmask"),
        ),
        "ckks-sum-key": _Target(
            _ckks,
            SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),)),
            0.25,
            ("share", "masked-input"),
        ),
        "ckks-shared": _Target(
            _ckks,
            SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),)),
            0.25,
            ("advertise", "ckks-input"),
        ),
    }
)
"""What is fuzzed, by name."""


class Outcome(StrEnum):
    """What a party did with a message."""

    REFUSED = "refused"
    ACCEPTED = "accepted"
    ESCAPED = "escaped"


@dataclass(frozen=True, slots=True)
class Failure:
    """Something other than `RemoteProtocolError` came out, or a party was moved by what it refused.

    Attributes:
        message: Number of the message within the run.
        where: Scheme, recipient and phase.
        what: What was done to the message, and the error.
        trace: The traceback.
    """

    message: int
    where: str
    what: str
    trace: str


@dataclass(slots=True)
class Report:
    """Counts by ``(scheme, role, phase, signed, outcome)``, where ``signed`` tells whether it was signed again.

    Attributes:
        counts: The counts.
        carried: Rounds that were carried to their end after an accepted message.
        failures: What must not be, in full.
        seconds: Time it took.
    """

    counts: Counter[tuple[str, str, str, str, Outcome]] = field(default_factory=Counter)
    carried: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def messages(self) -> int:
        """How many messages were tried."""
        return self.counts.total()

    def table(self) -> str:
        """The counts as text, one line per scheme, role and phase."""
        rows = sorted({key[:3] for key in self.counts})
        head = f"{'scheme':<13} {'party':<11} {'phase':<13} {'unsigned: refused':>17} {'accepted':>9} "
        lines = [head + f"{'re-signed: refused':>19} {'accepted':>9} {'escaped':>8}"]
        for row in rows:
            refused, accepted, again, taken = (
                self.counts[*row, signed, outcome]
                for signed in ("no", "yes")
                for outcome in (Outcome.REFUSED, Outcome.ACCEPTED)
            )
            escaped = sum(self.counts[*row, signed, Outcome.ESCAPED] for signed in ("no", "yes"))
            scheme, role, phase = row
            lines.append(
                f"{scheme:<13} {role:<11} {phase:<13} "
                f"{refused:>17} {accepted:>9} {again:>19} {taken:>9} {escaped:>8}"
            )
        lines.append(
            f"{self.messages} messages in {self.seconds:.0f} s, {self.carried} rounds carried to their end, "
            f"{len(self.failures)} failures"
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Moment:
    """A delivery of an honest round, and every party as it stood before."""

    cast: Cast
    present: tuple[ClientId, ...]
    envelope: Envelope
    in_flight: tuple[Envelope, ...]
    snapshots: Mapping[ClientId, bytes]

    @property
    def snapshot(self) -> bytes:
        return self.snapshots[self.envelope.recipient]

    def stage(self) -> Stage:
        """The round at this moment, without the envelope."""
        parties = {name: self.cast.restore(snapshot) for name, snapshot in self.snapshots.items()}
        stage = Stage(self.cast, rng=InsecureSeededRng(0), parties=parties)
        stage.in_flight = list(self.in_flight)
        for name in self.cast.cohort:
            if name not in self.present:
                stage.silence(name)
        return stage


def _said(moment: _Moment, payload: bytes) -> tuple[bytes, bytes]:
    """Bytes within a round."""
    return moment.cast.spec.digest(), payload


def _moments(target: _Target, *, seed: int) -> list[_Moment]:
    """Every delivery of some honest rounds: with everybody, and with one client missing from each phase on."""
    moments = []
    for number, leaving in enumerate(("", *target.leaving)):
        cast = Cast.make(
            target.make(),
            target.spec,
            clients=4 if leaving else 3,
            threshold=3,
            vectors=_VECTORS,
            seed=seed + number,
        )
        cast = cast.with_spec(round_id=RoundId(number))
        gone = {cast.cohort[1]: leaving} if leaving else {}
        moments += _play(cast, gone, seed=seed)
    return moments


def _play(cast: Cast, gone: Mapping[ClientId, str], *, seed: int) -> list[_Moment]:
    first = phase_of(cast.aggregator().state)
    present = tuple(name for name in cast.cohort if gone.get(name) != first)
    stage = Stage(cast, rng=InsecureSeededRng(seed), leaves=gone)
    stage.start()
    moments = []

    def note(now: Stage) -> bool:
        if now.in_flight and not now.is_silent(now.in_flight[0].recipient):
            envelope, *rest = now.in_flight
            snapshots = {name: party.snapshot() for name, party in now.parties.items()}
            moments.append(_Moment(cast, present, envelope, tuple(rest), snapshots))
        return False

    stage.carry(until=note)
    assert stage.result is not None, "an honest round had no result"
    return moments


class _Fuzzer:
    """Fuzzes one scheme."""

    def __init__(self, name: str, target: _Target, report: Report, *, seed: int) -> None:
        self._name = name
        self._report = report
        self._moments = _moments(target, seed=seed)
        self._honest = {_said(moment, moment.envelope.payload) for moment in self._moments}
        self._parties: dict[int, tuple[Party, int]] = {}
        self._accepted = 0

    def message(self, number: int, source: np.random.Generator) -> None:
        """Try one message."""
        place = int(source.integers(0, len(self._moments)))
        moment = self._moments[place]
        honest = moment.envelope
        other = self._moments[int(source.integers(0, len(self._moments)))].envelope.payload
        fault = _FAULTS[int(source.integers(0, len(_FAULTS)))]
        repair = (Repair.NOTHING, Repair.NOTHING, Repair.SIGNATURES, Repair.BINDINGS)[number % 4]
        payload = damage(honest.payload, fault, source=source, other=other)
        if source.integers(0, 4) == 0:
            payload = damage(payload or b"\0", _FAULTS[int(source.integers(0, len(_FAULTS)))], source=source)
        # Two faults can undo each other, and a splice can give another honest message of the round: what the
        # aggregator adds to relayed statements is not signed, and CKKS_CLOSE is nothing else. What was said in
        # another round stays as it is and must be refused.
        while _said(moment, payload) in self._honest:
            payload = damage(payload, Fault.FLIP, source=source)
        hostile = Envelope(honest.sender, honest.recipient, payload)
        hostile = reseal(moment.cast, hostile, repair, present=moment.present)
        party, used = self._parties.pop(place, (None, 0))
        if party is None:
            party = moment.cast.restore(moment.snapshot)
        before = phase_of(party.state)
        try:
            party.receive(hostile)
        except RemoteProtocolError as error:
            outcome = Outcome.REFUSED
            if used < _REFRESH:
                self._parties[place] = party, used + 1
            self._check_blame(number, moment, f"{fault}, {repair}", error)
            if phase_of(party.state) != before:
                self._fail(number, moment, f"{fault}, {repair}: a refused message moved the party on")
        except Exception as error:  # noqa: BLE001 - whatever escapes is what is looked for
            outcome = Outcome.ESCAPED
            self._fail(number, moment, f"{fault}, {repair}: {error!r}")
        else:
            outcome = Outcome.ACCEPTED
            if repair is Repair.NOTHING:
                self._fail(number, moment, f"{fault}: accepted without a valid signature")
            self._go_on(number, moment, hostile, party, f"{fault}, {repair}")
        role = "aggregator" if honest.recipient == AGGREGATOR else "client"
        signed = "no" if repair is Repair.NOTHING else "yes"
        self._report.counts[self._name, role, before, signed, outcome] += 1

    def _check_blame(self, number: int, moment: _Moment, what: str, error: RemoteProtocolError) -> None:
        sender = moment.envelope.sender
        if error.peer != sender and not (sender == AGGREGATOR and error.peer in moment.cast.cohort):
            self._fail(number, moment, f"{what}: {error.peer} was blamed for what {sender} sent")

    def _go_on(self, number: int, moment: _Moment, hostile: Envelope, party: Party, what: str) -> None:
        try:
            restored = moment.cast.restore(party.snapshot())
            if phase_of(restored.state) != phase_of(party.state):
                self._fail(
                    number, moment, f"{what}: after an accepted message the snapshot is of another phase"
                )
            self._accepted += 1
            if self._accepted % _CARRY_ON:
                return
            stage = moment.stage()
            stage.in_flight.insert(0, hostile)
            stage.carry()
            self._report.carried += 1
            if isinstance(stage.aggregator.state, Running):
                self._fail(number, moment, f"{what}: the round has no end")
            assert isinstance(stage.aggregator.state, Finished | Aborted | Running)
        except Exception as error:  # noqa: BLE001 - whatever escapes is what is looked for
            self._fail(number, moment, f"{what}, later in the round: {error!r}")

    def _fail(self, number: int, moment: _Moment, what: str) -> None:
        where = (
            f"{self._name}, {moment.envelope!r}, phase {phase_of(moment.cast.restore(moment.snapshot).state)}"
        )
        self._report.failures.append(Failure(number, where, what, traceback.format_exc()))


def fuzz(
    messages: int,
    *,
    seed: int = 0,
    schemes: Sequence[str] = tuple(SCHEMES),
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Try mutated messages.

    Args:
        messages: How many.
        seed: Chooses them. The rounds that they are made from draw fresh KEM randomness in every run.
        schemes: Names from `SCHEMES`.
        progress: Called after every 10,000 messages.
    """
    report, began = Report(), time.monotonic()
    fuzzers = [_Fuzzer(name, SCHEMES[name], report, seed=seed) for name in schemes]
    shares = np.array([SCHEMES[name].share for name in schemes])
    source = ExperimentSeed(seed).generator("fuzz")
    choices = source.choice(len(fuzzers), size=messages, p=shares / shares.sum())
    for number, choice in enumerate(choices.tolist()):
        fuzzers[choice].message(number, source)
        if number % 10_000 == 9_999:
            report.seconds = time.monotonic() - began
            progress(report)
    report.seconds = time.monotonic() - began
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when anything but `RemoteProtocolError` came out."""
    parser = argparse.ArgumentParser(
        prog="python -m secfl.testing.fuzz", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--messages", type=int, default=1_000_000, help="how many messages (default: one million)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which messages (default: 0)")
    parser.add_argument(
        "--schemes",
        default=",".join(SCHEMES),
        help=f"which schemes, from {', '.join(SCHEMES)} (default: all)",
    )
    given = parser.parse_args(arguments)
    schemes = given.schemes.split(",")
    if unknown := sorted(set(schemes) - set(SCHEMES)):
        parser.error(f"unknown scheme {unknown[0]!r}, expected some of {', '.join(SCHEMES)}")

    def progress(report: Report) -> None:
        sys.stderr.write(
            f"\r{report.messages} of {given.messages} messages, {report.seconds:.0f} s, "
            f"{len(report.failures)} failures "
        )
        sys.stderr.flush()

    report = fuzz(given.messages, seed=given.seed, schemes=schemes, progress=progress)
    sys.stderr.write("\n")
    sys.stdout.write(report.table() + "\n")
    for failure in report.failures[:10]:
        sys.stdout.write(f"\nmessage {failure.message}: {failure.where}: {failure.what}\n{failure.trace}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
