"""BlockSelection: which blocks to delete for a smaller network, searched for on some samples and reported on others."""

from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr
from captum.attr import PerturbationAttribution
from captum.log import log_usage

from resnet_paths_plugin.analyzers.arguments import flag, read_once
from resnet_paths_plugin.analyzers.base import Analyzer
from resnet_paths_plugin.analyzers.coalitions.held_out import Holdout
from resnet_paths_plugin.analyzers.coalitions.search_plan import PLANNED, Proxy, SearchPlan
from resnet_paths_plugin.analyzers.coalitions.searches import Method
from resnet_paths_plugin.analyzers.coalitions.selection_study import SelectionStudy, StandInOptions
from resnet_paths_plugin.analyzers.rewiring.measures import Measure
from resnet_paths_plugin.analyzers.rewiring.tasks import Ablation
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.execution.batches import Batches, Target
from resnet_paths_plugin.graph.blocks import BlockLike
from resnet_paths_plugin.network.levels import Level
from resnet_paths_plugin.network.unraveled import UnraveledNetwork


class BlockSelection(Analyzer, PerturbationAttribution):  # type: ignore[misc]  # captum is untyped
    """Choose the blocks whose deletion does least harm, `k` of them or several such numbers at once.

    A set that is chosen on some samples looks better on them than it is: half of the samples are held out from the
    search, and what is chosen is reported on them. Random sets of the same sizes and the lowest in a ranking by
    influence stand beside it. `net.pruned(blocks)` makes the smaller network.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> chosen = rpp.BlockSelection(net).attribute(images, target=labels, k=(1, 2), latency=False)
        >>> chosen.n_deleted.values.tolist(), chosen.method.values.tolist()
        ([1, 2, 1, 2], ['greedy', 'greedy', 'influence', 'influence'])
        >>> best = chosen.isel(selection=1)
        >>> small = net.pruned(chosen.block.values[best.deleted.values].tolist())
        >>> sum(one.numel() for one in small.parameters()) == int(best.parameters)
        True
    """

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        k: int | Iterable[int] = 1,
        method: Method | Iterable[Method] = "greedy",
        measure: str | None = None,
        keep: BlockLike | Iterable[BlockLike] = (),
        only_movable: bool = False,
        per_stage: int | None = None,
        holdout: Holdout = 0.5,
        proxy: Proxy = "block_influence",
        beam_width: int = 8,
        population: int = 16,
        generations: int = 16,
        halving: int = 1,
        n_random: int = 5,
        latency: bool = True,
        latency_batch_size: int = 1,
        level: Level = "block",
        ablation: Ablation = "zero",
        reference: Any = None,
        ridge: float | None = None,
        measures: Mapping[str, Measure] | None = None,
        higher_is_better: bool | None = None,
        internal_batch_size: int | None = None,
        seed: int = 0,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> xr.Dataset:
        """Search for the sets whose deletion has the least effect, and measure them on samples held out.

        The effect of a set is a measure of the network without it minus the intact network's, the mean over samples,
        signed so that positive means harm. No set is measured twice on a sample, whichever searches ask for it.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches that can
                be read several times, such as a `DataLoader` that does not shuffle.
            target: which output to measure, as in Captum; for outputs `[B, classes]` an integer is the label too.
            additional_forward_args: further arguments of the model, after the inputs.
            k: how many blocks (or groups) to delete, one number or several.
            method: how to search, or several such: `"exhaustive"` measures all sets of the size; `"greedy"` takes one
                block more at a time; `"beam"` goes on from the `beam_width` best sets of each size; `"evolutionary"`
                lets sets trade blocks, as in EvoPress (Sieberling et al. 2024); `"influence"` takes those with the
                least `proxy`, and is there in any case where it can be.
            measure: what the effect is an effect on: `"loss"`, `"kl_divergence"`, `"correct"`, `"target_score"`, or a
                plugin's or one of `measures`. None takes the loss (nats) where there are labels, else the
                Kullback-Leibler divergence from the intact outputs (nats).
            keep: blocks (or groups) that are not deleted.
            only_movable: whether only blocks are deleted that could trade places with others: none with a projection.
            per_stage: the most blocks that are deleted of one stage.
            holdout: the share of the samples that is held out, drawn at random; None searches on all samples and
                reports on none, so that `searched_effect` is of those that the sets were chosen on; or samples of their
                own, `(inputs, target)` or an iterable of such batches.
            proxy: the variable of `BlockInfluence` that ranks the blocks, its mean over the samples searched, or values
                of your own as a DataArray with dim `block`; the least goes first.
            beam_width: sets that go on from size to size in a beam search.
            population: sets of a generation of the evolutionary search.
            generations: the number of generations.
            halving: rounds of successive halving: with 3, sets are measured on a quarter of the samples, the better
                half of them on a half, and the better half of these on all.
            n_random: random sets of each size.
            latency: whether to measure latency; it takes about a second for each set.
            latency_batch_size: samples of the forward pass that is timed.
            level: delete single blocks, or groups: all blocks of one owning module, such as a transformer layer.
            ablation: what stands in for a deleted branch, as in `BlockLesion`; what depends on other samples of a batch
                (`"resample"`) makes no network of its own.
            reference: data for branch means and linear maps, as `inputs`; None takes the samples searched.
            ridge: of linear maps, the ridge parameter, as in `BlockLesion`.
            measures: measures of your own by name, `function(outputs, target) -> [B]`.
            higher_is_better: whether more of the measure is better; None knows it of the measures above, and asks
                others for an attribute of this name.
            internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
            seed: seed of the split, of random sets and of the evolutionary search.
            show_progress: whether to show progress bars.
            run: where to run it, and where to keep what is finished; None runs it here. The same call goes on from a
                checkpoint with the sets that were measured.

        Returns:
            A Dataset with dims `selection` (each method's set of each size, by rising size), `random_set`, `step` (all
            sets that were measured, in order) and `block`: `deleted` (selection, block) bool; `method`, `n_deleted`
            (blocks), `n_deleted_units` (blocks or groups), `searched_effect`; where samples are held out
            `held_out_effect` with its standard error over samples `held_out_effect_stderr` (NaN of one sample) and
            `held_out_error` (of classes with labels, a fraction); `parameters`, `multiply_adds` (of one sample),
            `latency` (seconds; device, batch size and threads are its attributes; a frozen batch is timed at its size),
            `n_tried` (sets) and `search_cost` (evaluations on all samples searched), up to the set's size where a
            search goes from size to size, and of that size else (selection); the same of random sets as `random_...`
            (random_set), and of the intact network as `intact_...`; `step_deleted` (step, block), `step_effect`,
            `step_left_out`, `step_n_samples`, `step_method` (step); `n_searched_samples`, `n_held_out_samples`.
            A set whose `step_effect` is NaN or infinite is left out of the choice, with a warning: a search without any
            other set of a size has none of this size.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            UnknownBlockError: if `keep` names a block or group that the network does not have.
            InputError: if inputs, targets, measures or options do not fit, there is no such set, or no set that was
                measured has a finite effect.
        """
        if higher_is_better is not None:
            flag("higher_is_better", higher_is_better)
        k, method, keep = read_once(k, "k"), read_once(method, "method"), read_once(keep, "keep")
        arguments = dict(locals())
        chosen = {name: arguments[name] for name in PLANNED}

        def study(network: UnraveledNetwork, batches: Batches) -> SelectionStudy:
            plan = SearchPlan.of(network, **chosen)
            return SelectionStudy(
                network, batches, plan, holdout=holdout, measure=measure, measures=measures, better=higher_is_better,
                stand_ins=StandInOptions(ablation, reference, ridge), extra=additional_forward_args,
            )  # fmt: skip

        return self.run_study(study, arguments)
