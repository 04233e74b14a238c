"""What a sequence of entries means: replayed by the writer when it opens a file and by `verify`.

Every rule that one entry must obey in the light of those before it is here, so that the writer refuses to
write what the verifier would refuse to read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from secfl.dp.accounting import Relation
from secfl.dp.integer import SMALLEST_SHARE
from secfl.errors import ConfigError, LedgerCorrupted, PrivacyError, RemoteProtocolError, UnsupportedEvent
from secfl.guarantees import Guarantee, UnitOfPrivacy
from secfl.ledger.bounds import check_claims
from secfl.ledger.canonical import JsonObject
from secfl.ledger.checkpoints import Checkpoint
from secfl.ledger.entry import Entry, EntryType, Exposure, RunHeader, guarantee_from_json
from secfl.ledger.events import Event, Family, Noise, Sampling, SiteNoise, event_from_json, leaves
from secfl.ledger.merkle import MerkleTree
from secfl.types import ClientId

__all__ = ["Commit", "LedgerState", "Reservation", "Terms", "check_terms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the reservations that refer to it release, under which guarantee."""

    index: int
    event: Event
    guarantee: Guarantee
    unprotected: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """One attempt of one round, written before anything is sent."""

    index: int
    round_id: int
    attempt: int
    terms: int
    spec_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Written before the sum of an attempt is opened."""

    index: int
    survivors: tuple[ClientId, ...]
    sum_digest: bytes
    wrap_probability: float
    total_variation: float


@dataclass(slots=True)
class LedgerState:
    """Everything a ledger says so far."""

    tree: MerkleTree = field(default_factory=MerkleTree)
    last_hash: bytes = bytes(32)
    terms: dict[int, Terms] = field(default_factory=dict)
    latest_terms: Terms | None = None
    reservations: dict[int, Reservation] = field(default_factory=dict)
    by_attempt: dict[tuple[int, int], Reservation] = field(default_factory=dict)
    latest_attempt: tuple[int, int] = (-1, -1)
    commits: dict[int, Commit] = field(default_factory=dict)
    aborts: dict[int, Exposure] = field(default_factory=dict)
    recovered: list[int | None] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    closed: Checkpoint | None = None
    _header: RunHeader | None = None
    _seen_survivors: dict[tuple[ClientId, ...], tuple[ClientId, ...]] = field(default_factory=dict)

    @property
    def header(self) -> RunHeader:
        """The first entry's content.

        Raises:
            LedgerCorrupted: There are no entries.
        """
        if self._header is None:
            raise LedgerCorrupted(None, "it has no entries")
        return self._header

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.tree)

    def apply(self, entry: Entry) -> None:
        """Take the next entry, whose form and hash have been checked.

        Raises:
            LedgerCorrupted: The entry contradicts those before it; the message names the field.
        """
        size = len(self.tree)
        if entry.index != size:
            raise LedgerCorrupted(
                size,
                f"index: {entry.index}, expected {size} (an entry was removed, repeated or moved)",
            )
        if self.closed is not None:
            raise LedgerCorrupted(entry.index, "type: nothing may follow the close entry")
        if (entry.index == 0) != (entry.type is EntryType.OPEN):
            raise LedgerCorrupted(entry.index, "type: the first entry, and only the first, is of type open")
        try:
            self._dispatch(entry)
        except (ConfigError, PrivacyError) as error:
            raise LedgerCorrupted(entry.index, str(error)) from None
        self.tree.append(entry.hash)
        self.last_hash = entry.hash

    def _dispatch(self, entry: Entry) -> None:
        body = entry.body
        match entry.type:  # the frequent ones first
            case EntryType.RESERVE:
                self._reserve(entry.index, body)
            case EntryType.COMMIT:
                self._commit(entry.index, body)
            case EntryType.OPEN:
                self._header = _header(body)
            case EntryType.TERMS:
                self._add_terms(entry.index, body)
            case EntryType.ABORT:
                self._pending(entry.index, body["reservation"])
                self.aborts[body["reservation"]] = Exposure(body["exposure"])
            case EntryType.RECOVERED:
                latest = None if self.latest_terms is None else self.latest_terms.index
                if body["terms"] != latest:
                    raise LedgerCorrupted(entry.index, f"body.terms: expected the latest terms, {latest}")
                self.recovered.append(latest)
            case EntryType.CHECKPOINT | EntryType.CLOSE:
                self._checkpoint(entry)

    def _add_terms(self, index: int, body: JsonObject) -> None:
        guarantee = guarantee_from_json(body["guarantee"])
        event = event_from_json(body["event"])
        check_terms(self.header, event, guarantee)
        self.latest_terms = Terms(
            index=index, event=event, guarantee=guarantee, unprotected=tuple(body["unprotected"])
        )
        self.terms[index] = self.latest_terms

    def check_reserve(self, index: int, body: JsonObject) -> None:
        """Whether a reservation may follow.

        Raises:
            LedgerCorrupted: It may not; names the field.
        """
        if body["terms"] not in self.terms:
            raise LedgerCorrupted(index, f"body.terms: entry {body['terms']} is not an earlier terms entry")
        key = (body["round"], body["attempt"])
        if key <= self.latest_attempt:
            name = "round" if key[0] < self.latest_attempt[0] else "attempt"
            raise LedgerCorrupted(index, f"body.{name}: rounds and attempts must increase")

    def _reserve(self, index: int, body: JsonObject) -> None:
        self.check_reserve(index, body)
        key = (body["round"], body["attempt"])
        reservation = Reservation(
            index=index,
            round_id=body["round"],
            attempt=body["attempt"],
            terms=body["terms"],
            spec_digest=bytes.fromhex(body["spec_digest"]),
        )
        self.reservations[index] = self.by_attempt[key] = reservation
        self.latest_attempt = key

    def _commit(self, index: int, body: JsonObject) -> None:
        self._pending(index, body["reservation"])
        survivors = tuple(body["survivors"])
        known = self._seen_survivors.get(survivors)
        if known is None:
            self._check_survivors(index, survivors)
            known = self._seen_survivors[survivors] = survivors
        self.commits[body["reservation"]] = Commit(
            index=index,
            survivors=known,  # one object for all rounds with the same survivors
            sum_digest=bytes.fromhex(body["sum_digest"]),
            wrap_probability=float(body["wrap_probability"]),
            total_variation=float(body["total_variation"]),
        )

    def _check_survivors(self, index: int, survivors: tuple[ClientId, ...]) -> None:
        header = self.header
        if list(survivors) != sorted(set(survivors)) or not set(survivors) <= set(header.cohort):
            raise LedgerCorrupted(index, "body.survivors: expected enrolled clients, sorted, each once")
        if len(survivors) < header.threshold:
            raise LedgerCorrupted(
                index, f"body.survivors: {len(survivors)}, fewer than the threshold {header.threshold}"
            )

    def _pending(self, index: int, reservation: int) -> None:
        if reservation not in self.reservations:
            raise LedgerCorrupted(
                index, f"body.reservation: entry {reservation} is not an earlier reservation"
            )
        if reservation in self.commits or reservation in self.aborts:
            raise LedgerCorrupted(index, f"body.reservation: entry {reservation} was settled before")

    def _checkpoint(self, entry: Entry) -> None:
        body = entry.body
        checkpoint = Checkpoint.from_json(
            body | {"kind": entry.type.value, "run_id": self.header.run_id.hex(), "time": entry.time}
        )
        if checkpoint.size != self.size:
            raise LedgerCorrupted(entry.index, f"body.size: {checkpoint.size}, expected {self.size}")
        if checkpoint.root != self.tree.root():
            raise LedgerCorrupted(
                entry.index, f"body.root: not the Merkle root of entries 0 to {self.size - 1}"
            )
        if list(checkpoint.signers) != sorted(checkpoint.signers):
            raise LedgerCorrupted(entry.index, "body.signers: expected sorted client names")
        if entry.type is EntryType.CLOSE and len(checkpoint.signers) < self.header.threshold:
            raise LedgerCorrupted(
                entry.index,
                f"body.signers: {len(checkpoint.signers)}, fewer than the threshold {self.header.threshold}",
            )
        try:
            checkpoint.check_signatures(self.header.directory)
        except RemoteProtocolError as error:
            raise LedgerCorrupted(entry.index, f"body.signatures.{error.peer}: {error.reason}") from None
        self.checkpoints.append(checkpoint)
        if entry.type is EntryType.CLOSE:
            self.closed = checkpoint


def _header(body: JsonObject) -> RunHeader:
    header = RunHeader.from_json(body)
    if body["cohort"] != list(header.cohort):
        raise LedgerCorrupted(0, "body.cohort: expected the names in body.keys, sorted")
    if len(set(header.directory.keys.values())) != len(header.cohort):
        raise LedgerCorrupted(0, "body.keys: two clients have the same key")
    if body["manifest_digest"] != header.directory.digest().hex():
        raise LedgerCorrupted(0, "body.manifest_digest: not the digest of body.keys")
    return header


def check_terms(header: RunHeader, event: Event, guarantee: Guarantee) -> None:
    """Refuse an event or a guarantee that does not fit the run, or for which no accounting is known.

    Raises:
        PrivacyError: The guarantee contradicts the header, or claims more than its scheme gives.
        UnsupportedEvent: No sound accounting is known for the event.
    """
    for name, stated, expected in (
        ("cohort_size", guarantee.cohort_size, len(header.cohort)),
        ("threshold", guarantee.threshold, header.threshold),
        ("scheme", guarantee.scheme, header.scheme),
        ("key_mode", guarantee.key_mode, header.key_mode),
    ):
        if stated != expected:
            raise PrivacyError(f"body.guarantee.{name}: {stated!r}, the header says {expected!r}")
    check_claims(guarantee)
    for leaf in leaves(event):
        if isinstance(leaf, Noise):
            _check_noise(leaf, header)


def _check_noise(leaf: Noise, header: RunHeader) -> None:
    if header.unit is None or header.relation is None:
        raise PrivacyError("body.event: noise without a unit of privacy and a relation in the header")
    if leaf.shares > len(header.cohort):
        raise PrivacyError(f"body.event.shares: {leaf.shares}, more than the cohort")
    if leaf.site_rates is not None and set(leaf.site_rates) != set(header.cohort):
        raise PrivacyError("body.event.site_rates: expected one rate for each client of the cohort")
    if leaf.sampling is Sampling.POISSON and (
        header.relation is Relation.REPLACE_ONE or header.unit is UnitOfPrivacy.CLIENT
    ):
        raise UnsupportedEvent(
            "body.event.sampling: Poisson sampling is accounted for patients that are added or removed"
        )
    if leaf.family is not Family.GAUSSIAN and not leaf.sensitivity.is_integer():
        raise UnsupportedEvent("body.event.sensitivity: integer noise has an integer sensitivity")
    share = leaf.noise_multiplier * leaf.sensitivity / math.sqrt(leaf.shares)
    if isinstance(leaf, SiteNoise):
        if set(leaf.weights) != set(header.cohort):
            raise PrivacyError("body.event.weights: expected one weight for each client of the cohort")
        share = min(map(leaf.share_sigma, leaf.weights))
    if leaf.family is Family.DISCRETE_GAUSSIAN and share < SMALLEST_SHARE:
        raise UnsupportedEvent(
            f"body.event: discrete Gaussian shares of {share:.3g} grid units, at least {SMALLEST_SHARE:g} are needed"
        )
