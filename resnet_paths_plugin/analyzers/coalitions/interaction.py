"""BlockInteraction: what deleting two blocks does beyond what deleting each does, and how nearly deletions add up."""

from collections.abc import Iterable, Mapping
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr
from captum.log import log_usage

from resnet_paths_plugin.analyzers.arguments import check_draws, flag
from resnet_paths_plugin.analyzers.coalitions.additivity import Sets, additive_share, random_sets
from resnet_paths_plugin.analyzers.coalitions.analyzer import OTHER, GameAnalyzer, tell, with_measure
from resnet_paths_plugin.analyzers.coalitions.game import BlockGame
from resnet_paths_plugin.analyzers.rewiring.measures import Measure
from resnet_paths_plugin.analyzers.rewiring.tasks import Ablation
from resnet_paths_plugin.analyzers.study import StudyResult
from resnet_paths_plugin.argument_sizes import check_count
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.execution.batches import Target
from resnet_paths_plugin.network.levels import Level
from resnet_paths_plugin.results.variables import Entry

_PAIR = ("block", OTHER)
_SETS_PER_PLAYER = 8
_FEWEST_SETS_PER_PLAYER = 2


class BlockInteraction(GameAnalyzer):
    """Interactions of pairs of blocks: `I_ij = d({i, j}) - d({i}) - d({j})`, where `d(T)` is the harm of deleting `T`.

    Positive: the two stand in for one another, and deleting both harms more than the sum says. Negative: without the
    one, the other matters less. Were interactions of every order zero, effects of deletions would add.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> pairs = rpp.BlockInteraction(net).attribute(images, labels, value="loss")
        >>> pairs.interaction.dims, pairs.single_effect.sizes["block"]
        (('block', 'other_block'), 6)
        >>> pairs.additive_share_low.isnull().item()  # fewer than 10 samples have no interval
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
        sets: int | None = None,
        n_deleted: Iterable[int] | None = None,
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
        """Delete every block, every pair of blocks, and random sets of blocks.

        All pairs cost about `n**2 / 6` forward passes, since those that begin alike share what they have in common.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches that can
                be read again.
            target: which output to measure, as in Captum; for outputs `[B, classes]` an integer is the label too.
            additional_forward_args: further arguments of the model, after the inputs.
            value: the measure whose change is the effect, as in `BlockGame`.
            measures: measures of your own by name, `function(outputs, target) -> [B]`.
            higher_is_better: whether more of the measure means a better network; None asks the measure.
            sets: random sets that the additive share is of, each drawn once; None takes 8 for each block, or all where
                there are fewer; 0 leaves the share out. It takes 2 for each block.
            n_deleted: sizes of the random sets, all equally likely; None takes 2 to half of the blocks (at least 4).
            level: whether single blocks are deleted, or groups: all blocks of one owning module.
            ablation: what stands in for a deleted branch, as in `BlockLesion`.
            reference: data for branch means and linear maps, as `inputs`; None takes the inputs themselves.
            ridge: ridge parameter of linear maps, as in `BlockLesion`.
            per_sample: whether to return the interactions on each sample too, `n * n * B` numbers.
            internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
            perturbations_per_eval: coalitions per forward pass, in one larger batch; None chooses.
            seed: seed of the random sets, of the folds, and of other samples.
            show_progress: whether to say what is going to be run, and to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset with dims `block` and `other_block`: `single_effect` (block), `pair_effect` and `interaction`
            (block, other_block), means over samples, signed so that positive means harm; the diagonal of `pair_effect`
            is the single effect, that of `interaction` NaN. Of random sets (random_set): `deleted` (random_set, block),
            `set_effect`, and `additive_effect`, which the best additive model of other sets says; `additive_share`, its
            R^2 on sets that it was not fitted to (5 folds), freed from the noise of few samples: NaN of one sample, and
            where noise hides that effects differ; its 95 % interval `additive_share_low`, `additive_share_high` over
            samples and sets, NaN with fewer than 10 samples. `n_coalitions`, `n_samples`; with `per_sample`
            also `interaction_per_sample` (block, other_block, sample).

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if inputs, target, value or options do not fit, or it is not known whether more of the measure
                is better.
        """
        arguments = dict(locals())
        check_draws(1, seed)
        flag("per_sample", per_sample)
        sizes = None if n_deleted is None else _whole_numbers(n_deleted)
        play = partial(_play, sets=sets, sizes=sizes, per_sample=per_sample, seed=seed, told=show_progress)
        return self.run_game(
            play,
            arguments | {"n_deleted": sizes},
            title=f"Interactions of {level}s",
            summary=f"What deleting two {level}s does to {value} beyond what deleting each does; positive means harm.",
        )


def _play(
    game: BlockGame, *, sets: int | None, sizes: list[int] | None, per_sample: bool, seed: int, told: bool
) -> StudyResult:
    """Evaluate single, paired and random deletions, and return what is made of them."""
    n = game.n_players
    _ = game.higher_is_better  # refuses before anything is run
    drawn = _drawn(n, sets, sizes, seed)
    single = np.eye(n, dtype=bool)
    first, other = np.triu_indices(n, 1)
    deleted = np.concatenate([single, single[first] | single[other], drawn])
    tell(game, ~deleted, told=told)
    effects = game.effects(deleted)  # all of them in one study
    alone, pairs, of_sets = np.split(effects, [n, n + len(first)])
    pair_effect = np.diag(alone)
    pair_effect[first, other] = pair_effect[other, first] = pairs
    interaction = pair_effect - alone[:, None] - alone
    np.fill_diagonal(interaction, np.nan)
    variables: dict[str, Entry] = {
        "single_effect": (("block",), alone),
        "pair_effect": (_PAIR, pair_effect),
        "interaction": (_PAIR, interaction),
        "n_samples": ((), game.n_samples),
    }
    if len(drawn):
        variables |= _additive(game, drawn, of_sets, seed)
    if per_sample:
        variables["interaction_per_sample"] = ((*_PAIR, "sample"), _per_sample(game, single))
    variables["n_coalitions"] = ((), game.n_evaluated)
    return StudyResult(with_measure(game, variables), {OTHER: ((OTHER,), list(game.players))})


def _additive(game: BlockGame, drawn: Sets, effects: np.ndarray, seed: int) -> dict[str, Entry]:
    found = additive_share(drawn, game.effects(drawn, per_sample=True), seed)
    return {
        "deleted": (("random_set", "block"), drawn),
        "set_effect": (("random_set",), effects),
        "additive_effect": (("random_set",), found.predicted),
        "additive_share": ((), found.share),
        "additive_share_low": ((), found.low),
        "additive_share_high": ((), found.high),
    }


def _per_sample(game: BlockGame, single: Sets) -> np.ndarray:
    """Return the interaction of each pair on each sample, `[n, n, B]`."""
    n = len(single)
    alone = game.effects(single, per_sample=True)
    found = np.full((n, n, alone.shape[1]), np.nan)
    for i in range(1, n):
        pairs = game.effects(single[i] | single[:i], per_sample=True)
        found[i, :i] = found[:i, i] = pairs - alone[i] - alone[:i]
    return found


def _drawn(n: int, sets: int | None, sizes: list[int] | None, seed: int) -> Sets:
    """Return the random sets; none where they are not asked for, or where by default there are too few.

    Raises:
        InputError: if their number or sizes do not fit.
    """
    if sets is not None and (not isinstance(sets, Integral) or isinstance(sets, bool) or sets < 0):
        raise InputError(f"sets must be an integer of at least 0, or None, not {sets!r}")
    if sizes is not None and (not sizes or min(sizes) < 1 or max(sizes) > n):
        raise InputError(f"n_deleted must hold sizes between 1 and {n}, the number of players, not {sizes}")
    count = _SETS_PER_PLAYER * n if sets is None else int(sets)
    check_count(count, "sets")
    half = list(range(2, max(n // 2, min(n, 4)) + 1))
    drawn = random_sets(n, half if sizes is None else sizes, count, seed)
    if len(drawn) >= _FEWEST_SETS_PER_PLAYER * n:
        return drawn
    if sets:
        raise InputError(
            f"the additive share of {n} players takes {_FEWEST_SETS_PER_PLAYER * n} different sets, and sets={sets} "
            f"with n_deleted={sizes or half} gives {len(drawn)}: ask for more, of more sizes, or give sets=0"
        )
    return drawn[:0]


def _whole_numbers(n_deleted: Iterable[int] | int) -> list[int]:
    given = list(n_deleted) if isinstance(n_deleted, Iterable) else [n_deleted]
    if any(not isinstance(size, Integral) or isinstance(size, bool) for size in given):
        raise InputError(f"n_deleted must hold whole numbers, not {n_deleted!r}")
    return sorted({int(size) for size in given})
