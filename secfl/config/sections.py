"""The sections of a run's configuration, and the words they use."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from secfl.config.adaptive import PercentileLaplaceConfig, PlateauConfig, QuantileClipConfig
from secfl.config.base import Section
from secfl.config.data import DataConfig

__all__ = [
    "FOLDER_DEFAULTS",
    "PRIVATE_PHANTOM",
    "DataConfig",
    "DeadlinesConfig",
    "Device",
    "DpMode",
    "DpSchedule",
    "Engine",
    "KeyMode",
    "ModelConfig",
    "PrivacyConfig",
    "Scheme",
    "SecureAggregationConfig",
    "ServerOptimizerName",
    "TrainingConfig",
    "Weighting",
]


class Scheme(StrEnum):
    """How updates are added."""

    PLAIN = "plain"
    MASKING = "masking"
    CKKS = "ckks"


class KeyMode(StrEnum):
    """Who holds the CKKS key."""

    SHARED = "shared"
    SUM_KEY = "sum-key"


class DpMode(StrEnum):
    """Whose presence differential privacy hides."""

    OFF = "off"
    CLIENT = "client"
    PATIENT = "patient"


class Engine(StrEnum):
    """Who carries the envelopes."""

    INPROCESS = "inprocess"
    """Objects of one process."""
    MULTIPROCESS = "multiprocess"
    """One process for each site, on this host."""
    FLOWER = "flower"
    """Flower's simulation engine (extra ``flower``)."""
    NVFLARE = "nvflare"
    """NVFlare's simulator (extra ``nvflare``)."""


class ServerOptimizerName(StrEnum):
    """What the server does with the opened mean."""

    AVERAGE = "average"
    MOMENTUM = "momentum"
    ADAM = "adam"


class DpSchedule(StrEnum):
    """What is aggregated under ``--dp patient``: every step, or rounds of several local steps."""

    STEP = "step"
    ROUND = "round"


class Weighting(StrEnum):
    """How clients count in the average."""

    EQUAL = "equal"
    SIZE = "size"


class Device(StrEnum):
    """Where the model is trained."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ModelConfig(Section):
    """What is trained.

    Attributes:
        name: A model family of the registry, ``monai:<Network>``, or your own ``package.module:factory``.
        channels: Feature maps per level, from full resolution downwards.
        normalization: Layers that neither mix patients nor keep running statistics.
        test_time_augmentation: ``flips`` averages predictions over mirror images, at four times the time.
        arguments: Further arguments of a network from outside the registry, by name.
        multiple: Sides of that network's input must be multiples of so many pixels; default 32 for MONAI's
            networks and 16 for your own.
        pretrained: A safetensors file, such as the final checkpoint of a run with ``training.objective =
            "masked-images"``, from which all but the last layer starts.
    """

    name: str = "unet"
    channels: tuple[int, ...] = (16, 16, 32, 64, 128)
    normalization: Literal["instance", "group"] = "instance"
    test_time_augmentation: Literal["none", "flips"] = "none"
    arguments: Mapping[str, Any] = {}
    multiple: int | None = Field(default=None, ge=1, le=256)
    pretrained: str | None = Field(default=None, min_length=1)


class DeadlinesConfig(Section):
    """How long sites in other processes are waited for.

    Attributes:
        training: Seconds for local work and the first message of a round.
        phase: Seconds for each later message.
        gathering: Seconds for which sites that are away are waited for before a round.
    """

    training: float = Field(default=3600.0, gt=0, le=10**6)
    phase: float = Field(default=60.0, gt=0, le=10**5)
    gathering: float = Field(default=120.0, gt=0, le=10**6)


class TrainingConfig(Section):
    """How each site trains.

    Attributes:
        rounds: Federated rounds.
        local_epochs: Passes over a site's training images per round.
        batch_size: Images per step.
        learning_rate: Peak of the schedule.
        weight_decay: Decoupled weight decay of AdamW.
        schedule: Learning rate over the whole run: ``constant``, warm-up followed by a ``cosine``, or ``poly``
            with the exponent 0.9 of nnU-Net.
        crop: Side of the training crops (squares, cubes), pixels; 0 trains on whole images.
        augmentation: Random flips, rotations and intensity changes.
        foreground_crops: Share of the training crops with a labelled pixel in the middle; by default 0 for pictures
            and one half for volumes, most of which is background.
        weighting: Equal weights, or weights by training images.
        server: What the server does with the mean update.
        server_learning_rate: Its factor.
        max_weight: Weights are clipped to 1..max_weight; a public bound.
        device: Where to train.
        proximal: μ of FedProx: local training is pulled back to the global model with this strength.
        local_parameters: Parameters that never leave a site: none, those of the ``normalization`` layers (as in
            FedBN), or the ``head``, the last layer.
        accumulate: Batches whose gradients are added up before a step.
        precision: ``bfloat16`` computes in mixed precision, on CUDA only.
        early_stopping: Stop after so many rounds without a better Dice on ``data.public``, and keep the best model.
        drift: ``measured`` adds each client's squared update norm to the secure sum, and so opens how far the sites
            pull apart; without differential privacy only.
        objective: ``masked-images`` learns without labels to fill in hidden patches, for ``model.pretrained`` of a
            later run.
        mask_patch: Side of a hidden patch, pixels.
        mask_share: Share of an image's patches that is hidden.
        stages: Rounds of training the head alone, then rounds of decoder and head; everything afterwards.
    """

    rounds: int = Field(default=8, ge=1, le=100_000)
    local_epochs: int = Field(default=2, ge=1, le=10_000)
    batch_size: int = Field(default=4, ge=1, le=4096)
    learning_rate: float = Field(default=6e-3, gt=0, le=10)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    crop: int = Field(default=0, ge=0, le=4096)
    augmentation: Literal["none", "standard", "strong"] = "standard"
    foreground_crops: float | None = Field(default=None, ge=0, le=1)
    weighting: Weighting = Weighting.EQUAL
    server: ServerOptimizerName = ServerOptimizerName.AVERAGE
    server_learning_rate: float = Field(default=1.0, gt=0, le=100)
    max_weight: int = Field(default=4096, ge=1, le=2**20)
    device: Device = Device.AUTO
    proximal: float = Field(default=0.0, ge=0, le=1e3)
    local_parameters: Literal["none", "normalization", "head"] = "none"
    accumulate: int = Field(default=1, ge=1, le=1024)
    precision: Literal["float32", "bfloat16"] = "float32"
    early_stopping: int | None = Field(default=None, ge=1)
    drift: Literal["off", "measured"] = "off"
    stages: tuple[int, ...] = Field(default=(), max_length=2)
    objective: Literal["segmentation", "masked-images"] = "segmentation"
    mask_patch: int = Field(default=8, ge=1, le=256)
    mask_share: float = Field(default=0.75, gt=0, lt=1)


class SecureAggregationConfig(Section):
    """How updates are added.

    Attributes:
        scheme: ``plain``, ``masking`` or ``ckks``.
        ckks_key: Key mode of ``ckks``.
        threshold: Fewest survivors for which a sum is opened; default ``max(3, floor(2n/3) + 1)``.
        value_bits: Bits of one client's values on the grid (without DP).
        coordinate_bound: Public bound per coordinate of an update; larger values are clipped.
    """

    scheme: Scheme = Scheme.MASKING
    ckks_key: KeyMode = KeyMode.SUM_KEY
    threshold: int | None = Field(default=None, ge=1)
    value_bits: int = Field(default=16, ge=8, le=28)
    coordinate_bound: float = Field(default=0.25, gt=0)


class PrivacyConfig(Section):
    """Differential privacy.

    Attributes:
        mode: ``off``, ``client`` or ``patient``.
        epsilon: Target ε; calibrates the noise.
        delta: δ of every statement.
        noise_multiplier: Noise standard deviation over sensitivity, instead of a target ε.
        clip: L2 clip norm of one unit's contribution.
        insecure_test_noise: A seed that makes noise reproducible; the ledger then says ``NonPrivate``.
        ledger_dir: Folder with one privacy account for each site, which several runs on the same patients share.
        account_epsilon: Cap of accounts that are started there; by default ``epsilon``. It cannot be changed later.
        policy: The sites' policy, a TOML file; a run that it does not allow is refused before anybody trains.
        accept_weak: Run although the aggregator's ε exceeds 20.
        schedule: What is aggregated under ``patient``.
        sampling_rate: q, each patient's chance to take part in a step (``patient``).
        steps: Private steps of the whole run (``patient``).
        nominal_patients: A public round number of training patients per site: it scales the gradient and sizes
            the modulus, and is never the true number. Needed for folder data.
        physical_batch: Images whose gradients are in memory at once.
        step_size: Learning rate on the noisy gradient (``patient``): of the server's Adam under ``step``, of the
            sites' optimizer under ``round``.
        final_step_size: Step size of the last step under ``step``; sizes fall linearly from ``step_size`` to it. Not
            given: all steps have one size.
        local_steps: Private steps of each site between two sums under ``round``; must divide ``steps``.
        local_optimizer: What a site does with a noisy gradient under ``round``.
        noise_decay: κ; release number i uses the multiplier z·κ^i, announced before the run.
        layer_clips: Clips by the first letters of tensors' names, instead of one ``clip``; the longest match
            counts, and every tensor needs one.
        site_weights: Public constants by site (never its number of patients): how much each one's patients count
            under one clip. Each site's noise follows its own weight, and ε is stated by site.
        quantile_clip: The clip follows a private quantile, from ``clip`` on; see `QuantileClipConfig`.
        plateau: Noise moves down announced levels when validation stops rising, within ``epsilon``; see
            `PlateauConfig`.
        percentile_laplace: A baseline without privacy, under mode ``off``; see `PercentileLaplaceConfig`.
    """

    mode: DpMode = DpMode.OFF
    epsilon: float | None = Field(default=None, gt=0, le=1e4)
    delta: float = Field(default=1e-5, ge=1e-12, le=1e-2)
    noise_multiplier: float | None = Field(default=None, gt=0, le=1e6)
    clip: float | None = Field(default=None, gt=0)
    insecure_test_noise: int | None = Field(default=None, ge=0)
    accept_weak: bool = False
    schedule: DpSchedule = DpSchedule.STEP
    sampling_rate: float = Field(default=0.05, gt=0, le=1)
    steps: int = Field(default=200, ge=1, le=10**6)
    nominal_patients: int | None = Field(default=None, ge=1, le=10**7)
    physical_batch: int = Field(default=16, ge=1, le=4096)
    step_size: float = Field(default=2e-3, gt=0)
    final_step_size: float | None = Field(default=None, gt=0)
    local_steps: int = Field(default=5, ge=1, le=10_000)
    local_optimizer: ServerOptimizerName = ServerOptimizerName.ADAM
    noise_decay: float = Field(default=1.0, ge=0.5, le=2.0)
    layer_clips: Mapping[str, float] | None = None
    site_weights: Mapping[str, float] | None = None
    quantile_clip: QuantileClipConfig | None = None
    plateau: PlateauConfig | None = None
    percentile_laplace: PercentileLaplaceConfig | None = None
    ledger_dir: str | None = Field(default=None, min_length=1)
    account_epsilon: float | None = Field(default=None, gt=0, le=1e4)
    policy: str | None = Field(default=None, min_length=1)


PRIVATE_PHANTOM: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "data": {
            "phantom_images": 1050,
            "image_size": 48,
            "phantom_target": "tissues",
            "test_fraction": 0.0476,
        },
        "model": {"channels": (8, 16, 32)},
        "privacy": {
            "mode": DpMode.PATIENT,
            "epsilon": 8.0,
            "steps": 120,
            "sampling_rate": 0.04,
            "clip": 0.3,
            "step_size": 2e-2,
        },
    }
)
"""What `secfl simulate` does when nothing is asked of it: it protects patients, on many small phantom images.

Chosen by a few runs on a phantom of another seed (7001), never on the default's test images.
"""

FOLDER_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "data": {"normalization": "local"},
        "training": {
            "rounds": 20,
            "local_epochs": 7,
            "batch_size": 2,
            "crop": 96,
            "augmentation": "strong",
        },
    }
)
"""Defaults that differ where the images come from a folder: few, large, real images need more and smaller steps."""
