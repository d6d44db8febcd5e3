"""Labelled images, read from an npz file or from a folder with a folder per class.

It reads only: `preprocessing` makes inputs of the images, and nothing that is read can run code.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet_paths_plugin.cli import npz
from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.files import limits
from resnet_paths_plugin.process_lock import alone

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes, in small letters, of the files of a folder that are read as images."""

_ARRAY_DIMS = 4  # N, H, W, C
# Pillow goes by a file's content, whatever its suffix: for some other formats it would start a program, Ghostscript.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

UInt8Image = NDArray[np.uint8]
"""One image in 0..255, shape `[H, W, C]`."""


_SCAN = b"\xff\xda"
"""What each scan of a JPEG file begins with."""
_PIECE_BYTES = 2**20

_COLOUR_BYTES = 3
"""Bytes of a pixel of three channels."""


class LabelledImages(ABC):
    """N images with a class each.

    Args:
        origin: where the images come from, for messages and provenance.
        labels: the classes, int64, shape `[N]`.
        classes: names of the classes that the labels count; None where they are not known.

    Attributes:
        size: height and width that all images have; None where they may differ.
        names: a name for each image, `N`; None where they have none.
    """

    size: tuple[int, int] | None = None
    names: tuple[str, ...] | None = None

    def __init__(self, origin: str, labels: NDArray[np.int64], classes: Sequence[str] | None) -> None:
        self.origin = origin
        self.labels = labels
        self.classes = None if classes is None else tuple(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return what a message calls the image."""
        return f"image {index} of {self.origin}"

    @abstractmethod
    def image(self, index: int) -> UInt8Image:
        """Return an image, shape `[H, W, C]`."""


class ImageArray(LabelledImages):
    """Images of one size, in memory.

    Args:
        origin: where the images come from, for messages and provenance.
        images: uint8, shape `[N, H, W, C]`.
        labels: integers, shape `[N]`.
        classes: names of the classes that the labels count.
        names: names of the images.

    Raises:
        InputError: an array has another dtype or shape, or there is no image.
    """

    def __init__(
        self,
        origin: str,
        images: NDArray[Any],
        labels: NDArray[Any],
        classes: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != _ARRAY_DIMS:
            raise InputError(
                f"{origin}: 'images' must be uint8 of shape (N, H, W, C), not {images.dtype} of shape {images.shape}"
            )
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise InputError(
                f"{origin}: 'labels' must be integers of shape (N,), not {labels.dtype} of shape {labels.shape}"
            )
        if len(labels) != len(images):
            raise InputError(f"{origin}: there are {len(images)} images and {len(labels)} labels; give one label each")
        if names is not None and len(names) != len(images):
            raise InputError(f"{origin}: there are {len(images)} images and {len(names)} names; give one name each")
        if not images.size:
            raise InputError(f"{origin} holds no image")
        super().__init__(origin, labels.astype(np.int64), classes)
        self.images = images
        self.names = None if names is None else tuple(names)
        self.size = (images.shape[1], images.shape[2])

    def image(self, index: int) -> UInt8Image:  # noqa: D102 - as LabelledImages
        found: UInt8Image = self.images[index]
        return found


class ImageFolder(LabelledImages):
    """Images in one folder per class, read from disk each time, so that any number of them fits into memory.

    Classes are numbered in the order of their folders' names; folders inside a class folder are read as well, links to
    folders, what is hidden, and files of other kinds are skipped.

    Args:
        folder: folder of the class folders.

    Raises:
        FileError: there are no class folders, or one of them holds no image.
    """

    def __init__(self, folder: Path) -> None:
        folders = sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
        if not folders:
            raise FileError(f"{folder} has no class folders: put the images of each class into a folder of its own")
        found = [_image_files(item) for item in folders]
        for item, files in zip(folders, found, strict=True):
            if not files:
                raise FileError(f"the class folder {item} holds no images ({', '.join(sorted(SUFFIXES))})")
        labels = np.repeat(np.arange(len(folders), dtype=np.int64), [len(files) for files in found])
        super().__init__(str(folder), labels, [item.name for item in folders])
        self.files = [file for files in found for file in files]
        self.names = tuple(_text(file.relative_to(folder)) for file in self.files)
        self._here = Path.cwd()  # which the code of a model may change

    def name(self, index: int) -> str:  # noqa: D102 - as LabelledImages
        return str(self.files[index])

    def image(self, index: int) -> UInt8Image:
        """Return an image, shape `[H, W, C]`: one channel for a grey file, three for any other.

        Raises:
            FileError: the file is damaged, no image, too large, or has more than 8 bits per channel.
        """
        file = self._here / self.files[index]
        try:
            with alone(), warnings.catch_warnings():
                # Before anything is decoded, Pillow warns of more pixels than it takes for harmless.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                opened = Image.open(file, formats=_FORMATS)
            with opened as image:
                mode = image.mode
                _check_size(image.size, file)
                if image.format == "JPEG":
                    _check_scans(file)
                pixels = np.asarray(image.convert("L" if mode in {"1", "L", "LA"} else "RGB"))
        except FileError:
            raise
        except Exception as error:  # on damaged files, Pillow's decoders raise nearly anything
            raise FileError(f"{file} cannot be read as an image: {_message(error)}") from error
        if mode.startswith(("I", "F")):  # Pillow would clip it to 255
            raise FileError(f"{file} has more than 8 bits per channel ({mode}): convert it to 8 bits")
        return np.atleast_3d(pixels)


def _check_size(size: tuple[int, int], file: Path) -> None:
    """Refuse an image whose pixels would take far more memory than its file has bytes."""
    pixels = _COLOUR_BYTES * size[0] * size[1]
    if pixels > limits.largest(file.stat().st_size):
        raise FileError(
            f"{file} cannot be read as an image: it declares {size[0]} x {size[1]} pixels, "
            f"{limits.format_bytes(pixels)}, more than {limits.LARGEST_RATIO} times its "
            f"{limits.format_bytes(file.stat().st_size)}: it is damaged, or an even ground that can be saved smaller"
        )


def _check_scans(file: Path) -> None:
    """Refuse a JPEG file that goes over its pixels so often that decoding it takes many times as long as it should."""
    scans, before = 0, b""
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            scans += (before + piece).count(_SCAN)  # which no data hold: a zero follows each 0xFF among them
            before = piece[-1:]
    if scans > limits.MOST_SCANS:
        raise FileError(
            f"{file} cannot be read as an image: it has {scans} scans, more than {limits.MOST_SCANS}: save it again, "
            "for example as a JPEG that is not progressive"
        )


def read_images(path: Path) -> LabelledImages:
    """Open labelled images: an npz file (`images`, `labels`, perhaps `classes`, `names`) or a folder of class folders.

    Raises:
        FileError: the file or folder is missing, damaged or of another kind.
        InputError: the arrays do not fit each other.
    """
    if path.is_dir():
        return ImageFolder(path)
    if not path.is_file():
        raise FileError(f"there is no file or folder {path}: give an npz file, or a folder with a folder per class")
    arrays = npz.read_arrays(path, ("images", "labels", "classes", "names"))
    missing = sorted({"images", "labels"} - set(arrays))
    if missing:
        raise FileError(
            f"{path} is no npz file with 'images' and 'labels': it lacks {' and '.join(map(repr, missing))}"
        )
    classes = arrays.get("classes")
    if classes is not None and classes.size > limits.MOST_CLASSES:
        raise FileError(f"{path} names {classes.size:,} classes, more than {limits.MOST_CLASSES:,}")
    of_classes, of_images = (
        None if texts is None else [str(name) for name in texts.ravel()] for texts in (classes, arrays.get("names"))
    )
    return ImageArray(str(path), arrays["images"], arrays["labels"], of_classes, of_images)


def targets_of(images: LabelledImages, class_names: Sequence[str] | None) -> NDArray[np.int64]:
    """Return the model's output that each image belongs to, int64, shape `[N]`.

    Where all the images' classes are among the model's, by name, they are matched; else a label is the
    output's index itself.

    Args:
        images: the images.
        class_names: one name per output of the model; None where they are not known.

    Raises:
        InputError: a class of the images has a name that the model gives to several outputs.
    """
    names, known = images.classes, tuple(class_names or ())
    if not names or names == known or not set(names) <= set(known):
        return images.labels
    for name in names:
        if known.count(name) > 1:
            raise InputError(
                f"{images.origin}: the model has {known.count(name)} classes named {name!r}, so it is not "
                "clear which is meant; use an npz file without 'classes', whose labels are indices of outputs"
            )
    check_targets(images, images.labels, len(names))
    return np.array([known.index(name) for name in names], dtype=np.int64)[images.labels]


def check_targets(images: LabelledImages, targets: NDArray[np.int64], n_classes: int) -> None:
    """Check that each image belongs to one of the classes.

    Raises:
        InputError: one does not.
    """
    wrong = np.flatnonzero((targets < 0) | (targets >= n_classes))
    if wrong.size:
        raise InputError(
            f"{images.name(int(wrong[0]))} has label {targets[wrong[0]]}, which is out of range: there are "
            f"{n_classes} classes, 0..{n_classes - 1}"
        )


def _image_files(folder: Path) -> list[Path]:
    """Return the images of a class, but for hidden ones; no link to a folder is followed, which might lead back."""
    inside = (file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(
        folder / file
        for file in inside
        if not any(part.startswith(".") for part in file.parts) and (folder / file).is_file()
    )


def _text(path: Path) -> str:
    """Return a path as text, on any system the same, with bytes that are no UTF-8 written out."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__
