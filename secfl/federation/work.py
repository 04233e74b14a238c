"""What is learned and which local work a run's configuration asks of a site; the same in every engine."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

from secfl.config import DpMode, DpSchedule, RunConfig
from secfl.errors import ConfigError
from secfl.federation.local_rounds import PatientRound
from secfl.federation.local_work import LocalWork, PatientStep, TrainAndClip
from secfl.federation.privacy import RunTerms, expected_batch, percentile_laplace
from secfl.federation.server_optimizer import server_optimizer
from secfl.randomness import ExperimentSeed, InsecureSeededRng, Rng, SystemRng
from secfl.segmentation.task import PatientTask, Task, Trainer
from secfl.types import ClientId, Update

__all__ = ["local_work", "make_task"]


def local_work(
    name: ClientId, *, config: RunConfig, task: Task, terms: RunTerms, trainer: Trainer | None = None
) -> LocalWork:
    """Patient by patient, or a round of training, with noise from the system or (for tests) from a seed.

    ``trainer`` trains in place of the task where a site keeps something between rounds.
    """
    privacy = config.privacy
    seed = privacy.insecure_test_noise
    source: Rng = SystemRng() if seed is None else InsecureSeededRng(seed)
    if privacy.mode is not DpMode.PATIENT:
        return TrainAndClip(
            name, task=trainer or task, terms=terms.round_terms, noise_rng=source, baseline=_baseline(config)
        )
    assert isinstance(task, PatientTask)
    if privacy.schedule is DpSchedule.STEP:
        return PatientStep(
            name,
            task=task,
            terms=terms.round_terms,
            sampling_rate=privacy.sampling_rate,
            secret=source,
        )
    return PatientRound(
        name,
        task=task,
        terms=terms.round_terms,
        sampling_rate=privacy.sampling_rate,
        expected_batch=expected_batch(config),
        optimizer=lambda: server_optimizer(privacy.local_optimizer, learning_rate=privacy.step_size),
        secret=source,
    )


def _baseline(config: RunConfig) -> Callable[[Update, str], Update] | None:
    recipe, seed = percentile_laplace(config), ExperimentSeed(config.seed)
    if recipe is None:
        return None

    def apply(update: Update, label: str) -> Update:
        return replace(update, values=recipe.apply(update.values, seed=seed, label=label))

    return apply


def make_task(config: RunConfig, factory: str | None, *, site: str | None = None) -> Task:
    """The task of a configuration, or what ``module:factory`` makes of it.

    Args:
        config: The run.
        factory: ``module:function``; ``None`` for segmentation.
        site: The site whose process this is; ``None`` for whoever coordinates, or holds all.

    Raises:
        ConfigError: There is no such factory.
    """
    if factory is None:
        from secfl.segmentation.segmentation_task import build_task

        return build_task(config, site=site)
    module, _, name = factory.partition(":")
    try:
        made: Task = getattr(importlib.import_module(module), name)(config)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"task {factory!r}: {error}; expected package.module:function") from None
    return made
