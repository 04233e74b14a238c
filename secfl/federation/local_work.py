"""What a client does with its data in one round, up to the integers that enter the secure sum.

`TrainAndClip` trains for some epochs and bounds the whole update: the unit of privacy is the client.
`PatientStep` takes one gradient of every sampled patient and bounds each: the unit of privacy is the patient,
and the secure sum of all clients is one step of DP-SGD on the pooled patients.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from secfl.crypto.codec import quantise
from secfl.crypto.weights import WEIGHT_VECTOR
from secfl.dp.clipping import GridClip, PatientAccumulator
from secfl.dp.noise import NoiseShare, privatize
from secfl.dp.sampling import PoissonSampler
from secfl.federation.offer import UPDATE_VECTOR, RoundOffer, RoundTerms
from secfl.federation.state import difference
from secfl.randomness import Rng
from secfl.segmentation.task import LocalResult, PatientTask, Task
from secfl.types import ClientId, PrivatizedUpdate, RoundSpec, Update

__all__ = ["Contribution", "LocalReport", "LocalWork", "PatientStep", "TrainAndClip"]


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
        terms: Grid, modulus and weights.
        noise: Its share, or ``None`` without differential privacy.
        noise_rng: A secret source gives fresh noise in every attempt; a seeded one (for tests) gives a round
            the same noise whenever it is run, so that a resumed run repeats it, and is never private.
    """

    def __init__(
        self, name: ClientId, *, task: Task, terms: RoundTerms, noise: NoiseShare | None, noise_rng: Rng
    ) -> None:
        self._name = name
        self._task = task
        self._terms = terms
        self._noise = noise
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


class PatientStep:
    """One step of DP-SGD: sample patients in secret, clip each one's gradient, sum, add one share of noise.

    The sum of all clients' vectors is the noisy gradient sum of the pooled sample. Each patient's gradient is
    rounded to the grid before it is added, so that one patient changes the integer sum by at most G.

    Args:
        name: The site.
        task: Gives per-patient gradients.
        terms: Grid and modulus.
        clip: The clip of one patient.
        sampling_rate: q, each patient's chance in a step.
        noise: Its share.
        secret: Samples patients and draws noise. A seeded source is for tests and never private.
    """

    def __init__(
        self,
        name: ClientId,
        *,
        task: PatientTask,
        terms: RoundTerms,
        clip: GridClip,
        sampling_rate: float,
        noise: NoiseShare,
        secret: Rng,
    ) -> None:
        self._name = name
        self._task = task
        self._terms = terms
        self._clip = clip
        self._sampler = PoissonSampler(population=task.patients(name), rate=sampling_rate)
        self._noise = noise
        self._secret = secret

    def contribute(self, offer: RoundOffer, spec: RoundSpec) -> Contribution:  # noqa: ARG002 - see the protocol
        """Sample anew in every attempt: a retry is a release of its own."""
        began = time.perf_counter()
        source = self._secret.fork(f"patients/{self._name}/{offer.round_index}")
        chosen = self._sampler.draw(source)
        total = PatientAccumulator(self._clip)
        spent = 0.0
        for rows in self._task.patient_gradients(self._name, offer.state, chosen):
            clipping = time.perf_counter()
            total.add_all(np.asarray(rows))
            spent += time.perf_counter() - clipping
        trained = time.perf_counter()
        privatized = privatize(
            total.total(),
            noise=self._noise,
            bits=self._terms.bits,
            rng=self._secret.fork(f"noise/{self._name}/{offer.round_index}"),
            vector_name=UPDATE_VECTOR,
        )
        report = LocalReport(
            train_seconds=trained - began - spent,
            protect_seconds=time.perf_counter() - trained + spent,
        )
        return Contribution(privatized=privatized, report=report)
