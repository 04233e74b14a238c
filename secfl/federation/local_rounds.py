"""Several private steps at a site, then one secure sum of the models' differences (`--dp-schedule round`)."""

from __future__ import annotations

import time
from collections.abc import Callable

from secfl.crypto.codec import quantise, to_residues
from secfl.dp.noise import noisy_sum
from secfl.dp.sampling import PoissonSampler
from secfl.errors import LocalProtocolError
from secfl.federation.local_work import Contribution, LocalReport, clipped_sum, unit_clip
from secfl.federation.offer import UPDATE_VECTOR, RoundOffer, RoundTerms
from secfl.federation.server_optimizer import ServerOptimizer
from secfl.federation.state import apply_update, difference
from secfl.randomness import Rng
from secfl.segmentation.task import PatientTask
from secfl.types import ClientId, PrivatizedUpdate, RoundSpec, Update

__all__ = ["PatientRound"]


class PatientRound:
    """A round of DP-SGD at one site with the site's own noise, whole in every step.

    In each local step the site samples its patients in secret, clips and rounds each one's gradient, and adds
    integer noise of the full width zG to their sum before it uses it: a Poisson-sampled Gaussian mechanism with
    multiplier z, sound without any cryptography. Everything later (the local optimizer, the difference of the
    models, rounding it to bounded coordinates, the secure sum) is post-processing. No noise is added to the
    difference, and none of the other clients' noise is claimed (docs/privacy.md, "Rounds of local steps").

    The optimizer starts anew in every round, so that what a site does depends on the global model, the round and
    its own secrets alone.

    Args:
        name: The site.
        task: Gives per-patient gradients.
        terms: Grid of the difference, clip and noise of a step; a privacy plan is needed.
        sampling_rate: q, each patient's chance in a step.
        expected_batch: The public constant by which a noisy sum is divided, never the size of a batch.
        optimizer: A new local optimizer.
        secret: Samples patients and draws noise. A seeded source is for tests and never private.
    """

    def __init__(
        self,
        name: ClientId,
        *,
        task: PatientTask,
        terms: RoundTerms,
        sampling_rate: float,
        expected_batch: float,
        optimizer: Callable[[], ServerOptimizer],
        secret: Rng,
    ) -> None:
        self._name = name
        self._task = task
        self._terms = terms
        self._sampler = PoissonSampler(population=task.patients(name), rate=sampling_rate)
        self._expected_batch = expected_batch
        self._optimizer = optimizer
        self._secret = secret
        self._trained: tuple[tuple[int, bytes, bytes], Update, LocalReport, str] | None = None

    def contribute(self, offer: RoundOffer, spec: RoundSpec) -> Contribution:
        """The model's difference after the local steps.

        A further attempt at the same round sends the same difference: it was released once, and drawing again
        would be another release.
        """
        key = (offer.round_index, spec.model_digest, offer.announced.encode())
        if self._trained is None or self._trained[0] != key:
            self._trained = (key, *self._train(offer))
        _, update, report, noise = self._trained
        began = time.perf_counter()
        clipped = quantise(update, self._terms.grid)
        words = to_residues(clipped.values, bits=self._terms.bits)
        return Contribution(
            privatized=PrivatizedUpdate(vectors={UPDATE_VECTOR: words}, noise=noise),
            report=LocalReport(
                update=update,
                clipped_fraction=clipped.clipped_fraction,
                train_seconds=report.train_seconds,
                protect_seconds=report.protect_seconds + time.perf_counter() - began,
            ),
        )

    def _train(self, offer: RoundOffer) -> tuple[Update, LocalReport, str]:
        began = time.perf_counter()
        terms, name, index = self._terms, self._name, offer.round_index
        if terms.releases is None:
            raise LocalProtocolError("private steps: expected terms with a privacy plan")
        clip = unit_clip(offer, terms, name)
        shares = terms.releases.noise(index, offer.announced, site=name)
        optimizer, state, protecting = self._optimizer(), offer.state, 0.0
        for step, share in enumerate(shares):
            chosen = self._sampler.draw(self._secret.fork(f"patients/{name}/{index}/{step}"))
            total, spent = clipped_sum(self._task.patient_gradients(name, state, chosen), clip)
            since = time.perf_counter()
            noisy = noisy_sum(total, noise=share, rng=self._secret.fork(f"noise/{name}/{index}/{step}"))
            protecting += spent + time.perf_counter() - since
            state = apply_update(state, optimizer.step(-clip.to_real(noisy) / self._expected_batch))
        report = LocalReport(
            train_seconds=time.perf_counter() - began - protecting, protect_seconds=protecting
        )
        words = f"{shares[0].family} sigma={shares[0].sigma!r} in each of {len(shares)} local steps"
        if not self._secret.is_secret:
            words += " (seeded, not private)"
        return difference(state, offer.state), report, words
