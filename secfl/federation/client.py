"""One site in one run: it works on its data, then enters the protocol with integers."""

from __future__ import annotations

import time
from typing import Protocol

from secfl.crypto.aggregation import Party, SecureAggregation
from secfl.crypto.identity import Directory, Identity
from secfl.errors import LocalProtocolError
from secfl.federation.guard import Guard
from secfl.federation.local_work import LocalReport, LocalWork
from secfl.federation.offer import RoundOffer, RoundTerms
from secfl.randomness import Rng
from secfl.types import ClientId, RoundId

__all__ = ["RoundClient", "SiteClient"]


class RoundClient(Protocol):
    """A site that can be invited: in this process or elsewhere."""

    report: LocalReport | None
    """Of the last round, where the site tells; `None` where nothing about a single site leaves it."""

    @property
    def name(self) -> ClientId:
        """The site's name."""
        ...

    def join(self, offer: RoundOffer) -> Party:
        """Its party for the round."""
        ...


class SiteClient:
    """A site with its identity, its work and its own randomness.

    Args:
        identity: Its enrolled identity.
        work: What it does with its data.
        scheme: How updates are added.
        directory: The enrolled keys, pinned at enrolment.
        terms: The public numbers it agreed to.
        rng: Keys and masks.
        guard: The site's own policy; `None` where it has none.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        work: LocalWork,
        scheme: SecureAggregation,
        directory: Directory,
        terms: RoundTerms,
        rng: Rng,
        guard: Guard | None = None,
    ) -> None:
        self.identity = identity
        self.report: LocalReport | None = None
        self._work = work
        self._scheme = scheme
        self._directory = directory
        self._terms = terms
        self._rng = rng
        self._guard = guard
        self._last_round_id = RoundId(-1)

    @property
    def name(self) -> ClientId:
        """The site's name."""
        return self.identity.name

    def join(self, offer: RoundOffer) -> Party:
        """Work from the offered model and return this client's party for the round.

        The specification is recomputed from what this client executes. Keys and noise are fresh in every attempt.

        Raises:
            LocalProtocolError: The round does not rise: one round is entered once.
            PrivacyError: The site's policy does not allow it; nothing was touched.
            DataError: The update holds NaN or infinity.
        """
        if offer.round_id <= self._last_round_id:
            raise LocalProtocolError(f"round {offer.round_id} was entered before; a retry is a new round")
        self._last_round_id = offer.round_id
        if self._guard is not None:
            self._guard.admit(offer)
        spec = offer.specification(self._terms, self._directory)
        contribution = self._work.contribute(offer, spec)
        began = time.perf_counter()
        party = self._scheme.client(
            spec, self.identity, directory=self._directory, update=contribution.privatized, rng=self._rng
        )
        contribution.report.protect_seconds += time.perf_counter() - began
        self.report = contribution.report
        return party
