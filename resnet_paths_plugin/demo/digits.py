"""Scikit-learn's handwritten digits, split once and for all into a training part and a held-out third.

The images come with scikit-learn (extra `demo`); nothing is downloaded.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.errors import InputError, ResnetPathsError
from resnet_paths_plugin.plugins.model_description import Preprocessing

Split = Literal["train", "held_out"]

CLASS_NAMES = tuple(str(digit) for digit in range(10))

# Over all 1,797 images; written out so that a description needs no data.
PREPROCESSING = Preprocessing(size=(8, 8), mean=(0.3053,), std=(0.3759,))

_HIGHEST_GREY = 16  # scikit-learn's digits have the 17 grey levels 0..16
_HELD_OUT_EVERY = 3


class MissingScikitLearnError(ResnetPathsError, ImportError):
    """The digits were asked for where scikit-learn, which holds them, is not installed."""


def load_digit_images(split: Split = "held_out") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the digits of one split as images.

    The split is stratified and needs no random numbers: of each class, in the data set's own order, every
    third image is held out. Images of one writer are therefore in both parts.

    Args:
        split: `"held_out"` (602 images) or `"train"` (1,195 images).

    Returns:
        Images, uint8 in 0..255, shape `(N, 8, 8, 1)`, and labels, int64, shape `(N,)`, both in the data
        set's order.

    Raises:
        InputError: for another split.
        MissingScikitLearnError: where scikit-learn is not installed.
    """
    if split not in ("train", "held_out"):
        raise InputError(f"There is no split {split!r} of the digits: ask for 'train' or 'held_out'.")
    digits = _read_digits()
    labels = np.asarray(digits.target, dtype=np.int64)
    chosen = _held_out(labels) == (split == "held_out")
    images = np.rint(np.asarray(digits.images) * (255 / _HIGHEST_GREY)).astype(np.uint8)
    return images[chosen, :, :, np.newaxis], labels[chosen]


def load_digits(split: Split = "held_out") -> tuple[Tensor, Tensor]:
    """Return the digits of one split as the embedded networks take them.

    Args:
        split: `"held_out"` or `"train"`; see `load_digit_images`.

    Returns:
        Inputs, float32, normalised by `PREPROCESSING`, shape `(N, 1, 8, 8)`, and labels, int64, shape `(N,)`.

    Raises:
        InputError: for another split.
        MissingScikitLearnError: where scikit-learn is not installed.
    """
    images, labels = load_digit_images(split)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    mean = torch.tensor(PREPROCESSING.mean).view(-1, 1, 1)
    std = torch.tensor(PREPROCESSING.std).view(-1, 1, 1)
    return ((inputs - mean) / std).contiguous(), torch.from_numpy(labels)


def _held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark, in each class, every third sample."""
    held_out = np.zeros(labels.shape, dtype=np.bool_)
    for label in np.unique(labels):
        held_out[np.flatnonzero(labels == label)[::_HELD_OUT_EVERY]] = True
    return held_out


def _read_digits() -> Any:
    try:
        from sklearn import datasets  # noqa: PLC0415 - an extra, needed by nothing else in this package
    except ImportError as error:
        raise MissingScikitLearnError(
            "The digits come with scikit-learn, which is not installed: "
            'install it with `pip install "resnet-paths-plugin[demo]"`.'
        ) from error
    return datasets.load_digits()
