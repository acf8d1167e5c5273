"""Every setting, declared once: `ModelConfig` (a model), `RunConfig` (a run), `EnergyConfig` (both, flat)."""

from .energy import PRESETS, EnergyConfig, read_config
from .fields import ConfigError, Fields, accepted, field_names, flag, read_fields, read_mapping
from .fit import check_data_fit, check_fit
from .model import ModelConfig
from .presets import PART_PRESETS
from .run import NOTHING, RunConfig

__all__ = [
    "NOTHING",
    "PART_PRESETS",
    "PRESETS",
    "ConfigError",
    "EnergyConfig",
    "Fields",
    "ModelConfig",
    "RunConfig",
    "accepted",
    "check_data_fit",
    "check_fit",
    "field_names",
    "flag",
    "read_config",
    "read_fields",
    "read_mapping",
]
