"""The driver for sites elsewhere: one batch of requests for each phase of a round.

Every engine that can put a question to several sites and collect what comes back before a deadline carries the
protocol: it implements `Exchange`. `ExchangeDriver` does the rest, and `RemoteSite` stands for a site.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party, PartyState, Running
from secfl.errors import BelowThreshold, LocalProtocolError, RemoteProtocolError, RoundAborted, SitesDecline
from secfl.federation.books import RoundBooks
from secfl.federation.driver import Carriage, Record, Watch
from secfl.federation.local_work import LocalReport
from secfl.federation.offer import RoundOffer
from secfl.federation.request_codec import decode_reply, encode
from secfl.federation.requests import (
    Declined,
    Deliver,
    Failed,
    OfferRound,
    Refused,
    Sent,
)
from secfl.types import AGGREGATOR, ClientId, RoundId

__all__ = ["Deadlines", "Exchange", "ExchangeDriver", "RemoteParty", "RemoteSite"]


class Exchange(Protocol):
    """Puts questions to sites and gives their replies as they come."""

    def exchange(
        self, requests: Mapping[ClientId, bytes], *, seconds: float
    ) -> Iterator[tuple[ClientId, bytes]]:
        """Ask, and yield replies until all have come, those missing cannot come, or time is over.

        A reply may be late and belong to an earlier question; the driver tells by the round.
        """
        ...

    def gather(self) -> None:
        """Wait for sites that are away, as long as the engine finds sensible; called before every round."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long sites are waited for.

    Attributes:
        training: Seconds for local work and the first message of a round.
        phase: Seconds for each later message.
    """

    training: float = 3600.0
    phase: float = 60.0


class RemoteParty:
    """The place of a party that lives at its site; `ExchangeDriver` talks to it by requests."""

    def __init__(self, site: RemoteSite, offer: RoundOffer) -> None:
        self.site = site
        self.offer = offer

    @property
    def state(self) -> PartyState:
        """It waits for whoever carries its envelopes."""
        return Running("offered")

    def start(self) -> list[Envelope]:
        """Not here (`LocalProtocolError`): the party lives at its site."""
        raise LocalProtocolError(f"{self.site.name}: this party lives at its site; use ExchangeDriver")

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Not here (`LocalProtocolError`): the party lives at its site."""
        raise LocalProtocolError(f"{envelope.recipient}: this party lives at its site; use ExchangeDriver")

    def phase_over(self) -> list[Envelope]:
        """Clients have no deadlines of their own."""
        return []

    def snapshot(self) -> bytes:
        """Not here (`LocalProtocolError`): the party lives at its site."""
        raise LocalProtocolError(
            f"{self.site.name}: this party lives at its site and keeps its own snapshots"
        )


class RemoteSite:
    """A site at the other end of an exchange, which joins rounds.

    Args:
        name: The site.
        most_bytes: Larger replies are refused unread.
    """

    def __init__(self, name: ClientId, *, most_bytes: int) -> None:
        self.report: LocalReport | None = None
        self.most_bytes = most_bytes
        self._name = name

    @property
    def name(self) -> ClientId:
        """The site's name."""
        return self._name

    def join(self, offer: RoundOffer) -> Party:
        """A place for its party; the site itself starts to work when the driver carries the offer."""
        self.report = None
        return RemoteParty(self, offer)


class ExchangeDriver:
    """Carries a round by batches of requests.

    Args:
        exchange: The engine.
        deadlines: How long sites are waited for.
        drops: Client -> how many sends it still makes before it is taken for silent (fault injection).
        record: Called with the phase and each envelope that leaves a party.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        deadlines: Deadlines,
        drops: Mapping[ClientId, int] | None = None,
        record: Record | None = None,
    ) -> None:
        self._exchange = exchange
        self._deadlines = deadlines
        self._drops = dict(drops or {})
        self._record = record

    def carry(self, aggregator: Party, clients: Mapping[ClientId, Party], *, watch: Watch) -> Carriage:
        """Run one round to its end; see `secfl.federation.driver.Driver.carry`."""
        remote = {name: party for name, party in clients.items() if isinstance(party, RemoteParty)}
        if len(remote) != len(clients) or not remote:
            raise LocalProtocolError("this driver carries remote parties only")
        books = RoundBooks(aggregator, watch=watch, drops=self._drops, record=self._record)
        one = _Round(aggregator, remote, books=books)
        one.call(aggregator.start)
        requests: Mapping[ClientId, bytes] = one.offers()
        seconds = self._deadlines.training
        while not isinstance(aggregator.state, Finished | Aborted):
            before = aggregator.state
            for name, data in self._exchange.exchange(requests, seconds=seconds):
                one.take(name, data)
                if isinstance(aggregator.state, Finished | Aborted):
                    break
            requests, seconds = one.deliveries(), self._deadlines.phase
            if not requests and aggregator.state == before:
                one.call(aggregator.phase_over)
                requests = one.deliveries()
                if not requests and aggregator.state == before:
                    raise books.stuck(before)
        if isinstance(aggregator.state, Aborted):
            reason = aggregator.state.reason
            if isinstance(reason, BelowThreshold) and one.declined:
                first, why = min(one.declined.items())
                raise SitesDecline(f"{len(one.declined)} of {len(clients)} sites decline; {first}: {why}")
            raise reason
        if aggregator.state.result is None:
            raise RoundAborted("the aggregator finished without a result")
        books.carriage.result = aggregator.state.result
        return books.carriage


class _Round:
    """What waits to be delivered in one round."""

    def __init__(
        self, aggregator: Party, parties: Mapping[ClientId, RemoteParty], *, books: RoundBooks
    ) -> None:
        self._aggregator = aggregator
        self._parties = parties
        self._books = books
        self._out: dict[ClientId, list[bytes]] = {}
        self._gone: set[ClientId] = set()
        self.declined: dict[ClientId, str] = {}
        self._round_id = RoundId(next(iter(parties.values())).offer.round_id)

    def offers(self) -> dict[ClientId, bytes]:
        """The invitation, encoded once for all sites."""
        offer = next(iter(self._parties.values())).offer
        model = np.concatenate([np.ravel(tensor) for tensor in offer.state.values()]).astype(np.float32)
        request = encode(
            OfferRound(
                run_id=offer.run_id,
                round_id=offer.round_id,
                round_index=offer.round_index,
                cohort=offer.cohort,
                threshold=offer.threshold,
                scheme=offer.scheme,
                model=model,
                announced=offer.announced,
            )
        )
        return dict.fromkeys(self._listening(), request)

    def deliveries(self) -> dict[ClientId, bytes]:
        """What the aggregator wants to say by now, one request a site."""
        waiting, self._out = self._out, {}
        return {
            name: encode(Deliver(round_id=self._round_id, payloads=tuple(waiting[name])))
            for name in self._listening()
            if name in waiting
        }

    def take(self, name: ClientId, data: bytes) -> None:
        """A reply came; what cannot be read or is not of this round is booked as refused."""
        party = self._parties.get(name)
        if party is None or name in self._gone:
            return
        try:
            reply = decode_reply(data, peer=name, most_bytes=party.site.most_bytes)
        except RemoteProtocolError as error:
            self._lose(name, str(error))
            return
        if not isinstance(reply, Sent | Refused | Failed | Declined) or reply.round_id not in (
            self._round_id,
            0,
        ):
            return  # late: an answer to an earlier question
        if isinstance(reply, Refused | Failed | Declined):
            self._lose(name, f"{name}: {reply.reason}")
            if isinstance(reply, Declined):
                self.declined[name] = reply.reason
            return
        if reply.report:
            party.site.report = LocalReport(
                **{key: value for key, value in reply.report.items() if key in _REPORTED}
            )
        self._books.book(reply.seconds, aggregator=False)
        if self._books.speaks(name):
            for payload in reply.payloads:
                envelope = Envelope(name, AGGREGATOR, payload)
                self._books.note(envelope)
                self.call(lambda envelope=envelope: self._aggregator.receive(envelope))

    def call(self, step: Callable[[], list[Envelope]]) -> None:
        """Let the aggregator take one step; time it, tell the watcher, and keep what it sends."""
        began = time.perf_counter()
        try:
            sent = step()
        except RemoteProtocolError as refusal:
            self._books.carriage.refusals.append(str(refusal))
            sent = []
        self._books.book(time.perf_counter() - began, aggregator=True)
        self._books.observe()
        for envelope in sent:
            self._books.note(envelope)
            self._out.setdefault(envelope.recipient, []).append(envelope.payload)

    def _lose(self, name: ClientId, reason: str) -> None:
        self._books.carriage.refusals.append(reason)
        self._gone.add(name)

    def _listening(self) -> list[ClientId]:
        return [name for name in self._parties if name not in self._gone and self._books.listens(name)]


_REPORTED = ("train_seconds", "protect_seconds", "clipped_fraction")
