"""What is known of a model from outside its graph: identity, input, preprocessing, classes, stages.

Filled in by plugins (`describe_model`); the core reads it and never guesses it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from resnet_paths_plugin.tasks import Task

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes a model's input.

    Attributes:
        size: height and width that the model takes, in pixels.
        mean: mean of each channel, for channels scaled to 0..1.
        std: standard deviation of each channel, for channels scaled to 0..1.
        interpolation: filter used to resize.
        crop_fraction: share of the resized image's sides that the central crop keeps, in (0, 1].

    Examples:
        >>> rpp.Preprocessing(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).interpolation
        'bilinear'
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """What one argument of a model is, for one sample.

    Attributes:
        shape: its shape, without the batch.
        n_values: for integers, such as tokens, how many there are: they count from 0; None for floating-point numbers.

    Examples:
        >>> rpp.ModelInput(shape=(128,), n_values=50257).shape  # a text of 128 tokens
        (128,)
    """

    shape: tuple[int, ...]
    n_values: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """A model's identity and interface, as its library declares them.

    Attributes:
        library: name of the library, such as `"timm"`.
        library_version: that library's version.
        architecture: the library's own name of the model, such as `"resnet50"`.
        input_shape: shape of one sample, `(C, H, W)` for images; None where it is not known.
        preprocessing: how images become inputs; None where it is not known.
        class_names: one name per class of the output; None where they are not known.
        stages: stage number (from 0) of each module path; a module belongs to its longest prefix here. They count
            where they place every block; otherwise all stages are read off the blocks' shapes.
        inputs: what each argument is that the model takes by name, such as the tokens of a text; nothing for a model of
            one input of `input_shape`.
        arguments: arguments by name that the model is run with where a call does not give them, such as
            `{"use_cache": False}`; none of them holds a tensor.
        task: what the model is for, which says how outputs and targets are read: a `Task`, or the name of one of
            `rpp.tasks.TASKS`, such as `"next_token"`; None where
            outputs `[B, classes]` are those of a classifier.
        tokenize: returns the tokens of a text, for the command line; None where the model takes no texts, or the bytes
            of a text are its tokens.

    Examples:
        >>> net.description.library, net.description.input_shape
        ('resnet_paths_plugin', (1, 8, 8))
        >>> rpp.ModelDescription(
        ...     library="mylib", library_version="1.0", architecture="my_resnet", stages={"layer1": 0}
        ... ).stage_of("layer1.0.conv1")
        0
    """

    library: str
    library_version: str
    architecture: str
    input_shape: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    stages: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, ModelInput] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    task: "Task | str | None" = None
    tokenize: Callable[[str], Sequence[int]] | None = None

    def stage_of(self, module: str) -> int | None:
        """Return the stage of a module path, or None where no prefix of it is listed."""
        path = module
        while path:
            if path in self.stages:
                return self.stages[path]
            path = path.rpartition(".")[0]
        return None
