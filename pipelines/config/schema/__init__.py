"""The sections of a recipe, one file each."""

from pipelines.config.schema.data import (
    BUILT_IN_TEMPLATES,
    RESERVED_VARIABLES,
    AuditConfig,
    DataConfig,
    SourceConfig,
    UnusedKeysConfig,
)
from pipelines.config.schema.eval import EvalConfig
from pipelines.config.schema.gate import GateConfig
from pipelines.config.schema.lora import TARGET_PRESETS, LoraConfig
from pipelines.config.schema.model import ModelConfig
from pipelines.config.schema.registry import RegistryConfig
from pipelines.config.schema.resources import ResourcesConfig
from pipelines.config.schema.section import Section
from pipelines.config.schema.serve import ServeConfig
from pipelines.config.schema.train import TrainConfig

__all__ = [
    "BUILT_IN_TEMPLATES",
    "RESERVED_VARIABLES",
    "TARGET_PRESETS",
    "AuditConfig",
    "DataConfig",
    "EvalConfig",
    "GateConfig",
    "LoraConfig",
    "ModelConfig",
    "RegistryConfig",
    "ResourcesConfig",
    "Section",
    "ServeConfig",
    "SourceConfig",
    "TrainConfig",
    "UnusedKeysConfig",
]
