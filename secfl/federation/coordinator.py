"""One federated round, from the global model to the next. Start reading here.

`run_round` is the whole protocol on one screen: every client trains, clips, adds noise and hands integers to the
secure aggregation scheme; the aggregator opens their sum and nothing else; the ledger is written before each step
that cannot be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secfl.crypto.aggregation import PartyState, RoundResult, Running, SecureAggregation
from secfl.crypto.codec import centre, dequantise
from secfl.crypto.identity import Directory
from secfl.crypto.weights import WEIGHT_VECTOR, weighted_mean
from secfl.dp.clipping import GridClip
from secfl.federation.accounts import RoundAccount
from secfl.federation.client import RoundClient
from secfl.federation.drift import DRIFT_VECTOR
from secfl.federation.driver import Carriage, Driver
from secfl.federation.offer import UPDATE_VECTOR, RoundOffer, RoundTerms
from secfl.federation.server_optimizer import ServerOptimizer
from secfl.federation.state import apply_update
from secfl.segmentation.task import State
from secfl.types import ClientId, RoundSpec

__all__ = ["RoundOutcome", "run_round"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """What a round leaves behind.

    Attributes:
        state: The next global model.
        mean: The opened mean, float64, shape ``(d,)``, before the server's optimizer.
        survivors: Clients whose updates are in it.
        carriage: Bytes and seconds.
        clip_bits: The noisy sum of the slots of the clip bits, grid units; ``None`` with a fixed clip.
        drift: How far the sites pull apart (`secfl.federation.drift`); ``None`` where it is not measured.
    """

    state: State = field(repr=False)
    mean: NDArray[np.float64] = field(repr=False)
    survivors: tuple[ClientId, ...]
    carriage: Carriage
    clip_bits: int | None = None
    drift: float | None = None


def run_round(
    offer: RoundOffer,
    *,
    clients: Sequence[RoundClient],
    scheme: SecureAggregation,
    directory: Directory,
    terms: RoundTerms,
    driver: Driver,
    optimizer: ServerOptimizer,
    account: RoundAccount,
    progress: Callable[[str, int, int], None],
) -> RoundOutcome:
    """Run one round of federated learning with secure aggregation.

    Args:
        offer: The global model and the invitation.
        clients: The sites; each holds its own data, keys and noise.
        scheme: How updates are added without being seen.
        directory: The enrolled keys.
        terms: Grid, weights and digests that everybody agreed to.
        driver: What carries the envelopes.
        optimizer: What the server does with the opened mean.
        account: This round's pages of the privacy ledger.
        progress: Told how many clients have trained.

    Raises:
        RoundAborted: Too few clients remained; nothing was opened, and a retry is a new round.
        BudgetExhausted: The ledger refused the round; nobody trained.
    """
    spec = offer.specification(terms, directory)
    account.reserve(spec)  # on disk before anybody spends anything

    parties = {}
    for number, client in enumerate(clients):
        progress("training", number, len(clients))
        parties[client.name] = client.join(offer)  # trains, clips, adds noise
    progress("aggregating", len(clients), len(clients))

    aggregator = scheme.aggregator(spec, directory=directory)

    def commit_before_opening(state: PartyState) -> None:
        if isinstance(state, Running) and state.survivors:
            account.commit(state.survivors, inputs_digest=state.inputs_digest)

    carriage = driver.carry(aggregator, parties, watch=commit_before_opening)
    result = carriage.result
    account.commit(result.survivors, inputs_digest=spec.digest())  # `plain` has nothing to open
    mean = mean_update(result, offer=offer, spec=spec, terms=terms)
    return RoundOutcome(
        state=apply_update(offer.state, optimizer.step(mean)),
        mean=mean,
        survivors=result.survivors,
        carriage=carriage,
        clip_bits=_clip_bits(result, offer=offer, terms=terms),
        drift=_drift(result, spec=spec, terms=terms),
    )


def mean_update(
    result: RoundResult, *, offer: RoundOffer, spec: RoundSpec, terms: RoundTerms
) -> NDArray[np.float64]:
    """The mean of the survivors' updates from the opened sums; float64, shape ``(d,)``.

    Raises:
        RemoteProtocolError: The summed weights are impossible.
    """
    total = result.sums[UPDATE_VECTOR]
    survivors = len(result.survivors)
    divisor = float(survivors) if terms.divisor is None else terms.divisor
    clip = _clip_beyond_the_grid(offer, terms)
    if clip is not None:
        return clip.to_real(centre(total, bits=terms.bits)) / divisor
    if terms.weighting is None:
        mean = dequantise(total, terms.grid, bits=terms.bits, divisor=abs(divisor))
        return -mean if divisor < 0 else mean
    weight = terms.weighting.total(
        result.sums[WEIGHT_VECTOR], spec.vector(WEIGHT_VECTOR), survivors=survivors
    )
    return weighted_mean(total, terms.grid, bits=terms.bits, weighting=terms.weighting, total_weight=weight)


def _drift(result: RoundResult, *, spec: RoundSpec, terms: RoundTerms) -> float | None:
    if terms.drift is None:
        return None
    return terms.drift.drift(
        result.sums[DRIFT_VECTOR],
        spec.vector(DRIFT_VECTOR).modulus_bits,
        result.sums[UPDATE_VECTOR],
        bits=terms.bits,
        survivors=len(result.survivors),
    )


def _clip_beyond_the_grid(offer: RoundOffer, terms: RoundTerms) -> GridClip | None:
    """The clip of the summed vectors where the grid alone does not tell it: with groups, or with a bit's slot."""
    if terms.releases is None:
        return None
    clip = terms.releases.unit_clip(offer.announced)
    summed = terms.releases.local_steps == 1 and (len(clip.groups) > 1 or clip.bit_slot > 0)
    return clip if summed else None


def _clip_bits(result: RoundResult, *, offer: RoundOffer, terms: RoundTerms) -> int | None:
    """The noisy sum of the units' clip bits, in grid units; ``None`` where no bits are sent."""
    clip = _clip_beyond_the_grid(offer, terms)
    if clip is None or not clip.bit_slot:
        return None
    return int(centre(result.sums[UPDATE_VECTOR][-1:], bits=terms.bits)[0])
