"""One run, completely: every setting, which combinations are possible, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from secfl.config.base import Section
from secfl.config.combinations import check_families, check_mechanisms, check_training
from secfl.config.multi import MultiModelConfig
from secfl.config.sections import (
    FOLDER_DEFAULTS,
    DataConfig,
    DeadlinesConfig,
    DpMode,
    Engine,
    ModelConfig,
    PrivacyConfig,
    Scheme,
    SecureAggregationConfig,
    TrainingConfig,
    Weighting,
)

__all__ = ["CONFIG_FORMAT_VERSION", "RunConfig", "check_cohort", "default_threshold"]

CONFIG_FORMAT_VERSION = 1

_FIRST_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "": "format_version clients dropout engine seed threads evaluate_every references record include_images "
        "data model training secure_agg privacy",
        "data": "source phantom_images image_size test_fraction normalization",
        "model": "name channels normalization",
        "training": "rounds local_epochs batch_size learning_rate weight_decay schedule crop augmentation weighting "
        "server server_learning_rate max_weight device",
        "secure_agg": "scheme ckks_key threshold value_bits coordinate_bound",
        "privacy": "mode epsilon delta noise_multiplier clip insecure_test_noise accept_weak schedule sampling_rate "
        "steps nominal_patients physical_batch step_size",
    }
)
"""Keys of each section when format version 1 began; never extended. See `RunConfig.digest`."""


class RunConfig(Section):
    """One run, completely.

    Where ``data.source`` is a folder, keys that are not given come from `FOLDER_DEFAULTS`, so that a configuration
    that was written out holds everything.

    Attributes:
        format_version: Version of this file's format; a newer one is refused.
        clients: Number of phantom sites; for folder data it must match the folder, or be left out.
        dropout: Chance that a client drops out of a round (simulation).
        engine: Who carries the messages.
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
    deadlines: DeadlinesConfig = DeadlinesConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    secure_agg: SecureAggregationConfig = SecureAggregationConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    multi_model: MultiModelConfig = MultiModelConfig()

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
        if privacy.account_epsilon is not None and privacy.ledger_dir is None:
            raise ValueError("--account-epsilon needs --ledger-dir")
        if privacy.mode is not DpMode.OFF:
            if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
                raise ValueError(
                    f"--dp {privacy.mode.value}: give exactly one of --epsilon and --noise-multiplier"
                )
            if self.training.weighting is not Weighting.EQUAL:
                raise ValueError(
                    f"--dp {privacy.mode.value}: weighting must be equal, because counts are private"
                )
        check_mechanisms(privacy, self.secure_agg.scheme)
        check_training(self.data, self.training, privacy, self.engine)
        check_families(self.multi_model, self.data, self.training, privacy, self.engine)
        return self

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of every setting.

        A key that came after the first version of the format counts only where it differs from its default, so
        that older runs keep their digest.
        """
        canonical = json.dumps(_settings(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"secfl/v1/config" + canonical.encode()).digest()

    def to_toml(self) -> str:
        """The configuration as TOML; reading it back gives an equal one."""
        import tomli_w

        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def _settings(config: RunConfig) -> dict[str, Any]:
    """Every setting that is in the digest."""
    values = config.model_dump(mode="json")
    defaults = RunConfig.model_construct().model_dump(mode="json")
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            first, usual = _FIRST_KEYS.get(key, "").split(), defaults[key]
            counted = {name: v for name, v in value.items() if name in first or v != usual[name]}
            if counted:
                kept[key] = counted
        elif key in _FIRST_KEYS[""].split() or value != defaults[key]:
            kept[key] = value
    return kept


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


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if value is not None
    }
