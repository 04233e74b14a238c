"""The sizes of the study.

Everything was chosen on seeds that no figure of an arm comes from; `trials` has the tries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from secfl.studies.published.adaptive_dp.arms import ADAPTIVE_START, PROXY_RULES, RULES, Arm, Size
from secfl.studies.published.interface import Preset

__all__ = ["PLANS", "Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A preset.

    Attributes:
        sizes: By modality.
        tried: Modalities in which rules are tried.
        rules: Names of these rules.
    """

    sizes: Mapping[str, Size]
    tried: tuple[str, ...]
    rules: tuple[str, ...] = tuple(rule.name for rule in (*RULES, *PROXY_RULES))


def _rule(quantile: float, **more: Any) -> Mapping[str, Any]:
    clip = {
        "quantile": quantile,
        "learning_rate": 0.5,
        "bit_noise": 0.1,
        "smallest": 0.01,
        "largest": 10.0,
    }
    return {"clip": ADAPTIVE_START, "quantile_clip": clip, **more}


def _steps(static: float, tuned: float, adaptive: float) -> Mapping[Arm, float]:
    return {Arm.STATIC: static, Arm.TUNED: tuned, Arm.ADAPTIVE: adaptive}


def _seconds(open_: float, private: float) -> Mapping[Arm, float]:
    shared = {Arm.STATIC: private, Arm.TUNED: private, Arm.ADAPTIVE: private}
    return {Arm.OPEN: open_, Arm.PAPER: open_, **shared}


def _small_unet(*channels: int) -> Mapping[str, Any]:
    """MONAI's U-Net, whose first layer halves every side: a quarter of the time of the own U-Net in 3-D."""
    network = {
        "channels": list(channels),
        "strides": [2] * (len(channels) - 1),
        "kernel_size": 3,
        "norm": "instance",
        "act": "relu",
    }
    return {"name": "monai:UNet", "multiple": 2 ** (len(channels) - 1), "arguments": network}


_SKIN: Final = Size(
    image_size=32,
    model=_small_unet(4, 6, 8),
    images_per_patient=2,
    patients=1000,
    test_patients=20,
    sampling_rate=0.03,
    steps=320,
    physical_batch=96,
    step_size=_steps(0.02, 0.04, 0.04),
    tuned_clip=0.15,
    rule=_rule(0.3),
    rounds=5,
    learning_rate=0.01,
    seconds=_seconds(32.0, 57.0),
)

_KIDNEY: Final = replace(
    _SKIN,
    model=_small_unet(6, 8, 12),
    images_per_patient=1,
    patients=240,
    test_patients=12,
    sampling_rate=0.04,
    steps=160,
    physical_batch=16,
    step_size=_steps(0.04, 0.04, 0.04),
    tuned_clip=0.1,
    rule=_rule(0.2),
    batch_size=4,
    rounds=6,
    seconds=_seconds(21.0, 35.0),
)

_BRAIN: Final = replace(
    _SKIN,
    test_patients=10,
    steps=480,
    step_size=_steps(0.04, 0.04, 0.04),
    tuned_clip=0.2,
    rule=_rule(0.3),
    rounds=16,
    learning_rate=0.02,
    seconds=_seconds(80.0, 80.0),
)

_SMALL: Final = {"skin": _SKIN, "kidney": _KIDNEY, "brain": _BRAIN}


def _smoke(size: Size) -> Size:
    return replace(
        size,
        model={"channels": [4, 4, 4]} if "channels" in size.model else _small_unet(4, 4, 4),
        patients=8,
        test_patients=2,
        sampling_rate=0.5,
        steps=3,
        rounds=2,
        evaluations=3,
        seconds=_seconds(2.0, 2.0),
    )


def _paper(size: Size, *, side: int) -> Size:
    """Nobody here could run it: sizes as published systems of this kind use them, everything else as in ``small``."""
    return replace(
        size,
        image_size=side,
        model={"channels": [32, 64, 128, 256]},
        patients=1000,
        test_patients=100,
        sampling_rate=0.02,
        steps=2000,
        physical_batch=32,
        step_size=dict.fromkeys(size.step_size, 0.002),
        rounds=50,
        learning_rate=1e-3,
        evaluations=20,
        device="cuda",
        seconds=_seconds(3600.0, 7200.0),
    )


_PAPER_SIDES: Final = {"skin": 256, "kidney": 128, "brain": 240}

PLANS: Final[Mapping[Preset, Plan]] = MappingProxyType(
    {
        Preset.SMOKE: Plan(
            sizes={name: _smoke(size) for name, size in _SMALL.items()},
            tried=("skin",),
            rules=("quantile", "proxy-clip", "proxy-layers"),
        ),
        Preset.SMALL: Plan(sizes=_SMALL, tried=("skin",)),
        Preset.PAPER: Plan(
            sizes={name: _paper(size, side=_PAPER_SIDES[name]) for name, size in _SMALL.items()}, tried=()
        ),
    }
)
"""By preset."""
