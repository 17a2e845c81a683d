"""Towers, presets, and model files."""

from .config import ModelConfig, presets
from .hibio import HibioModel, load, untrained

__all__ = ["HibioModel", "ModelConfig", "load", "presets", "untrained"]
