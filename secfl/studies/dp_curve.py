"""What patient-level privacy costs in Dice, with and without secure aggregation: settings, jobs, and the command.

Every arm sees the same patients and takes the same number of private steps at the same sampling rate:

- `Arm.SECURE`: every step is one round of the real protocol with pairwise masks; each clinic adds a third of the
  noise's variance, and only the sum is seen.
- `Arm.LOCAL`: without secure aggregation each clinic must add the whole noise itself; the sum carries all of it.
- `Arm.POOLED`: one site holds all patients: ordinary DP-SGD.
- `Arm.PRETRAINED`: like `SECURE`, from a model that was trained on another, public phantom.

Without noise, `SECURE` is federated averaging through the same protocol and `POOLED` one site, both without
clipping; they are the baselines, and must have converged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from secfl.errors import ConfigError

__all__ = ["CLASS_NAMES", "LARGE_TISSUES", "PRESETS", "VESSEL", "Arm", "JobSpec", "Preset", "job_specs"]

CLASS_NAMES = ("skin and fat", "muscle", "bone", "artery", "vein")
"""Foreground classes of the phantom; the vein includes its thrombus."""

LARGE_TISSUES = CLASS_NAMES[:3]
VESSEL = CLASS_NAMES[4]


class Arm(StrEnum):
    """How the noisy sum comes about."""

    SECURE = "secure"
    LOCAL = "local"
    POOLED = "pooled"
    PRETRAINED = "pretrained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Everything that the figures depend on, besides the secret randomness.

    Attributes:
        name: Of the preset.
        seeds: Experiment seeds: phantom, first weights. One run per arm, ε and seed.
        epsilons: Targets; δ beside them.
        delta: δ of every private run.
        clinics: Number of clinics.
        patients: Training patients of each clinic; one image a patient.
        test_patients: Test patients of each clinic.
        image_size: Side of the images, pixels.
        channels: Feature maps per level of the U-Net.
        sampling_rate: q.
        steps: Private steps.
        clip: L2 clip norm of one patient's gradient.
        step_size: Of the server's Adam.
        physical_batch: Images whose gradients are in memory at once.
        rounds: Federated rounds of the baseline, one pass over the data each.
        batch_size: Of the baseline and of pre-training.
        learning_rate: Of the baseline and of pre-training.
        public_seed: Of the public phantom.
        public_epochs: Passes over it.
    """

    name: str
    seeds: tuple[int, ...]
    epsilons: tuple[float, ...]
    delta: float = 1e-5
    clinics: int = 3
    patients: int
    test_patients: int
    image_size: int
    channels: tuple[int, ...]
    sampling_rate: float
    steps: int
    clip: float
    step_size: float
    physical_batch: int = 16
    rounds: int
    batch_size: int
    learning_rate: float
    public_seed: int = 7001
    public_epochs: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, in a fixed order."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                name="full",
                seeds=(1, 2, 3),
                epsilons=(8.0, 2.0),
                patients=1000,
                test_patients=50,
                image_size=48,
                channels=(8, 16, 32),
                sampling_rate=0.04,
                steps=120,
                clip=0.3,
                step_size=2e-2,
                rounds=10,
                batch_size=16,
                learning_rate=6e-3,
                public_epochs=4,
            ),
            Preset(
                name="smoke",
                seeds=(1,),
                epsilons=(8.0,),
                patients=24,
                test_patients=4,
                image_size=32,
                channels=(4, 8, 8),
                sampling_rate=0.5,
                steps=4,
                clip=0.3,
                step_size=1e-2,
                rounds=4,
                batch_size=8,
                learning_rate=6e-3,
                public_epochs=2,
            ),
        )
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One run: an arm, a target (``None``: no privacy) and a seed."""

    arm: Arm
    epsilon: float | None
    seed: int

    @property
    def name(self) -> str:
        """Of its run directory and result file."""
        level = "off" if self.epsilon is None else f"eps{self.epsilon:g}"
        return f"{self.arm.value}-{level}-seed{self.seed}"


def job_specs(preset: Preset) -> list[JobSpec]:
    """All runs of a study, the baselines first."""
    specs = [
        JobSpec(arm=arm, epsilon=None, seed=seed) for arm in (Arm.SECURE, Arm.POOLED) for seed in preset.seeds
    ]
    specs += [
        JobSpec(arm=arm, epsilon=epsilon, seed=seed)
        for seed in preset.seeds
        for epsilon in preset.epsilons
        for arm in Arm
    ]
    return specs


def preset_named(name: str) -> Preset:
    """A preset.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset {name}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def runs_folder(preset: Preset, runs: Path) -> Path:
    """Where a preset keeps its run directories."""
    return runs / f"dp-curve-{preset.name}"
