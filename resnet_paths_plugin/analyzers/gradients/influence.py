"""BlockInfluence: what predicts the effect of deleting a block, from one forward and one backward pass.

Nothing is deleted here. With the results of `BlockLesion` at hand, each quantity is ranked against the true effect.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from captum.attr import GradientAttribution
from captum.log import log_usage
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.analyzers.base import Analyzer
from resnet_paths_plugin.analyzers.gradients.influence_tasks import (
    InfluenceOnFirstSamples,
    InfluenceWork,
    differentiated,
)
from resnet_paths_plugin.analyzers.gradients.objectives import Objective
from resnet_paths_plugin.analyzers.outputs import outputs_of
from resnet_paths_plugin.analyzers.pass_sizes import chunk_size
from resnet_paths_plugin.analyzers.study import Chunk, Study, StudyResult
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions, StudyRun
from resnet_paths_plugin.execution.batches import Batch, Batches, Target, check_target
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.derived import rank_correlation, refreshed
from resnet_paths_plugin.results.provenance import PAPER
from resnet_paths_plugin.results.variables import Entry

Array = NDArray[np.float64]

PROXIES = (
    "branch_to_source_norm", "block_influence", "angular_distance", "branch_descent_cosine", "lesion_estimate",
)  # fmt: skip
"""What may predict the effect of a deletion."""

REFERENCES = (
    f"{PAPER}; "
    "Men et al.: ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024, "
    "https://arxiv.org/abs/2403.03853; "
    "Gromov et al.: The Unreasonable Ineffectiveness of the Deeper Layers, 2024, https://arxiv.org/abs/2403.17887"
)

_SUMMARY = (
    "How source, branch and sum of each block of the intact network compare, and what the gradient of an objective at "
    "the sum predicts of the block's deletion."
)

GRAPH_BYTES = 2 * 2**30
"""Size that all values of a chunk should not exceed where they are kept for the backward pass."""

_DIFFERENCES = ("target_score_drop", "kl_divergence", "prediction_changed")
"""Measures of a lesion study that are 0 for the intact network."""


class BlockInfluence(Analyzer, GradientAttribution):  # type: ignore[misc]  # captum is untyped
    """Say how much each block changes what passes through it, and how much its deletion should matter.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> influence = rpp.BlockInfluence(net).attribute(images, target=labels, lesions=lesions)
        >>> influence.lesion_estimate.dims, influence.rank_correlation.sizes["proxy"]
        (('block', 'sample'), 5)
    """

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        objective: Objective = "cross_entropy",
        vector_dim: int | None = None,
        lesions: xr.Dataset | None = None,
        effect: str | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> xr.Dataset:
        """Compare source `x_i`, branch `f_i` (as it is added) and sum `y_i` of every block of the intact network.

        With `g_i` the gradient of the objective at `y_i`:

        * `branch_to_source_norm`: `||f_i|| / ||x_i||`;
        * `source_sum_cosine`: `cos(x_i, y_i)`; `block_influence`: 1 minus it (Men et al. 2024);
          `angular_distance`: `arccos` of it over pi (Gromov et al. 2024);
        * `branch_descent_cosine`: `cos(f_i, -g_i)`, whether the branch goes down the objective's slope;
        * `lesion_estimate`: `-<g_i, f_i>`, to first order the objective's rise when the branch is deleted;
        * `gate_openness`: the mean over positions of `T` in `T f(x) + (1 - T) x` (Srivastava et al. 2015).

        What compares source and sum is NaN where their shapes differ, as at many projections. A cosine is NaN where a
        vector is zero, a ratio where the source is; and all is NaN for blocks whose sum mixes the batch with another
        dimension. Parallel branches share their sum, and so its cosine.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches.
            target: the label for `"cross_entropy"`; the output to differentiate for `"score"`, as in Captum. Without
                one, what needs the gradient of `"cross_entropy"` is absent.
            additional_forward_args: further arguments of the model, after the inputs.
            objective: `"cross_entropy"`, `"score"`, or `function(outputs, target) -> [B]`; summed over samples.
            vector_dim: None takes a sample's whole value as one vector. A dimension of one sample's value (-1 for the
                features of tokens, 0 for channels) makes a vector at each position; cosines, ratios and angles are then
                averaged over the positions where they are defined, and NaN where source and sum have different ones.
            lesions: result of `BlockLesion` for the same network; its lesions of single blocks give the true effects.
            effect: measure of `lesions` whose mean rise is the effect, such as `"error"` or `"kl_divergence"`; None
                takes the objective's own, `"loss"` or `"target_score"`.
            internal_batch_size: samples per pass; None chooses a number that suits cache and memory.
            show_progress: whether to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset with dims `block` and `sample`, float64: the variables above (block, sample), `gate_openness`
            only where some block is gated. With `lesions` also `lesion_effect` (block), NaN for blocks that are never
            deleted alone, `lesion_effect_by_sample` (block, lesion_sample), the same on each sample of the lesion
            study, where this holds it, and `rank_correlation` (proxy): Spearman's, over blocks, of the proxy's mean
            over samples and the effect, NaN where fewer than 3 blocks have both or one of them is constant.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if inputs, targets, options or lesions do not fit, or the network was unraveled into layers.
        """
        arguments = dict(locals())

        def study(network: UnraveledNetwork, batches: Batches) -> InfluenceStudy:
            truth = None if lesions is None else (lesions, _effect(objective, effect))
            return InfluenceStudy(network, batches.first, objective=objective, vector_dim=vector_dim, truth=truth)

        return self.run_study(study, arguments)


class InfluenceStudy(Study):
    """Source, branch and sum of every block of the intact network, compared.

    Args:
        network: the network.
        first: the first batch.
        objective: what is differentiated.
        vector_dim: the dimension of one sample's value that makes a vector; None for all of the value.
        truth: the Dataset of a lesion study, and the measure whose rise is a block's effect; None without.

    Raises:
        InputError: if the network has no skips, or an option does not fit it.
    """

    name = "influence"

    def __init__(
        self,
        network: UnraveledNetwork,
        first: Batch,
        *,
        objective: Objective,
        vector_dim: int | None,
        truth: tuple[object, str] | None,
    ) -> None:
        super().__init__(network, title=f"Influence of the blocks of {network.name}", summary=_SUMMARY)
        _check_network(network, vector_dim)
        self._objective = objective
        self._differentiates = differentiated(objective, (first,)) is not None
        self._work = InfluenceWork(objective, vector_dim)
        self._truth: _Truth | None = None if truth is None else _true_effects(network, *truth)

    @property
    def attrs(self) -> Mapping[str, object]:
        """The papers that the quantities are from."""
        return {"references": REFERENCES}

    @property
    def manifest(self) -> Mapping[str, object]:
        """The objective, and the true effects."""
        return {"objective": self._objective, "lesions": self._truth}

    def check(self, batch: Batch) -> None:
        """Check a batch's target against the outputs."""
        sizes = self.network.readout.sizes_of(outputs_of(self.network))
        read = not callable(self._objective) or (batch.names_outputs and len(sizes or ()) == 1)
        if read and sizes is not None:
            check_target(batch, sizes)

    def samples_per_pass(self, run: RunOptions | None) -> int:
        """Return the number of samples whose values fit in memory where all of them are kept."""
        return _samples_per_pass(self.network, chunk_size(self.network, run), differentiable=self._differentiates)

    def own_pass(self, chunk: Batch) -> InfluenceOnFirstSamples | None:
        """Return the pass over the first samples, to be compared with the model, where it takes a gradient."""
        return InfluenceOnFirstSamples(self._work, self.network, chunk) if self._differentiates else None

    def work(self, run: StudyRun) -> InfluenceWork:  # noqa: ARG002 - nothing runs before
        """Return what compares the blocks' values."""
        return self._work

    def results(self, chunks: Iterable[Chunk]) -> Iterator[StudyResult]:
        """Yield the result of each chunk of samples; correlations are of the means up to there."""
        sums: dict[str, tuple[Array, NDArray[np.intp]]] = {}
        for _, (values,) in chunks:
            variables: dict[str, Entry] = {name: (("block", "sample"), array) for name, array in values.items()}
            coords: dict[str, Entry] = {}
            if self._truth is not None:
                effects, by_sample, described = self._truth
                proxies = [name for name in PROXIES if name in values]
                for name in proxies:
                    known = ~np.isnan(values[name])
                    total, count = np.where(known, values[name], 0.0).sum(axis=1), known.sum(axis=1)
                    before = sums.get(name, (np.zeros_like(total), np.zeros_like(count)))
                    sums[name] = before[0] + total, before[1] + count
                variables["lesion_effect"] = (("block",), effects, described)
                if by_sample is not None:
                    own = {name: described[name] for name in ("measure", "units")}
                    variables["lesion_effect_by_sample"] = (("block", "lesion_sample"), by_sample, own)
                variables["rank_correlation"] = (
                    ("proxy",),
                    [_correlation(_mean(*sums[name]), effects) for name in proxies],
                )
                coords["proxy"] = ("proxy", proxies)
            yield StudyResult(variables, coords)


def _check_network(network: UnraveledNetwork, vector_dim: object) -> None:
    if network.units == "layers":
        raise InputError(
            f"{network.name} was unraveled into layers, which have no skips, so that no branch is added to a "
            "source: unravel it with units='blocks'"
        )
    if vector_dim is None:
        return
    if not isinstance(vector_dim, int) or isinstance(vector_dim, bool):
        raise InputError(f"vector_dim must be a dimension of one sample's value, or None, not {vector_dim!r}")
    for block in network.blocks:
        n_dims = len(block.sum_shape)
        if not -n_dims <= vector_dim < n_dims:
            raise InputError(
                f"vector_dim={vector_dim} is no dimension of the sum of {block.name!r}, which has shape "
                f"{block.sum_shape} without the batch"
            )


def _samples_per_pass(network: UnraveledNetwork, size: int, *, differentiable: bool) -> int:
    """Return the number of samples, at most `size`, whose values fit in memory where all of them are kept."""
    if not differentiable:
        return size
    program = network.program
    values = [program.nodes[at] for at in program.dynamic if isinstance(program.nodes[at].meta.get("val"), Tensor)]
    kept: int = sum(math.prod(program.graph.sample_shape(node)) * node.meta["val"].element_size() for node in values)
    return network.graph.conditions.reached(max(1, min(size, GRAPH_BYTES // max(1, kept))))


def _effect(objective: Objective, effect: str | None) -> str:
    """Return the measure that the deletion's effect is taken from."""
    if effect is not None:
        return effect
    if callable(objective):
        raise InputError(
            "with a function for an objective and lesions at hand, say which of their measures fits: effect='...'"
        )
    return "target_score" if objective == "score" else "loss"


_Truth = tuple[Array, Array | None, Mapping[str, object]]
"""True effects, `[n]`, the same on each sample, `[n, samples]`, where these are known, and what they are."""


def _true_effects(network: UnraveledNetwork, lesions: object, effect: str) -> _Truth:
    """Return the rise of a measure when each block is deleted alone.

    Raises:
        InputError: if this is no lesion study of this network, or it does not hold the measure.
    """
    if not isinstance(lesions, xr.Dataset) or "lesion" not in lesions.dims or "deleted" not in lesions:
        raise InputError(
            "lesions must be a Dataset that BlockLesion returned (of a DataTree, one group: tree['...'].to_dataset()), "
            f"not {'another Dataset' if isinstance(lesions, xr.Dataset) else type(lesions).__name__}"
        )
    lesions = refreshed(lesions)
    theirs, ours = lesions["block"].values.tolist(), [block.name for block in network.blocks]
    if theirs != ours:
        raise InputError(f"lesions were run on another network than {network.name}: {_difference(theirs, ours)}")
    digests = lesions.attrs.get("weights_digest"), network.weights_digest()
    if digests[0] != digests[1]:
        raise InputError(
            f"lesions were run with other weights than {network.name} has: weights_digest is {digests[0]} there and "
            f"{digests[1]} here"
        )
    known = [
        str(name)
        for name, values in lesions.data_vars.items()
        if "lesion" in values.dims
        and name != "prediction"  # a class number, which does not rise
        and (f"intact_{name}" in lesions or name in _DIFFERENCES)
    ]
    if effect not in known:
        raise InputError(f"lesions hold no measure {effect!r} to compare with: effect must be one of {known}")
    rise = _rise(lesions, effect)
    deleted = lesions["deleted"].transpose("lesion", "block").values
    if not (deleted.sum(axis=1) == 1).any():
        raise InputError("lesions delete no block alone: run BlockLesion with its default, each block once")
    effects = _of_blocks(rise.mean([dim for dim in rise.dims if dim != "lesion"], skipna=False).values, deleted)
    each = _rise(lesions, "correct") * -1 if effect == "error" and "correct" in lesions else rise
    by_sample = None
    if set(each.dims) == {"lesion", "sample"}:
        by_sample = _of_blocks(each.transpose("lesion", "sample").values, deleted)
    how = {
        f"lesions_{name}": lesions.attrs.get(f"argument_{name}", "unknown")
        for name in ("ablation", "batch_norm", "inputs")
    }
    return effects, by_sample, {"measure": effect, "units": lesions[effect].attrs.get("units", "1"), **how}


def _rise(lesions: xr.Dataset, measure: str) -> xr.DataArray:
    """Return how much higher a measure is in each lesioned network than in the intact one."""
    rise = lesions[measure].astype(np.float64)
    return rise if measure in _DIFFERENCES else rise - lesions[f"intact_{measure}"].astype(np.float64)


def _of_blocks(of_lesions: Array, deleted: NDArray[np.bool_]) -> Array:
    """Return the mean over the lesions that delete each block alone, NaN where there is none, `[n, ...]`."""
    single = deleted.sum(axis=1) == 1
    alone, values = deleted[single].T, of_lesions[single]
    return np.stack([values[own].mean(axis=0) if own.any() else np.full(values.shape[1:], np.nan) for own in alone])


def _difference(theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return f"they have {len(theirs)} blocks, it has {len(ours)}"
    at = next(at for at, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one != other)
    return f"their block {at} is {theirs[at]!r}, its is {ours[at]!r}"


def _mean(total: Array, count: NDArray[np.intp]) -> Array:
    """Return means over what is not NaN; NaN where nothing is."""
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _correlation(proxy: Array, effect: Array) -> float:
    found = rank_correlation(proxy, effect)
    return math.nan if found is None else found
