"""The plugin for Hugging Face transformers: says what a model of it is, builds one by name, names its blocks by layer.

Transformers is imported when a model is asked for by name; for the models of others it is not.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from resnet_paths_plugin import ModelDescription, ModelNotFoundError, ResidualBlock, hookimpl
from resnet_paths_transformers.images import preprocessing
from resnet_paths_transformers.inputs import fixed_arguments, image_shape, inputs
from resnet_paths_transformers.layers import stages
from resnet_paths_transformers.library import NAME, is_installed, is_model, known_task, library
from resnet_paths_transformers.loading import names, trained, untrained
from resnet_paths_transformers.roles import reviewed
from resnet_paths_transformers.tokens import tokenizer_of


@hookimpl
def resnet_paths_describe_model(model: nn.Module) -> ModelDescription | None:
    """Describe a model whose class comes from transformers, or extends one of its classes."""
    if not is_model(model):
        return None
    shape = image_shape(model)
    return ModelDescription(
        library=NAME,
        library_version=library().__version__,
        architecture=type(model).__name__,
        input_shape=shape,
        preprocessing=preprocessing(model.config, shape),
        class_names=_class_names(model.config),
        stages=stages(model),
        inputs=inputs(model),
        arguments=fixed_arguments(model),
        task=known_task(model),
        tokenize=tokenizer_of(model),
    )


@hookimpl
def resnet_paths_load_model(spec: str, pretrained: bool) -> nn.Module | None:
    """Build `transformers/NAME`.

    NAME is an architecture such as `gpt2`, or a class such as `GPT2LMHeadModel`: a small model with random weights.
    With `pretrained` it is a repository's name, or a folder with `config.json` and safetensors.
    """
    library_name, _, name = spec.partition("/")
    if library_name != NAME:
        return None
    if not is_installed():
        raise ModelNotFoundError(f"{NAME} is not installed: pip install 'resnet-paths-plugin[{NAME}]'")
    return trained(name) if pretrained else untrained(name)


@hookimpl
def resnet_paths_list_models(pattern: str, pretrained: bool) -> Sequence[str] | None:
    """List `transformers/NAME` for each architecture; which repositories have weights is not known here."""
    if not fnmatchcase(NAME, pattern.partition("/")[0]) or not is_installed():
        return None
    return [] if pretrained else [f"{NAME}/{name}" for name in names()]


@hookimpl
def resnet_paths_review_blocks(model: nn.Module, blocks: tuple[ResidualBlock, ...]) -> Sequence[ResidualBlock] | None:
    """Group blocks by layer, and name them after the layer and what their branch is: `layers.3.attention`."""
    return reviewed(model, blocks) if is_model(model) else None


def _class_names(config: Any) -> tuple[str, ...] | None:
    """Return the names of the classes, unless they are numbers alone."""
    known = getattr(config, "id2label", None) or {}
    found = tuple(str(known[number]) for number in sorted(known))
    return None if not found or all(name == f"LABEL_{at}" for at, name in enumerate(found)) else found
