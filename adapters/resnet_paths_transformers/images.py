"""How images become inputs: from the file beside the weights, or as the library does by default."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_paths_plugin import Preprocessing
from resnet_paths_plugin.plugins.model_description import Interpolation
from resnet_paths_transformers.library import NAME, library

_FILTERS: Mapping[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""What numbers mean that Pillow gives to filters."""


def preprocessing(config: Any, shape: tuple[int, ...] | None) -> Preprocessing | None:
    """Return how images become inputs of a shape `[C, H, W]`; None where that is not known."""
    if shape is None or len(shape) != 3:
        return None
    known = _of_folder(config) or _of_library(config)
    if known is None:
        return None
    mean, std = known.get("image_mean"), known.get("image_std")
    normalized = known.get("do_normalize") is not False
    mean, std = (mean, std) if normalized and mean and std else ((0.0,) * shape[0], (1.0,) * shape[0])
    if len(mean) != shape[0]:
        return None
    return Preprocessing(
        size=(shape[1], shape[2]),
        mean=tuple(mean),
        std=tuple(std),
        interpolation=_FILTERS.get(int(2 if known.get("resample") is None else known["resample"]), "bicubic"),
        crop_fraction=_crop_fraction(known),
    )


def _of_folder(config: Any) -> Mapping[str, Any] | None:
    """Return the settings that lie beside the weights, where these came from a folder."""
    file = Path(getattr(config, "_name_or_path", "") or ".") / "preprocessor_config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, Mapping) else None


def _of_library(config: Any) -> Mapping[str, Any] | None:
    """Return the default settings of the class that prepares images of an architecture."""
    names = importlib.import_module(f"{NAME}.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    found = names.get(config.model_type)
    name = found.get("torchvision") or found.get("pil") if isinstance(found, Mapping) else found
    processor = getattr(library(), name, None) if isinstance(name, str) else None
    settings = ("image_mean", "image_std", "size", "crop_size", "resample", "crop_pct", "do_center_crop")
    return None if processor is None else {one: getattr(processor, one, None) for one in settings}


def _crop_fraction(known: Mapping[str, Any]) -> float:
    """Return the share of the resized sides that the central crop keeps."""
    if known.get("crop_pct"):
        return float(known["crop_pct"])
    size, crop = known.get("size"), known.get("crop_size")
    whole = size.get("shortest_edge") if isinstance(size, Mapping) else size
    part = crop.get("height") if isinstance(crop, Mapping) else crop
    if not known.get("do_center_crop") or not isinstance(whole, int) or not isinstance(part, int):
        return 1.0
    return min(1.0, part / whole)
