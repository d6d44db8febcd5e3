"""The embedded default: two small trained networks and the digits they were trained on, without any download.

Loading only; how the weights were made is `examples/train_demo.py`.
"""

from importlib import metadata
from importlib.resources import as_file, files

from torch import nn

from resnet_paths_plugin.demo.digits import (
    CLASS_NAMES,
    PREPROCESSING,
    MissingScikitLearnError,
    load_digit_images,
    load_digits,
)
from resnet_paths_plugin.demo.networks import ARCHITECTURES, PLAIN, RESNET, DigitsPlainNet, DigitsResNet
from resnet_paths_plugin.errors import ModelNotFoundError
from resnet_paths_plugin.plugins.model_description import ModelDescription
from resnet_paths_plugin.plugins.weights import load_weights

__all__ = [
    "ARCHITECTURES",
    "CLASS_NAMES",
    "LIBRARY",
    "PLAIN",
    "PREPROCESSING",
    "RESNET",
    "DigitsPlainNet",
    "DigitsResNet",
    "MissingScikitLearnError",
    "build_network",
    "describe",
    "load_digit_images",
    "load_digits",
    "load_network",
    "load_plain_network",
]

LIBRARY = "resnet_paths_plugin"


def load_network() -> DigitsResNet:
    """Return the trained residual network of 54 blocks, in eval mode, on the CPU.

    Returns:
        A network from images, float32 `(B, 1, 8, 8)`, normalised by `PREPROCESSING`, to logits `(B, 10)`.
    """
    network = DigitsResNet()
    _load_shipped_weights(network, RESNET)
    return network.eval()


def load_plain_network() -> DigitsPlainNet:
    """Return the trained plain network of 15 layers, in eval mode, on the CPU.

    Returns:
        A network with the inputs and outputs of `load_network`'s.
    """
    network = DigitsPlainNet()
    _load_shipped_weights(network, PLAIN)
    return network.eval()


def build_network(architecture: str, *, pretrained: bool = True) -> nn.Module:
    """Return an embedded network by its name, in eval mode.

    Args:
        architecture: `"digits_resnet110"` or `"digits_plain15"`.
        pretrained: whether to load the shipped weights; without them, parameters are torch's initial ones.

    Raises:
        ModelNotFoundError: for another name.
    """
    if architecture not in ARCHITECTURES:
        raise ModelNotFoundError(f"{LIBRARY} has no network {architecture!r}: it has {' and '.join(ARCHITECTURES)}.")
    network = ARCHITECTURES[architecture]()
    if pretrained:
        _load_shipped_weights(network, architecture)
    return network.eval()


def describe(model: nn.Module) -> ModelDescription | None:
    """Return what is known of an embedded network, or None for any other model.

    Args:
        model: any model; it is only read.
    """
    if isinstance(model, DigitsResNet):
        architecture = RESNET
    elif isinstance(model, DigitsPlainNet):
        architecture = PLAIN
    else:
        return None
    return ModelDescription(
        library=LIBRARY,
        library_version=metadata.version("resnet-paths-plugin"),
        architecture=architecture,
        input_shape=(1, *PREPROCESSING.size),
        preprocessing=PREPROCESSING,
        class_names=CLASS_NAMES,
        stages={"layer1": 0, "layer2": 1, "layer3": 2},
    )


def _load_shipped_weights(network: nn.Module, architecture: str) -> None:
    with as_file(files(__name__) / f"{architecture}.safetensors") as path:
        load_weights(network, path)
