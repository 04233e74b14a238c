"""What a run is: typed, validated, hashed into every artefact.

A `RunConfig` comes from a TOML file and from flags; flags win. Unknown keys and impossible combinations are
refused with the key's name and what was expected.
"""

from secfl.config.adaptive import PercentileLaplaceConfig, PlateauConfig, QuantileClipConfig, Validation
from secfl.config.loading import load_config
from secfl.config.multi import MultiModelConfig
from secfl.config.run import CONFIG_FORMAT_VERSION, RunConfig, check_cohort, default_threshold
from secfl.config.sections import (
    FOLDER_DEFAULTS,
    PRIVATE_PHANTOM,
    DataConfig,
    DeadlinesConfig,
    Device,
    DpMode,
    DpSchedule,
    Engine,
    KeyMode,
    ModelConfig,
    PrivacyConfig,
    Scheme,
    SecureAggregationConfig,
    ServerOptimizerName,
    TrainingConfig,
    Weighting,
)

__all__ = [
    "CONFIG_FORMAT_VERSION",
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
    "MultiModelConfig",
    "PercentileLaplaceConfig",
    "PlateauConfig",
    "PrivacyConfig",
    "QuantileClipConfig",
    "RunConfig",
    "Scheme",
    "SecureAggregationConfig",
    "ServerOptimizerName",
    "TrainingConfig",
    "Validation",
    "Weighting",
    "check_cohort",
    "default_threshold",
    "load_config",
]
