"""The way in: a model is captured, its blocks or layers are found, and an UnraveledNetwork is made of them."""

from collections.abc import Iterable
from typing import Any, get_args

import pluggy
import torch
from torch import nn

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.capture import capture
from resnet_paths_plugin.graph.export import eval_mode
from resnet_paths_plugin.graph.free_batch import widened
from resnet_paths_plugin.graph.keywords import call_arguments, named_arguments, packed, signature_of
from resnet_paths_plugin.graph.layers import detect_layers
from resnet_paths_plugin.network.captured_network import Optimization, Units, known_optimizations
from resnet_paths_plugin.network.grouping import find_blocks, with_stages
from resnet_paths_plugin.network.network_view import NetworkView
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.model_description import ModelDescription
from resnet_paths_plugin.process_lock import alone
from resnet_paths_plugin.tasks import Readout, Task, task_of
from resnet_paths_plugin.tasks.readout import Output


def unravel(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    units: Units = "blocks",
    optimize: Iterable[Optimization] = (),
    plugin_manager: pluggy.PluginManager | None = None,
    verify: bool = True,
    n_inputs: int | None = None,
    task: Task | str | None = None,
    output: Output | None = None,
) -> UnraveledNetwork:
    """Capture a model and find its residual blocks, or the layers of any network that can be deleted.

    Any threads may call it, with one model or several: one captures at a time, and other threads' calls of that model
    wait until it is traced. Ctrl-C is obeyed when the model and the process are as they were.

    Args:
        model: any module that `torch.export` can follow; it is not changed. An unraveled network is returned as is.
        example_inputs: the arguments of one call, with a batch: a tensor, a tuple of arguments by position, a dict of
            arguments by name (such as a `BatchEncoding`), or both, `(args, kwargs)`. Arguments that are no tensors are
            fixed by the capture. None takes the inputs from a plugin's description of the model.
        units: `"blocks"`, the residual blocks; or `"layers"`, in any network, the weighted operations (each with the
            norm and the activation behind it) whose output has their input's shape: deleted, such a layer becomes
            the identity (the plain network of Fig. 3). Path gradients need blocks.
        optimize: what to do for speed at the price of the last digits; nothing by default, where outputs equal the
            model's bit for bit on a CPU. `"fold_batch_norm"` works batch norms into the convolutions before them,
            `"channels_last"` lays images and kernels out for the faster routines of many devices, and `"compile"`
            has `torch.compile` make one function of all that lies between two sums (for forward passes; a
            minute or so at the first run). The model is not changed, and later changes of its weights show as before.
        plugin_manager: the plugin manager; None takes that of the installed plugins.
        verify: whether studies and views compare the network with the model as it is then, at their first batch;
            `RunOptions(verify=...)` decides it for one study.
        n_inputs: how many of the tensors in `example_inputs`, from the first, share the batch; the others, such as
            prototypes or a table that all samples read, share it only where the model itself shows that they do
            (analyzers say so of `additional_forward_args`). None for all that have as many rows.
        task: what the model is for, which says how outputs and targets are read: a name of `rpp.tasks.TASKS`, such as
            `"next_token"`, or a `rpp.tasks.Task`. None takes it from a plugin's description of the model, and where
            that has none reads outputs `[B, classes]` as class scores.
        output: which of the model's outputs is the scores: a key or attribute, an index, or a function of the outputs.
            None takes the only tensor, or the one called `logits`.

    Returns:
        The network; without blocks where the model has none.

    Raises:
        InputError: if the input shape is not known, or there is no tensor with a batch.
        CaptureError: if the model cannot be captured.
        PluginError: if a plugin answers what its hook does not allow.

    Examples:
        >>> net = rpp.unravel(model, images)
        >>> len(net.blocks)
        6
        >>> len(rpp.unravel(demo.load_plain_network(), images, units="layers").blocks)
        11
    """
    wanted = known_optimizations(optimize)
    named_task = task_of(task)
    if units not in get_args(Units):
        raise InputError(f"units must be one of {', '.join(map(repr, get_args(Units)))}, not {units!r}")
    if isinstance(model, UnraveledNetwork):
        _check_same(model, units, wanted, Readout(named_task, output))
        return model
    if isinstance(model, NetworkView):
        raise InputError(
            f"{type(model).__name__} is a view of a network: pass the network itself, or the "
            "model, which is its `.model`"
        )
    if not isinstance(model, nn.Module):
        raise InputError(f"a model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a scripted or traced module cannot be captured: pass the module that it was made from")
    description = plugins.describe(model, plugin_manager)
    if example_inputs is None:
        example_inputs = _inputs_like(model, description)
    args = _with_fixed(model, call_arguments(example_inputs), description)
    with eval_mode(model):
        program = plugins.capture(model, widened(args), plugin_manager)
    graph = capture(model, args, program, n_inputs=n_inputs, verify=verify)
    names = [str(plugin) for plugin in plugins.listing(plugin_manager)]
    readout = Readout(named_task or task_of(description.task if description else None), output)
    if units == "layers":
        graph, layers = detect_layers(graph)
        layers = with_stages(layers, description)
        return UnraveledNetwork(
            graph,
            layers,
            description,
            names,
            units=units,
            optimize=wanted,
            plugin_manager=plugin_manager,
            verify=verify,
            readout=readout,
        )
    blocks = find_blocks(graph, description, plugin_manager)
    return UnraveledNetwork(
        graph,
        blocks,
        description,
        names,
        optimize=wanted,
        plugin_manager=plugin_manager,
        verify=verify,
        readout=readout,
    )


def _check_same(network: UnraveledNetwork, units: Units, optimize: tuple[Optimization, ...], readout: Readout) -> None:
    """Refuse to give an unraveled network other options than it was made with."""
    name, other = network.name, ""
    if network.units != units:
        raise InputError(
            f"{name} was unraveled into {network.units}: unravel the model itself again with units={units!r}"
        )
    if optimize and optimize != network.optimize:
        other = f"optimize={network.optimize!r}: unravel the model itself again with optimize={optimize!r}"
    elif readout not in (Readout(), network.readout):
        other = f"{network.readout}: unravel the model itself again with another task or output"
    if other:
        raise InputError(f"{name} was unraveled with {other}")


def _with_fixed(model: nn.Module, args: tuple[Any, ...], description: ModelDescription | None) -> tuple[Any, ...]:
    """Return arguments with those that the model is run with where a call does not give them."""
    fixed = description.arguments if description else {}
    if not fixed:
        return args
    try:
        given = named_arguments(signature_of(model), args)
    except (TypeError, ValueError):  # which the capture says, and better
        return args
    return packed(args, {name: value for name, value in fixed.items() if name not in given})


def _inputs_like(model: nn.Module, description: ModelDescription | None) -> Any:
    if description is not None and description.inputs:
        device = next((one.device for one in model.parameters()), None)
        return {
            name: torch.zeros(
                (2, *one.shape), dtype=torch.get_default_dtype() if one.n_values is None else torch.int64, device=device
            )
            for name, one in description.inputs.items()
        }
    if description is None or description.input_shape is None:
        raise InputError(
            f"the input shape of {type(model).__name__} is not known: pass example_inputs, the arguments of one "
            "call: a tensor, a tuple, or a dict of arguments by name"
        )
    with alone():  # a capture of the model elsewhere puts other tensors in their place
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        return torch.zeros((2, *description.input_shape), dtype=like.dtype, device=like.device)
