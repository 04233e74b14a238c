"""What a run is: typed, validated, hashed into every artefact.

A `RunConfig` comes from a TOML file and from flags; flags win. Unknown keys and impossible combinations are
refused with the key's name and what was expected.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secfl.errors import ConfigError

__all__ = [
    "CONFIG_FORMAT_VERSION",
    "DataConfig",
    "DpMode",
    "DpSchedule",
    "Engine",
    "KeyMode",
    "ModelConfig",
    "PrivacyConfig",
    "RunConfig",
    "Scheme",
    "SecureAggregationConfig",
    "ServerOptimizerName",
    "TrainingConfig",
    "Weighting",
    "load_config",
]

CONFIG_FORMAT_VERSION = 1


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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_enum_values=False, allow_inf_nan=False)


class DataConfig(_Section):
    """Where the images are.

    Attributes:
        source: A folder ``<site>/images``, ``<site>/masks``, or ``phantom``.
        phantom_images: Images per site of the phantom (train and test together).
        image_size: Side of the phantom's images, pixels.
        phantom_target: What is to be found: the deep ``vein`` with any thrombus in it, the ``thrombus`` alone, or
            all ``tissues`` (skin and fat, muscle, bone, artery, vein).
        test_fraction: Share of each site's patients kept for the test where there is no ``splits.json``.
        normalization: Of folder images, inside the field of view: one mean and deviation per image and channel,
            or ``local`` ones around every pixel, which also removes uneven illumination.
    """

    source: str = "phantom"
    phantom_images: int = Field(default=60, ge=8, le=100_000)
    image_size: int = Field(default=96, ge=32, le=1024)
    phantom_target: Literal["vein", "thrombus", "tissues"] = "vein"
    test_fraction: float = Field(default=0.25, gt=0, lt=1)
    normalization: Literal["zscore", "local"] = "zscore"

    @property
    def is_phantom(self) -> bool:
        """Whether the embedded generator makes the images."""
        return self.source == "phantom"


class ModelConfig(_Section):
    """What is trained.

    Attributes:
        name: A model family of the registry.
        channels: Feature maps per level of the U-Net.
        normalization: Layers that neither mix patients nor keep running statistics.
        test_time_augmentation: ``flips`` averages predictions over mirror images, at four times the time.
    """

    name: str = "unet"
    channels: tuple[int, ...] = (16, 16, 32, 64, 128)
    normalization: Literal["instance", "group"] = "instance"
    test_time_augmentation: Literal["none", "flips"] = "none"


class TrainingConfig(_Section):
    """How each site trains.

    Attributes:
        rounds: Federated rounds.
        local_epochs: Passes over a site's training images per round.
        batch_size: Images per step.
        learning_rate: Peak of the schedule.
        weight_decay: Decoupled weight decay of AdamW.
        schedule: Learning rate over the whole run: constant, or warm-up followed by a cosine.
        crop: Side of the square training crops, pixels; 0 trains on whole images.
        augmentation: Random flips, rotations and intensity changes.
        weighting: Equal weights, or weights by training images.
        server: What the server does with the mean update.
        server_learning_rate: Its factor.
        max_weight: Weights are clipped to 1..max_weight; a public bound.
        device: Where to train.
    """

    rounds: int = Field(default=8, ge=1, le=100_000)
    local_epochs: int = Field(default=2, ge=1, le=10_000)
    batch_size: int = Field(default=4, ge=1, le=4096)
    learning_rate: float = Field(default=6e-3, gt=0, le=10)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    schedule: Literal["constant", "cosine"] = "cosine"
    crop: int = Field(default=0, ge=0, le=4096)
    augmentation: Literal["none", "standard", "strong"] = "standard"
    weighting: Weighting = Weighting.EQUAL
    server: ServerOptimizerName = ServerOptimizerName.AVERAGE
    server_learning_rate: float = Field(default=1.0, gt=0, le=100)
    max_weight: int = Field(default=4096, ge=1, le=2**20)
    device: Device = Device.AUTO


class SecureAggregationConfig(_Section):
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


class PrivacyConfig(_Section):
    """Differential privacy.

    Attributes:
        mode: ``off``, ``client`` or ``patient``.
        epsilon: Target ε; calibrates the noise.
        delta: δ of every statement.
        noise_multiplier: Noise standard deviation over sensitivity, instead of a target ε.
        clip: L2 clip norm of one unit's contribution.
        insecure_test_noise: A seed that makes noise reproducible; the ledger then says ``NonPrivate``.
        accept_weak: Run although the aggregator's ε exceeds 20.
        schedule: What is aggregated under ``patient``.
        sampling_rate: q, each patient's chance to take part in a step (``patient``).
        steps: Private steps of the whole run (``patient``).
        nominal_patients: A public round number of training patients per site: it scales the gradient and sizes
            the modulus, and is never the true number. Needed for folder data.
        physical_batch: Images whose gradients are in memory at once.
        step_size: Learning rate of the server's Adam on the noisy gradient (``patient``).
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


class RunConfig(_Section):
    """One run, completely.

    Where ``data.source`` is a folder, keys that are not given come from `FOLDER_DEFAULTS`, so that a configuration
    that was written out holds everything.

    Attributes:
        format_version: Version of this file's format; a newer one is refused.
        clients: Number of phantom sites; for folder data it must match the folder, or be left out.
        dropout: Chance that a client drops out of a round (simulation).
        seed: Public experiment seed; never reaches keys, noise or sampling.
        threads: Torch threads; part of the configuration, because sums of floats depend on it.
        evaluate_every: Evaluate after every so many rounds and after the last; default 1, under private steps 20.
        references: Also train every site alone and on pooled data (simulation only).
        record: Keep every envelope as a file.
        include_images: Write previews although the images are not a phantom.
    """

    format_version: int = CONFIG_FORMAT_VERSION
    clients: int | None = Field(default=None, ge=1, le=1024)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    engine: Engine = Engine.INPROCESS
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int = Field(default=2, ge=1, le=256)
    evaluate_every: int | None = Field(default=None, ge=1)
    references: bool = False
    record: bool = False
    include_images: bool = False
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    secure_agg: SecureAggregationConfig = SecureAggregationConfig()
    privacy: PrivacyConfig = PrivacyConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_source(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        source = _given(given.get("data", {})).get("source", "phantom")
        if source == "phantom":
            return given
        filled = dict(given)
        for section, defaults in FOLDER_DEFAULTS.items():
            values = given.get(section, {})
            if isinstance(values, Mapping | BaseModel):
                filled[section] = {**defaults, **_given(values)}
        return filled

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.format_version > CONFIG_FORMAT_VERSION:
            raise ValueError(
                f"format_version: {self.format_version} is newer than this secfl reads "
                f"({CONFIG_FORMAT_VERSION}); upgrade secfl"
            )
        if self.clients is not None:
            check_cohort(self.clients, self.secure_agg.scheme, self.secure_agg.threshold, self.dropout)
        privacy = self.privacy
        if privacy.mode is DpMode.OFF and (privacy.epsilon or privacy.noise_multiplier):
            raise ValueError("--epsilon and --noise-multiplier need --dp client (or patient)")
        if privacy.mode is not DpMode.OFF:
            if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
                raise ValueError(
                    f"--dp {privacy.mode.value}: give exactly one of --epsilon and --noise-multiplier"
                )
            if self.training.weighting is not Weighting.EQUAL:
                raise ValueError(
                    f"--dp {privacy.mode.value}: weighting must be equal, because counts are private"
                )
        return self

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of every setting."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"secfl/v1/config" + canonical.encode()).digest()

    def to_toml(self) -> str:
        """The configuration as TOML; reading it back gives an equal one."""
        import tomli_w

        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def _given(section: Any) -> dict[str, Any]:
    """The keys of a section that were given, whether as a table or as an object; none where it is neither."""
    if isinstance(section, BaseModel):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return dict(section) if isinstance(section, Mapping) else {}


def default_threshold(clients: int) -> int:
    """``max(3, floor(2n/3) + 1)``, the planned number of survivors."""
    return max(3, 2 * clients // 3 + 1)


def check_cohort(clients: int, scheme: Scheme, threshold: int | None, dropout: float) -> int:
    """The threshold for this cohort.

    Raises:
        ValueError: The cohort is too small for secure aggregation, the threshold is outside 3..n or not above
            n/2, or drop-outs are asked for where none can be tolerated.
    """
    secure = scheme is not Scheme.PLAIN
    if secure and clients < 3:
        raise ValueError(
            f"clients: {clients} with --secure-agg {scheme.value}: expected at least 3, because of 2 clients "
            "each would learn the other's update from the sum"
        )
    if threshold is None:
        threshold = default_threshold(clients) if clients >= 3 else clients
    if threshold > clients:
        raise ValueError(f"--threshold {threshold}: expected at most the number of clients ({clients})")
    if secure and (threshold < 3 or 2 * threshold <= clients):
        raise ValueError(
            f"--threshold {threshold}: expected at least 3 and more than half of the {clients} clients"
        )
    if secure and dropout > 0 and threshold == clients:
        raise ValueError(
            f"--dropout {dropout}: with {clients} clients and threshold {threshold} every client is needed, so "
            "no drop-out can be tolerated; use at least 4 clients, or a lower --threshold where allowed"
        )
    return threshold


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Read a TOML file and lay flags over it.

    Args:
        path: The file, or ``None`` for defaults only.
        overrides: Nested mapping of flags; values that are ``None`` are not given.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value is impossible; one line that names
            the key.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: expected a TOML file in UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
    try:
        return RunConfig.model_validate(_merge(tree, overrides))
    except ValidationError as error:
        raise ConfigError(_one_line(error, path)) from None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            below = merged.get(key, {})
            merged[key] = _merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _one_line(error: ValidationError, path: Path | None) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key; allowed here: {', '.join(_allowed(first['loc'][:-1]))}"
    prefix = f"{path}: " if path else ""
    given = f" (got {first['input']!r})" if key and first["type"] != "extra_forbidden" else ""
    return f"{prefix}{key}: {message}{given}" if key else f"{prefix}{message}"


def _allowed(location: tuple[Any, ...]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return sorted(section.model_fields)


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if value is not None
    }
