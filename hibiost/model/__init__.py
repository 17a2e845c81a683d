"""Towers, presets, encoders from elsewhere, predictors, and their files."""

from .confidence import Calibration
from .config import ModelConfig, presets
from .encoders import ImageEncoder, encoders, image_encoder
from .features import FeatureEncoder, feature_encoder
from .hibio import HibioModel, load, untrained
from .predictor import Predictor, load_predictor

__all__ = [
    "Calibration",
    "FeatureEncoder",
    "HibioModel",
    "ImageEncoder",
    "ModelConfig",
    "Predictor",
    "encoders",
    "feature_encoder",
    "image_encoder",
    "load",
    "load_predictor",
    "presets",
    "untrained",
]
