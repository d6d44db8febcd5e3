"""PathParticipation: which blocks the paths of each length go through, exactly."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import xarray as xr
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.analyzers.arguments import positive
from resnet_paths_plugin.analyzers.base import Analyzer
from resnet_paths_plugin.analyzers.gradients.objectives import Objective
from resnet_paths_plugin.analyzers.gradients.participation_tasks import ParticipationWork, line
from resnet_paths_plugin.analyzers.gradients.walk_study import WalkStudy
from resnet_paths_plugin.analyzers.study import Chunk, StudyResult
from resnet_paths_plugin.engine.backward import bank_dtype
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions, StudyRun
from resnet_paths_plugin.execution.batches import Batches, Target
from resnet_paths_plugin.graph.blocks import BlockLike
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

_SUMMARY = (
    "The part of the gradient of all paths of each length, along a direction at the tap, that goes through each block, "
    "with the activations of the intact network held fixed."
)

ROWS_BYTES = 2**30
"""Size that the gradients at all branches may have for the samples of one walk."""


class PathParticipation(Analyzer, GradientAttribution):  # type: ignore[misc]  # captum is untyped
    """Attribute the gradient of each path length to the blocks that its paths go through.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> found = rpp.PathParticipation(net).attribute(images, target=labels)
        >>> found.participation.dims
        ('block', 'path_length', 'sample')
        >>> whole = found.path_length * found.directional_derivative  # a path of length k goes through k blocks
        >>> bool((abs(found.participation.sum("block") - whole) < 1e-4).all())
        True
    """

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        objective: Objective = "score",
        direction: Literal["input", "gradient"] = "input",
        baselines: Any = None,
        n_steps: int | None = None,
        method: str = "gausslegendre",
        between: tuple[BlockLike, BlockLike] | None = None,
        max_length: int | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> xr.Dataset:
        """Compute `P_i[k]`, the part of `<G_k, u>` that goes through block `i`, for a direction `u` at the tap.

        A bank of gradients is walked back and a bank of tangents on; where they meet at a branch their inner products
        are what all paths through it carry. Each path of length `k` goes through `k` blocks, so the sum over blocks is
        `k <G_k, u>`. A walk holds about `n^2 / 2` rows of each sample: as many samples at a time are taken as fit 1
        GiB.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches.
            target: which output's score is differentiated, as in Captum; the label for `"cross_entropy"`.
            additional_forward_args: further arguments of the model, after the inputs.
            objective: `"score"`, `"cross_entropy"`, or `function(outputs, target) -> [B]`.
            direction: `"input"`, the value at the tap, or `"gradient"`, the ordinary gradient there.
            baselines: the direction is the input minus a baseline, the same for all samples: a number, or a tensor that
                broadcasts to one sample, `[1, *]`; a tuple of them for several inputs.
            n_steps: averages the gradients along the line from the baseline (0 by default) to the input, as integrated
                gradients do: this splits the change of the objective by block and length.
            method: how points on the line are chosen, as in Captum's `IntegratedGradients`.
            between: two blocks: only paths from the later one's sum back to the earlier one's are taken, of the
                gradient that arrives at the later sum; the direction is at the earlier sum.
            max_length: longest path length with a row of its own; longer paths are left out.
            internal_batch_size: samples per walk; None chooses a number that suits cache and memory.
            show_progress: whether to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset, float64: `participation` (block, path_length, sample); `directional_derivative` (path_length,
            sample), `<G_k, u>`; `completeness_error` (path_length, sample), the difference of the sum over blocks and
            `k <G_k, u>`, relative to the sum of absolute values. NaN for blocks whose sum mixes the batch with another
            dimension.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if inputs, targets or options do not fit.
        """
        arguments = dict(locals())

        def study(network: UnraveledNetwork, batches: Batches) -> ParticipationStudy:
            return ParticipationStudy(
                network,
                objective=objective,
                n_inputs=batches.n_inputs,
                direction=direction,
                baselines=_baselines(baselines, batches) if baselines is not None or n_steps else None,
                n_steps=positive("n_steps", n_steps),
                method=method,
                between=between,
                max_length=max_length,
            )

        return self.run_study(study, arguments)


class ParticipationStudy(WalkStudy):
    """Participation of blocks in paths."""

    name = "participation"

    def __init__(
        self,
        network: UnraveledNetwork,
        *,
        objective: Objective,
        n_inputs: int,
        direction: str,
        baselines: Any,
        n_steps: int | None,
        method: str,
        between: tuple[BlockLike, BlockLike] | None,
        max_length: int | None,
    ) -> None:
        super().__init__(
            network,
            title=f"Participation of the blocks of {network.name} in paths",
            summary=_SUMMARY,
            objective=objective,
            n_inputs=n_inputs,
            max_length=max_length,
        )
        if direction not in {"input", "gradient"}:
            raise InputError(f"direction must be 'input' or 'gradient', not {direction!r}")
        if baselines is not None and (direction != "input" or between is not None):
            raise InputError("baselines and n_steps go with direction='input', and not with between")
        if not self.takes_floats and between is None:
            raise InputError(
                "a direction at the tap needs floating-point inputs, and all inputs hold integers (such as token ids): "
                "pass between=(early, late), which takes it at the sum of a block"
            )
        self._work = ParticipationWork(
            objective=objective,
            n_inputs=n_inputs,
            n_lengths=len(self.lengths),
            cut=self.cut,
            direction=direction,
            baselines=baselines,
            steps=line(n_steps or 1, method) if n_steps is not None else ((1.0, 1.0),),
            between=None if between is None else _between(network, between),
        )

    @property
    def manifest(self) -> Mapping[str, object]:
        """All that a walk depends on."""
        return vars(self._work)

    def samples_per_pass(self, run: RunOptions | None) -> int:
        """Return the number of samples whose rows at all branches fit memory."""
        program, graph = self.network.program, self.network.graph
        itemsize = bank_dtype(self.network.dtype).itemsize
        size = sum(
            min(len(self.lengths), len(program.blocks) - branch.index)
            * math.prod(graph.sample_shape(program.nodes[branch.value]))
            * itemsize
            for branch in program.branches
        )
        most = min(super().samples_per_pass(run), ROWS_BYTES // max(1, size))
        return graph.conditions.reached(max(1, most))

    def work(self, run: StudyRun) -> ParticipationWork:  # noqa: ARG002 - nothing runs before
        """Return what walks over samples."""
        return self._work

    def results(self, chunks: Iterable[Chunk]) -> Iterator[StudyResult]:
        """Yield the result of each chunk of samples."""
        for _, (found,) in chunks:
            yield StudyResult(
                {
                    "participation": (("block", "path_length", "sample"), found["participation"]),
                    "directional_derivative": (("path_length", "sample"), found["directional_derivative"]),
                    "completeness_error": (("path_length", "sample"), found["completeness_error"]),
                },
                self.length_coord,
            )


def _baselines(given: Any, batches: Batches) -> tuple[Any, ...]:
    """Return a baseline for each input."""
    inputs = pytree.tree_leaves(batches.first.args)[: batches.n_inputs]
    each = (0,) * len(inputs) if given is None else given if isinstance(given, tuple) else (given,)
    if len(each) != len(inputs):
        raise InputError(f"baselines has {len(each)} entries for {len(inputs)} inputs")
    for one, value in zip(each, inputs, strict=True):
        if isinstance(one, bool) or not isinstance(one, int | float | Tensor):
            raise InputError(f"a baseline is a number or a tensor, not {one!r}")
        if isinstance(one, Tensor) and isinstance(value, Tensor) and not _broadcasts(one.shape, (1, *value.shape[1:])):
            raise InputError(
                f"a baseline is the same for all samples: it has shape {tuple(one.shape)}, which does not broadcast to "
                f"one sample of the input, {(1, *value.shape[1:])}"
            )
    return each


def _broadcasts(shape: Sequence[int], whole: Sequence[int]) -> bool:
    sizes = list(zip(reversed(shape), reversed(whole), strict=False))
    return len(shape) <= len(whole) and all(size in {1, full} for size, full in sizes)


def _between(network: UnraveledNetwork, between: object) -> tuple[int, int]:
    """Return the indices of the two blocks between whose sums paths are taken."""
    if not isinstance(between, tuple | list) or len(between) != 2:
        raise InputError(f"between takes two blocks, the earlier one first, not {between!r}")
    early, late = (network.block(block).index for block in between)
    program = network.program
    sums = [program.nodes[program.sums[program.branches[at].sum].root] for at in (early, late)]
    if sums[0] is sums[1] or not program.flow.is_ancestor(sums[0], of=sums[1]):
        names = [network.blocks[at].name for at in (early, late)]
        raise InputError(f"no path leads from the sum of {names[1]!r} back to that of {names[0]!r}: give another pair")
    return early, late
