"""What is compared: three modalities, their published figures, the arms, and the rules that were tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

__all__ = [
    "ADAPTIVE_START",
    "MODALITIES",
    "PRIVATE",
    "PROXY_RULES",
    "RULES",
    "SOURCE",
    "STATIC_CLIP",
    "Arm",
    "Modality",
    "Rule",
    "Size",
    "published_share",
]

SOURCE = "arXiv 2604.06518 (ADP-FL)"

STATIC_CLIP = 1.0
"""Clip norm of the static arm: secfl's own default, and the value of the tutorials of common DP libraries."""
ADAPTIVE_START = 0.1
"""Where a clip that follows a private quantile begins, as Andrew et al. (arXiv 1905.03871) recommend.

One that is too small grows to the quantile in a few steps; the noise of one that is too large throws the model off.
"""


class Arm(StrEnum):
    """How the same model is trained on the same patients."""

    OPEN = "no privacy"
    STATIC = "static DP"
    TUNED = "static DP, tuned clip"
    ADAPTIVE = "adaptive DP"
    PAPER = "paper reading"

    @property
    def word(self) -> str:
        """For names of runs."""
        return self.value.replace(",", "").replace(" ", "-").lower()


PRIVATE = (Arm.STATIC, Arm.TUNED, Arm.ADAPTIVE)
"""Arms with a proved ε, the same for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Modality:
    """One kind of images.

    Attributes:
        name: Also the folder's name under ``--data``.
        task: The phantom.
        published_class: Which of the phantom's classes stands beside the published figure.
        published_as: What the publication calls it.
        published: Dice by arm, per cent.
    """

    name: str
    task: str
    published_class: str
    published_as: str
    published: Mapping[Arm, float]


MODALITIES = (
    Modality(
        name="skin",
        task="dermoscopy",
        published_class="lesion",
        published_as="skin lesion",
        published=MappingProxyType({Arm.OPEN: 93.12, Arm.STATIC: 85.38, Arm.ADAPTIVE: 92.81}),
    ),
    Modality(
        name="kidney",
        task="kidney-ct",
        published_class="tumour",
        published_as="kidney tumour and cyst",
        published=MappingProxyType({Arm.OPEN: 81.00, Arm.STATIC: 69.08, Arm.ADAPTIVE: 77.26}),
    ),
    Modality(
        name="brain",
        task="brain-mri",
        published_class="core",
        published_as="NETC (tumour core without enhancement)",
        published=MappingProxyType({Arm.OPEN: 57.64, Arm.STATIC: 24.69, Arm.ADAPTIVE: 42.05}),
    ),
)


def published_share(modality: Modality) -> float:
    """Share of static DP's loss that the published adaptive arm recovered, per cent."""
    found = modality.published
    return 100 * (found[Arm.ADAPTIVE] - found[Arm.STATIC]) / (found[Arm.OPEN] - found[Arm.STATIC])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A way to choose clip or noise: keys of ``[privacy]`` on top of a size's."""

    name: str
    text: str
    keys: Mapping[str, Any] = field(default_factory=dict)


_QUANTILE = {"learning_rate": 0.5, "bit_noise": 0.1, "smallest": 0.01, "largest": 10.0}

RULES = (
    Rule(name="static", text="nothing adapts"),
    Rule(
        name="quantile",
        text="clip follows the private median of the patients' norms",
        keys={"clip": ADAPTIVE_START, "quantile_clip": {"quantile": 0.5, **_QUANTILE}},
    ),
    Rule(
        name="low-quantile",
        text="clip follows the private 20 % quantile",
        keys={"clip": ADAPTIVE_START, "quantile_clip": {"quantile": 0.2, **_QUANTILE}},
    ),
    Rule(
        name="decay",
        text="noise falls by an announced factor in every step, fixed clip",
        keys={"noise_decay": 0.995},
    ),
    Rule(
        name="quantile-decay",
        text="private median and falling noise together",
        keys={"clip": ADAPTIVE_START, "quantile_clip": {"quantile": 0.5, **_QUANTILE}, "noise_decay": 0.995},
    ),
)
"""Tried on a seed that no figure of the arms comes from, beside `PROXY_RULES`."""

PROXY_RULES = (
    Rule(name="proxy-clip", text="fixed clip: median norm on a public phantom while it is learned"),
    Rule(
        name="proxy-layers",
        text="one fixed clip for each layer, by medians on a public phantom",
    ),
)
"""Their clips come from a public job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Everything that one modality's figures depend on besides arm, seed and secret randomness.

    Attributes:
        image_size: Side of the phantom's images, pixels; a kidney volume has a quarter as many slices, at least 12.
        model: Section ``[model]``.
        images_per_patient: As the phantom makes them; a patient's images share one gradient.
        patients: Training patients of each clinic; for folder data the folder's ``config.toml`` declares them.
        test_patients: Test patients of each clinic.
        sampling_rate: q.
        steps: Private steps, each one a round.
        physical_batch: Images whose gradients are in memory at once.
        step_size: Of the server's Adam in the first step, by private arm.
        last_step: Size of the last step as a share of the first; sizes fall linearly, in every private arm.
        tuned_clip: Clip norm of the arm with the well tuned one.
        rule: The adaptive arm's.
        rounds: Of the arms without proved privacy: passes over each clinic's images.
        batch_size: Of these arms.
        learning_rate: Of these arms.
        evaluations: Of a run, while it learns.
        seconds: Expected, by arm.
    """

    image_size: int
    model: Mapping[str, Any]
    images_per_patient: int
    patients: int
    test_patients: int
    sampling_rate: float
    steps: int
    physical_batch: int = 16
    step_size: Mapping[Arm, float]
    last_step: float = 0.02
    tuned_clip: float
    rule: Mapping[str, Any]
    rounds: int
    batch_size: int = 8
    learning_rate: float
    evaluations: int = 5
    device: str = "auto"
    seconds: Mapping[Arm, float]
