"""BlockShapley: each block's fair share of a measure, and how much pairs of blocks depend on one another."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr
from captum.log import log_usage

from resnet_paths_plugin.analyzers.arguments import check_draws, flag, positive
from resnet_paths_plugin.analyzers.coalitions.analyzer import OTHER, GameAnalyzer, tell, with_measure
from resnet_paths_plugin.analyzers.coalitions.evaluated import Coalitions
from resnet_paths_plugin.analyzers.coalitions.game import BlockGame
from resnet_paths_plugin.analyzers.coalitions.shapiq_games import approximated
from resnet_paths_plugin.analyzers.coalitions.shapley_values import (
    Estimate,
    SampledOrders,
    all_coalitions,
    pairs_within,
    shapley_interactions,
    shapley_values,
)
from resnet_paths_plugin.analyzers.rewiring.measures import Measure
from resnet_paths_plugin.analyzers.rewiring.tasks import Ablation
from resnet_paths_plugin.analyzers.study import StudyResult
from resnet_paths_plugin.argument_sizes import MOST, check_count
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.execution.batches import Target
from resnet_paths_plugin.network.levels import Level
from resnet_paths_plugin.results.variables import Entry

BUDGET = 4096
"""Coalitions that are evaluated at most where the user does not say: all of 12 blocks."""

_PAIR = ("block", OTHER)


class BlockShapley(GameAnalyzer):
    """Shapley values of blocks: the mean gain of a measure when a block joins the blocks before it in a random order.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> shares = rpp.BlockShapley(net).attribute(images, labels, value="loss", order=2)
        >>> shares.shapley_value.dims, shares.n_coalitions.item()
        (('block',), 64)
        >>> abs(shares.efficiency_error.item()) < 1e-9
        True
    """

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        value: str = "target_score",
        measures: Mapping[str, Measure] | None = None,
        higher_is_better: bool | None = None,
        order: Literal[1, 2] = 1,
        method: str = "auto",
        budget: int = BUDGET,
        level: Level = "block",
        ablation: Ablation = "zero",
        reference: Any = None,
        ridge: float | None = None,
        per_sample: bool = False,
        internal_batch_size: int | None = None,
        perturbations_per_eval: int | None = None,
        seed: int = 0,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> xr.Dataset:
        """Share a measure out among blocks.

        The values add up to the measure of the intact network minus that without any branch (efficiency). All `2^n`
        coalitions of `n` blocks cost `2^n / n` forward passes, since those that begin alike share what they have in
        common; `BlockGame.forward_passes` tells it beforehand, and so does this with `show_progress`.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches that can
                be read again.
            target: which output to measure, as in Captum; for outputs `[B, classes]` an integer is the label too.
            additional_forward_args: further arguments of the model, after the inputs.
            value: the measure that is shared out, as in `BlockGame`.
            measures: measures of your own by name, `function(outputs, target) -> [B]`.
            higher_is_better: whether more of the measure means a better network; None asks the measure.
            order: 1 for Shapley values, 2 for the Shapley interaction index of pairs too.
            method: `"exact"`, from all `2^n` coalitions; `"permutation"`, from random orders, each beside its reverse;
                the name of an approximator of `shapiq`, such as `"KernelSHAP"`; `"auto"` is exact where the budget
                allows.
            budget: coalitions that may be evaluated, those of single deletions included.
            level: whether players are single blocks, or groups: all blocks of one owning module.
            ablation: what stands in for a deleted branch, as in `BlockLesion`.
            reference: data for branch means and linear maps, as `inputs`; None takes the inputs themselves.
            ridge: ridge parameter of linear maps, as in `BlockLesion`.
            per_sample: whether to return the values of each sample too.
            internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
            perturbations_per_eval: coalitions per forward pass, in one larger batch; None chooses.
            seed: seed of the orders, of an approximator, and of other samples.
            show_progress: whether to say what is going to be run, and to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset with dim `block`: `shapley_value`, `shapley_stderr` (block): the standard error over pairs of
            orders, 0 where values are exact, NaN where an approximator gives none; `n_orders`, with `"permutation"`;
            `single_effect` (block), of deleting each block alone, signed so that positive means harm, where the
            measure's direction is known and the budget allows it; `efficiency_error`, by how much the values do not add
            up; `n_coalitions`; at order 2 `shapley_interaction`, `shapley_interaction_stderr` (block, other_block). All
            are of the mean over samples. With `per_sample` also `shapley_value_per_sample` (block, sample).

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if inputs, target, value or options do not fit, or the budget is too small for the method.
        """
        arguments = dict(locals())
        check_draws(1, seed)
        flag("per_sample", per_sample)
        _check(order, budget)
        play = partial(
            _play, method=method, order=order, budget=budget, per_sample=per_sample, seed=seed, told=show_progress
        )
        what = "coalitions of blocks, the branches of the others deleted, their skips left in place"
        return self.run_game(
            play,
            arguments,
            title=f"Shapley values of {value} over {level}s",
            summary=f"The share of each {level} in {value}, from {what}.",
        )


def _check(order: int, budget: int) -> None:
    if order not in {1, 2} or isinstance(order, bool):
        raise InputError(f"order must be 1 (Shapley values) or 2 (interactions of pairs too), not {order!r}")
    if positive("budget", budget) is None:
        raise InputError("budget must be a positive integer: the number of coalitions that may be evaluated")
    check_count(budget, "budget is the number of coalitions that may be evaluated")


def _play(
    game: BlockGame, *, method: str, order: int, budget: int, per_sample: bool, seed: int, told: bool
) -> StudyResult:
    """Evaluate what the method needs, and return the shares."""
    n = game.n_players
    if method == "auto":
        method = "exact" if 2**n <= budget else "permutation"
    if method == "exact":
        variables = _exact(game, order, budget, per_sample=per_sample, told=told)
    elif method == "permutation":
        variables = _from_orders(game, order, budget, per_sample=per_sample, seed=seed, told=told)
    elif per_sample:
        raise InputError(f"values of each sample come with method='exact' or 'permutation', not {method!r}")
    else:
        left = budget - len(_alone(game))  # for the approximator, unless that is most of the budget
        found = approximated(game, method, left if 2 * left > budget else budget, order, seed)
        variables = _variables(Estimate(found[0][:, None], np.full(n, np.nan), found[1], None))
    others: dict[str, Entry] = {} if order == 1 else {OTHER: ((OTHER,), list(game.players))}
    return StudyResult(_about(game, variables, budget), others)


def _exact(game: BlockGame, order: int, budget: int, *, per_sample: bool, told: bool) -> dict[str, Entry]:
    n = game.n_players
    if 2**n > budget:
        most = "" if 2**n <= MOST else f"; more than {MOST:,} are not run at all"
        raise InputError(
            f"the exact values of {n} players need all 2^{n} = {2**n:,} coalitions, about {2**n / n:,.0f} forward "
            f"passes over the samples, and the budget is {budget:,} coalitions: give budget={2**n}, or take "
            f"method='permutation'{most}"
        )
    coalitions = all_coalitions(n)
    tell(game, coalitions, told=told)
    means = game(coalitions)
    values = shapley_values(means)[:, None]
    interactions = shapley_interactions(means) if order == 2 else None
    no_error = None if interactions is None else 0 * interactions
    variables = _variables(Estimate(values, np.zeros(n), interactions, no_error))
    if per_sample:
        variables["shapley_value_per_sample"] = (("block", "sample"), shapley_values(game.per_sample(coalitions)))
    return variables


def _from_orders(
    game: BlockGame, order: int, budget: int, *, per_sample: bool, seed: int, told: bool
) -> dict[str, Entry]:
    n = game.n_players
    n_pairs = pairs_within(budget, n, order)
    if n_pairs < 2:
        raise InputError(
            f"a standard error takes two pairs of orders of {n} players, {2 + 4 * (n - 1) * order} coalitions, and the "
            f"budget is {budget}: give more"
        )
    sampled, coalitions = _orders_within(game, n_pairs, budget, order, seed)
    n_pairs = len(sampled.orders)
    tell(game, coalitions, told=told)
    game(coalitions)  # all of them in one study
    found = sampled.estimate(game.per_sample if per_sample else game, order)
    variables = _variables(found) | {"n_orders": ((), 2 * n_pairs)}
    if per_sample:
        variables["shapley_value_per_sample"] = (("block", "sample"), found.values)
    return variables


def _orders_within(
    game: BlockGame, n_pairs: int, budget: int, order: int, seed: int
) -> tuple[SampledOrders, Coalitions]:
    """Return orders and what is evaluated for them: single deletions too, for which a pair of orders may stay away."""
    for count in range(n_pairs, max(n_pairs - 2, 1), -1):
        sampled = SampledOrders.drawn(game.n_players, count, seed)
        coalitions = np.concatenate([sampled.coalitions(order), _alone(game)])
        if len(np.unique(np.packbits(coalitions, axis=1), axis=0)) <= budget:
            return sampled, coalitions
    sampled = SampledOrders.drawn(game.n_players, n_pairs, seed)
    return sampled, sampled.coalitions(order)


def _alone(game: BlockGame) -> Coalitions:
    """Return the coalitions without one player each, whose values are effects where a direction is known."""
    n = game.n_players
    return ~np.eye(n, dtype=bool) if game.direction is not None else np.zeros((0, n), dtype=bool)


def _variables(found: Estimate) -> dict[str, Entry]:
    """Return the variables of estimates."""
    variables: dict[str, Entry] = {
        "shapley_value": (("block",), found.values.mean(axis=1)),
        "shapley_stderr": (("block",), found.stderr),
    }
    if found.interactions is not None:
        variables["shapley_interaction"] = (_PAIR, found.interactions)
        stderr = found.interactions_stderr
        variables["shapley_interaction_stderr"] = (_PAIR, 0 * found.interactions + np.nan if stderr is None else stderr)
    return variables


def _about(game: BlockGame, variables: Mapping[str, Entry], budget: int) -> dict[str, Entry]:
    """Return the variables with what a reader needs to judge them."""
    n = game.n_players
    intact, nothing = game(np.array([[True] * n, [False] * n]))
    values = np.asarray(variables["shapley_value"][1])
    about: dict[str, Entry] = {
        **variables,
        "efficiency_error": ((), values.sum() - (intact - nothing)),
        "n_samples": ((), game.n_samples),
    }
    alone = _alone(game)
    if len(alone) and (game.n_evaluated + n <= budget or not game.forward_passes(alone)):
        about["single_effect"] = (("block",), game.effects(np.eye(n, dtype=bool)))
    about["n_coalitions"] = ((), game.n_evaluated)
    return with_measure(game, about)
