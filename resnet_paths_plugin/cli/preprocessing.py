"""The way from labelled images to a model's inputs, in batches.

It converts pixels and runs no model; which size and statistics a model expects comes from its description.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from resnet_paths_plugin.cli.images import LabelledImages, UInt8Image
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.files import limits
from resnet_paths_plugin.plugins.model_description import Interpolation, ModelDescription, Preprocessing

GREY, COLOUR = 1, 3
"""Numbers of channels between which images are converted."""

BATCH_BYTES = 64 * 2**20
"""Size of the inputs that are held at once where the caller does not choose."""

_INPUT_DIMS = 3  # C, H, W
_IMAGE_DIMS = 2  # H, W


class InputBatches:
    """Images as a model takes them: `(inputs, target)` batches, made anew each time they are iterated over.

    An image is brought to the model's number of channels, resized so that the model's size is the share
    `crop_fraction` of it, cropped at the centre, scaled to 0..1 and normalised. Grey becomes colour by
    repetition, colour becomes grey as Pillow weighs it (ITU-R 601-2 luma).

    Iterating yields inputs, shape `[B, C, H, W]`, and targets, int64, shape `[B]`. It raises `FileError` for
    an image that cannot be read, and `InputError` for one whose size or number of channels does not fit.

    Args:
        images: the images.
        targets: the model's output that each image belongs to, int64, shape `[N]`.
        preprocessing: what to bring images to.
        resize: whether to resize and crop; if not, every image must have the size already.
        batch_size: images per batch; None holds `BATCH_BYTES` at once, and between 8 and 256 images.
        dtype: dtype of the inputs.
    """

    tap = "input"
    """Where gradients are taken."""

    def __init__(
        self,
        images: LabelledImages,
        targets: NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        resize: bool = True,
        batch_size: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.images = images
        self.targets = targets
        self.preprocessing = preprocessing
        self.resize = resize
        self.dtype = dtype
        sample_bytes = dtype.itemsize * len(preprocessing.mean) * math.prod(preprocessing.size)
        self.batch_size = batch_size or int(np.clip(BATCH_BYTES // sample_bytes, 8, 256))

    def __len__(self) -> int:
        return math.ceil(len(self.targets) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Half precision has too few digits to normalise in.
        working = torch.promote_types(self.dtype, torch.float32)
        for start in range(0, len(self.targets), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(self.targets)))
            pixels = np.stack([self._pixels(index).transpose(2, 0, 1) for index in indices])
            inputs = functional.to_dtype(torch.from_numpy(pixels), working, scale=True)
            inputs = functional.normalize(inputs, self.preprocessing.mean, self.preprocessing.std, inplace=True)
            yield inputs.to(self.dtype), torch.from_numpy(self.targets[indices.start : indices.stop])

    def __repr__(self) -> str:
        resized = "" if self.resize else "not resized, "
        return f"{len(self.targets)} images of {self.images.origin}, {resized}{self.preprocessing}"

    @property
    def counted(self) -> str:
        """How many images there are and where they come from, in words."""
        return f"{len(self.images)} images of {self.images.origin}"

    @property
    def described(self) -> str:
        """What is done to the images, in words."""
        wanted = self.preprocessing
        way = (
            f"resized ({wanted.interpolation}) and cropped to {_size_text(wanted.size)}"
            if self.resize
            else (f"{_size_text(wanted.size)} pixels as they are")
        )
        share = f", the central {100 * wanted.crop_fraction:.3g} %" if self.resize and wanted.crop_fraction != 1 else ""
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (wanted.mean, wanted.std))
        return f"{way}{share}; mean {mean}, standard deviation {std}"

    @property
    def sample_names(self) -> tuple[str, ...] | None:
        """The images' names, which results carry; None where they have none."""
        return self.images.names and self.images.names[: len(self.targets)]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes that targets count; None where they are the model's, or not known."""
        own = np.array_equal(self.targets, self.images.labels[: len(self.targets)])
        return self.images.classes if own else None

    @property
    def dataset(self) -> NDArray[np.int64]:
        """What tells how many images there are, as the `dataset` of a `DataLoader` does."""
        return self.targets

    def head(self, count: int) -> "InputBatches":
        """Return the first `count` images, in one batch."""
        return InputBatches(
            self.images,
            self.targets[:count],
            self.preprocessing,
            resize=self.resize,
            batch_size=count,
            dtype=self.dtype,
        )

    def _pixels(self, index: int) -> UInt8Image:
        """Return an image in the model's size and number of channels, shape `[H, W, C]`."""
        wanted, name = self.preprocessing, self.images.name(index)
        image = _in_channels(self.images.image(index), len(wanted.mean), name)
        if self.resize:
            return _resized(image, wanted, name)
        if image.shape[:2] != wanted.size:
            raise InputError(
                f"{name} is {_size_text(image.shape)} pixels and the first image {_size_text(wanted.size)}: "
                "make all images one size, since it is not known which size the model takes"
            )
        return image


def preprocessing_for(
    description: ModelDescription | None,
    images: LabelledImages,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    *,
    size: tuple[int, ...] | None = None,
    crop: float | None = None,
    interpolation: Interpolation | None = None,
) -> tuple[Preprocessing, bool]:
    """Return what the images are brought to, and whether that takes resizing.

    Images that all have the model's size already, as an array of them may, stay as they are, unless a share to crop is
    given. Where the model's size is not known and none is given, all images must have the size of the first.

    Args:
        description: what is known of the model.
        images: the images.
        mean: mean of each channel, instead of the description's.
        std: standard deviation of each channel, instead of the description's.
        size: height and width, or one number for both, instead of the description's.
        crop: share of the resized image that the central crop keeps, instead of the description's.
        interpolation: filter used to resize, instead of the description's.

    Raises:
        InputError: mean and std are not known or do not fit, or the model does not take images.
    """
    known = description.preprocessing if description else None
    shape = description.input_shape if description else None
    if shape is not None and len(shape) != _INPUT_DIMS:
        raise InputError(f"the model takes inputs of shape {shape}, which is no image (C, H, W)")
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both or neither")
    if mean is None or std is None:
        if known is None:
            raise InputError(
                "it is not known how the model's inputs are normalised: give --mean and --std, one number for each "
                "channel, for channels scaled to 0..1"
            )
        mean, std = known.mean, known.std
    elif max(*mean, *std) > 1:
        raise InputError(
            f"--mean {_listed(mean)} and --std {_listed(std)} must be those of channels scaled to 0..1, and one number "
            "is above 1: divide them by 255"
        )
    _check_statistics(mean, std, shape[0] if shape else len(mean))
    if known is not None:
        wanted = replace(known, mean=mean, std=std)
    elif shape is not None:
        wanted = Preprocessing(size=(shape[1], shape[2]), mean=mean, std=std)
    else:
        height, width = images.size or images.image(0).shape[:2]
        wanted = Preprocessing(size=(height, width), mean=mean, std=std)
    wanted = replace(
        wanted,
        size=_both_sides(size) or wanted.size,
        crop_fraction=crop or wanted.crop_fraction,
        interpolation=interpolation or wanted.interpolation,
    )
    is_known = known is not None or shape is not None or size is not None
    resize = crop is not None or (is_known and images.size != wanted.size)
    if interpolation is not None and not resize:
        warnings.warn(
            f"--interpolation has no effect, as the images are {_size_text(wanted.size)} pixels already", stacklevel=2
        )
    return wanted, resize


def _both_sides(size: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Return height and width of a size that may be one number for both.

    Raises:
        InputError: if it is neither.
    """
    if size is None:
        return None
    height, width = size if len(size) == _IMAGE_DIMS else (size[0], size[0])
    if len(size) > _IMAGE_DIMS or min(height, width) < 1:
        raise InputError(f"--image-size must be one or two numbers of pixels, H or H,W, not {_listed(size)}")
    if height * width > limits.LARGEST_IMAGE:
        raise InputError(f"images of {height} x {width} pixels are more than {limits.LARGEST_IMAGE:,} in all")
    return height, width


def _check_statistics(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    if not len(mean) == len(std) == channels:
        raise InputError(
            f"--mean has {len(mean)} and --std {len(std)} numbers: give one for each of the {channels} channels"
        )
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise InputError(
            f"--mean {_listed(mean)} and --std {_listed(std)} must be finite numbers, those of --std above zero"
        )


def _listed(numbers: Sequence[float]) -> str:
    """Return numbers as the command line takes them."""
    return ",".join(f"{number:g}" for number in numbers)


def _in_channels(image: UInt8Image, channels: int, name: str) -> UInt8Image:
    given = image.shape[2]
    if given == channels:
        return image
    if given == GREY and channels == COLOUR:
        return image.repeat(COLOUR, axis=2)
    if given == COLOUR and channels == GREY:
        return np.asarray(Image.fromarray(image).convert("L"))[..., np.newaxis]
    raise InputError(f"{name} has {given} channels, and the model takes {channels}")


def _resized(image: UInt8Image, wanted: Preprocessing, name: str) -> UInt8Image:
    """Resize until the wanted crop is the wanted share of the shorter side, and crop the centre, as torchvision."""
    height, width = image.shape[:2]
    # The fraction may be a quotient such as 224 / 232, which has been rounded.
    covered = [math.floor(side / wanted.crop_fraction + 1e-6) for side in wanted.size]
    if covered[0] * width >= covered[1] * height:
        new = (covered[0], covered[0] * width // height)
    else:
        new = (covered[1] * height // width, covered[1])
    if math.prod(new) > limits.LARGEST_IMAGE:
        raise InputError(
            f"{name} is {_size_text(image.shape)} pixels and would be resized to {_size_text(new)}, more than "
            f"{limits.LARGEST_IMAGE:,} in all: crop it first"
        )
    # One by one, since Pillow knows no image of two or of five channels.
    channels = (Image.fromarray(channel) for channel in np.moveaxis(image, 2, 0))
    resized = (functional.resize(channel, list(new), InterpolationMode(wanted.interpolation)) for channel in channels)
    return np.stack([np.asarray(functional.center_crop(channel, list(wanted.size))) for channel in resized], axis=2)


def _size_text(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"
