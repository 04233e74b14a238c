"""The accounts of all sites of a run, charged together or not at all.

Each site holds its own account, because each has its own patients. A round is reserved only if every account
admits it: all of them are locked (in one order, so that two runs cannot wait for each other), read again and
checked, then all charges are written, then the run's reservation. A crash in between leaves charges without a
reservation, which count as spent; the resumed run charges its attempt again (`secfl.ledger.accounts`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from secfl.dp.accounting import Relation
from secfl.errors import BudgetExhausted, ConfigError
from secfl.guarantees import UnitOfPrivacy
from secfl.ledger.accounts import Account
from secfl.ledger.budget import Budget, Charge
from secfl.types import PROTOCOL_VERSION, ClientId, join_fields

__all__ = ["SiteAccounts"]

_IDENTITY_BYTES: Final = 16


class SiteAccounts:
    """One account for each site of a run.

    Args:
        accounts: By site; at least one. All count the same unit under the same relation.

    Raises:
        ConfigError: They do not, or two sites share one account.
    """

    def __init__(self, accounts: Mapping[ClientId, Account]) -> None:
        self._accounts = dict(sorted(accounts.items()))
        if not self._accounts:
            raise ConfigError("accounts: expected one for each site")
        if len(set(self.identities.values())) < len(self._accounts):
            raise ConfigError("accounts: two sites have the same account; expected one for each site")
        kinds = {(account.unit, account.relation) for account in self._accounts.values()}
        if len(kinds) > 1:
            raise ConfigError("accounts: the sites' accounts count different units of privacy")

    @property
    def identities(self) -> dict[ClientId, str]:
        """The identity of each site's account, in the order of the sites."""
        return {site: account.identity for site, account in self._accounts.items()}

    @property
    def identity(self) -> str:
        """What a run's first entry names: 16 bytes of a digest of sites and identities, in hexadecimal."""
        pairs = [join_fields(site.encode(), bytes.fromhex(name)) for site, name in self.identities.items()]
        digest = hashlib.sha256(join_fields(PROTOCOL_VERSION, b"site-accounts", *pairs)).digest()
        return digest[:_IDENTITY_BYTES].hex()

    @property
    def unit(self) -> UnitOfPrivacy:
        """Whose presence is counted."""
        return next(iter(self._accounts.values())).unit

    @property
    def relation(self) -> Relation:
        """Which data sets are neighbours."""
        return next(iter(self._accounts.values())).relation

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
        """Charge one attempt to every account and hold them while the caller writes its reservation.

        Args:
            cost: What the attempt costs the adversary of a budget.
            run_id: Of the run.
            round_id: The round.
            attempt: At the round.
            spec_digest: Of the round's specification.

        Raises:
            BudgetExhausted: One account does not admit it; nothing is charged to any. Names the site.
            ConfigError: Another process holds an account for longer than a minute.
            LedgerCorrupted: An account does not verify.
        """
        with ExitStack() as stack:
            writes = []
            # The order of identities is the same in every run, whatever the sites are called there.
            for site, account in sorted(self._accounts.items(), key=lambda item: item[1].identity):
                held = account.held(
                    cost(account.budget),
                    run_id=run_id,
                    round_id=round_id,
                    attempt=attempt,
                    spec_digest=spec_digest,
                )
                try:
                    writes.append(stack.enter_context(held))
                except BudgetExhausted as refusal:
                    raise BudgetExhausted(f"account of {site}: {refusal}") from None
            for write in writes:
                write()
            yield

    def room(self, cost: Callable[[Budget], Charge], most: int) -> tuple[ClientId, int]:
        """The site whose account admits the fewest such attempts, and how many (counted up to ``most``)."""
        rooms = {site: account.room(cost(account.budget), most) for site, account in self._accounts.items()}
        site = min(rooms, key=rooms.__getitem__)
        return site, rooms[site]
