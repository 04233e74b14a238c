"""Sites elsewhere, in one process: agents behind an exchange that can lose, repeat and change messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from secfl.crypto.codec import Grid
from secfl.crypto.identity import Directory, Identity
from secfl.federation.exchange import Deadlines, ExchangeDriver, RemoteSite
from secfl.federation.local_work import Contribution, LocalReport
from secfl.federation.offer import UPDATE_VECTOR, RoundOffer, RoundTerms
from secfl.federation.remote_panel import RemotePanel
from secfl.federation.schemes import scheme_for
from secfl.federation.site_agent import LocalTraining, Reports, SiteAgent, SiteTerms, largest_message
from secfl.randomness import InsecureSeededRng, SystemRng
from secfl.types import ClientId, PrivatizedUpdate, RoundId, SchemeSpec

LENGTH = 40
SCHEMES = {
    "masking": SchemeSpec(name="masking"),
    "sum-key": SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),)),
    "shared": SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),)),
    "plain": SchemeSpec(name="plain"),
}
RUN = bytes(range(16))
DEADLINES = Deadlines(training=5, phase=5)


class FixedWork:
    """Contributes the site's own constant vector."""

    def __init__(self, name: str) -> None:
        self.values = np.arange(LENGTH, dtype=np.uint32) * np.uint32(7) + np.uint32(ord(name))
        self.calls = 0

    def contribute(self, offer, spec) -> Contribution:
        self.calls += 1
        update = PrivatizedUpdate.without_noise({UPDATE_VECTOR: self.values})
        return Contribution(privatized=update, report=LocalReport(train_seconds=1.5))


class Stage:
    """Four sites, threshold three."""

    def __init__(self, folder, scheme: str, *, names="abcd", reports=Reports.SIMULATION) -> None:
        rng = InsecureSeededRng(5)
        self.folder, self.reports = folder, reports
        self.identities = {name: Identity.generate(name, rng) for name in names}
        self.layout = {"weight": np.zeros(LENGTH - 1, np.float32), "bias": np.zeros(1, np.float32)}
        self.terms = SiteTerms(
            run_id=RUN,
            directory=Directory.enroll(self.identities.values()),
            threshold=3,
            scheme=SCHEMES[scheme],
        )
        self.round_terms = RoundTerms(
            grid=Grid.for_coordinates(LENGTH, coordinate_bound=1.0, value_bits=16),
            bits=20,
            weighting=None,
            task_digest=bytes(32),
            plan_digest=bytes(32),
        )
        self.scheme = scheme_for(self.terms.scheme)
        self.work = {name: FixedWork(name) for name in names}
        self.agents = {name: self.agent(name) for name in names}

    def agent(self, name: str, **changes) -> SiteAgent:
        """A process of a site, new or again."""
        return SiteAgent(
            self.identities[name],
            folder=self.folder / name,
            terms=changes.get("terms", self.terms),
            prepare=lambda: LocalTraining(
                round_terms=self.round_terms, layout=self.layout, work=self.work[name]
            ),
            rng=SystemRng(),
            reports=self.reports,
        )

    def restart(self, name: str) -> None:
        """Kill a site's process and start the next."""
        self.agents[name].close()
        self.agents[name] = self.agent(name)

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()

    def offer(self, round_id: int = 1, **changes) -> RoundOffer:
        values = {
            "run_id": RUN,
            "round_id": RoundId(round_id),
            "round_index": 0,
            "cohort": tuple(sorted(self.terms.directory.keys)),
            "threshold": 3,
            "scheme": self.terms.scheme,
            "state": self.layout,
        }
        return RoundOffer(**(values | changes))

    def run(self, exchange, *, round_id=1, drops=None, watch=lambda _: None, **changes):
        """One round; the sum must be the survivors' exact one."""
        offer = self.offer(round_id, **changes)
        spec = offer.specification(self.round_terms, self.terms.directory)
        sites = self.sites()
        parties = {name: site.join(offer) for name, site in sites.items()}
        driver = ExchangeDriver(exchange, deadlines=DEADLINES, drops=drops)
        aggregator = scheme_for(offer.scheme).aggregator(spec, directory=self.terms.directory)
        carriage = driver.carry(aggregator, parties, watch=watch)
        expected = sum(self.work[name].values.astype(np.int64) for name in carriage.result.survivors) % 2**20
        np.testing.assert_array_equal(carriage.result.sums[UPDATE_VECTOR], expected)
        return carriage, sites

    def sites(self):
        return {
            ClientId(name): RemoteSite(
                ClientId(name), most_bytes=largest_message(LENGTH, len(self.identities))
            )
            for name in self.identities
        }

    def panel(self, exchange):
        return RemotePanel(
            tuple(map(ClientId, self.identities)),
            exchange=exchange,
            run_id=RUN,
            most_bytes=largest_message(LENGTH, len(self.identities)),
        )


class DirectExchange:
    """Asks agents by a call; ``fault`` may change what a site is asked and what comes back."""

    def __init__(
        self, stage: Stage, *, fault: Callable[[str, int, bytes], list[bytes]] | None = None
    ) -> None:
        self.stage = stage
        self.fault = fault
        self.asked: list[tuple[str, bytes]] = []
        self.replies: list[tuple[str, bytes]] = []
        self.batch = 0

    def gather(self) -> None:
        """Nobody is waited for."""

    def exchange(
        self, requests: Mapping[ClientId, bytes], *, seconds: float
    ) -> Iterator[tuple[ClientId, bytes]]:
        self.batch += 1
        for name, request in requests.items():
            for one in [request] if self.fault is None else self.fault(name, self.batch, request):
                self.asked.append((name, one))
                reply = self.stage.agents[name].handle(one)
                self.replies.append((name, reply))
                yield name, reply
