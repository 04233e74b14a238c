"""What a client does with its data in one round, up to the integers that enter the secure sum.

`TrainAndClip` trains for some epochs and bounds the whole update: the unit of privacy is the client.
`PatientStep` takes one gradient of every sampled patient and bounds each: the unit of privacy is the patient,
and the secure sum of all clients is one step of DP-SGD on the pooled patients. `secfl.federation.local_rounds`
makes several private steps before a sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secfl.crypto.codec import quantise
from secfl.crypto.weights import WEIGHT_VECTOR
from secfl.dp.clipping import GridClip, PatientAccumulator
from secfl.dp.noise import NoiseShare, PatientSum, privatize
from secfl.dp.sampling import PoissonSampler
from secfl.errors import DataError, LocalProtocolError
from secfl.federation.drift import DRIFT_VECTOR
from secfl.federation.offer import UPDATE_VECTOR, RoundOffer, RoundTerms
from secfl.federation.state import difference
from secfl.randomness import Rng
from secfl.segmentation.task import LocalResult, PatientTask, Trainer
from secfl.types import ClientId, ClippedUpdate, PrivatizedUpdate, RoundSpec, Update

__all__ = [
    "Contribution",
    "LocalReport",
    "LocalWork",
    "PatientStep",
    "TrainAndClip",
    "clipped_sum",
    "unit_clip",
]


@dataclass(slots=True, kw_only=True)
class LocalReport:
    """What stays at the site, or is shown in a simulation only.

    Attributes:
        update: The float update before clipping; ``None`` where patients are clipped one by one.
        weight: The site's weight, already clipped to its public bound; 1 with equal weights.
        clipped_fraction: Share of coordinates that clipping changed.
        train_seconds: Time of local training.
        protect_seconds: Time of clipping, rounding, noise and of preparing the party.
    """

    update: Update | None = field(default=None, repr=False)
    weight: int = 1
    clipped_fraction: float = 0.0
    train_seconds: float = 0.0
    protect_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """Integers for the secure sum, and the local report."""

    privatized: PrivatizedUpdate
    report: LocalReport


class LocalWork(Protocol):
    """A site's part of a round, before cryptography."""

    def contribute(self, offer: RoundOffer, spec: RoundSpec) -> Contribution:
        """Work on the site's data. A second attempt at the same round gets fresh noise.

        Raises:
            DataError: The update holds NaN or infinity.
        """
        ...


class TrainAndClip:
    """Local training, then one clip and one share of noise for the whole update.

    Args:
        name: The site.
        task: Holds its data.
        terms: Grid, modulus, weights, clip and noise.
        noise_rng: A secret source gives fresh noise in every attempt; a seeded one (for tests) gives a round
            the same noise whenever it is run, so that a resumed run repeats it, and is never private.
        baseline: Changes the trained update first, for comparison; label of the round -> update.
    """

    def __init__(
        self,
        name: ClientId,
        *,
        task: Trainer,
        terms: RoundTerms,
        noise_rng: Rng,
        baseline: Callable[[Update, str], Update] | None = None,
    ) -> None:
        self._name = name
        self._baseline = baseline
        self._task = task
        self._terms = terms
        self._noise_rng = noise_rng
        self._trained: tuple[int, bytes, LocalResult] | None = None

    def contribute(self, offer: RoundOffer, spec: RoundSpec) -> Contribution:
        """Train (once per round of training, however often it is attempted), clip, round, add noise."""
        began = time.perf_counter()
        key = (offer.round_index, spec.model_digest)
        if self._trained is None or self._trained[:2] != key:
            local = self._task.train(self._name, offer.state, round_index=offer.round_index)
            self._trained = (*key, local)
        local = self._trained[2]
        update = difference(local.state, offer.state)
        if self._baseline is not None:
            update = self._baseline(update, f"baseline/{self._name}/{offer.round_index}")
        trained = time.perf_counter()

        weighting = self._terms.weighting
        weight = 1 if weighting is None else weighting.clip(local.examples)
        share = 1.0 if weighting is None else weighting.share(weight)
        clipped = self._clip(update, offer, share=share)
        extra: dict[str, NDArray[np.uint32] | NDArray[np.uint64]] = {}
        if weighting is not None:
            extra[WEIGHT_VECTOR] = weighting.vector(weight, spec.vector(WEIGHT_VECTOR))
        if self._terms.drift is not None:
            extra[DRIFT_VECTOR] = self._terms.drift.vector(clipped.values)
        privatized = privatize(
            clipped,
            noise=_noise(offer, self._terms, self._name),
            bits=self._terms.bits,
            rng=self._noise_rng.fork(f"noise/{self._name}/{offer.round_index}"),
            vector_name=UPDATE_VECTOR,
            extra=extra,
        )
        report = LocalReport(
            update=update,
            weight=weight,
            clipped_fraction=clipped.clipped_fraction,
            train_seconds=trained - began,
            protect_seconds=time.perf_counter() - trained,
        )
        return Contribution(privatized=privatized, report=report)

    def _clip(self, update: Update, offer: RoundOffer, *, share: float) -> ClippedUpdate:
        releases = self._terms.releases
        if releases is not None:
            clip = releases.unit_clip(offer.announced)
            if len(clip.groups) > 1 or clip.bit_slot:
                _refuse_not_finite(update)
                return clip.clip(update.values)
        return quantise(update, self._terms.grid_of(offer.announced), share=share)


class PatientStep:
    """One step of DP-SGD: sample patients in secret, clip each one's gradient, sum, add one share of noise.

    The sum of all clients' vectors is the noisy gradient sum of the pooled sample. Each patient's gradient is
    rounded to the grid before it is added, so that one patient changes the integer sum by at most G.

    Args:
        name: The site.
        task: Gives per-patient gradients.
        terms: Modulus, clip and noise; a privacy plan is needed.
        sampling_rate: q, each patient's chance in a step.
        secret: Samples patients and draws noise. A seeded source is for tests and never private.
    """

    def __init__(
        self, name: ClientId, *, task: PatientTask, terms: RoundTerms, sampling_rate: float, secret: Rng
    ) -> None:
        self._name = name
        self._task = task
        self._terms = terms
        self._sampler = PoissonSampler(population=task.patients(name), rate=sampling_rate)
        self._secret = secret

    def contribute(self, offer: RoundOffer, spec: RoundSpec) -> Contribution:  # noqa: ARG002 - see the protocol
        """Sample anew in every attempt: a retry is a release of its own."""
        began = time.perf_counter()
        chosen = self._sampler.draw(self._secret.fork(f"patients/{self._name}/{offer.round_index}"))
        gradients = self._task.patient_gradients(self._name, offer.state, chosen)
        total, spent = clipped_sum(gradients, unit_clip(offer, self._terms, self._name))
        trained = time.perf_counter()
        privatized = privatize(
            total,
            noise=_noise(offer, self._terms, self._name),
            bits=self._terms.bits,
            rng=self._secret.fork(f"noise/{self._name}/{offer.round_index}"),
            vector_name=UPDATE_VECTOR,
        )
        report = LocalReport(
            train_seconds=trained - began - spent,
            protect_seconds=time.perf_counter() - trained + spent,
        )
        return Contribution(privatized=privatized, report=report)


def clipped_sum(gradients: Iterable[NDArray[np.float32]], clip: GridClip) -> tuple[PatientSum, float]:
    """The sum of patients' gradients, each clipped and rounded before it is added, and the seconds that took.

    Args:
        gradients: Chunks of rows, one row per patient.
        clip: Of one patient.
    """
    total = PatientAccumulator(clip)
    spent = 0.0
    for rows in gradients:
        began = time.perf_counter()
        total.add_all(np.asarray(rows))
        spent += time.perf_counter() - began
    return total.total(), spent


def unit_clip(offer: RoundOffer, terms: RoundTerms, site: ClientId) -> GridClip:
    """How one patient of a site is clipped in this round.

    Raises:
        LocalProtocolError: The terms have no privacy plan.
    """
    if terms.releases is None:
        raise LocalProtocolError("private steps: expected terms with a privacy plan")
    return terms.releases.unit_clip(offer.announced, site=site)


def _noise(offer: RoundOffer, terms: RoundTerms, site: ClientId) -> NoiseShare | None:
    if terms.releases is None:
        return None
    (share,) = terms.releases.noise(offer.round_index, offer.announced, site=site)
    return share


def _refuse_not_finite(update: Update) -> None:
    broken = np.flatnonzero(~np.isfinite(update.values))
    if broken.size:
        raise DataError(
            f"tensor {update.tensor_at(int(broken[0]))}: NaN or infinity in the update, expected finite numbers"
        )
