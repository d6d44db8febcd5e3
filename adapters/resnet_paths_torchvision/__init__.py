"""The plugin for torchvision: says what a torchvision model is, and builds one by name."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torchvision
from torch import nn
from torchvision import models

from resnet_paths_plugin import ModelDescription, ModelNotFoundError, Preprocessing, hookimpl
from resnet_paths_torchvision.builders import build, builder_of
from resnet_paths_torchvision.stages import stages

_LIBRARY = "torchvision"
# The length of clip that most of torchvision's networks for videos were trained on; no weights declare one.
_FRAMES = 16


@hookimpl
def resnet_paths_describe_model(model: nn.Module) -> ModelDescription | None:
    """Describe a model whose class comes from `torchvision.models`.

    Inputs and classes are those of its builder's default weights, as far as the model agrees with them. Where
    no builder makes such a model, its class gives the name and nothing is said of inputs and classes.
    """
    if not type(model).__module__.startswith("torchvision.models."):
        return None
    builder = builder_of(model)
    weights = _weights(model, builder) if builder else None
    preprocessing = _preprocessing(model, weights) if weights else None
    input_shape = _input_shape(model, preprocessing) if preprocessing else None
    if preprocessing and input_shape and input_shape[0] != len(preprocessing.mean):
        preprocessing = None  # statistics of colours say nothing about other channels
    return ModelDescription(
        library=_LIBRARY,
        library_version=torchvision.__version__,
        architecture=builder or type(model).__name__,
        input_shape=input_shape,
        preprocessing=preprocessing,
        class_names=_class_names(model, weights) if weights and input_shape else None,
        stages=stages(model),
    )


@hookimpl
def resnet_paths_load_model(spec: str, pretrained: bool) -> nn.Module | None:
    """Build `torchvision/NAME`, where NAME is one of `torchvision.models.list_models()`."""
    library, _, name = spec.partition("/")
    if library != _LIBRARY:
        return None
    known = models.list_models()
    if name not in known:
        nearest = difflib.get_close_matches(name.lower(), known, n=5)
        raise ModelNotFoundError(
            f"torchvision {torchvision.__version__} has no model {name!r}; "
            + (f"the nearest names are {', '.join(nearest)}" if nearest else "list_models() lists them")
        )
    return build(name, weights="DEFAULT" if pretrained else None)


@hookimpl
def resnet_paths_list_models(pattern: str, pretrained: bool) -> Sequence[str] | None:
    """List `torchvision/NAME` for each model of the library, all of which have pretrained weights."""
    library, _, _ = pattern.partition("/")
    del pretrained
    return [f"{_LIBRARY}/{name}" for name in models.list_models()] if fnmatchcase(_LIBRARY, library) else None


def _weights(model: nn.Module, builder: str) -> models.WeightsEnum:
    """Return the builder's default weights, or others that suit the image size that the model is bound to."""
    known = models.get_model_weights(builder)
    if isinstance(model, models.VisionTransformer):
        for weights in (known.DEFAULT, *known):
            if weights.transforms().crop_size == [model.image_size]:
                return weights
    return known.DEFAULT


def _preprocessing(model: nn.Module, weights: models.WeightsEnum) -> Preprocessing | None:
    """Return the transforms that the weights declare; None for those that leave images as they are."""
    preset = weights.transforms()
    if not hasattr(preset, "mean"):
        return None
    resized = preset.resize_size
    cropped = getattr(preset, "crop_size", resized)
    size = (cropped[0], cropped[-1])
    if isinstance(model, models.VisionTransformer):
        size = (model.image_size, model.image_size)
    return Preprocessing(
        size=size,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_fraction=cropped[0] / resized[0],
    )


def _input_shape(model: nn.Module, preprocessing: Preprocessing) -> tuple[int, ...]:
    stem = next(module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d)))
    frames = (_FRAMES,) if isinstance(stem, nn.Conv3d) else ()
    return (stem.in_channels, *frames, *preprocessing.size)


def _class_names(model: nn.Module, weights: models.WeightsEnum) -> tuple[str, ...] | None:
    """Return the names of the classes that the weights tell apart, if the model has one output for each."""
    names = weights.meta.get("categories", ())
    *_, last = (module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)))
    return tuple(names) if len(names) == len(last.weight) else None
