"""PathLengthGradient: the gradient by path length, of all paths exactly, of sampled paths, or by random signs."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import xarray as xr
from captum.attr import GradientAttribution
from captum.log import log_usage

from resnet_paths_plugin.analyzers.arguments import positive
from resnet_paths_plugin.analyzers.base import Analyzer
from resnet_paths_plugin.analyzers.gradients.grades import Grade, grading_of
from resnet_paths_plugin.analyzers.gradients.objectives import Objective
from resnet_paths_plugin.analyzers.gradients.parameters import ParameterStudy
from resnet_paths_plugin.analyzers.gradients.study import PathStudy
from resnet_paths_plugin.analyzers.gradients.tasks import ESTIMATORS, Estimator
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.execution.batches import Batches, Target
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock
from resnet_paths_plugin.network.unraveled import UnraveledNetwork


class PathLengthGradient(Analyzer, GradientAttribution):  # type: ignore[misc]  # captum is untyped
    """Attribute the gradient to path lengths: `dL/dx` is a sum over all paths, and `G_k` the part of length k.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> lengths = rpp.PathLengthGradient(net).attribute(images, target=labels)
        >>> lengths.path_count.values.tolist()
        [1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0]
        >>> bool((lengths.completeness_error < 1e-5).all())  # the lengths add up to the ordinary gradient
        True
    """

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        estimator: Estimator | Sequence[Estimator] = "exact",
        objective: Objective = "score",
        max_length: int | None = None,
        grade: Grade = "blocks",
        draws: int = 100,
        tap: Literal["input", "stem", "parameters"] | BlockLike = "input",
        per_sample: bool = False,
        shared_paths: bool = False,
        keep_maps: bool = False,
        internal_batch_size: int | None = None,
        seed: int = 0,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> xr.Dataset:
        """Compute gradients by path length, with the activations of the intact network.

        `"exact"` gives the norm of `G_k`, the summed gradient of all paths of length k, for the price of about n/2
        backward passes; `"sampled"` the mean norm of single paths drawn uniformly (Veit et al. 2016, Sec. 4.2,
        Fig. 6b) and their total (Fig. 6c), an upper bound on the norm of `G_k`; `"signs"` the root mean square norm of
        all single paths, estimated with random signs.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches.
            target: which output's score is differentiated, as in Captum; the label for `"cross_entropy"`.
            additional_forward_args: further arguments of the model, after the inputs.
            estimator: one or several of `"exact"`, `"sampled"`, `"signs"`.
            objective: `"score"`, `"cross_entropy"`, or `function(outputs, target) -> [B]`; summed over samples.
            max_length: longest length with a row of its own (on every axis); the rest goes into `tail_gradient_norm`.
            grade: what a branch adds to the length: `"blocks"`, `"layers"`, `"stages"`, `"branch_type"`, or a function
                of a block that returns a number, or a number for each named axis.
            draws: sampled paths for each length and sample; walks with random signs.
            tap: where gradients are taken: the `"input"`, the `"stem"` (source of the first block), the source of a
                block, or the `"parameters"` of each block and of the trunk.
            per_sample: at the parameters, whether to measure single samples as well.
            shared_paths: whether all samples share the sampled paths of each length. By default each has its own, drawn
                by its place among the samples and the seed, so that errors of the mean over samples are smaller; where
                a sum of the network mixes the batch with another dimension, they share them all the same.
            keep_maps: whether to keep `G_k` itself, as `gradient`, and the inputs beside it.
            internal_batch_size: samples per walk; None chooses a number that suits the cache.
            seed: seed of paths and signs.
            show_progress: whether to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset with dims `path_length` and `sample` (one dim per axis where the grade has several), over the
            paths from all of the model's outputs:
            `gradient_norm`, `gradient_share` (`<G_k, g> / ||g||^2` with the ordinary gradient `g`: these sum to 1, and
            one may be negative), `completeness_error`, `path_count`, `log10_path_count`; sampled: `path_gradient_norm`,
            `path_gradient_norm_stderr`, `path_gradient_norm_draws` (also `draw`, `sample`: the norm of each path),
            `total_path_gradient`, `log10_total_path_gradient`, `n_draws`; signs: `path_gradient_rms`;
            `effective_length_low` and `_high` (measure), the shortest interval with 95 % of a measure's total, absent
            where `max_length` cuts, as then there is `tail_gradient_norm`; `gradient` and `input` with `keep_maps`.

            With `tap="parameters"` dim `block` holds the blocks, then what reads parameters outside their branches:
            `stem`, `NAME (skip)`, `trunk` and `head`. `parameter_gradient_norm` and `parameter_gradient_share` (block,
            path_length) are of `H_i[a]`, the gradient summed over samples along the paths of length `path_length`, on
            which a block's own branch counts; `mean_path_length` (block) is weighted by the shares;
            `completeness_error` (block) is against autograd's gradient; `n_parameters` (block). Parameters are taken
            whether or not they require gradients; those that several parts read are counted in each. About `n / 2`
            times the size of all parameters is held.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if inputs, targets or options do not fit.
        """
        arguments = dict(locals())
        chosen, n_draws = _estimators(estimator), positive("draws", draws) or 1

        def study(network: UnraveledNetwork, batches: Batches) -> PathStudy | ParameterStudy:
            asked: dict[str, Any] = {"objective": objective, "max_length": max_length, "n_inputs": batches.n_inputs}
            asked["grading"] = grading_of(network, grade)
            if tap == "parameters":
                _check_for_parameters(chosen, keep_maps=keep_maps)
                return ParameterStudy(network, per_sample=per_sample, **asked)
            asked |= {"draws": n_draws, "seed": seed, "shared_paths": shared_paths}
            own_tap = _tap(network, tap, per_sample=per_sample)
            return PathStudy(network, estimators=chosen, tap=own_tap, keep_maps=keep_maps, **asked)

        return self.run_study(study, arguments)


def _check_for_parameters(estimators: tuple[Estimator, ...], *, keep_maps: bool) -> None:
    if estimators != ("exact",) or keep_maps:
        raise InputError("tap='parameters' has estimator='exact' only, and keeps no maps")


def _estimators(estimator: Estimator | Sequence[Estimator]) -> tuple[Estimator, ...]:
    given = [estimator] if isinstance(estimator, str) or not isinstance(estimator, Iterable) else list(estimator)
    chosen = tuple(name for name in ESTIMATORS if name in given)
    if not given or any(name not in ESTIMATORS for name in given):
        raise InputError(f"estimator must be one or several of {', '.join(map(repr, ESTIMATORS))}, not {estimator!r}")
    return chosen


def _tap(
    network: UnraveledNetwork, tap: Literal["input", "stem", "parameters"] | BlockLike, *, per_sample: bool
) -> ResidualBlock | None:
    if per_sample:
        raise InputError("per_sample goes with tap='parameters': other taps have every sample's anyway")
    if tap == "input":
        return None
    return network.blocks[0] if tap == "stem" else network.block(tap)
