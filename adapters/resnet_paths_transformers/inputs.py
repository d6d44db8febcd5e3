"""What the models of the library take: tokens, images, sound and series, with the sizes that a configuration says."""

import inspect
from math import prod
from typing import Any

from torch import nn

from resnet_paths_plugin.plugins.model_description import ModelInput

LENGTH = 32
"""Tokens of a text where nothing says how many."""

_FRAMES = 16
"""Of encoded sound, where its length is free."""


def inputs(model: Any) -> dict[str, ModelInput]:
    """Return what a model takes by name; nothing where that is not known, or where it is one image."""
    taken = _taken(model)
    main = getattr(model, "main_input_name", None)
    found = {}
    for name in dict.fromkeys((main, *_beside(model))):
        known = _input(name, model.config) if name in taken else None
        if known is None and name == main:
            return {}
        if known is not None:
            found[str(name)] = known
    return {} if list(found) == ["pixel_values"] and taken[0] == "pixel_values" else found


def image_shape(model: Any) -> tuple[int, ...] | None:
    """Return the shape of an image for a model whose first argument is one; None for other models."""
    taken = _taken(model)
    if not taken or taken[0] != "pixel_values" or getattr(model, "main_input_name", None) != "pixel_values":
        return None
    known = _input("pixel_values", model.config)
    return known.shape if known else None


def fixed_arguments(model: Any) -> dict[str, Any]:
    """Return the arguments that switch a cache of keys and values off, which is no part of a captured model."""
    return {"use_cache": False} if "use_cache" in _taken(model) else {}


def _taken(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)


def _beside(model: Any) -> list[str]:
    """Return the names of the inputs that a model needs beside its main one."""
    config = model.config
    found = ["decoder_input_ids"] if getattr(config, "is_encoder_decoder", False) else []
    if hasattr(model, "logit_scale") and hasattr(config, "vision_config"):  # a text against an image
        found.append("pixel_values")
    return found


def _input(name: str | None, config: Any) -> ModelInput | None:
    match name:
        case "input_ids" | "decoder_input_ids":
            return _text(config.get_text_config(decoder=name == "decoder_input_ids"))
        case "pixel_values":
            return _image(getattr(config, "vision_config", None) or config)
        case "input_features":
            return _spectrogram(config)
        case "input_values":
            return _sound(config)
        case "past_values":
            channels = getattr(config, "num_input_channels", None)
            return ModelInput(shape=(config.context_length, channels)) if channels else None
    return None


def _text(config: Any) -> ModelInput | None:
    n_values = getattr(config, "vocab_size", None)
    longest = getattr(config, "max_position_embeddings", None)
    length = min(LENGTH, longest) if isinstance(longest, int) and longest > 0 else LENGTH
    return ModelInput(shape=(length,), n_values=n_values) if isinstance(n_values, int) else None


def _image(config: Any) -> ModelInput | None:
    size = getattr(config, "image_size", None)
    sides = (size, size) if isinstance(size, int) else tuple(size or (224, 224))
    channels = getattr(config, "num_channels", 3)
    frames = getattr(config, "num_frames", None)
    if len(sides) != 2 or not isinstance(channels, int):
        return None
    return ModelInput(shape=(*([frames] if isinstance(frames, int) else []), channels, *sides))


def _spectrogram(config: Any) -> ModelInput | None:
    """Return the sound that an encoder takes which halves its length: bins first, or frames first."""
    positions = getattr(config, "max_source_positions", None)
    bins, per_frame = getattr(config, "num_mel_bins", None), getattr(config, "input_feat_per_channel", None)
    if bins and positions:
        return ModelInput(shape=(bins, 2 * positions))
    return ModelInput(shape=(4 * _FRAMES, per_frame)) if per_frame else None


def _sound(config: Any) -> ModelInput | None:
    """Return a spectrogram of the length that a model is made for, or a wave of a few frames."""
    bins, longest = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
    if bins and longest:
        return ModelInput(shape=(longest, bins))
    strides = getattr(config, "conv_stride", None)
    return ModelInput(shape=(_FRAMES * prod(strides) + prod(strides),)) if strides else None
