"""One privacy account for several runs on the same patients.

A site's account is a folder with ``account.jsonl``: a random identity, a budget, and one charge for each
attempt of each run. The identity belongs to the site and survives changes of its patients: a digest of the data
would tell who is in them, and adding one image would reset the budget. Whatever the overlap between the
patients of two runs is, their charges add up.

A reservation is one transaction across processes: under the file's lock the account is read again, the
budget is checked, the charge is written and fsynced, and only then the run's ledger. A crash in between
leaves a charge without a reservation, which counts as spent; the resumed run, which cannot know whether its
ledger was set back, charges again. So every reservation that was ever written is charged, also when a run's ledger
is restored from a copy and its rounds are done once more.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from secfl.dp.accounting import Relation, epsilon
from secfl.dp.events import SelfComposed, compose, event_from_json, event_to_json
from secfl.errors import ConfigError, LedgerCorrupted, PrivacyError
from secfl.guarantees import UnitOfPrivacy
from secfl.ledger.budget import Budget, Charge, Meter, suggested_order
from secfl.ledger.canonical import JsonObject
from secfl.ledger.entry import FORMAT_VERSION, GENESIS, encode_entry
from secfl.ledger.reader import lines_of, read_line
from secfl.ledger.storage import LedgerFile, make_folder
from secfl.randomness import Rng

__all__ = ["ACCOUNT_FILE", "Account", "AccountReading"]

ACCOUNT_FILE: Final = "account.jsonl"
_SCHEMA: Final = "account.schema.json"
_WAIT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountReading:
    """How an account stands. The cap is the guarantee; ``epsilon`` is informative.

    Attributes:
        identity: Of the account.
        budget: Its cap.
        charges: Number of charged attempts.
        runs: Number of runs.
        epsilon: Tight ε of everything charged, as if all mechanisms had been fixed beforehand.
    """

    identity: str
    budget: Budget
    charges: int
    runs: int
    epsilon: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "account": self.identity,
            "budget": self.budget.to_json(),
            "charges": self.charges,
            "runs": self.runs,
            "epsilon": self.epsilon,
        }


class Account:
    """A site's account. Open it with `open`; charge it through a `PrivacyLedger`."""

    def __init__(self, path: Path, *, clock: Callable[[], str]) -> None:
        self._path = path
        self._clock = clock
        self._offset = 0
        self._size = 0
        self._last_hash = bytes(32)
        self._charges: list[Charge] = []
        self._runs: set[str] = set()
        self._last_charge: int | None = None
        self._charge_at: dict[int, Charge] = {}
        self._body: JsonObject = {}
        self._meter: Meter | None = None

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        budget: Budget | None = None,
        unit: UnitOfPrivacy = UnitOfPrivacy.PATIENT,
        relation: Relation = Relation.ADD_REMOVE,
        rng: Rng | None = None,
        clock: Callable[[], str] | None = None,
    ) -> Account:
        """Open a site's account, or start one when the folder has none.

        Args:
            folder: Holds ``account.jsonl``.
            budget: Needed to start one. Without a Rényi order, a suitable one is fixed now.
            unit: Whose presence is counted.
            relation: Which data sets are neighbours.
            rng: Source of the random identity; needed to start one.
            clock: Gives the time of entries.

        Raises:
            ConfigError: There is none and no budget was given; or what was given differs from the file.
            LedgerCorrupted: The file does not verify.
        """
        folder = Path(folder)
        path = folder / ACCOUNT_FILE
        account = cls(path, clock=clock or _utc_now)
        if not path.exists():
            if budget is None or rng is None:
                raise ConfigError(f"{path}: no such account; give a budget to start one")
            account._create(folder, budget, unit, relation, rng)
        account._read()
        if budget is not None and _with_order(budget) != account.budget:
            raise ConfigError(f"{path}: the account has another budget, which cannot be changed")
        if (unit, relation) != (account.unit, account.relation):
            raise ConfigError(f"{path}: the account counts {account.unit} under {account.relation}")
        return account

    @classmethod
    def read(cls, folder: Path | str) -> Account:
        """Open an account as it is, whatever its unit and budget.

        Raises:
            ConfigError: There is none.
            LedgerCorrupted: The file does not verify.
        """
        path = Path(folder) / ACCOUNT_FILE
        if not path.exists():
            raise ConfigError(f"{path}: no such account")
        account = cls(path, clock=_utc_now)
        account._read()
        return account

    @property
    def identity(self) -> str:
        """16 random bytes in hexadecimal."""
        return str(self._body["account"])

    @property
    def budget(self) -> Budget:
        """The cap."""
        return Budget.from_json(self._body["budget"])

    @property
    def unit(self) -> UnitOfPrivacy:
        """Whose presence is counted."""
        return UnitOfPrivacy(self._body["unit"])

    @property
    def relation(self) -> Relation:
        """Which data sets are neighbours."""
        return Relation(self._body["relation"])

    @contextmanager
    def charged(
        self, charge: Charge, *, run_id: bytes, round_id: int, attempt: int, spec_digest: bytes
    ) -> Iterator[None]:
        """Charge one attempt and hold the account while the caller writes its reservation.

        A byte-identical resend is known to the run's ledger and never gets here.

        Raises:
            BudgetExhausted: It does not fit; nothing is written.
            ConfigError: Another process holds the account for longer than a minute.
            LedgerCorrupted: The file does not verify.
        """
        with self.held(
            charge, run_id=run_id, round_id=round_id, attempt=attempt, spec_digest=spec_digest
        ) as write:
            write()
            yield

    @contextmanager
    def held(
        self, charge: Charge, *, run_id: bytes, round_id: int, attempt: int, spec_digest: bytes
    ) -> Iterator[Callable[[], None]]:
        """`charged` in two steps, for several accounts at once: check and hold, then write when called.

        Yields:
            A function that writes the charge; nothing is charged before.
        """
        with LedgerFile(self._path, wait_seconds=_WAIT_SECONDS) as file:
            meter = self._refresh(file)
            meter.require(charge)

            def write() -> None:
                body = {
                    "run_id": run_id.hex(),
                    "round": round_id,
                    "attempt": attempt,
                    "spec_digest": spec_digest.hex(),
                    "event": event_to_json(charge.event),
                    "error": charge.error,
                }
                line = self._encode("charge", body)
                file.append(line + b"\n")
                self._applied(line)

            yield write

    @contextmanager
    def charging(
        self,
        cost: Callable[[Budget], Charge],
        *,
        run_id: bytes,
        round_id: int,
        attempt: int,
        spec_digest: bytes,
    ) -> Iterator[None]:
        """`charged` with what the attempt costs the adversary of this account's budget."""
        charge = cost(self.budget)
        with self.charged(charge, run_id=run_id, round_id=round_id, attempt=attempt, spec_digest=spec_digest):
            yield

    def room(self, charge: Charge, most: int) -> int:
        """How many such attempts the account still admits, counted up to ``most``.

        Raises:
            LedgerCorrupted: The file does not verify.
        """
        with LedgerFile(self._path, wait_seconds=_WAIT_SECONDS) as file:
            return self._refresh(file).room(charge, most)

    def reading(self) -> AccountReading:
        """How the account stands now.

        Raises:
            LedgerCorrupted: The file does not verify.
        """
        self._read()
        counts: dict[Charge, int] = {}
        for charge in self._charges:
            counts[charge] = counts.get(charge, 0) + 1
        event = compose(SelfComposed(charge.event, count) for charge, count in counts.items())
        budget = self.budget
        return AccountReading(
            identity=self.identity,
            budget=budget,
            charges=len(self._charges),
            runs=len(self._runs),
            epsilon=epsilon(event, delta=budget.delta, relation=self.relation),
        )

    def _create(
        self, folder: Path, budget: Budget, unit: UnitOfPrivacy, relation: Relation, rng: Rng
    ) -> None:
        body = {
            "format_version": FORMAT_VERSION,
            "account": rng.bytes(16).hex(),
            "unit": unit.value,
            "relation": relation.value,
            "budget": _with_order(budget).to_json(),
        }
        line, _ = encode_entry(index=0, kind="account", body=body, time=self._clock(), previous=GENESIS)
        read_line(line, position=0, last_hash=bytes(32), schema=_SCHEMA)
        try:
            make_folder(folder)
        except OSError as error:
            raise ConfigError(f"{folder}: {error.strerror}") from None
        with LedgerFile(self._path, wait_seconds=_WAIT_SECONDS) as file:
            if not self._path.exists():  # another process may have been quicker
                file.create(line)

    def _read(self) -> None:
        with LedgerFile(self._path, wait_seconds=_WAIT_SECONDS) as file:
            self._refresh(file)

    def _refresh(self, file: LedgerFile) -> Meter:
        """Read what was appended since, and repair a torn end."""
        data = file.read(self._offset)
        good = data.rfind(b"\n") + 1
        for line in lines_of(data[:good]):
            self._apply(*read_line(line, position=self._size, last_hash=self._last_hash, schema=_SCHEMA))
        self._offset += good
        fragment = data[good:]
        if fragment:
            body = {"fragment": fragment.hex(), "charge": self._last_charge}
            line = self._encode("recovered", body)
            file.overwrite_tail(self._offset, line + b"\n")
            self._applied(line)
        if self._meter is None:
            raise LedgerCorrupted(None, f"{self._path} has no entries")
        return self._meter

    def _encode(self, kind: str, body: JsonObject) -> bytes:
        line, _ = encode_entry(
            index=self._size, kind=kind, body=body, time=self._clock(), previous=self._last_hash.hex()
        )
        return line

    def _applied(self, line: bytes) -> None:
        self._apply(*read_line(line, position=self._size, last_hash=self._last_hash, schema=_SCHEMA))
        self._offset += len(line) + 1

    def _apply(self, value: JsonObject, digest: bytes) -> None:
        body = value["body"]
        if (value["type"] == "account") != (self._size == 0):
            raise LedgerCorrupted(self._size, "type: the first entry, and only the first, is of type account")
        match value["type"]:
            case "account":
                self._body = body
                self._meter = Meter(self.budget, relation=self.relation)
            case "charge":
                self._take(body)
            case "recovered":
                if body["charge"] != self._last_charge:
                    raise LedgerCorrupted(self._size, "body.charge: expected the latest charge")
                if self._last_charge is not None:
                    self._count(self._charge_at[self._last_charge])
        self._last_hash = digest
        self._size += 1

    def _take(self, body: JsonObject) -> None:
        try:
            charge = Charge(event=event_from_json(body["event"]), error=float(body["error"]))
            self._count(charge)
        except PrivacyError as error:
            raise LedgerCorrupted(self._size, f"body.event: {error}") from None
        self._runs.add(body["run_id"])
        self._last_charge = self._size
        self._charge_at[self._size] = charge

    def _count(self, charge: Charge) -> None:
        if self._meter is not None:
            self._meter.add(charge)
        self._charges.append(charge)


def _with_order(budget: Budget) -> Budget:
    """An account serves runs that do not exist yet, so its filter needs a Rényi order from the start."""
    if budget.order is not None:
        return budget
    return Budget(
        epsilon=budget.epsilon,
        delta=budget.delta,
        order=suggested_order(budget.epsilon, budget.delta),
        adversary=budget.adversary,
        colluders=budget.colluders,
    )


def _utc_now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
