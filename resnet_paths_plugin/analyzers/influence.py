"""BlockInfluence: what foretells the effect of deleting a block, from one forward and one backward pass.

Nothing is deleted here. With the results of `BlockLesion` at hand, each quantity is ranked against the true effect.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from captum.attr import GradientAttribution
from captum.log import log_usage
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm

from resnet_paths_plugin import datasets
from resnet_paths_plugin.analyzers.batches import Batch, Batches, Target, check_target
from resnet_paths_plugin.analyzers.objectives import Objective, output_gradients
from resnet_paths_plugin.analyzers.schedule_study import chunk_size, network_for, positive, study_attrs
from resnet_paths_plugin.attributes import PAPER
from resnet_paths_plugin.engine.backward import bank_dtype
from resnet_paths_plugin.engine.states import BlockState, StatesEngine
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network import UnraveledNetwork

Array = NDArray[np.float64]

PROXIES = (
    "branch_to_source_norm", "block_influence", "angular_distance", "branch_descent_cosine", "lesion_estimate",
)  # fmt: skip
"""What may foretell the effect of a deletion."""

REFERENCES = (
    f"{PAPER}; "
    "Men et al.: ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024, "
    "https://arxiv.org/abs/2403.03853; "
    "Gromov et al.: The Unreasonable Ineffectiveness of the Deeper Layers, 2024, https://arxiv.org/abs/2403.17887"
)

GRAPH_BYTES = 2 * 2**30
"""Size that all values of a chunk should not exceed where they are kept for the backward pass."""

_DIFFERENCES = ("target_score_drop", "kl_divergence", "prediction_changed")
"""Measures of a lesion study that are 0 for the intact network."""
_FEWEST_RANKED = 3


class BlockInfluence(GradientAttribution):  # type: ignore[misc]  # captum is untyped
    """Say how much each block changes what passes through it, and how much its deletion should matter.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._network = model if isinstance(model, UnraveledNetwork) else None

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

        Returns:
            A Dataset with dims `block` and `sample`, float64: the variables above (block, sample), `gate_openness`
            only where some block is gated. With `lesions` also `lesion_effect` (block), NaN for blocks that are never
            deleted alone, and `rank_correlation` (proxy): Spearman's, over blocks, of the proxy's mean over samples
            and the effect, NaN where fewer than 3 blocks have both or one of them is constant.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if inputs, targets, options or lesions do not fit, or the network was unraveled into layers.
        """
        batches = Batches(inputs, target, additional_forward_args)
        self._network = network = network_for(self.forward_func, self._network, batches)
        if network.units == "layers":
            raise InputError(
                f"{network.name} was unraveled into layers, which have no skips, so that no branch is added to a "
                "source: unravel it with units='blocks'"
            )
        _check_vector_dim(network, vector_dim)
        truth = None if lesions is None else _true_effects(network, lesions, _effect(objective, effect))
        arguments = {
            "inputs": inputs, "target": target, "additional_forward_args": additional_forward_args,
            "objective": objective, "vector_dim": vector_dim, "lesions": lesions, "effect": effect,
            "internal_batch_size": internal_batch_size,
        }  # fmt: skip
        given = positive("internal_batch_size", internal_batch_size)
        engine = StatesEngine(network.program)
        pieces: list[dict[str, Array]] = []
        with tqdm(total=batches.n_samples, disable=not show_progress, unit="sample", desc="influence") as progress:
            for batch in batches:
                if batch.names_outputs or not callable(objective):
                    _check_target(network, batch)
                differentiated = None if objective == "cross_entropy" and batch.target is None else objective
                size = given or _samples_per_pass(network, differentiable=differentiated is not None)
                for chunk in batch.to(network.device).chunks(size):
                    pieces.append(_measured(network, engine, chunk, differentiated, vector_dim))
                    progress.update(chunk.size)
        names = list(pieces[0])
        if any(list(piece) != names for piece in pieces):
            raise InputError("some batches have targets and others have none: give all batches targets, or none")
        values = {name: np.concatenate([piece[name] for piece in pieces], axis=1) for name in names}
        attrs = study_attrs(
            network,
            analyzer=type(self).__name__,
            title=f"Influence of the blocks of {network.name}",
            summary=(
                "How source, branch and sum of each block of the intact network compare, and what the gradient of an "
                "objective at the sum foretells of the block's deletion."
            ),
            seed=None,
            arguments=arguments,
        )
        return _dataset(network, values, truth, {**attrs, "references": REFERENCES})


def _measured(
    network: UnraveledNetwork, engine: StatesEngine, chunk: Batch, objective: Objective | None, vector_dim: int | None
) -> dict[str, Array]:
    """Return the variables of one chunk by name, shape `[n, B]`; NaN where nothing is known."""
    names = ["branch_to_source_norm", "source_sum_cosine", "block_influence", "angular_distance"]
    names += ["branch_descent_cosine", "lesion_estimate"] if objective is not None else []
    names += ["gate_openness"] if any(block.gate is not None for block in network.blocks) else []
    found = {name: np.full((len(network.blocks), chunk.size), np.nan) for name in names}
    branches: dict[int, Tensor] = {}

    def measure(state: BlockState) -> None:
        for name, values in _of_state(state, vector_dim).items():
            found[name][state.block.index] = values.cpu().numpy()
        if objective is not None:
            branches[state.block.index] = state.branch

    inputs, parameters = network.inputs(chunk.args), network.program.parameters()
    run = engine.run(inputs, parameters, measure, differentiable=objective is not None)
    if objective is not None:
        outputs = network.graph.unflatten(run.outputs)
        leaves = output_gradients(objective, outputs, chunk, bank_dtype(network.dtype))
        for index, gradient in run.gradients(leaves).items():
            for name, values in _of_gradient(branches[index], gradient, vector_dim).items():
                found[name][index] = values.cpu().numpy()
    return found


def _of_state(state: BlockState, vector_dim: int | None) -> dict[str, Tensor]:
    """Return what a block's values tell, shape `[B]` each, float64."""
    # The skip of an identity is the source in the layout of the sum.
    source = state.skip if state.block.skip_kind == "identity" else state.source
    branch, total = _vectors(state.branch, vector_dim), _vectors(state.sum, vector_dim)
    found: dict[str, Tensor] = {}
    if source is not None and _positions(source, vector_dim) == _positions(state.sum, vector_dim):
        norm = _norm(_vectors(source, vector_dim))
        ratio = _norm(branch) / norm
        found["branch_to_source_norm"] = ratio.where(norm > 0, torch.nan).nanmean(1)
    if source is not None and source.shape == state.sum.shape:
        cosine = _cosine(_vectors(source, vector_dim), total)
        found["source_sum_cosine"] = cosine.nanmean(1)
        found["block_influence"] = (1 - cosine).nanmean(1)
        found["angular_distance"] = (cosine.arccos() / math.pi).nanmean(1)
    if state.gate is not None:
        found["gate_openness"] = state.gate.double().flatten(1).mean(1)
    return found


def _of_gradient(branch: Tensor, gradient: Tensor, vector_dim: int | None) -> dict[str, Tensor]:
    """Return what a branch and the gradient at its sum tell, shape `[B]` each, float64."""
    cosine = _cosine(_vectors(branch, vector_dim), -_vectors(gradient, vector_dim))
    estimate = -(gradient.double() * branch.double()).flatten(1).sum(1)
    return {"branch_descent_cosine": cosine.nanmean(1), "lesion_estimate": estimate}


def _vectors(values: Tensor, vector_dim: int | None) -> Tensor:
    """Return the vectors that are compared, `[B, positions, features]` float64, of values `[B, *]`."""
    values = values.double()
    if vector_dim is None:
        return values.reshape(len(values), 1, -1)
    last = values.movedim(_dim(values, vector_dim), -1)
    return last.reshape(len(values), -1, last.shape[-1])


def _positions(values: Tensor, vector_dim: int | None) -> tuple[int, ...] | None:
    """Return the sizes of the dimensions over which vectors are averaged; None where there is no such vector."""
    if vector_dim is None:
        return ()
    if not -values.ndim < vector_dim < values.ndim - 1:
        return None
    dim = _dim(values, vector_dim)
    return tuple(size for at, size in enumerate(values.shape) if at not in {0, dim})


def _dim(values: Tensor, vector_dim: int) -> int:
    return vector_dim + 1 if vector_dim >= 0 else vector_dim + values.ndim


def _norm(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosines of vectors, `[B, positions]`; NaN where one of them is zero."""
    product = (one * other).sum(-1)
    return (product / _norm(one) / _norm(other)).clamp(-1, 1)


def _check_vector_dim(network: UnraveledNetwork, vector_dim: object) -> None:
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


def _check_target(network: UnraveledNetwork, batch: Batch) -> None:
    """Check a batch's target against the outputs before anything is run."""
    leaves = [getattr(leaf, "meta", {}).get("val") for leaf in network.graph.outputs]
    if len(leaves) == 1 and isinstance(leaves[0], Tensor) and leaves[0].ndim == 2:
        check_target(batch, int(leaves[0].shape[1]))


def _samples_per_pass(network: UnraveledNetwork, *, differentiable: bool) -> int:
    """Return the number of samples whose values suit the cache, and fit in memory where all of them are kept."""
    size = chunk_size(network)
    if not differentiable:
        return size
    program = network.program
    values = [program.nodes[at] for at in program.dynamic if isinstance(program.nodes[at].meta.get("val"), Tensor)]
    kept: int = sum(math.prod(program.graph.sample_shape(node)) * node.meta["val"].element_size() for node in values)
    return max(1, min(size, GRAPH_BYTES // max(1, kept)))


def _effect(objective: Objective, effect: str | None) -> str:
    """Return the measure that the deletion's effect is taken from."""
    if effect is not None:
        return effect
    if callable(objective):
        raise InputError(
            "with a function for an objective and lesions at hand, say which of their measures fits: effect='...'"
        )
    return "target_score" if objective == "score" else "loss"


def _true_effects(network: UnraveledNetwork, lesions: object, effect: str) -> tuple[Array, Mapping[str, object]]:
    """Return the mean rise of a measure when each block is deleted alone, shape `[n]`, and what it is.

    Raises:
        InputError: if this is no lesion study of this network, or it does not hold the measure.
    """
    if not isinstance(lesions, xr.Dataset) or "lesion" not in lesions.dims or "deleted" not in lesions:
        raise InputError(
            "lesions must be a Dataset that BlockLesion returned (of a DataTree, one group: tree['...'].to_dataset()), "
            f"not {'another Dataset' if isinstance(lesions, xr.Dataset) else type(lesions).__name__}"
        )
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
    rise = lesions[effect].astype(np.float64)
    if effect not in _DIFFERENCES:
        rise = rise - lesions[f"intact_{effect}"].astype(np.float64)
    per_lesion = rise.mean([dim for dim in rise.dims if dim != "lesion"], skipna=False).values
    deleted = lesions["deleted"].transpose("lesion", "block").values
    alone = deleted[deleted.sum(axis=1) == 1].T
    if not alone.any():
        raise InputError("lesions delete no block alone: run BlockLesion with its default, each block once")
    rises = per_lesion[deleted.sum(axis=1) == 1]
    effects = np.array([rises[own].mean() if own.any() else np.nan for own in alone])
    how = {
        f"lesions_{name}": lesions.attrs.get(f"argument_{name}", "unknown")
        for name in ("ablation", "batch_norm", "inputs")
    }
    return effects, {"measure": effect, "units": lesions[effect].attrs.get("units", "1"), **how}


def _difference(theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return f"they have {len(theirs)} blocks, it has {len(ours)}"
    at = next(at for at, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one != other)
    return f"their block {at} is {theirs[at]!r}, its is {ours[at]!r}"


def _dataset(
    network: UnraveledNetwork,
    values: Mapping[str, Array],
    truth: tuple[Array, Mapping[str, object]] | None,
    attrs: Mapping[str, object],
) -> xr.Dataset:
    variables: dict[str, datasets.Entry] = {name: (("block", "sample"), array) for name, array in values.items()}
    coords = datasets.block_coords(network.blocks)
    if truth is not None:
        effects, described = truth
        proxies = [name for name in PROXIES if name in values]
        variables["lesion_effect"] = (("block",), effects, described)
        variables["rank_correlation"] = (
            ("proxy",),
            [_rank_correlation(_mean_over_samples(values[name]), effects) for name in proxies],
        )
        coords["proxy"] = ("proxy", proxies)
    return datasets.build(variables, coords=coords, attrs=attrs)


def _mean_over_samples(values: Array) -> Array:
    """Return the mean of each row over what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _rank_correlation(one: Array, other: Array) -> float:
    """Return Spearman's rank correlation over what is not NaN in both; NaN where it is not defined."""
    known = ~(np.isnan(one) | np.isnan(other))
    one, other = one[known], other[known]
    if len(one) < _FEWEST_RANKED or (one == one[0]).all() or (other == other[0]).all():
        return math.nan
    return float(stats.spearmanr(one, other).statistic)
