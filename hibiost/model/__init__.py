"""Towers, presets, encoders from elsewhere, predictors, and their files."""

from .confidence import Calibration
from .config import ModelConfig, presets
from .encoders import ImageEncoder, encoders, image_encoder
from .features import FeatureEncoder, feature_encoder
from .hibio import HibioModel, untrained
from .predictor import Predictor, load_predictor
from .registry import card, load
from .registry import list_models as list
from .zoo import lazyslide

__all__ = [
    "Calibration",
    "FeatureEncoder",
    "HibioModel",
    "ImageEncoder",
    "ModelConfig",
    "Predictor",
    "card",
    "encoders",
    "feature_encoder",
    "image_encoder",
    "lazyslide",
    "list",
    "load",
    "load_predictor",
    "presets",
    "untrained",
]
