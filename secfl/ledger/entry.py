"""Entries: what is written, how it is hashed, and how it is read back.

One entry is one line: ``{"body", "hash", "index", "marks", "previous", "time", "type"}`` in canonical JSON.
``hash`` is the RFC 9162 leaf hash of the line without its ``hash`` member; ``previous`` chains it to the
entry before; ``marks`` holds four bytes of SHA-256 for each body field, so that a damaged field can be
named. Marks locate damage, they do not protect: the chain and the co-signed checkpoints do that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from secfl.crypto.identity import Directory
from secfl.dp.accounting import Relation
from secfl.errors import ConfigError
from secfl.guarantees import Assumption, Guarantee, UnitOfPrivacy, Visibility
from secfl.ledger.budget import Budget
from secfl.ledger.canonical import JsonObject, canonical
from secfl.ledger.merkle import leaf_hash
from secfl.types import ClientId

__all__ = [
    "FORMAT_VERSION",
    "GENESIS",
    "Entry",
    "EntryType",
    "Exposure",
    "KeyCustody",
    "RunHeader",
    "encode_entry",
    "guarantee_from_json",
    "guarantee_to_json",
    "marks_of",
]

FORMAT_VERSION: Final = 1
GENESIS: Final = "0" * 64
"""``previous`` of the first entry."""

MARK_DIGITS: Final = 8


class EntryType(StrEnum):
    """Kinds of entries."""

    OPEN = "open"
    TERMS = "terms"
    RESERVE = "reserve"
    COMMIT = "commit"
    ABORT = "abort"
    RECOVERED = "recovered"
    CHECKPOINT = "checkpoint"
    CLOSE = "close"


class KeyCustody(StrEnum):
    """Who held the secret keys during the run."""

    ONE_PROCESS = "one process held all keys"
    SEPARATE = "each client held its own keys"


class Exposure(StrEnum):
    """How far an attempt came before it was given up."""

    NOTHING_SENT = "nothing_sent"
    INPUTS_SENT = "inputs_sent"
    SHARES_SENT = "shares_sent"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """The first entry: what holds for the whole run.

    Attributes:
        run_id: 16 random bytes.
        directory: The enrolled public keys; its clients are the cohort.
        threshold: Fewest survivors for which a sum may be opened.
        scheme: Name of the secure aggregation scheme.
        key_mode: Its key mode.
        custody: Who held the secret keys.
        unit: Whose presence is hidden, or ``None`` without differential privacy.
        relation: Which neighbouring data sets are compared (`secfl.dp.accounting.Relation`), or ``None``.
        delta: The δ of the statements, or ``None`` without differential privacy.
        plan: The privacy plan as JSON, or ``None`` without differential privacy.
        parameters: Scheme and codec parameters, for people.
        digests: SHA-256 by name: ``code``, ``config``, ``task``.
        public: What is public on purpose, one sentence each.
        unprotected: What was used or shown without protection, one sentence each.
        budget: Reservations beyond it are refused; ``None`` for no budget.
        account: Identity of the account (or of all sites' accounts) that this run is charged to, 16 bytes in
            hexadecimal, or ``None``.
        software: Name and version of the writer.
    """

    run_id: bytes
    directory: Directory
    threshold: int
    scheme: str
    key_mode: str
    custody: KeyCustody
    unit: UnitOfPrivacy | None = None
    relation: Relation | None = None
    delta: float | None = None
    plan: Mapping[str, Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, bytes] = field(default_factory=dict)
    public: tuple[str, ...] = ()
    unprotected: tuple[str, ...] = ()
    budget: Budget | None = None
    account: str | None = None
    software: str = ""

    def __post_init__(self) -> None:
        if len(self.run_id) != 16:
            raise ConfigError("ledger header: run_id has 16 bytes")
        if not 1 <= self.threshold <= len(self.directory.keys):
            raise ConfigError(f"ledger header: threshold {self.threshold}, expected 1 to the cohort's size")
        if self.delta is not None and not 0 < self.delta < 1:
            raise ConfigError("ledger header: delta must lie between 0 and 1")

    @property
    def cohort(self) -> tuple[ClientId, ...]:
        """The enrolled clients, sorted."""
        return tuple(sorted(self.directory.keys))

    def to_json(self) -> JsonObject:
        """The body of the first entry."""
        return {
            "format_version": FORMAT_VERSION,
            "run_id": self.run_id.hex(),
            "cohort": list(self.cohort),
            "keys": {name: key.hex() for name, key in self.directory.keys.items()},
            "manifest_digest": self.directory.digest().hex(),
            "threshold": self.threshold,
            "scheme": self.scheme,
            "key_mode": self.key_mode,
            "simulated": self.custody is KeyCustody.ONE_PROCESS,
            "unit": None if self.unit is None else self.unit.value,
            "relation": None if self.relation is None else self.relation.value,
            "delta": self.delta,
            "plan": None if self.plan is None else dict(self.plan),
            "parameters": dict(self.parameters),
            "digests": {name: digest.hex() for name, digest in self.digests.items()},
            "public": list(self.public),
            "unprotected": list(self.unprotected),
            "budget": None if self.budget is None else self.budget.to_json(),
            "account": self.account,
            "software": self.software,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> RunHeader:
        """Read a body that the schema has accepted.

        Raises:
            ConfigError: The keys or the threshold are impossible.
        """
        return cls(
            run_id=bytes.fromhex(body["run_id"]),
            directory=Directory({ClientId(name): bytes.fromhex(key) for name, key in body["keys"].items()}),
            threshold=body["threshold"],
            scheme=body["scheme"],
            key_mode=body["key_mode"],
            custody=KeyCustody.ONE_PROCESS if body["simulated"] else KeyCustody.SEPARATE,
            unit=None if body["unit"] is None else UnitOfPrivacy(body["unit"]),
            relation=None if body["relation"] is None else Relation(body["relation"]),
            delta=body["delta"],
            plan=body["plan"],
            parameters=body["parameters"],
            digests={name: bytes.fromhex(digest) for name, digest in body["digests"].items()},
            public=tuple(body["public"]),
            unprotected=tuple(body["unprotected"]),
            budget=None if body["budget"] is None else Budget.from_json(body["budget"]),
            account=body["account"],
            software=body["software"],
        )


@dataclass(slots=True, kw_only=True)  # not frozen: that takes longer, a hundred thousand times
class Entry:
    """One parsed entry. ``hash`` is its 32-byte leaf hash."""

    index: int
    type: EntryType
    body: JsonObject
    time: str
    previous: str
    hash: bytes


def marks_of(fields: Mapping[str, bytes]) -> str:
    """Eight hexadecimal digits of SHA-256 of each field's canonical value, in order of the field names."""
    return "".join(hashlib.sha256(fields[name]).hexdigest()[:MARK_DIGITS] for name in sorted(fields))


def encode_entry(
    *, index: int, kind: str, body: Mapping[str, Any], time: str, previous: str
) -> tuple[bytes, bytes]:
    """One entry's line, without the newline, and its hash.

    The line is put together from the canonical forms of its parts; member names are ASCII, so sorting them as
    Python strings is RFC 8785's order.
    """
    fields = {name: canonical(value) for name, value in body.items()}
    inner = b",".join(canonical(name) + b":" + fields[name] for name in sorted(fields))
    head = b'{"body":{' + inner + b"}"
    tail = b',"index":%d,"marks":"%s","previous":"%s","time":%s,"type":%s}' % (
        index,
        marks_of(fields).encode(),
        previous.encode(),
        canonical(time),
        canonical(kind),
    )
    digest = leaf_hash(head + tail)
    return head + b',"hash":"' + digest.hex().encode() + b'"' + tail, digest


def guarantee_to_json(guarantee: Guarantee) -> JsonObject:
    """A guarantee as JSON; an advantage of ``-inf`` (no cryptography involved) is ``null``."""
    return {
        "scheme": guarantee.scheme,
        "key_mode": guarantee.key_mode,
        "cohort_size": guarantee.cohort_size,
        "survivors": guarantee.survivors,
        "threshold": guarantee.threshold,
        "curious_colluders": guarantee.curious_colluders,
        "malicious_colluders": guarantee.malicious_colluders,
        "network_sees": guarantee.network_sees.value,
        "client_with_network": guarantee.client_with_network.value,
        "assumptions": [
            {"name": item.name, "statement": item.statement, "post_quantum": item.post_quantum}
            for item in guarantee.assumptions
        ],
        "advantage_log2": None if guarantee.advantage_log2 == float("-inf") else guarantee.advantage_log2,
        "notes": list(guarantee.notes),
    }


def guarantee_from_json(value: Mapping[str, Any]) -> Guarantee:
    """Read what `guarantee_to_json` wrote and the schema has accepted."""
    advantage = value["advantage_log2"]
    return Guarantee(
        scheme=value["scheme"],
        key_mode=value["key_mode"],
        cohort_size=value["cohort_size"],
        survivors=value["survivors"],
        threshold=value["threshold"],
        curious_colluders=value["curious_colluders"],
        malicious_colluders=value["malicious_colluders"],
        network_sees=Visibility(value["network_sees"]),
        client_with_network=Visibility(value["client_with_network"]),
        assumptions=tuple(
            Assumption(name=item["name"], statement=item["statement"], post_quantum=item["post_quantum"])
            for item in value["assumptions"]
        ),
        advantage_log2=float("-inf") if advantage is None else float(advantage),
        notes=tuple(value["notes"]),
    )
