"""What a plugin may say: the hooks of this package, with when each is called.

A plugin is a module or object whose functions carry `resnet_paths_plugin.hookimpl`. It is found through the
entry-point group `resnet_paths_plugin`, or registered on a plugin manager by hand.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy
from torch import Tensor, nn
from torch.export import ExportedProgram

from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.plugins.model_description import ModelDescription

PROJECT = "resnet_paths"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def resnet_paths_describe_model(model: nn.Module) -> ModelDescription | None:
    """Say what a model is: library, architecture, input shape, preprocessing, class names, stages.

    Called once for each model that is unraveled or loaded. The first answer that is not None wins.

    Args:
        model: the user's model, to be read only.

    Returns:
        The description, or None for a model of another library.
    """


@hookspec(firstresult=True)
def resnet_paths_load_model(spec: str, pretrained: bool) -> nn.Module | None:
    """Build the model that a specification of the form `library/name` names.

    Called by `resnet_paths_plugin.load_model` and the command line. The first answer that is not None wins.

    Args:
        spec: the specification, such as `"timm/resnet50"`.
        pretrained: whether to load the library's pretrained weights, which may need the network.

    Returns:
        The model, or None where `spec` names another library. For a name that the library does not have, raise
        `ModelNotFoundError` with the nearest names.
    """


@hookspec
def resnet_paths_list_models(pattern: str, pretrained: bool) -> Sequence[str] | None:
    """List the models of a library whose `library/name` matches a pattern, for `resnet-paths survey --models`.

    Called by `resnet_paths_plugin.list_models` and the command line; the names of all plugins are put together.

    Args:
        pattern: a pattern as a shell has it, such as `"timm/resnet*"`, of specifications that
            `resnet_paths_load_model` takes; `fnmatch.fnmatchcase` compares. A plugin may list more than match.
        pretrained: whether to list only models whose pretrained weights the library knows.

    Returns:
        The specifications in the library's own order, or None for a pattern of another library.
    """


@hookspec(firstresult=True)
def resnet_paths_capture(
    model: nn.Module, example_inputs: tuple[Any, ...], example_keywords: dict[str, Any]
) -> ExportedProgram | None:
    """Capture a model that `torch.export` does not take as it is.

    Called before the generic capture, with the model in eval mode. The first answer that is not None wins.

    Args:
        model: the user's model; leave its state as it is.
        example_inputs: the arguments of one call by position; tensors have a batch of at least two.
        example_keywords: those by name, which a plugin for models without any need not take.

    Returns:
        An exported program whose batch dimension is dynamic, or None to leave the model to the generic capture.
    """


@hookspec(firstresult=True)
def resnet_paths_detect_blocks(model: nn.Module, graph: CapturedGraph) -> Sequence[ResidualBlock] | None:
    """Find the residual blocks of a captured model in another way than the generic data-flow detector.

    Called once for each model that is unraveled, and again for each `net.sampling`, on the graph in training mode, for
    each `net.pruned`, and for each `to_module()`. The first answer that is not None wins, an empty one included; the
    generic detector is asked last.

    Args:
        model: the user's model, to be read only.
        graph: its functional data-flow graph.

    Returns:
        The blocks in execution order, or None to leave the model to other detectors.
    """


@hookspec
def resnet_paths_review_blocks(model: nn.Module, blocks: tuple[ResidualBlock, ...]) -> Sequence[ResidualBlock] | None:
    """Correct the blocks that were detected: rename, regroup or drop some, where data flow cannot know better.

    Called after detection. Reviews are folded in plugin order, each seeing the result of the one before. Use
    `dataclasses.replace` to change a block; indices are renumbered afterwards.

    Args:
        model: the user's model, to be read only.
        blocks: the blocks as they stand, in execution order.

    Returns:
        The blocks to go on with, or None to leave them as they are.
    """


@hookspec
def resnet_paths_analyzers() -> Mapping[str, type]:  # type: ignore[empty-body]  # a specification
    """Offer analyzers by name, for `plugins.analyzers()`, `resnet-paths plugins` and `resnet-paths analyze`.

    Called whenever analyzers are listed or chosen by name; this package offers its own in the same way.

    Returns:
        A class for each name, which should be that of the class; mostly a subclass of `resnet_paths_plugin.Analyzer`.
        Its constructor takes the unraveled network, or any model if it is used from Python as the others are. Its
        `attribute` takes `(inputs, target)` batches and returns an `xarray.Dataset` with its provenance.
        `resnet-paths analyze MODEL --analyzer NAME` runs it with its defaults, but for `internal_batch_size`, `seed`,
        `show_progress` and `run`, which it gets where it takes them; the result becomes a group of that name. `run` is
        the `RunOptions` of --workers, --scheduler and --resume, to be passed on to one study; without it these options
        have no effect, of which the command line warns.
    """


@hookspec
def resnet_paths_figures() -> Sequence[object]:  # type: ignore[empty-body]  # a specification
    """Offer figures, for `ds.resnet_paths.plot()`, the report and `resnet-paths analyze`.

    Called when a report is made, and when a dataset is drawn that no figure of this package fits; this package offers
    its own in the same way.

    Returns:
        Objects of `resnet_paths_plugin.Figure`, in the order in which they are tried, each with a name of its own.
    """


@hookspec
def resnet_paths_measures(model: nn.Module) -> Mapping[str, Callable[[Any, Any], Tensor]] | None:
    """Offer measures of a model's outputs, for lesions, reorderings and schedules.

    Called for each such study. The built-in measures stay beside those offered, and a target that names an output is
    checked as without them. A measure of the same name that the user passes goes before a plugin's.

    Args:
        model: the user's model, to be read only.

    Returns:
        A function of a module for each name, called with the model's outputs and the target of some samples, that
        returns one number for each sample, shape `[B]`; or None for a model whose outputs the plugin does not know.
    """
