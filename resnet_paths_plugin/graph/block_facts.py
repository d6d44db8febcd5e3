"""The facts of a residual block that its graph and module tree declare: name, group, type of branch, stage, depth."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from resnet_paths_plugin.graph.blocks import BranchType, ResidualBlock, SkipKind
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.dataflow import DataFlow
from resnet_paths_plugin.graph.operators import (
    ATTENTION,
    CONVOLUTIONS,
    LINEAR,
    PRODUCTS,
    WEIGHTED,
    WINDOWED_POOLING,
)
from resnet_paths_plugin.graph.sums import Term, brackets, is_addition, is_subtraction, sum_terms

WHOLE = "(model)"
"""The group of sums in the model's own `forward`."""


@dataclass(frozen=True, eq=False, slots=True)
class Reading:
    """How a sum is read: which term is the skip, from which source, and which terms are branches.

    Attributes:
        root: the node whose value is the sum.
        source: the node whose value is the blocks' input.
        skip: the term that is the skip.
        kind: what the skip does.
        branches: the terms that are branches, each of which makes a block.
        cost: weighted operations and steps of the skip; of two readings the cheaper one holds.
        gate: the factor of a gated branch.
    """

    root: fx.Node
    source: fx.Node
    skip: Term
    kind: SkipKind
    branches: tuple[Term, ...]
    cost: tuple[int, int]
    gate: fx.Node | None = None

    @property
    def nodes(self) -> set[fx.Node]:
        """The terms that are skip or branch; a sum may have others, which belong to the trunk."""
        return {self.skip.node, *(branch.node for branch in self.branches)}


def blocks_of(graph: CapturedGraph, flow: DataFlow, readings: Sequence[Reading]) -> tuple[ResidualBlock, ...]:
    """Return the block of every branch that was read, in execution order, with names that are unique."""
    found = sorted(
        ((reading, branch) for reading in readings for branch in reading.branches),
        key=lambda pair: (flow.order[pair[0].root], flow.order[pair[1].node]),
    )
    joints = [_joint(reading, branch) for reading, branch in found]
    owners = [owner_of(joint) for joint in joints]
    per_owner = Counter(owners)
    calls: dict[str, list[str]] = {}
    for joint, owner in zip(joints, owners, strict=True):
        run = _call(joint)
        if run not in calls.setdefault(owner, []):
            calls[owner].append(run)
    blocks: list[ResidualBlock] = []
    for (reading, branch), joint, owner in zip(found, joints, owners, strict=True):
        region = flow.between(reading.source, branch.node)
        name = owner
        # A module that runs several times owns one block per run; several in one run are told apart by their child.
        if not owner or per_owner[owner] > len(calls[owner]):
            child = _main_child(graph, owner, region)
            name = ".".join(part for part in (owner, child) if part) or "sum"
        blocks.append(
            ResidualBlock(
                index=len(blocks),
                name=name,
                module=owner,
                group=_group(owner, calls[owner], _call(joint)),
                skip_kind=reading.kind,
                branch_type=branch_type(region, flow),
                stage=None,
                depth=flow.depth(region),
                source_shape=graph.sample_shape(reading.source),
                sum_shape=graph.sample_shape(reading.root),
                source=reading.source.name,
                skip=reading.skip.node.name,
                branch=branch.node.name,
                sum=reading.root.name,
                gate=reading.gate.name if reading.gate is not None else None,
            )
        )
    return with_stages_by_shape(with_unique_names(_told_apart(blocks)))


def _told_apart(blocks: Sequence[ResidualBlock]) -> list[ResidualBlock]:
    """Name the blocks of a module's own code otherwise than a block of its parent that is named after the module."""
    owners: dict[str, set[str]] = {}
    for block in blocks:
        owners.setdefault(block.name, set()).add(block.module)
    found: list[ResidualBlock] = []
    for block in blocks:
        shared = len(owners[block.name]) > 1 and block.name == block.module
        found.append(replace(block, name=f"{block.name}.{block.skip_kind}") if shared else block)
    return found


def _joint(reading: Reading, branch: Term) -> fx.Node:
    """Return the innermost addition in which skip and branch meet; what is added later may be of other modules."""
    ends = frozenset({reading.skip.node, branch.node})
    for bracket in brackets(reading.root, ends):
        if (is_addition(bracket) or is_subtraction(bracket)) and ends <= {
            term.node for term in sum_terms(bracket, ends)
        }:
            return bracket
    return reading.root


def owner_of(node: fx.Node) -> str:
    """Return the path of the module whose code made a value."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _group(owner: str, calls: Sequence[str], call: str) -> str:
    """Return the name of what is handled as one: one run of the module that owns the sum."""
    name = owner or WHOLE
    return f"{name}:{calls.index(call) + 1}" if len(calls) > 1 else name


def _call(node: fx.Node) -> str:
    """Return the call of the owning module that a node belongs to: export numbers repeated calls."""
    stack = list(node.meta.get("nn_module_stack", {}))
    return str(stack[-1]) if stack else ""


def _main_child(graph: CapturedGraph, owner: str, region: Sequence[fx.Node]) -> str:
    """Return the child of a module that holds most of a branch's parameters; lists of modules are looked into."""
    sizes: Counter[str] = Counter()
    for tensor in dict.fromkeys(operand for node in region for operand in node.all_input_nodes):
        path = graph.tensors.get(tensor)
        if path is None or not path.startswith(f"{owner}." if owner else ""):
            continue
        parts = path.removeprefix(f"{owner}." if owner else "").split(".")[:-1]
        if parts:
            sizes[_callable_child(graph.model, owner, parts)] += tensor.meta["val"].numel()
    return max(sizes, key=sizes.__getitem__, default="")


def _callable_child(model: nn.Module, owner: str, parts: Sequence[str]) -> str:
    module = model.get_submodule(owner)
    child: list[str] = []
    for part in parts:
        child.append(part)
        module = module.get_submodule(part)
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            break
    return ".".join(child)


def branch_type(region: Sequence[fx.Node], flow: DataFlow) -> BranchType:
    """Return what the operators of a branch make it."""
    weighted = [node for node in region if node.target in WEIGHTED]
    if any(node.target in ATTENTION or _mixes_data(node, flow) for node in weighted):
        return "attention"
    if not weighted:
        return "pooling" if any(node.target in WINDOWED_POOLING for node in region) else "other"
    convolutions = [node for node in weighted if node.target in CONVOLUTIONS]
    if any(not _is_pointwise(node) for node in convolutions) or len(convolutions) == len(weighted) == 1:
        return "convolution"
    return "mlp" if all(node.target in CONVOLUTIONS | LINEAR | PRODUCTS for node in weighted) else "other"


def _mixes_data(node: fx.Node, flow: DataFlow) -> bool:
    """Whether a product multiplies two values that both come from the input, as attention does."""
    operands = [operand for operand in node.all_input_nodes if operand in flow.data]
    return node.target in PRODUCTS and len(operands) > 1


def _is_pointwise(node: fx.Node) -> bool:
    kernel = node.args[1]
    return isinstance(kernel, fx.Node) and all(size == 1 for size in kernel.meta["val"].shape[2:])


def with_unique_names(blocks: Sequence[ResidualBlock]) -> list[ResidualBlock]:
    """Number blocks of one name: a module that runs several times."""
    uses = Counter(block.name for block in blocks)
    seen: Counter[str] = Counter()
    unique: list[ResidualBlock] = []
    for block in blocks:
        seen[block.name] += 1
        repeated = uses[block.name] > 1
        unique.append(replace(block, name=f"{block.name}:{seen[block.name]}") if repeated else block)
    return unique


def with_stages_by_shape(blocks: Sequence[ResidualBlock]) -> tuple[ResidualBlock, ...]:
    """Number the runs of blocks whose sums have one shape; a plugin's description may know better."""
    staged: list[ResidualBlock] = []
    stage = -1
    shape: tuple[int, ...] | None = None
    for block in blocks:
        if block.sum_shape != shape:
            stage, shape = stage + 1, block.sum_shape
        staged.append(replace(block, stage=stage))
    return tuple(staged)
