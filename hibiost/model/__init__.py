"""Towers, presets, encoders from elsewhere, and model files."""

from .config import ModelConfig, presets
from .encoders import ImageEncoder, encoders, image_encoder
from .hibio import HibioModel, load, untrained

__all__ = ["HibioModel", "ImageEncoder", "ModelConfig", "encoders", "image_encoder", "load", "presets", "untrained"]
