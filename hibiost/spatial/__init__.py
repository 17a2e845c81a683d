"""Kernels on spot coordinates; arrays in, arrays out."""

from .vote import majority_vote

__all__ = ["majority_vote"]
