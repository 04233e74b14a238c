"""Which local work a run's configuration asks of a site; the same in every engine."""

from __future__ import annotations

from secfl.config import RunConfig
from secfl.federation.local_work import LocalWork, PatientStep, TrainAndClip
from secfl.federation.privacy import RunTerms
from secfl.randomness import InsecureSeededRng, Rng, SystemRng
from secfl.segmentation.task import PatientTask, Task
from secfl.types import ClientId

__all__ = ["local_work"]


def local_work(name: ClientId, *, config: RunConfig, task: Task, terms: RunTerms) -> LocalWork:
    """Patient by patient, or a round of training, with noise from the system or (for tests) from a seed."""
    seed = config.privacy.insecure_test_noise
    source: Rng = SystemRng() if seed is None else InsecureSeededRng(seed)
    if terms.patient_clip is None:
        return TrainAndClip(name, task=task, terms=terms.round_terms, noise=terms.noise, noise_rng=source)
    assert isinstance(task, PatientTask)
    assert terms.noise is not None
    return PatientStep(
        name,
        task=task,
        terms=terms.round_terms,
        clip=terms.patient_clip,
        sampling_rate=config.privacy.sampling_rate,
        noise=terms.noise,
        secret=source,
    )
