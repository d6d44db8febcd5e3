"""BlockContribution: what each block's branch adds to the objective, through how many later branches."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from captum._utils.common import _select_targets
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from resnet_paths_plugin.analyzers.base import Analyzer
from resnet_paths_plugin.analyzers.gradients.contribution_tasks import ContributionWork, map_shape
from resnet_paths_plugin.analyzers.gradients.objectives import Objective
from resnet_paths_plugin.analyzers.gradients.walk_study import WalkStudy
from resnet_paths_plugin.analyzers.outputs import outputs_of
from resnet_paths_plugin.analyzers.study import Chunk, StudyResult
from resnet_paths_plugin.engine.frozen_norms import frozen_norms
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions, StudyRun
from resnet_paths_plugin.execution.batches import Batch, Batches, Target, check_target
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.provenance import PAPER
from resnet_paths_plugin.results.variables import Entry

REFERENCES = (
    f"{PAPER}; Elhage et al.: A Mathematical Framework for Transformer Circuits, 2021, "
    "https://transformer-circuits.pub/2021/framework/index.html"
)

_SUMMARY = (
    "What the value of each block's branch adds to the objective, to first order, by the number of later branches "
    "through which it reaches the output; activations are those of the intact network."
)


class BlockContribution(Analyzer, GradientAttribution):  # type: ignore[misc]  # captum is untyped
    """Split the objective by block: what each branch adds to it directly, and through how many later branches.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> found = rpp.BlockContribution(net).attribute(images, target=labels)
        >>> found.contribution.dims
        ('block', 'path_length', 'sample')
        >>> bool(abs(found.contribution.sum("path_length") - found.direct - found.indirect).max() < 1e-5)
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
        versus: int | tuple[int, ...] | None = None,
        freeze_norms: bool | None = None,
        max_length: int | None = None,
        keep_maps: bool = False,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> xr.Dataset:
        """Compute `c_i[a] = <A_i[a], f_i>`: the gradient of all paths with `a` later branches, times the branch.

        The sum over `a` is minus the first-order estimate of the effect of deleting the block
        (`BlockInfluence.lesion_estimate`). With `a = 0` it is the first-order direct effect: where the trunk is linear,
        as between the rectifiers of a post-activation network with their masks held fixed, or behind norms whose
        scales are, `stem`, `direct` and `remainder` (the biases on the way) add up to the objective.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches.
            target: which output's score is differentiated, as in Captum; the label for `"cross_entropy"`.
            additional_forward_args: further arguments of the model, after the inputs.
            objective: `"score"`, `"cross_entropy"`, or `function(outputs, target) -> [B]`.
            versus: another target: the objective is the difference of the two scores.
            freeze_norms: whether the scales of layer and RMS norms are held constant; what a layer norm subtracts stays
                linear. This is the convention of direct logit attribution: behind a final norm the parts would cancel
                otherwise. None does so where all inputs are integers, such as token ids.
            max_length: most later branches with a row of their own; `indirect` holds those of all.
            keep_maps: whether to keep the direct contribution of each position.
            internal_batch_size: samples per walk; None chooses a number that suits the cache.
            show_progress: whether to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset, float64: `contribution` (block, path_length, sample), where `path_length` counts later branches;
            `direct`, `indirect` (block, sample); `stem` and `remainder` (sample); with `keep_maps` `contribution_map`
            (block, sample, positions), float32: `direct` of each position of the finest block, where those of a
            coarser block are shared by what they cover. NaN for blocks whose sum mixes the batch with another
            dimension.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if inputs, targets or options do not fit.
        """
        arguments = dict(locals())

        def study(network: UnraveledNetwork, batches: Batches) -> ContributionStudy:
            return ContributionStudy(
                network,
                objective=_objective(objective, versus),
                n_inputs=batches.n_inputs,
                freeze_norms=freeze_norms,
                max_length=max_length,
                keep_maps=keep_maps,
            )

        return self.run_study(study, arguments)


class ContributionStudy(WalkStudy):
    """Contributions of blocks to an objective."""

    name = "contributions"

    def __init__(
        self,
        network: UnraveledNetwork,
        *,
        objective: Objective,
        n_inputs: int,
        freeze_norms: bool | None,
        max_length: int | None,
        keep_maps: bool,
    ) -> None:
        super().__init__(
            network,
            title=f"Contributions of the blocks of {network.name}",
            summary=_SUMMARY,
            objective=objective,
            n_inputs=n_inputs,
            max_length=max_length,
        )
        if not self.cut:  # its own branch is none of the later ones
            self.lengths = self.lengths[:-1]
        self.freeze_norms = not self.takes_floats if freeze_norms is None else bool(freeze_norms)
        self._work = ContributionWork(
            objective=objective,
            n_lengths=len(self.lengths),
            cut=self.cut,
            freeze_norms=self.freeze_norms,
            map_shape=map_shape(network) if keep_maps else None,
        )

    @property
    def _norms(self) -> str:
        if not self.freeze_norms:
            return "differentiated"
        count = frozen_norms(self.network.graph.graph.nodes, self.network.program.flow.data)
        return f"scales of {count} held constant"

    @property
    def attrs(self) -> Mapping[str, object]:
        """What was held constant, and the papers."""
        return {"references": REFERENCES, "norms": self._norms}

    @property
    def manifest(self) -> Mapping[str, object]:
        """All that a walk depends on."""
        return vars(self._work)

    def check(self, batch: Batch) -> None:
        """Check the target, and the other one that it is compared with, against the outputs."""
        super().check(batch)
        sizes = self.network.readout.sizes_of(outputs_of(self.network))
        if isinstance(self.objective, ScoreDifference) and sizes is not None:
            if batch.target is None:
                raise InputError("versus is subtracted from the target's score: pass a target")
            check_target(replace(batch, target=self.objective.versus), sizes)

    def work(self, run: StudyRun) -> ContributionWork:  # noqa: ARG002 - nothing runs before
        """Return what walks over samples."""
        return self._work

    def results(self, chunks: Iterable[Chunk]) -> Iterator[StudyResult]:
        """Yield the result of each chunk of samples."""
        for _, (found,) in chunks:
            remainder = found["objective"] - found["stem"] - np.asarray(found["direct"]).sum(axis=0)
            variables: dict[str, Entry] = {
                "contribution": (("block", "path_length", "sample"), found["contribution"]),
                "direct": (("block", "sample"), found["direct"]),
                "indirect": (("block", "sample"), found["indirect"]),
                "stem": (("sample",), found["stem"]),
                "remainder": (("sample",), remainder),
            }
            if "contribution_map" in found:
                maps = found["contribution_map"]
                dims = ("height", "width") if maps.ndim == 4 else [f"position_{at}" for at in range(maps.ndim - 2)]
                variables["contribution_map"] = (("block", "sample", *dims), maps)
            yield StudyResult(variables, self.length_coord)


@dataclass(frozen=True)
class ScoreDifference:
    """The score of the target minus that of another one, as an objective.

    Attributes:
        versus: the other target, an index or a tuple of them.
    """

    versus: int | tuple[int, ...]

    def __call__(self, outputs: Tensor, target: Any) -> Tensor:
        """Return the difference of each sample, shape `[B]`."""
        ours, theirs = _select_targets(outputs, target), _select_targets(outputs, self.versus)
        difference: Tensor = (ours - theirs).reshape(len(outputs))
        return difference


def _objective(objective: Objective, versus: object) -> Objective:
    if versus is None:
        return objective
    indices = versus if isinstance(versus, tuple) else (versus,)
    if objective != "score" or not all(isinstance(at, int) and not isinstance(at, bool) for at in indices):
        raise InputError(
            f"versus names the output whose score is subtracted, an index or a tuple of them, and goes with "
            f"objective='score'; got versus={versus!r}, objective={objective!r}"
        )
    return ScoreDifference(versus)  # type: ignore[arg-type]  # checked above
