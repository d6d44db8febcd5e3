"""The plugin for timm: says what a timm model is, and builds one by name."""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, get_args

import timm
import timm.models
import torch
from timm.data.config import resolve_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from resnet_paths_plugin import ModelDescription, ModelNotFoundError, Preprocessing, hookimpl
from resnet_paths_plugin.plugins.model_description import Interpolation
from resnet_paths_timm.stages import stages

_LIBRARY = "timm"
_CONVOLUTION_NDIM = 4


@hookimpl
def resnet_paths_describe_model(model: nn.Module) -> ModelDescription | None:
    """Describe a model whose class comes from timm, or that carries a configuration as timm gives its models.

    A model that was built directly from its class carries no configuration, so its input is not known.
    """
    config = _config(model)
    if config is None and type(model).__module__.partition(".")[0] != _LIBRARY:
        return None
    config = config or {}
    input_shape = _input_shape(model, config)
    return ModelDescription(
        library=_LIBRARY,
        library_version=timm.__version__,
        architecture=config.get("architecture") or type(model).__name__,
        input_shape=input_shape,
        preprocessing=_preprocessing(config, input_shape),
        class_names=_class_names(model, config),
        stages=stages(model),
    )


@hookimpl
def resnet_paths_load_model(spec: str, pretrained: bool) -> nn.Module | None:
    """Build `timm/NAME`, where NAME is any that `timm.create_model` takes, such as `resnet50.a1_in1k`."""
    library, _, name = spec.partition("/")
    if library != _LIBRARY:
        return None
    if ":" not in name:  # names such as "hf-hub:..." and "local-dir:..." are not in timm's registry
        _check_name(name, pretrained)
    return timm.create_model(name, pretrained=pretrained)


@hookimpl
def resnet_paths_list_models(pattern: str, pretrained: bool) -> Sequence[str] | None:
    """List `timm/NAME` for each architecture; for each of its weights, `timm/NAME.TAG`, where the pattern has a dot."""
    library, _, name = pattern.partition("/")
    if not fnmatchcase(_LIBRARY, library):
        return None
    if "." in name:
        return [f"{_LIBRARY}/{one}" for one in timm.list_models(pretrained=True)]
    known = timm.list_models()
    return [f"{_LIBRARY}/{one}" for one in known if not pretrained or timm.is_model_pretrained(one)]


def _check_name(name: str, pretrained: bool) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        raise ModelNotFoundError(
            f"timm {timm.__version__} has no model {architecture!r}; "
            + (f"the nearest names are {', '.join(nearest)}" if nearest else "timm.list_models() lists them")
        )
    known = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in known:
        raise ModelNotFoundError(
            f"timm {timm.__version__} has no weights {tag!r} for {architecture!r}; "
            + (f"it has {', '.join(known)}" if known else "it has none at all")
        )
    if pretrained and not timm.is_model_pretrained(name):
        raise ModelNotFoundError(f"timm {timm.__version__} has no pretrained weights for {architecture!r}")


def _config(model: nn.Module) -> Mapping[str, Any] | None:
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        if isinstance(config, Mapping):
            return config
    return None


def _input_shape(model: nn.Module, config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the shape that the model was built for, which may differ from that of its pretrained weights."""
    if "input_size" not in config:
        return None
    if hasattr(timm.models, "get_model_input_config"):
        return tuple(timm.models.get_model_input_config(model)["input_size"])
    # Older versions of timm keep no record; most models that are bound to a size know it themselves.
    channels, *declared = config["input_size"]
    stem = _weight(model, config.get("first_conv"))
    if stem is not None and stem.ndim == _CONVOLUTION_NDIM:
        channels = stem.shape[1]
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "img_size", None)
    return (channels, *(size or declared))


def _preprocessing(config: Mapping[str, Any], input_shape: tuple[int, ...] | None) -> Preprocessing | None:
    if input_shape is None:
        return None
    data = resolve_data_config(pretrained_cfg=dict(config))  # type: ignore[no-untyped-call]  # timm's
    if len(data["mean"]) != input_shape[0]:  # statistics of colours say nothing about other channels
        return None
    interpolation = data["interpolation"]
    return Preprocessing(
        size=(input_shape[1], input_shape[2]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=interpolation if interpolation in get_args(Interpolation) else "bicubic",
        crop_fraction=data["crop_pct"],
    )


def _class_names(model: nn.Module, config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the configuration's own names, or ImageNet's where the number of classes tells the variant."""
    classifier = _weight(model, config.get("classifier"))
    classes = len(classifier) if classifier is not None else None
    own = config.get("label_names")
    if own:
        return tuple(own) if len(own) == classes else None
    subset = infer_imagenet_subset({"num_classes": classes})
    return _imagenet_names(subset) if subset else None


def _weight(model: nn.Module, names: str | Sequence[str] | None) -> torch.Tensor | None:
    """Return the weight of the layer that a configuration names, or of the first of several.

    It is looked up in the model as it is now, where a user may have put another layer in place.
    """
    name = names if isinstance(names, str) else next(iter(names or ()), None)
    try:
        layer = model.get_submodule(name) if name else None
    except AttributeError:
        return None
    return getattr(layer, "weight", None)


@cache
def _imagenet_names(subset: str) -> tuple[str, ...]:
    return tuple(ImageNetInfo(subset).label_descriptions())
