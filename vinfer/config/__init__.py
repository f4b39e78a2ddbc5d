"""The YAML file that drives vinfer: its schema, how it is loaded, and the shapes that follow from it.

Imports neither JAX nor NumPy, so that `vinfer --help` and `vinfer config` stay fast.
"""

from __future__ import annotations

from vinfer.config.hot_keys import BUILD_KEYS, HOT_KEYS, Change, changes, with_hot_keys
from vinfer.config.load import load_bundle_config, load_config, load_source
from vinfer.config.reference import json_schema, reference_table
from vinfer.config.sampling import SamplingConfig
from vinfer.config.schema import (
    ALL_REMAINING_DEVICES,
    Config,
    KVCacheConfig,
    MeshConfig,
    ModelConfig,
    PrecompileConfig,
    SpeculationConfig,
    TemplateKwargType,
    VisionConfig,
    default_cache_dir,
)
from vinfer.config.server import DistributedConfig, ImagesConfig, ServerConfig
from vinfer.config.shapes import (
    PrefillShape,
    VisionShape,
    prefill_shapes,
    slot_buckets,
    vision_shapes,
)

__all__ = [
    "ALL_REMAINING_DEVICES",
    "BUILD_KEYS",
    "HOT_KEYS",
    "Change",
    "Config",
    "DistributedConfig",
    "ImagesConfig",
    "KVCacheConfig",
    "MeshConfig",
    "ModelConfig",
    "PrecompileConfig",
    "PrefillShape",
    "SamplingConfig",
    "ServerConfig",
    "SpeculationConfig",
    "TemplateKwargType",
    "VisionConfig",
    "VisionShape",
    "changes",
    "default_cache_dir",
    "json_schema",
    "load_bundle_config",
    "load_config",
    "load_source",
    "prefill_shapes",
    "reference_table",
    "slot_buckets",
    "vision_shapes",
    "with_hot_keys",
]
