"""Towers, presets, encoders from elsewhere, and model files."""

from .config import ModelConfig, presets
from .encoders import ImageEncoder, encoders, image_encoder
from .features import FeatureEncoder, feature_encoder
from .hibio import HibioModel, load, untrained

__all__ = [
    "FeatureEncoder",
    "HibioModel",
    "ImageEncoder",
    "ModelConfig",
    "encoders",
    "feature_encoder",
    "image_encoder",
    "load",
    "presets",
    "untrained",
]
