"""The schema: every variable that a result can have, with its meaning, stored type and units. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SCHEMA_VERSION = 1
"""Counts changes of the schema that an older `load` would misread."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """What the schema says of a variable: meaning in a phrase, stored type, units ("1" for none)."""

    long_name: str
    dtype: type[np.generic]
    units: str = "1"


_PATHS = "the gradient norms of single paths of this length"
_RANGE = "of the shortest interval of path lengths that holds 95 % of the measure's total"

QUANTITIES: Mapping[str, Quantity] = {
    # what a changed network does, sample by sample
    "target_score": Quantity("score of the target", np.float32),
    "target_score_drop": Quantity("score of the target: intact network minus changed network", np.float32),
    "loss": Quantity("cross-entropy loss", np.float32, "nat"),
    "kl_divergence": Quantity("Kullback-Leibler divergence from intact to changed output", np.float32, "nat"),
    "correct": Quantity("whether the predicted class is the target", np.bool_),
    "prediction": Quantity("predicted class", np.int32),
    "prediction_changed": Quantity("whether the predicted class differs from the intact network's", np.bool_),
    "error": Quantity("fraction of samples whose predicted class is not the target", np.float64),
    "label": Quantity("class that the sample is labelled with", np.int32),
    # lesions
    "lesion": Quantity("blocks whose branches are deleted, joined by '+'", np.str_),
    "deleted": Quantity("whether the lesion deletes the block's branch", np.bool_),
    "n_deleted": Quantity("number of deleted blocks", np.int32),
    "n_deleted_units": Quantity("number of deleted blocks, or groups at level 'group'", np.int32),
    "draw": Quantity("number of the random draw among changes of the same size, from 0", np.int32),
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
    "proxy": Quantity("variable that predicts the effect of deleting a block", np.str_),
    "rank_correlation": Quantity("Spearman's rank correlation over blocks of proxy and effect of deletion", np.float64),
    # networks trained in different ways
    "training": Quantity("how the network was trained", np.str_),
    # path lengths
    "path_length": Quantity("number of branches taken on a path", np.int32),
    "gradient": Quantity("sum of the gradients of all paths of this length", np.float32),
    "input": Quantity("input of the network", np.float32),
    "gradient_norm": Quantity("norm of the sum of the gradients of all paths of this length", np.float64),
    "tail_gradient_norm": Quantity("norm of the sum of the gradients of all longer paths", np.float64),
    "completeness_error": Quantity(
        "norm of the sum over path lengths minus the ordinary gradient, relative to the latter's", np.float64
    ),
    "path_count": Quantity("number of paths of this length", np.float64),
    "log10_path_count": Quantity("decimal logarithm of path_count", np.float64),
    "path_gradient_norm": Quantity(f"mean of {_PATHS}, over sampled paths", np.float64),
    "path_gradient_norm_stderr": Quantity("standard error of path_gradient_norm", np.float64),
    "path_gradient_rms": Quantity(f"root mean square of {_PATHS}, over all of them", np.float64),
    "total_path_gradient": Quantity(f"sum of {_PATHS}: path_count * path_gradient_norm", np.float64),
    "log10_total_path_gradient": Quantity("decimal logarithm of total_path_gradient", np.float64),
    "n_draws": Quantity("number of sampled paths", np.int64),
    "measure": Quantity("variable that the value summarises", np.str_),
    "effective_length_low": Quantity(f"lower end {_RANGE}", np.float64),
    "effective_length_high": Quantity(f"upper end {_RANGE}", np.float64),
    # samples and blocks
    "sample": Quantity("number of the sample in the order given, from 0", np.int64),
    "block": Quantity("residual block", np.str_),
    "block_index": Quantity("place of the block in execution order, from 0", np.int32),
    "stage": Quantity("stage of the network that the block belongs to, from 0", np.int32),
    "skip_kind": Quantity("what the skip does: identity, scaled, projection or gated", np.str_),
    "branch_type": Quantity("what the branch is made of", np.str_),
    "group": Quantity("module that is handled as one at level 'group'", np.str_),
    "module": Quantity("module that owns the block's sum", np.str_),
    "depth": Quantity("longest chain of weighted operations in the branch", np.int32),
}
"""The variables of every result; norms are Euclidean."""
