"""Layers of any network that can be deleted because their output has their input's shape (Veit et al. 2016, Fig. 3).

The counterpart of `detection` for plain networks: what is found is run and rewired by the same engine.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from resnet_paths_plugin.graph.block_facts import branch_type, owner_of, with_stages_by_shape, with_unique_names
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.dataflow import DataFlow
from resnet_paths_plugin.graph.operators import ACTIVATIONS, DROPOUT, NORMS, WEIGHTED, same_shape


def layer_output(_source: Tensor, value: Tensor) -> Tensor:
    """Return the second argument: where `detect_layers` joins a layer's output with what would stand in for it."""
    return value


def detect_layers(graph: CapturedGraph) -> tuple[CapturedGraph, tuple[ResidualBlock, ...]]:
    """Find the layers whose output has the shape and dtype of their input, and mark their outputs.

    A layer is a weighted operator that reads one value computed from the inputs, with the norm and the activation
    that follow it.

    Args:
        graph: a captured graph; it is used up.

    Returns:
        The graph with a `layer_output` behind each layer found, and the layers in execution order. Their `skip_kind`
        is `"none"`, their source is the layer's input and their branch the layer's output.
    """
    flow = DataFlow(graph)
    joints: dict[fx.Node, fx.Node] = {}
    layers: list[ResidualBlock] = []
    for operator, source, value in list(_alike(flow)):
        with graph.graph.inserting_after(value):
            # In a chain the layer before has been given its joint by now.
            joint = graph.graph.call_function(layer_output, (joints.get(source, source), value))
        joint.meta = dict(value.meta)
        value.replace_all_uses_with(joint, delete_user_cb=lambda user, joint=joint: user is not joint)  # type: ignore[misc]  # early binding
        joints[value] = joint
        layers.append(_facts(graph, flow, len(layers), operator, joint))
    outputs = tuple(joints.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf for leaf in graph.outputs)
    return replace(graph, outputs=outputs), with_stages_by_shape(with_unique_names(layers))


def _facts(graph: CapturedGraph, flow: DataFlow, index: int, operator: fx.Node, joint: fx.Node) -> ResidualBlock:
    source, value = joint.all_input_nodes
    name = owner_of(operator)
    return ResidualBlock(
        index=index,
        name=name or "layer",
        module=name,
        group=name.rpartition(".")[0],
        skip_kind="none",
        branch_type=branch_type([operator], flow),
        stage=None,
        depth=1,
        source_shape=graph.sample_shape(source),
        sum_shape=graph.sample_shape(joint),
        source=source.name,
        skip=source.name,
        branch=value.name,
        sum=joint.name,
    )


def _alike(flow: DataFlow) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
    """Yield weighted operator, source and output of every layer that can be deleted, in execution order."""
    for node in flow.nodes:
        operands = [operand for operand in node.all_input_nodes if operand in flow.data]
        if node.target not in WEIGHTED or len(operands) != 1 or pytree.tree_leaves(node.args).count(operands[0]) != 1:
            continue
        value = _with_norm_and_activation(node, flow)
        if _same_form(operands[0], value):
            yield node, operands[0], value


def _with_norm_and_activation(node: fx.Node, flow: DataFlow) -> fx.Node:
    """Follow norm, activation and dropout, each at most once, as long as each alone reads the value before it."""
    stages = (NORMS, ACTIVATIONS, DROPOUT)
    reached = 0
    while True:
        users = list(node.users)
        step = users[0] if len(users) == 1 else None
        stage = next((at for at in range(reached, len(stages)) if step is not None and step.target in stages[at]), None)
        if step is None or stage is None or not isinstance(step.meta.get("val"), Tensor):
            return node
        if [operand for operand in step.all_input_nodes if operand in flow.data] != [node]:
            return node
        node, reached = step, stage + 1


def _same_form(source: fx.Node, value: fx.Node) -> bool:
    one, other = source.meta["val"], value.meta["val"]
    return (
        isinstance(one, Tensor) and isinstance(other, Tensor) and one.dtype == other.dtype and same_shape(source, value)
    )
