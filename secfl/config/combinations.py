"""Which privacy mechanisms can be used together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from secfl.config.adaptive import PlateauConfig
from secfl.config.data import DataConfig
from secfl.config.multi import MultiModelConfig
from secfl.config.sections import DpMode, DpSchedule, Engine, PrivacyConfig, Scheme, TrainingConfig, Weighting

__all__ = ["check_families", "check_mechanisms", "check_training"]


def check_mechanisms(privacy: PrivacyConfig, scheme: Scheme) -> None:
    """Refuse mechanisms that cannot be combined.

    Raises:
        ValueError: Names both keys.
    """
    off = privacy.mode is DpMode.OFF
    rounds = privacy.mode is DpMode.PATIENT and privacy.schedule is DpSchedule.ROUND
    clips = privacy.layer_clips
    quantile = privacy.quantile_clip
    refusals = {
        "noise_decay: needs --dp client or patient": off and privacy.noise_decay != 1,
        "layer_clips: needs --dp client or patient": off and clips is not None,
        "layer_clips: expected at least one positive number": clips is not None
        and not (clips and all(clip > 0 for clip in clips.values())),
        "layer_clips: give either clips of layers or one --clip": clips is not None
        and privacy.clip is not None,
        "quantile_clip: needs --dp client or patient": off and quantile is not None,
        "quantile_clip: needs --dp-schedule step, where the clip bits are part of a sum": rounds
        and quantile is not None,
        "quantile_clip: one clip follows one quantile; remove layer_clips": quantile is not None
        and clips is not None,
        "percentile_laplace: has no guarantee and cannot be combined with one; expected --dp off": not off
        and privacy.percentile_laplace is not None,
    }
    if privacy.final_step_size is not None:
        refusals |= _final_step_size(privacy, privacy.final_step_size)
    if privacy.site_weights is not None:
        refusals |= _site_weights(privacy, scheme, privacy.site_weights)
    if privacy.plateau is not None:
        refusals |= _plateau(privacy, privacy.plateau)
    for message, refused in refusals.items():
        if refused:
            raise ValueError(f"privacy.{message}")


def _final_step_size(privacy: PrivacyConfig, last: float) -> dict[str, bool]:
    steps = privacy.mode is DpMode.PATIENT and privacy.schedule is DpSchedule.STEP
    return {
        "final_step_size: needs --dp patient with --dp-schedule step": not steps,
        f"final_step_size: {last:g}, expected at most privacy.step_size ({privacy.step_size:g})": (
            last > privacy.step_size
        ),
    }


def _plateau(privacy: PrivacyConfig, plateau: PlateauConfig) -> dict[str, bool]:
    levels = plateau.multipliers
    return {
        "plateau: needs --dp client or patient": privacy.mode is DpMode.OFF,
        "plateau: needs --epsilon as its cap; its multipliers replace --noise-multiplier": (
            privacy.epsilon is None
        ),
        "plateau.multipliers: expected positive numbers, each below the one before": (
            levels[-1] <= 0 or any(low >= high for high, low in pairwise(levels))
        ),
        "plateau: noise follows one rule; remove noise_decay": privacy.noise_decay != 1,
        "plateau: cannot be combined with site_weights": privacy.site_weights is not None,
    }


def _site_weights(privacy: PrivacyConfig, scheme: Scheme, weights: Mapping[str, float]) -> dict[str, bool]:
    steps = privacy.mode is DpMode.PATIENT and privacy.schedule is DpSchedule.STEP
    return {
        "site_weights: needs --dp patient with --dp-schedule step": not steps,
        "site_weights: expected positive numbers": not all(weight > 0 for weight in weights.values()),
        "site_weights: weights matter inside a secure sum; expected another --secure-agg than plain": (
            scheme is Scheme.PLAIN
        ),
        "site_weights: cannot be combined with quantile_clip, because its bits would count differently": (
            privacy.quantile_clip is not None
        ),
        "site_weights: cannot be combined with layer_clips; expected one clip for all": (
            privacy.layer_clips is not None
        ),
        "site_weights: cannot be combined with noise_decay": privacy.noise_decay != 1,
    }


def check_training(
    data: DataConfig, training: TrainingConfig, privacy: PrivacyConfig, engine: Engine
) -> None:
    """Refuse ways of training that the data or the privacy do not allow.

    Raises:
        ValueError: Names the key.
    """
    patient = privacy.mode is DpMode.PATIENT
    refusals = {
        "early_stopping: needs public images to validate on (data.public)": training.early_stopping
        is not None
        and not data.public,
        "early_stopping: keeps the best shared model, which sites' own parameters would not fit; expected "
        "local_parameters = none": training.early_stopping is not None
        and training.local_parameters != "none",
        "drift: the mean of squared norms needs equal weights": training.drift != "off"
        and training.weighting is not Weighting.EQUAL,
        "local_parameters: expected --engine inprocess or multiprocess": engine is Engine.FLOWER
        and training.local_parameters != "none",
        "local_parameters: --dp patient sums gradients of the whole model; expected none": patient
        and training.local_parameters != "none",
        "stages: --dp patient sums gradients of the whole model; expected none": patient
        and bool(training.stages),
        "objective: masked-images needs --dp off or client; it gives no gradient of one patient": patient
        and training.objective != "segmentation",
        "objective: masked-images needs local_parameters = none, no stages, no early_stopping and no proximal": (
            training.objective != "segmentation"
            and bool(
                training.local_parameters != "none"
                or training.stages
                or training.early_stopping is not None
                or training.proximal
            )
        ),
        "stages: expected numbers of rounds, from 0": any(rounds < 0 for rounds in training.stages),
        "drift: the norm of a client's update is not protected by --dp; expected off": privacy.mode
        is not DpMode.OFF
        and training.drift != "off",
        "proximal: --dp patient takes no local steps towards which it could pull; expected 0": patient
        and training.proximal > 0,
    }
    for message, refused in refusals.items():
        if refused:
            raise ValueError(f"training.{message}")


def check_families(
    multi: MultiModelConfig,
    data: DataConfig,
    training: TrainingConfig,
    privacy: PrivacyConfig,
    engine: Engine,
) -> None:
    """Refuse what a federation of several model families cannot do.

    Raises:
        ValueError: Names the key.
    """
    if not multi.families:
        return
    unknown = sorted(set(multi.average or ()) - set(multi.families))
    refusals = {
        "families: needs public images as the proxy set (data.public)": not data.public,
        "families: needs --dp off: maps of probabilities are not accounted, the ledger declares them": (
            privacy.mode is not DpMode.OFF
        ),
        "families: needs --engine inprocess": engine is not Engine.INPROCESS,
        "families: needs training.objective = segmentation": training.objective != "segmentation",
        "families: needs equal weights (training.weighting)": training.weighting is not Weighting.EQUAL,
        "families: needs local_parameters = none, no stages, no early_stopping and drift = off": bool(
            training.local_parameters != "none"
            or training.stages
            or training.early_stopping is not None
            or training.drift != "off"
        ),
        f"average: {', '.join(unknown)}: no client has this family": bool(unknown),
    }
    for message, refused in refusals.items():
        if refused:
            raise ValueError(f"multi_model.{message}")
