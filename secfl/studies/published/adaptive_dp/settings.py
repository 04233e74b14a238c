"""Configurations of the runs: one tree for each modality, arm and seed, of a phantom or of a folder."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secfl.errors import ConfigError, DataError
from secfl.studies.published.adaptive_dp.arms import MODALITIES, STATIC_CLIP, Arm, Modality, Rule, Size
from secfl.studies.published.interface import Request

__all__ = ["CLINICS", "DELTA", "EPSILON", "arm_settings", "modalities_of", "public_settings", "rule_settings"]

EPSILON = 8.0
"""ε of every private arm, per patient, against an aggregator that follows the protocol or does not, none colluding."""

DELTA = 1e-5
CLINICS = 3

_STATED_PARAMETER = 0.001
"""The recipe's own, as published. It is no ε of what is released."""


def modalities_of(request: Request) -> tuple[Modality, ...]:
    """All modalities of the phantom, or those that a folder holds.

    Raises:
        ConfigError: The folder has no subfolder of theirs.
    """
    if request.data == "phantom":
        return MODALITIES
    found = tuple(one for one in MODALITIES if (Path(request.data) / one.name).is_dir())
    if not found:
        names = ", ".join(one.name for one in MODALITIES)
        raise ConfigError(f"--data {request.data}: expected a folder with at least one of {names} in it")
    return found


def arm_settings(request: Request, modality: Modality, size: Size, arm: Arm, *, seed: int) -> dict[str, Any]:
    """The run of one arm."""
    tree = _common(request, modality, size, seed=seed)
    if arm in {Arm.OPEN, Arm.PAPER}:
        return tree | _open(size) | {"privacy": _recipe(arm)}
    clip = size.tuned_clip if arm is Arm.TUNED else STATIC_CLIP
    more = size.rule if arm is Arm.ADAPTIVE else {}
    declared = _declared_patients(request, modality, size)
    return tree | _private(size, declared, step_size=size.step_size[arm], keys={"clip": clip, **more})


def rule_settings(
    request: Request, modality: Modality, size: Size, rule: Rule, *, seed: int, keys: Mapping[str, Any]
) -> dict[str, Any]:
    """The run of one rule that is tried, from the static arm's clip where it says nothing else."""
    declared = _declared_patients(request, modality, size)
    clip = {} if "layer_clips" in keys else {"clip": STATIC_CLIP}
    step = size.step_size[Arm.ADAPTIVE]
    return _common(request, modality, size, seed=seed) | _private(
        size, declared, step_size=step, keys={**clip, **rule.keys, **keys}
    )


def public_settings(modality: Modality, size: Size, *, seed: int) -> dict[str, Any]:
    """The public phantom: everything but its seed as in a run, and no privacy, because it shows nobody."""
    return _phantom(modality, size, seed=seed) | {
        "privacy": {
            "mode": "patient",
            "noise_multiplier": 1.0,
            "clip": STATIC_CLIP,
            "physical_batch": size.physical_batch,
        }
    }


def _common(request: Request, modality: Modality, size: Size, *, seed: int) -> dict[str, Any]:
    secure = {"secure_agg": {"scheme": request.scheme.value}}
    if request.data == "phantom":
        return _phantom(modality, size, seed=seed) | secure
    folder = Path(request.data) / modality.name
    data = {name: value for name, value in _folder_file(folder).get("data", {}).items() if name != "source"}
    return {
        "seed": seed,
        "threads": 1,
        "data": {**data, "source": str(folder)},
        "model": dict(size.model),
    } | secure


def _phantom(modality: Modality, size: Size, *, seed: int) -> dict[str, Any]:
    everybody = size.patients + size.test_patients
    return {
        "seed": seed,
        "threads": 1,
        "clients": CLINICS,
        "data": {
            "phantom_task": modality.task,
            "phantom_images": everybody * size.images_per_patient,
            "image_size": size.image_size,
            "test_fraction": size.test_patients / everybody,
        },
        "model": dict(size.model),
    }


def _open(size: Size) -> dict[str, Any]:
    return {
        "evaluate_every": max(1, size.rounds // size.evaluations),
        "training": {
            "rounds": size.rounds,
            "local_epochs": 1,
            "batch_size": size.batch_size,
            "learning_rate": size.learning_rate,
            "augmentation": "none",
            "device": size.device,
        },
    }


def _recipe(arm: Arm) -> dict[str, Any]:
    recipe = {} if arm is Arm.OPEN else {"percentile_laplace": {"stated_epsilon": _STATED_PARAMETER}}
    return {"mode": "off", **recipe}


def _private(size: Size, declared: int, *, step_size: float, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "evaluate_every": max(1, size.steps // size.evaluations),
        "training": {"device": size.device},
        "privacy": {
            "mode": "patient",
            "epsilon": EPSILON,
            "delta": DELTA,
            "sampling_rate": size.sampling_rate,
            "steps": size.steps,
            "nominal_patients": declared,
            "physical_batch": size.physical_batch,
            "step_size": step_size,
            "final_step_size": size.last_step * step_size,
            **keys,
        },
    }


def _declared_patients(request: Request, modality: Modality, size: Size) -> int:
    if request.data == "phantom":
        return size.patients
    folder = Path(request.data) / modality.name
    declared = _folder_file(folder).get("privacy", {}).get("nominal_patients")
    if not isinstance(declared, int) or declared < 1:
        raise ConfigError(
            f"{folder / 'config.toml'}: expected privacy.nominal_patients, a public round number of training patients "
            "per site, not the true one"
        )
    return declared


def _folder_file(folder: Path) -> dict[str, Any]:
    """``config.toml`` of a modality's folder; only ``[data]`` and ``privacy.nominal_patients`` are taken from it."""
    path = folder / "config.toml"
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: expected TOML ({error})") from None
