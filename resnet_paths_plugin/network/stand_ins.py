"""Stand-ins for deleted branches, fitted on a reference: their means, or least-squares maps of their sources.

`moments` runs the intact network on some samples and returns sums over them; `fitted` adds the sums of all runs up and
solves for the stand-ins. Runs may be made in different processes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.engine.activations import ActivationEngine, BlockActivation
from resnet_paths_plugin.engine.linear_map import LinearMap
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.channels import channel_dim
from resnet_paths_plugin.graph.operators import same_sizes
from resnet_paths_plugin.graph.windows import window_strides
from resnet_paths_plugin.network.captured_network import CapturedNetwork
from resnet_paths_plugin.network.covariances import Covariances
from resnet_paths_plugin.network.reference import reference_runs

Fitted = Literal["mean", "linear"]
"""What is fitted: a branch's mean over samples at each position, or the affine map from source to branch."""
Moments = Mapping[str, NDArray[Any]]
"""What some samples tell of branches: arrays by the block's index and what they are."""

RIDGE = 1e-6
"""Added to the variance of each channel of a source, relative to their mean."""
_ROWS = 65536
"""Positions that are read in float64 at a time."""


@dataclass(frozen=True, eq=False)
class StandIns:
    """What stands in for deleted branches, by the block's index.

    Attributes:
        constants: tensors that are added at a sum, in its layout.
        linear: affine maps that are applied to a source.
        explained: of each map the share of the branch's variance over the reference that it explains.
    """

    constants: Mapping[int, Tensor] = field(default_factory=dict)
    linear: Mapping[int, LinearMap] = field(default_factory=dict)
    explained: Mapping[int, float] = field(default_factory=dict)

    def to(self, device: torch.device) -> "StandIns":
        """Return them with their tensors on a device."""
        with torch.inference_mode(mode=False):
            constants = {block: constant.to(device) for block, constant in self.constants.items()}
            return StandIns(constants, {block: one.to(device) for block, one in self.linear.items()}, self.explained)


def check_ablation(network: CapturedNetwork, ablation: str, known: Sequence[str], ridge: float | None) -> None:
    """Check what stands in for deleted branches.

    Raises:
        InputError: if there is no such ablation, it does not fit the network, or a ridge parameter is not for it.
    """
    if ablation not in known:
        raise InputError(f"ablation must be one of {', '.join(map(repr, known))}, not {ablation!r}")
    if ablation != "zero" and network.units == "layers":
        raise InputError(
            f"ablation={ablation!r} replaces the branch beside a skip, and layers have none: leave ablation='zero'"
        )
    if ridge is not None and ablation != "linear":
        raise InputError("ridge is for ablation='linear', which was not asked for: leave it out")
    check_ridge(ridge)


def check_ridge(ridge: float | None) -> float:
    """Return the ridge parameter, the default for None.

    Raises:
        InputError: if it is no finite number of at least 0.
    """
    if ridge is None:
        return RIDGE
    if isinstance(ridge, bool) or not isinstance(ridge, int | float | np.number) or not 0 <= ridge < float("inf"):
        raise InputError(f"ridge must be a finite number of at least 0, relative to the variance, not {ridge!r}")
    return float(ridge)


def moments(network: CapturedNetwork, blocks: Sequence[int], kind: Fitted, args: tuple[Any, ...]) -> Moments:
    """Return what one run of the intact network tells of some branches, all of them in one pass.

    Raises:
        InputError: if samples do not have a dimension of their own at a block's sum, or a map does not fit a block.
    """
    read: Callable[[CapturedNetwork, BlockActivation], Moments] = _sum_of_branch if kind == "mean" else _covariances
    found: dict[str, NDArray[Any]] = {}
    seen: set[int] = set()

    def add(state: BlockActivation) -> None:
        if state.block.index in blocks:
            seen.add(state.block.index)
            found.update({f"{state.block.index} {name}": each for name, each in read(network, state).items()})

    ActivationEngine(network.program).run(network.inputs(args), network.program.parameters(), add)
    check_seen(network, blocks, seen, kind)
    return found


def fitted(
    network: CapturedNetwork, blocks: Sequence[int], kind: Fitted, found: Iterable[Moments], ridge: float = RIDGE
) -> StandIns:
    """Return the stand-ins of some branches from the moments of all runs, in their order.

    Raises:
        InputError: if a value of the reference is not finite at one of the blocks.
    """
    if kind == "mean":
        return _means(network, blocks, found)
    totals: dict[int, Covariances] = {}
    for one in found:
        for block in blocks:
            part = Covariances(**{name: one[f"{block} {name}"] for name in Covariances.__annotations__})
            totals[block] = totals[block].with_more(part) if block in totals else part
    linear, explained = {}, {}
    for block, total in totals.items():
        _check_finite(network, block, kind, *vars(total).values())
        dim, strides = layout(network, block)
        dtype = network.program.nodes[network.program.branches[block].source].meta["val"].dtype
        with torch.inference_mode(mode=False):
            weight, bias = total.least_squares(ridge)
            linear[block] = LinearMap(weight.to(dtype), bias.to(dtype), dim, strides).to(network.device)
        explained[block] = total.explained(weight)
    return StandIns(linear=linear, explained=explained)


def stand_ins_on(
    network: CapturedNetwork,
    blocks: Sequence[int],
    ablation: Literal["zero"] | Fitted,
    reference: Any,
    ridge: float | None = None,
) -> StandIns:
    """Return what stands in for some branches, fitted on a reference here.

    Raises:
        InputError: if an option does not fit, a reference is missing, or a linear map does not fit a block.
    """
    check_ablation(network, ablation, ("zero", *get_args(Fitted)), ridge)
    if ablation == "zero":
        if reference is not None:
            raise InputError("a reference is for ablation='mean' or 'linear', and neither was asked for: leave it out")
        return StandIns()
    if reference is None:
        raise InputError(
            f"ablation={ablation!r} is fitted on data: give reference=, a tensor or batches such as the network is for"
        )
    if ablation == "linear":
        for block in blocks:
            layout(network, block)
    with torch.no_grad():
        runs = (moments(network, blocks, ablation, args) for args in reference_runs(network, reference))
        return fitted(network, blocks, ablation, runs, check_ridge(ridge))


def layout(network: CapturedNetwork, block: int) -> tuple[int, tuple[int, ...]]:
    """Return which dimension of a block's source holds its channels, and the strides from its positions to the sum's.

    Raises:
        InputError: if a map over channels does not fit the block; the reason is named.
    """
    found = _layout(network, block)
    if isinstance(found, str):
        raise _unfit(network, block, found)
    return found


def why_not_linear(network: CapturedNetwork, block: int) -> str | None:
    """Return why no map over channels fits a block; None where one does."""
    found = _layout(network, block)
    return found if isinstance(found, str) else None


def _layout(network: CapturedNetwork, block: int) -> tuple[int, tuple[int, ...]] | str:
    """Return the dimension and the strides, or the reason why there are none."""
    program = network.program
    branch = program.branches[block]
    total = program.sums[branch.sum].root
    source, root = program.nodes[branch.source], program.nodes[total]
    batch = program.batch_dim(branch.source)
    dim = channel_dim(source, [program.nodes[at] for at in branch.region])
    if dim is None:
        return "no operator of its branch tells which dimension of its source holds the channels"
    sizes, wanted = source.meta["val"].shape, root.meta["val"].shape
    if len(sizes) != len(wanted) or batch != program.batch_dim(total):
        return "its source and its sum have dimensions of their own"
    channels = len(sizes) + dim
    if channels == batch:
        return "its branch mixes what is the batch here"
    positions = [at for at in range(len(sizes)) if at not in {channels, batch}]
    strides = [1] * len(sizes)
    moved = [at for at in positions if not same_sizes([sizes[at]], [wanted[at]])]
    if moved:
        region = [program.nodes[at] for at in branch.region]
        found = window_strides(source, region, program.nodes[branch.value]) if (batch, channels) == (0, 1) else None
        if found is None or any(-(-sizes[at] // found[at - 2]) != wanted[at] for at in positions):
            shapes = f"{list(network.blocks[block].source_shape)} to {list(network.blocks[block].sum_shape)}"
            return (
                f"it takes {shapes}, and no stride of its convolutions and poolings leads from the positions of one to "
                "the other's"
            )
        strides[2:] = found
    return dim, tuple(strides)


def check_seen(network: CapturedNetwork, blocks: Iterable[int], seen: Iterable[int], ablation: str) -> None:
    """Refuse blocks whose values could not be told apart by samples.

    Raises:
        InputError: if a block is not among those that were seen.
    """
    for block in blocks:
        if block not in seen:
            raise InputError(
                f"the ablation {ablation!r} needs samples along a dimension of their own at every sum, and at that of "
                f"{network.blocks[block].name!r} they are mixed with another"
            )


def laid_out(network: CapturedNetwork, block: int, values: Tensor) -> Tensor:
    """Return values `[B, *]` in the layout of the block's sum."""
    program = network.program
    return _in_graph(network, program.sums[program.branches[block].sum].root, values)


def _in_graph(network: CapturedNetwork, at: int, values: Tensor) -> Tensor:
    """Return values `[B, *]` in the layout of a value of the graph."""
    dim = network.program.batch_dim(at)
    if dim is None:
        return values[0] if network.graph.is_single else values
    return values.movedim(0, dim)


def _check_finite(network: CapturedNetwork, block: int, kind: Fitted, *sums: NDArray[Any]) -> None:
    """Check that sums over a reference can be fitted to.

    Raises:
        InputError: if one is not finite.
    """
    if not all(np.isfinite(one).all() for one in sums):
        raise InputError(
            f"the ablation {kind!r} is fitted on a reference: at {network.blocks[block].name!r} the reference gives "
            "values that are not finite (NaN or infinity). Check the data for them, or run the model in a longer dtype"
        )


def _unfit(network: CapturedNetwork, block: int, reason: str) -> InputError:
    name = network.blocks[block].name
    return InputError(
        f"ablation='linear' puts a linear map over channels in the place of a branch, and {name!r} allows none: "
        f"{reason}. Leave that block out, or take ablation='mean'"
    )


def _sum_of_branch(_: CapturedNetwork, state: BlockActivation) -> Moments:
    """Return the sum of a branch over the samples, `[1, *]` float64, its dtype and the number of samples."""
    values = state.branch
    return {
        "sum": values.double().sum(0, keepdim=True).cpu().numpy(),
        "dtype": np.array(str(values.dtype).removeprefix("torch.")),
        "count": np.array(len(values)),
    }


def _means(network: CapturedNetwork, blocks: Sequence[int], found: Iterable[Moments]) -> StandIns:
    sums: dict[int, NDArray[Any]] = {}
    dtypes: dict[int, torch.dtype] = {}
    count = 0
    for one in found:
        for block in blocks:
            values = one[f"{block} sum"]
            sums[block] = sums[block] + values if block in sums else values
            dtypes[block] = getattr(torch, str(one[f"{block} dtype"]))
        count += int(one[f"{blocks[0]} count"]) if blocks else 0
    for block, total in sums.items():
        _check_finite(network, block, "mean", total)
    with torch.inference_mode(mode=False):
        means = {block: torch.from_numpy(total / count).to(dtypes[block]) for block, total in sums.items()}
        return StandIns({block: laid_out(network, block, mean).to(network.device) for block, mean in means.items()})


def _covariances(network: CapturedNetwork, state: BlockActivation) -> Moments:
    """Return the covariances of a block's source and branch over samples and positions, not divided by their number."""
    program, block = network.program, state.block.index
    dim, strides = layout(network, block)
    branch = program.branches[block]
    if state.source is None:
        raise _unfit(network, block, "samples are mixed with another dimension of its source")
    source = _in_graph(network, branch.source, state.source)
    for at, stride in enumerate(strides):
        source = source[(slice(None),) * at + (slice(None, None, stride),)]
    rows, wanted = (
        values.movedim(dim, -1).flatten(0, -2) for values in (source, laid_out(network, block, state.branch))
    )
    starts = range(0, len(rows), _ROWS)
    parts = (Covariances.of(*(each[at : at + _ROWS].double() for each in (rows, wanted))) for at in starts)
    return vars(reduce(Covariances.with_more, parts))
