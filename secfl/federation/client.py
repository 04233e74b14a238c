"""One site in one run: it trains, bounds its update, adds its noise and enters the protocol."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from secfl.crypto.aggregation import Party, SecureAggregation
from secfl.crypto.codec import quantise
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.weights import WEIGHT_VECTOR
from secfl.dp.noise import NoiseShare, privatize
from secfl.errors import LocalProtocolError
from secfl.federation.offer import UPDATE_VECTOR, RoundOffer, RoundTerms
from secfl.federation.state import difference
from secfl.randomness import Rng
from secfl.segmentation.task import LocalResult, Task
from secfl.types import RoundId, Update

__all__ = ["LocalReport", "SiteClient"]


@dataclass(slots=True, kw_only=True)
class LocalReport:
    """What stays at the site, or is shown in a simulation only.

    Attributes:
        update: The float update before clipping.
        weight: The site's weight, already clipped to its public bound; 1 with equal weights.
        clipped_fraction: Share of coordinates that clipping changed.
        train_seconds: Time of local training.
        protect_seconds: Time of clipping, rounding, noise and of preparing the party.
    """

    update: Update = field(repr=False)
    weight: int = 1
    clipped_fraction: float = 0.0
    train_seconds: float = 0.0
    protect_seconds: float = 0.0


class SiteClient:
    """A site with its identity, its data (through the task) and its own randomness.

    Args:
        identity: Its enrolled identity.
        task: Holds the site's data under the identity's name.
        scheme: How updates are added.
        directory: The enrolled keys, pinned at enrolment.
        terms: The public numbers it agreed to.
        noise: Its share of the noise, or ``None`` without differential privacy.
        rng: Keys and masks.
        noise_rng: Noise. A secret source gives fresh noise in every attempt; a seeded one (for tests) gives a
            round the same noise whenever it is run, so that a resumed run repeats it, and is never private.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        task: Task,
        scheme: SecureAggregation,
        directory: Directory,
        terms: RoundTerms,
        noise: NoiseShare | None,
        rng: Rng,
        noise_rng: Rng,
    ) -> None:
        self.identity = identity
        self.report: LocalReport | None = None
        self._task = task
        self._scheme = scheme
        self._directory = directory
        self._terms = terms
        self._noise = noise
        self._rng = rng
        self._noise_rng = noise_rng
        self._last_round_id = RoundId(-1)
        self._trained: tuple[int, bytes, LocalResult] | None = None

    def join(self, offer: RoundOffer) -> Party:
        """Train from the offered model and return this client's party for the round.

        A second attempt at the same round of training reuses the trained model; keys and noise are always fresh.

        Raises:
            LocalProtocolError: The round does not rise: one round is entered once.
            DataError: The update holds NaN or infinity.
        """
        if offer.round_id <= self._last_round_id:
            raise LocalProtocolError(f"round {offer.round_id} was entered before; a retry is a new round")
        self._last_round_id = offer.round_id
        spec = offer.specification(self._terms, self._directory)

        began = time.perf_counter()
        key = (offer.round_index, spec.model_digest)
        if self._trained is None or self._trained[:2] != key:
            local = self._task.train(self.identity.name, offer.state, round_index=offer.round_index)
            self._trained = (*key, local)
        local = self._trained[2]
        update = difference(local.state, offer.state)
        trained = time.perf_counter()

        weighting = self._terms.weighting
        weight = 1 if weighting is None else weighting.clip(local.examples)
        share = 1.0 if weighting is None else weighting.share(weight)
        clipped = quantise(update, self._terms.grid, share=share)
        extra = (
            {} if weighting is None else {WEIGHT_VECTOR: weighting.vector(weight, spec.vector(WEIGHT_VECTOR))}
        )
        privatized = privatize(
            clipped,
            noise=self._noise,
            bits=self._terms.bits,
            rng=self._noise_rng.fork(f"noise/{self.identity.name}/{offer.round_index}"),
            vector_name=UPDATE_VECTOR,
            extra=extra,
        )
        party = self._scheme.client(
            spec, self.identity, directory=self._directory, update=privatized, rng=self._rng
        )
        protected = time.perf_counter()
        self.report = LocalReport(
            update=update,
            weight=weight,
            clipped_fraction=clipped.clipped_fraction,
            train_seconds=trained - began,
            protect_seconds=protected - trained,
        )
        return party
