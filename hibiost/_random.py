"""Seeds in, generators out; the global random state is never touched."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

RNG: TypeAlias = int | np.random.Generator
"""What every ``rng`` argument takes: a seed, or a generator that is advanced."""


def generator(rng: RNG) -> np.random.Generator:
    """A NumPy generator from a seed or a generator."""
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)


def seed(rng: RNG) -> int:
    """A seed for libraries that take integers; an integer is passed through."""
    return int(rng.integers(2**31)) if isinstance(rng, np.random.Generator) else int(rng)
