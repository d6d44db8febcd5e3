"""Drawn pictures of four patterns, for networks to tell apart, and how they are normalised."""

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES = ("ripples", "reeds", "slope", "pebbles")
PICTURE_SHAPE = (3, 12, 12)
MEAN = (0.5, 0.5, 0.5)
"""Mean of each channel, for channels scaled to 0..1."""
STD = (0.25, 0.25, 0.25)
"""Standard deviation of each channel, likewise."""

# How fast each pattern's wave goes down and across; pebbles are two waves that cross.
_WAVES = {"ripples": ((1, 0),), "reeds": ((0, 1),), "slope": ((0.7, 0.7),), "pebbles": ((1, 0), (0, 1))}


def draw_pictures(count: int, *, seed: int, noise: float = 0.25) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw pictures of patterns in random colours, phases and scales, under noise.

    Args:
        count: how many, the classes in turn.
        seed: seed of everything random.
        noise: standard deviation of the noise, for channels scaled to 0..1.

    Returns:
        Pictures `(count, 12, 12, 3)` and labels `(count,)`.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASS_NAMES)
    pictures = np.stack([_draw(_WAVES[CLASS_NAMES[label]], generator) for label in labels])
    noisy = pictures + generator.normal(0, noise, pictures.shape)
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8), labels


def _draw(waves: tuple[tuple[float, float], ...], generator: np.random.Generator) -> NDArray[np.float64]:
    down, across = np.indices(PICTURE_SHAPE[1:])
    scale = generator.uniform(1, 2)
    height = np.ones(PICTURE_SHAPE[1:])
    for fall, run in waves:
        height = height * np.sin(scale * (fall * down + run * across) + generator.uniform(0, 2 * np.pi))
    colour = generator.uniform(0.1, 0.4, 3)
    picture: NDArray[np.float64] = 0.5 + height[..., np.newaxis] * colour
    return picture
