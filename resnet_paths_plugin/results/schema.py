"""The schema: every variable that a result can have, with its meaning, stored type and units. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SCHEMA_VERSION = 3
"""Counts changes of the schema that an older `load` would misread."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A variable's meaning in a phrase, stored type and units ("1" for none)."""

    long_name: str
    dtype: type[np.generic]
    units: str = "1"

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes that a variable of this quantity has; a text has no units."""
        named = {"long_name": self.long_name}
        return named if self.dtype is np.str_ else {**named, "units": self.units}


@dataclass(frozen=True, slots=True)
class StudyVariable:
    """The dims of a variable in a study's result (`"*"`: those of one input), and what it takes to be there."""

    dims: tuple[str, ...]
    needs: str = ""


@dataclass(frozen=True, slots=True)
class StudySchema:
    """What a study's result holds: variables and coordinates by name."""

    variables: Mapping[str, StudyVariable]
    coords: Mapping[str, StudyVariable]


_PATHS = "the gradient norms of single paths of this length"
_RANGE = "of the shortest interval of path lengths that holds 95 % of the measure's total"


def _of_sets(prefix: str, which: str) -> dict[str, Quantity]:
    """Return what is known of sets of blocks to delete, chosen or random."""
    own = {
        "searched_effect": Quantity(f"mean effect of {which} on the samples searched", np.float64),
        "held_out_effect": Quantity(f"mean effect of {which} on the samples held out", np.float64),
        "held_out_effect_stderr": Quantity("standard error of held_out_effect, over samples", np.float64),
        "held_out_error": Quantity("fraction of the samples held out that are misclassified", np.float64),
        "parameters": Quantity("number of parameters of the network", np.int64),
        "multiply_adds": Quantity("multiply-adds of the network for one sample", np.int64),
        "latency": Quantity("median time of a forward pass", np.float64, "s"),
    }
    deleted = {
        "deleted": Quantity(f"whether {which} deletes the block's branch", np.bool_),
        "n_deleted": Quantity("number of deleted blocks", np.int32),
        "n_deleted_units": Quantity("number of deleted blocks, or groups at level 'group'", np.int32),
    }
    return {f"{prefix}{name}": quantity for name, quantity in (own | deleted if prefix else own).items()}


QUANTITIES: Mapping[str, Quantity] = {
    # what a changed network does, sample by sample
    "target_score": Quantity("score of the target", np.float32),
    "target_score_drop": Quantity("score of the target: intact network minus changed network", np.float32),
    "loss": Quantity("cross-entropy loss", np.float32, "nat"),
    "kl_divergence": Quantity("Kullback-Leibler divergence from intact to changed output", np.float32, "nat"),
    # bool; of samples with several tokens or pixels a share, float64
    "correct": Quantity("whether the predicted class is the target", np.bool_),
    "prediction": Quantity("predicted class; -1 where outputs are not finite", np.int32),
    "prediction_changed": Quantity("whether the predicted class differs from the intact network's", np.bool_),
    "error": Quantity("fraction of samples whose predicted class is not the target", np.float64),
    "n_tokens": Quantity("number of the sample's labels that count", np.int64),
    "perplexity": Quantity("exp of the mean loss over the labels of all samples", np.float64),
    "squared_error": Quantity("mean squared error of the predicted values", np.float64),
    "mean_iou": Quantity("intersection over union, mean over the classes of the sample", np.float64),
    "cosine_distance": Quantity("1 minus the cosine of the embedding and the intact network's", np.float64),
    "label": Quantity("class that the sample is labelled with", np.int32),
    # lesions
    "lesion": Quantity("blocks whose branches are deleted, joined by '+'", np.str_),
    "deleted": Quantity("whether the lesion deletes the block's branch", np.bool_),
    "n_deleted": Quantity("number of deleted blocks", np.int32),
    "n_deleted_units": Quantity("number of deleted blocks, or groups at level 'group'", np.int32),
    "stage": Quantity("stage of the block that the lesion deletes, from 0; -1 for several units", np.int32),
    "skip_kind": Quantity("kind of skip of the block that the lesion deletes; empty for several units", np.str_),
    "branch_type": Quantity("type of the branch that the lesion deletes; empty for several units", np.str_),
    "draw": Quantity("number of the random draw among changes of the same size, from 0", np.int32),
    "explained_variance": Quantity(
        "share of the branch's variance over the reference that its linear stand-in explains", np.float64
    ),
    # reorderings
    "reordering": Quantity("order of the blocks", np.str_),
    "position": Quantity("place in the network, from 0", np.int32),
    "order": Quantity("index of the block whose branch runs at this place", np.int32),
    "kendall_tau": Quantity("Kendall's tau of old and new order, over the movable blocks", np.float64),
    "kendall_tau_all_blocks": Quantity("Kendall's tau of old and new order, over all blocks", np.float64),
    "n_swaps": Quantity("number of swaps that made the order", np.int32),
    # schedules; the weights of the changed sums are stored as a list of those that are not 0
    "schedule": Quantity("which branches are added where", np.str_),
    "family": Quantity("kind of change that the schedule makes", np.str_),
    "changed": Quantity("whether the schedule changes what is added at the block's sum", np.bool_),
    "n_changed": Quantity("number of blocks whose sums the schedule changes", np.int32),
    "constant_added": Quantity("whether the schedule adds a constant at the block's sum", np.bool_),
    "linear_added": Quantity("whether the schedule adds a linear map of the source at the block's sum", np.bool_),
    "entry": Quantity("number of the weight in the list of weights, from 0", np.int32),
    "entry_schedule": Quantity("place of the weight's schedule along dimension schedule", np.int32),
    "entry_place": Quantity("index of the block at whose sum the branch is added", np.int32),
    "entry_branch": Quantity("index of the block whose branch is added", np.int32),
    "entry_weight": Quantity("weight that the branch is multiplied by", np.float64),
    # influence of blocks, without lesions
    "branch_to_source_norm": Quantity("norm of the branch over norm of the source", np.float64),
    "source_sum_cosine": Quantity("cosine of source and sum", np.float64),
    "block_influence": Quantity("1 minus the cosine of source and sum", np.float64),
    "angular_distance": Quantity("angle between source and sum, as a fraction of half a turn", np.float64),
    "branch_descent_cosine": Quantity("cosine of branch and negative gradient of the objective at the sum", np.float64),
    "lesion_estimate": Quantity("first-order estimate of the objective's rise when the branch is deleted", np.float64),
    "gate_openness": Quantity("mean of the gate that multiplies the branch, over positions", np.float64),
    "lesion_effect": Quantity("mean rise of the measure over samples when the block alone is deleted", np.float64),
    "lesion_effect_by_sample": Quantity(
        "rise of the measure on a sample of the lesion study when the block alone is deleted", np.float64
    ),
    "proxy": Quantity("variable that predicts the effect of deleting a block", np.str_),
    "rank_correlation": Quantity("Spearman's rank correlation over blocks of proxy and effect of deletion", np.float64),
    # what passes through blocks
    "contribution": Quantity(
        "what the block's branch adds to the objective, to first order, through this many later branches", np.float64
    ),
    "direct": Quantity("what the block's branch adds to the objective, to first order, through no other", np.float64),
    "indirect": Quantity("what the block's branch adds to the objective, to first order, through others", np.float64),
    "stem": Quantity("what the first source adds to the objective, to first order, through no branch", np.float64),
    "remainder": Quantity("the objective minus the stem's part and the direct parts of all blocks", np.float64),
    "contribution_map": Quantity("direct contribution of the position", np.float32),
    "participation": Quantity(
        "part of the gradient of all paths of this length, along the direction, that goes through the block", np.float64
    ),
    "directional_derivative": Quantity(
        "inner product of the gradient of all paths of this length and the direction", np.float64
    ),
    "parameter_gradient_norm": Quantity(
        "norm of the gradient of the block's parameters along all paths of this length", np.float64
    ),
    "parameter_gradient_share": Quantity(
        "share of the block's parameter gradient: inner product with the whole over the latter's square", np.float64
    ),
    "parameter_gradient_norm_per_sample": Quantity(
        "norm of the gradient of the block's parameters along all paths of this length, on the sample", np.float64
    ),
    "parameter_gradient_share_per_sample": Quantity(
        "share of the block's parameter gradient on the sample along all paths of this length", np.float64
    ),
    "tail_parameter_gradient_norm": Quantity(
        "norm of the gradient of the block's parameters along all longer paths", np.float64
    ),
    "mean_path_length": Quantity("mean path length, weighted by parameter_gradient_share", np.float64),
    "n_parameters": Quantity("number of parameters that the block, or the part of the trunk, reads", np.int64),
    # sets of blocks to delete: those chosen, random ones, and those that a search measured
    "selection": Quantity("blocks whose branches are deleted, joined by '+'", np.str_),
    "method": Quantity("search that chose the set", np.str_),
    **_of_sets("", "the chosen set"),
    **_of_sets("random_", "the random set"),
    "n_tried": Quantity("number of sets that the search had measured by then", np.int64),
    "search_cost": Quantity("what the search had cost by then, in evaluations on all samples searched", np.float64),
    "step_method": Quantity("search that measured the set", np.str_),
    "step_deleted": Quantity("whether the set that was measured deletes the block's branch", np.bool_),
    "step_effect": Quantity("mean effect of the set that was measured", np.float64),
    "step_left_out": Quantity("whether the set was left out, as its effect is NaN or infinite", np.bool_),
    "step_n_samples": Quantity("number of samples that the set was measured on", np.int64),
    "n_searched_samples": Quantity("number of samples that were searched on", np.int64),
    "n_held_out_samples": Quantity("number of samples held out from the search", np.int64),
    # coalitions of blocks; effects are signed so that positive means harm
    "other_block": Quantity("the pair's other residual block", np.str_),
    "shapley_value": Quantity("Shapley value of the block, of the measure's mean over samples", np.float64),
    "shapley_stderr": Quantity("standard error of shapley_value over pairs of orders; 0 where it is exact", np.float64),
    "shapley_value_per_sample": Quantity("Shapley value of the block, of the measure on the sample", np.float64),
    "shapley_interaction": Quantity("Shapley interaction index of the two blocks", np.float64),
    "shapley_interaction_stderr": Quantity("standard error of shapley_interaction over pairs of orders", np.float64),
    "efficiency_error": Quantity(
        "sum of the Shapley values minus the measure of the intact network, plus that without branches", np.float64
    ),
    "n_coalitions": Quantity("number of different coalitions that were evaluated", np.int64),
    "n_orders": Quantity("number of random orders, half of them the reverse of the others", np.int64),
    "single_effect": Quantity("effect of deleting the block alone, mean over samples", np.float64),
    "pair_effect": Quantity("effect of deleting both blocks, mean over samples", np.float64),
    "interaction": Quantity("pair_effect minus the effects of deleting each block alone", np.float64),
    "interaction_per_sample": Quantity("the interaction on the sample", np.float64),
    "set_effect": Quantity("effect of deleting the random set, mean over samples", np.float64),
    "additive_effect": Quantity("effect of the random set as an additive model of other sets says", np.float64),
    "additive_share": Quantity("R squared of additive_effect, without the noise of few samples", np.float64),
    "additive_share_low": Quantity("lower end of the 95 % interval of additive_share", np.float64),
    "additive_share_high": Quantity("upper end of the 95 % interval of additive_share", np.float64),
    # networks trained in different ways
    "training": Quantity("how the network was trained", np.str_),
    # models side by side
    "model": Quantity("model that is compared", np.str_),
    "replicate": Quantity("number of the training among those of one model, from 0", np.int64),
    "n_replicates": Quantity("number of trainings of the model", np.int64),
    "architecture": Quantity("the library's name of the model, or its class", np.str_),
    "weights_digest": Quantity("SHA-256 of all parameters and buffers", np.str_),
    "n_blocks": Quantity("number of residual blocks of the network", np.int64),
    "block_name": Quantity("residual block, or group of blocks, at this place", np.str_),
    "relative_depth": Quantity(
        "middle of the block's equal share of the depth, from 0 to 1; -1 for lesions of several units", np.float64
    ),
    "share_of_blocks": Quantity("size of the change, or path length, over the network's largest", np.float64),
    "chance_error": Quantity("error of guessing: 1 minus 1 over the number of classes", np.float64),
    "normalised_effect": Quantity(
        "(error - intact_error) / (chance_error - intact_error): 0 as the intact network, 1 as guessing", np.float64
    ),
    "mean_lesion_effect": Quantity("effect of deleting one block, mean over blocks and samples", np.float64),
    "mean_normalised_effect": Quantity("normalised_effect of deleting one block, mean over blocks", np.float64),
    "notable_share": Quantity("share of blocks whose deletion has a notable effect on the error", np.float64),
    "gradient_norm_share": Quantity("gradient_norm of this path length over the sum of all lengths'", np.float64),
    # path lengths
    "path_length": Quantity("number of branches taken on a path", np.int32),
    "gradient": Quantity("sum of the gradients of all paths of this length", np.float32),
    "input": Quantity("input of the network", np.float32),
    "gradient_norm": Quantity("norm of the sum of the gradients of all paths of this length", np.float64),
    "gradient_share": Quantity(
        "share of the ordinary gradient: inner product of gradient and ordinary gradient over the latter's square",
        np.float64,
    ),
    "tail_gradient_norm": Quantity("norm of the sum of the gradients of all longer paths", np.float64),
    "completeness_error": Quantity(
        "what the sum of the parts misses of the whole, relative to the whole's size", np.float64
    ),
    "path_count": Quantity("number of paths of this length", np.float64),
    "log10_path_count": Quantity("decimal logarithm of path_count", np.float64),
    "path_gradient_norm": Quantity(f"mean of {_PATHS}, over sampled paths", np.float64),
    "path_gradient_norm_draws": Quantity(
        "the gradient norm of each sampled path of this length, on each sample", np.float64
    ),
    "path_gradient_norm_stderr": Quantity("standard error of path_gradient_norm", np.float64),
    "path_gradient_rms": Quantity(f"root mean square of {_PATHS}, over all of them", np.float64),
    "total_path_gradient": Quantity(f"sum of {_PATHS}: path_count * path_gradient_norm", np.float64),
    "log10_total_path_gradient": Quantity("decimal logarithm of total_path_gradient", np.float64),
    "n_samples": Quantity("number of samples that means over samples are of", np.int64),
    "n_draws": Quantity("number of sampled paths", np.int64),
    "measure": Quantity("variable that the value summarises", np.str_),
    "effective_length_low": Quantity(f"lower end {_RANGE}", np.float64),
    "effective_length_high": Quantity(f"upper end {_RANGE}", np.float64),
    # samples and blocks
    "sample_name": Quantity("name of the sample, such as its file", np.str_),
    "sample": Quantity("number of the sample in the order given, from 0", np.int64),
    "block": Quantity("residual block", np.str_),
    "block_index": Quantity("place of the block in execution order, from 0", np.int32),
    "block_stage": Quantity("stage of the network that the block belongs to, from 0", np.int32),
    "block_skip_kind": Quantity("what the skip does: identity, scaled, projection or gated", np.str_),
    "block_branch_type": Quantity("what the branch is made of", np.str_),
    "block_group": Quantity("module that is handled as one at level 'group'", np.str_),
    "block_module": Quantity("module that owns the block's sum", np.str_),
    "block_depth": Quantity("longest chain of weighted operations in the branch", np.int32),
}
"""The variables of every result; norms are Euclidean."""

_TARGETS = "targets"
_CLASSES = "outputs `[B, classes]`"
_SAMPLED = "estimator `sampled`"
_AT_PARAMETERS = '`tap="parameters"`'
_NOT_AT_PARAMETERS = "another tap than the parameters"
_RANGED = "estimator `exact` or `sampled`, one grade, no `max_length`"
_BLOCKS: Mapping[str, StudyVariable] = {
    name: StudyVariable(("block",))
    for name in (
        "block",
        "block_index",
        "block_stage",
        "block_skip_kind",
        "block_branch_type",
        "block_group",
        "block_module",
        "block_depth",
    )
}
_LABELS = "targets, one for each token or pixel"
_SEGMENTATION = "targets, the task `segmentation`"
_SAMPLES: Mapping[str, StudyVariable] = {
    "sample": StudyVariable(("sample",)),
    "sample_name": StudyVariable(("sample",), "`NamedBatches`"),
}


def _effects(dim: str) -> dict[str, StudyVariable]:
    """Return what every study of changed networks measures, along its own dim."""
    return {
        "target_score": StudyVariable((dim, "sample"), _TARGETS),
        "target_score_drop": StudyVariable((dim, "sample"), _TARGETS),
        "loss": StudyVariable((dim, "sample"), f"{_TARGETS}, {_CLASSES}"),
        "correct": StudyVariable((dim, "sample"), f"{_TARGETS}, {_CLASSES}"),
        "error": StudyVariable((dim,), f"{_TARGETS}, {_CLASSES}"),
        "prediction": StudyVariable((dim, "sample"), _CLASSES),
        "prediction_changed": StudyVariable((dim, "sample"), _CLASSES),
        "kl_divergence": StudyVariable((dim, "sample"), _CLASSES),
        "intact_target_score": StudyVariable(("sample",), _TARGETS),
        "intact_loss": StudyVariable(("sample",), f"{_TARGETS}, {_CLASSES}"),
        "intact_correct": StudyVariable(("sample",), f"{_TARGETS}, {_CLASSES}"),
        "intact_error": StudyVariable((), f"{_TARGETS}, {_CLASSES}"),
        "intact_prediction": StudyVariable(("sample",), _CLASSES),
        "label": StudyVariable(("sample",), f"{_TARGETS}, {_CLASSES}"),
        "n_tokens": StudyVariable(("sample",), _LABELS),
        "perplexity": StudyVariable((dim,), f"{_LABELS}, a task with perplexity"),
        "intact_perplexity": StudyVariable((), f"{_LABELS}, a task with perplexity"),
        "mean_iou": StudyVariable((dim, "sample"), _SEGMENTATION),
        "intact_mean_iou": StudyVariable(("sample",), _SEGMENTATION),
        "squared_error": StudyVariable((dim, "sample"), "targets, the task `regression`"),
        "intact_squared_error": StudyVariable(("sample",), "targets, the task `regression`"),
        "cosine_distance": StudyVariable((dim, "sample"), "the task `embedding`"),
    }


def _selected(prefix: str, dim: str, needs: str = "") -> dict[str, StudyVariable]:
    """Return what is known of sets of blocks to delete, along their own dim."""

    def told(*further: str) -> str:
        return ", ".join(part for part in (needs, *further) if part)

    return {
        f"{prefix}deleted": StudyVariable((dim, "block"), told()),
        f"{prefix}searched_effect": StudyVariable((dim,), told()),
        f"{prefix}held_out_effect": StudyVariable((dim,), told("`holdout`")),
        f"{prefix}held_out_effect_stderr": StudyVariable((dim,), told("`holdout`")),
        f"{prefix}held_out_error": StudyVariable((dim,), told("`holdout`", _TARGETS, _CLASSES)),
        f"{prefix}parameters": StudyVariable((dim,), told()),
        f"{prefix}multiply_adds": StudyVariable((dim,), told()),
        f"{prefix}latency": StudyVariable((dim,), told("`latency`")),
    }


def _along(dim: str, *names: str, needs: str = "") -> dict[str, StudyVariable]:
    """Return coordinates along a dim."""
    return {name: StudyVariable((dim,), needs) for name in names}


STUDIES: Mapping[str, StudySchema] = {
    "BlockLesion": StudySchema(
        {
            "deleted": StudyVariable(("lesion", "block")),
            "explained_variance": StudyVariable(("block",), '`ablation="linear"`'),
            **_effects("lesion"),
        },
        {
            **_along(
                "lesion",
                "lesion",
                "stage",
                "skip_kind",
                "branch_type",
                "relative_depth",
                "n_deleted",
                "n_deleted_units",
                "draw",
            ),
            **_SAMPLES,
            **_BLOCKS,
        },
    ),
    "BlockSelection": StudySchema(
        {
            **_selected("", "selection"),
            "n_tried": StudyVariable(("selection",)),
            "search_cost": StudyVariable(("selection",)),
            **_selected("random_", "random_set", "`n_random`"),
            "step_deleted": StudyVariable(("step", "block")),
            "step_effect": StudyVariable(("step",)),
            "step_left_out": StudyVariable(("step",)),
            "step_n_samples": StudyVariable(("step",)),
            "intact_held_out_error": StudyVariable((), f"`holdout`, {_TARGETS}, {_CLASSES}"),
            "intact_parameters": StudyVariable(()),
            "intact_multiply_adds": StudyVariable(()),
            "intact_latency": StudyVariable((), "`latency`"),
            "explained_variance": StudyVariable(("block",), '`ablation="linear"`'),
            "n_searched_samples": StudyVariable(()),
            "n_held_out_samples": StudyVariable(()),
        },
        {
            **_along("selection", "selection", "method", "n_deleted", "n_deleted_units"),
            **_along("random_set", "random_n_deleted", "random_n_deleted_units", needs="`n_random`"),
            **_along("step", "step_method"),
            **_BLOCKS,
        },
    ),
    "BlockReordering": StudySchema(
        {
            "order": StudyVariable(("reordering", "position")),
            "kendall_tau": StudyVariable(("reordering",)),
            "kendall_tau_all_blocks": StudyVariable(("reordering",)),
            **_effects("reordering"),
        },
        {
            **_along("reordering", "reordering", "n_swaps", "draw"),
            **_along("position", "position"),
            **_SAMPLES,
            **_BLOCKS,
        },
    ),
    "BlockSchedules": StudySchema(
        {
            "changed": StudyVariable(("schedule", "block")),
            "constant_added": StudyVariable(("schedule", "block")),
            "linear_added": StudyVariable(("schedule", "block")),
            **{
                name: StudyVariable(("entry",))
                for name in ("entry_schedule", "entry_place", "entry_branch", "entry_weight")
            },
            **_effects("schedule"),
        },
        {**_along("schedule", "schedule", "family", "n_changed"), **_SAMPLES, **_BLOCKS},
    ),
    "BlockInfluence": StudySchema(
        {
            "branch_to_source_norm": StudyVariable(("block", "sample")),
            "source_sum_cosine": StudyVariable(("block", "sample")),
            "block_influence": StudyVariable(("block", "sample")),
            "angular_distance": StudyVariable(("block", "sample")),
            "branch_descent_cosine": StudyVariable(("block", "sample"), "an objective with a gradient"),
            "lesion_estimate": StudyVariable(("block", "sample"), "an objective with a gradient"),
            "gate_openness": StudyVariable(("block", "sample"), "gated blocks"),
            "lesion_effect": StudyVariable(("block",), "`lesions`"),
            "lesion_effect_by_sample": StudyVariable(("block", "lesion_sample"), "`lesions` with values of samples"),
            "rank_correlation": StudyVariable(("proxy",), "`lesions`"),
        },
        {"proxy": StudyVariable(("proxy",), "`lesions`"), **_SAMPLES, **_BLOCKS},
    ),
    "BlockInteraction": StudySchema(
        {
            "single_effect": StudyVariable(("block",)),
            "pair_effect": StudyVariable(("block", "other_block")),
            "interaction": StudyVariable(("block", "other_block")),
            "interaction_per_sample": StudyVariable(("block", "other_block", "sample"), "`per_sample`"),
            "deleted": StudyVariable(("random_set", "block"), "`sets`"),
            "set_effect": StudyVariable(("random_set",), "`sets`"),
            "additive_effect": StudyVariable(("random_set",), "`sets`"),
            "additive_share": StudyVariable((), "`sets`"),
            "additive_share_low": StudyVariable((), "`sets`"),
            "additive_share_high": StudyVariable((), "`sets`"),
            "n_coalitions": StudyVariable(()),
            "n_samples": StudyVariable(()),
        },
        {
            "other_block": StudyVariable(("other_block",)),
            "sample": StudyVariable(("sample",), "`per_sample`"),
            **_BLOCKS,
        },
    ),
    "BlockShapley": StudySchema(
        {
            "shapley_value": StudyVariable(("block",)),
            "shapley_stderr": StudyVariable(("block",)),
            "shapley_value_per_sample": StudyVariable(("block", "sample"), "`per_sample`"),
            "shapley_interaction": StudyVariable(("block", "other_block"), "order 2"),
            "shapley_interaction_stderr": StudyVariable(("block", "other_block"), "order 2"),
            "single_effect": StudyVariable(("block",), "a measure of which it is known which way is better"),
            "efficiency_error": StudyVariable(()),
            "n_orders": StudyVariable((), "method `permutation`"),
            "n_coalitions": StudyVariable(()),
            "n_samples": StudyVariable(()),
        },
        {
            "other_block": StudyVariable(("other_block",), "order 2"),
            "sample": StudyVariable(("sample",), "`per_sample`"),
            **_BLOCKS,
        },
    ),
    "BlockContribution": StudySchema(
        {
            "contribution": StudyVariable(("block", "path_length", "sample")),
            "direct": StudyVariable(("block", "sample")),
            "indirect": StudyVariable(("block", "sample")),
            "stem": StudyVariable(("sample",)),
            "remainder": StudyVariable(("sample",)),
            "contribution_map": StudyVariable(
                ("block", "sample", "height", "width"), "`keep_maps`; of tokens dim `position_0`"
            ),
        },
        {"path_length": StudyVariable(("path_length",)), **_SAMPLES, **_BLOCKS},
    ),
    "PathParticipation": StudySchema(
        {
            "participation": StudyVariable(("block", "path_length", "sample")),
            "directional_derivative": StudyVariable(("path_length", "sample")),
            "completeness_error": StudyVariable(("path_length", "sample")),
        },
        {"path_length": StudyVariable(("path_length",)), **_SAMPLES, **_BLOCKS},
    ),
    "PathLengthGradient": StudySchema(
        {
            "path_count": StudyVariable(("path_length",), _NOT_AT_PARAMETERS),
            "log10_path_count": StudyVariable(("path_length",), _NOT_AT_PARAMETERS),
            "gradient_norm": StudyVariable(("path_length", "sample"), "estimator `exact`"),
            "gradient_share": StudyVariable(("path_length", "sample"), "estimator `exact`"),
            "completeness_error": StudyVariable(("sample",), "estimator `exact`; of dim `block` at the parameters"),
            "tail_gradient_norm": StudyVariable(("sample",), "estimator `exact`, `max_length`"),
            "path_gradient_norm": StudyVariable(("path_length",), _SAMPLED),
            "path_gradient_norm_draws": StudyVariable(("path_length", "draw", "sample"), _SAMPLED),
            "path_gradient_norm_stderr": StudyVariable(("path_length",), _SAMPLED),
            "total_path_gradient": StudyVariable(("path_length",), _SAMPLED),
            "log10_total_path_gradient": StudyVariable(("path_length",), _SAMPLED),
            "n_draws": StudyVariable((), _SAMPLED),
            "n_samples": StudyVariable((), _SAMPLED),
            "path_gradient_rms": StudyVariable(("path_length", "sample"), "estimator `signs`"),
            "effective_length_low": StudyVariable(("measure",), _RANGED),
            "effective_length_high": StudyVariable(("measure",), _RANGED),
            "gradient": StudyVariable(("path_length", "sample", "*"), "`keep_maps`"),
            "input": StudyVariable(("sample", "*"), '`keep_maps`, `tap="input"`'),
            "parameter_gradient_norm": StudyVariable(("block", "path_length"), _AT_PARAMETERS),
            "parameter_gradient_share": StudyVariable(("block", "path_length"), _AT_PARAMETERS),
            "mean_path_length": StudyVariable(("block",), f"{_AT_PARAMETERS}, no `max_length`"),
            "tail_parameter_gradient_norm": StudyVariable(("block",), f"{_AT_PARAMETERS}, `max_length`"),
            "n_parameters": StudyVariable(("block",), _AT_PARAMETERS),
            "parameter_gradient_norm_per_sample": StudyVariable(
                ("block", "path_length", "sample"), f"{_AT_PARAMETERS}, `per_sample`"
            ),
            "parameter_gradient_share_per_sample": StudyVariable(
                ("block", "path_length", "sample"), f"{_AT_PARAMETERS}, `per_sample`"
            ),
        },
        {
            "path_length": StudyVariable(("path_length",)),
            "measure": StudyVariable(("measure",), _RANGED),
            **_SAMPLES,
            **_BLOCKS,
        },
    ),
}
"""What each analyzer's result holds. A grade with several axes puts one dim for each in place of `path_length`."""

COORDINATES = frozenset(name for study in STUDIES.values() for name in study.coords)
"""Names that are coordinates wherever they are: what people select and group by."""

ATTRIBUTES: Mapping[str, str] = {
    "Conventions": "convention that the attributes follow",
    "schema_version": "version of this schema; `load` refuses newer ones",
    "title": "the study in a phrase",
    "summary": "what was done and how to read it",
    "source": "this package and its version",
    "references": "the papers that the study follows",
    "date_created": "when the study ended, in UTC",
    "history": "what made and changed the result, one line each",
    "model_library": "library of the model, where a plugin knows it",
    "model_library_version": "version of that library",
    "model_architecture": "the library's name of the model",
    "model_class": "class of the model",
    "weights_digest": "SHA-256 of all parameters and buffers",
    "plugins": "the plugins that were asked, with their versions",
    "device": "device that the model ran on",
    "dtype": "type of the model's parameters",
    "seed": "seed of every random draw, a number; absent where nothing is drawn",
    "python_version": "version of Python",
    "torch_version": "version of torch",
    "captum_version": "version of captum",
    "timm_version": "version of timm",
    "torchvision_version": "version of torchvision",
    "xarray_version": "version of xarray",
    "units": "what was changed: residual `blocks`, or `layers` of any network",
    "optimize": "what was done for speed, where it gives up the last digits",
    "verified": "what of the network was compared with the model",
    "measure": "measure that the effects of a selection are of",
    "sampled_paths": "whether each sample has sampled paths of its `own`, or all have `shared` ones",
    "norms": "whether the scales of layer and RMS norms were differentiated or held constant",
    "ridge": "ridge parameter of linear stand-ins, relative to the mean variance of the source's channels",
    "task": "what the model is for, which says how outputs and targets were read",
    "n_classes": "number of classes, for outputs `[B, classes]`",
    "class_names": "their names, where a plugin knows them",
}
"""Global attributes of every result; each argument `NAME` of `attribute` stands beside them as `argument_NAME`."""

PER_SAMPLE = frozenset({
    "sample", "sample_name", "target_score", "target_score_drop", "loss", "kl_divergence", "correct", "prediction",
    "prediction_changed", "label", "n_tokens", "squared_error", "mean_iou", "cosine_distance",
    "branch_to_source_norm", "source_sum_cosine", "block_influence", "angular_distance",
    "branch_descent_cosine", "lesion_estimate", "gate_openness", "gradient", "input", "gradient_norm",
    "path_gradient_norm_draws", "tail_gradient_norm", "completeness_error", "path_gradient_rms",
    "shapley_value_per_sample", "interaction_per_sample", "gradient_share", "contribution", "direct",
    "indirect", "stem", "remainder", "contribution_map", "participation", "directional_derivative",
    "parameter_gradient_norm_per_sample", "parameter_gradient_share_per_sample",
})  # fmt: skip
"""Variables of the schema that have a value for each sample; no other one has."""

OVER_SAMPLES = (
    "path_gradient_norm", "path_gradient_norm_stderr", "total_path_gradient", "log10_total_path_gradient",
    "shapley_value", "shapley_stderr", "shapley_interaction", "shapley_interaction_stderr", "efficiency_error",
    "single_effect", "pair_effect", "interaction", "set_effect", "additive_effect", "additive_share",
    "additive_share_low", "additive_share_high", "parameter_gradient_norm", "parameter_gradient_share",
    "tail_parameter_gradient_norm", "mean_path_length",
)  # fmt: skip
"""Means over samples that are not computed again: of all but sampled paths no result keeps the values of samples."""
