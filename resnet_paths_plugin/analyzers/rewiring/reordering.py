"""BlockReordering: let residual blocks trade places and see what it does (Veit et al. 2016, Sec. 4.3)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import scipy
import xarray as xr
from captum.attr import PerturbationAttribution
from captum.log import log_usage
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.arguments import check_draws, read_once
from resnet_paths_plugin.analyzers.base import Analyzer
from resnet_paths_plugin.analyzers.rewiring.conditions import BatchNorm, Conditions, beside_intact
from resnet_paths_plugin.analyzers.rewiring.measures import Measure
from resnet_paths_plugin.analyzers.rewiring.study import NamedSchedules, ScheduleStudy
from resnet_paths_plugin.argument_sizes import check_count, listed_values, shown
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.execution.batches import Batches, Target
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock
from resnet_paths_plugin.network.captured_network import Units as NetworkUnits
from resnet_paths_plugin.network.levels import Level, Units, placements, swappable, unit_names, units_of
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

Order = Sequence[BlockLike]
"""A permutation: for every place the block whose branch runs there."""

_WHAT: Mapping[NetworkUnits, str] = {
    "blocks": "whose residual blocks' branches run, their skips left in place,",
    "layers": "whose layers run",
}


class BlockReordering(Analyzer, PerturbationAttribution):  # type: ignore[misc]  # captum is untyped
    """Run the branches of residual blocks in another order; every skip stays where it is.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> swaps = rpp.BlockReordering(net).attribute(images, target=labels)  # neighbours that may trade places
        >>> swaps.order.dims, swaps.sizes["reordering"]
        (('reordering', 'position'), 1)
        >>> swaps.order.values.tolist()
        [[1, 0, 2, 3, 4, 5]]
    """

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        orders: Iterable[Order] | None = None,
        n_swaps: int | Iterable[int] | None = None,
        draws: int = 1,
        level: Level = "block",
        batch_norm: BatchNorm = "frozen",
        reference: Any = None,
        measures: Mapping[str, Measure] | None = None,
        internal_batch_size: int | None = None,
        perturbations_per_eval: int | None = None,
        seed: int = 0,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> xr.Dataset:
        """Run the network with its blocks in other orders.

        By default every two neighbours that may trade places do so once; `orders` gives the orders; `n_swaps` with
        `draws` makes random ones (Fig. 5b). Two blocks may trade places if their sources have one shape and their sums
        too, neither skip is a projection, neither lies inside the other, and what else a branch reads is computed
        before its new place.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches.
            target: which output to measure, as in Captum; for outputs `[B, classes]` an integer is the label too.
            additional_forward_args: further arguments of the model, after the inputs.
            orders: permutations of all blocks (or groups): for each place, the block whose branch runs there, by name,
                index or object.
            n_swaps: how many random swaps of two blocks (or groups) that may trade places make an order, one after
                the other; one number or several.
            draws: random orders for each number of swaps, drawn independently: two may be the same.
            level: move single blocks, or groups: all blocks of one owning module, such as a transformer layer.
            batch_norm: `"frozen"` statistics, as in the paper, or `"recalibrated"` for each order.
            reference: data whose batches give the recalibrated statistics; None takes the inputs themselves.
            measures: further measures by name, `function(outputs, target) -> [B]`; needed where outputs are not
                `[B, classes]` and the target does not pick one number of each sample.
            internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
            perturbations_per_eval: orders per forward pass, in one larger batch; None chooses.
            seed: seed of the random orders.
            show_progress: whether to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset with dims `reordering`, `sample`, `position`, `block`: `order` (reordering, position), the index
            of the block whose branch runs at each place; `kendall_tau` (over the movable blocks) and
            `kendall_tau_all_blocks` of old and new order, `n_swaps` (-1 for orders that were given), `draw`
            (reordering); and the measures of a lesion study, those of the intact network as `intact_...`. An order
            is labelled by its cycles.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            UnknownBlockError: if an order names a block or group that the network does not have.
            ScheduleError: if an order moves a block to where it does not fit; both blocks and shapes are named.
            InputError: if inputs, targets, measures or options do not fit, or no two blocks may trade places.
        """
        orders, n_swaps = read_once(orders, "orders"), read_once(n_swaps, "n_swaps")
        arguments = dict(locals())

        def study(network: UnraveledNetwork, batches: Batches) -> ScheduleStudy:
            chosen = _chosen(network, level, orders, n_swaps, check_draws(draws, seed), seed)
            return ScheduleStudy(
                network,
                batches,
                _schedules(network, chosen),
                title=f"Reordering study of {network.name}",
                summary=f"Outputs of a network {_WHAT[network.units]} in another order, {beside_intact(batch_norm)}",
                seed=seed if n_swaps is not None else None,
                conditions=Conditions(network, batches, "zero", batch_norm, reference),
                measures=measures,
                perturbations_per_eval=perturbations_per_eval,
            )

        return self.run_study(study, arguments)


@dataclass(frozen=True, slots=True)
class _Permutation:
    """For each place the index of the block that runs there, and how the order came about."""

    order: tuple[int, ...]
    n_swaps: int = -1
    draw: int = 0


def _chosen(
    network: UnraveledNetwork,
    level: Level,
    orders: Iterable[Order] | None,
    n_swaps: int | Iterable[int] | None,
    draws: int,
    seed: int,
) -> list[_Permutation]:
    """Return the orders that are asked for: given ones, random ones, or else each swap of two neighbours."""
    if orders is not None and n_swaps is not None:
        raise InputError("give either orders (explicit permutations) or n_swaps (random ones), not both")
    units = units_of(network, level)
    if orders is not None:
        chosen = [_Permutation(_of_blocks(network, units, level, order)) for order in orders]
    elif n_swaps is not None:
        chosen = _random_orders(network, units, n_swaps, draws, seed)
    else:
        chosen = _neighbours_swapped(network, units)
    if not chosen:
        raise InputError("there is no order to run: orders or n_swaps is empty")
    return chosen


def _of_blocks(network: UnraveledNetwork, units: Units, level: Level, order: object) -> tuple[int, ...]:
    """Return an order of units as one of blocks."""
    if isinstance(order, str | ResidualBlock) or not isinstance(order, Iterable):
        raise InputError(f"an order is a list of all {len(units)} {level}s, for each place the one that runs there")
    listed = listed_values(order, "an order")
    if level == "group" and all(isinstance(member, Integral) for member in listed):
        names = list(units)
        if sorted(listed) == list(range(len(names))):
            listed = [names[member] for member in listed]
    if level == "block":  # an order names blocks, so no group of the same name is meant
        listed = [units[member][0] if isinstance(member, str) and member in units else member for member in listed]
    named = unit_names(network, units, level, listed)
    if sorted(named) != sorted(units):
        raise InputError(
            f"an order must name each of the {len(units)} {level}s of {network.name} once; this one has {len(named)} "
            f"entries and {len(set(named))} different {level}s"
        )
    return _expanded(network, units, named)


def _expanded(network: UnraveledNetwork, units: Units, names: Sequence[str]) -> tuple[int, ...]:
    """Run the blocks of each named unit at the places of the blocks of the unit that was there."""
    order = list(range(len(network.blocks)))
    for (place, there), name in zip(units.items(), names, strict=True):
        if len(there) != len(units[name]):
            raise InputError(
                f"group {name!r} has {len(units[name])} blocks and group {place!r} {len(there)}: only groups of "
                "as many blocks can trade places"
            )
        for old, new in zip(there, units[name], strict=True):
            order[old.index] = new.index
    return tuple(order)


def _neighbours_swapped(network: UnraveledNetwork, units: Units) -> list[_Permutation]:
    names = list(units)
    start = np.arange(len(names))
    pairs = [(a, b) for a, b in _required(network, swappable(placements(network, units), start)) if b == a + 1]
    if not pairs:
        raise InputError(f"no two neighbours of {network.name} may trade places: give orders or n_swaps")
    chosen: list[_Permutation] = []
    for a, b in pairs:
        swapped = [*names[:a], names[b], names[a], *names[b + 1 :]]
        chosen.append(_Permutation(_expanded(network, units, swapped), n_swaps=1))
    return chosen


def _random_orders(
    network: UnraveledNetwork, units: Units, n_swaps: int | Iterable[int], draws: int, seed: int
) -> list[_Permutation]:
    counts = listed_values(n_swaps, "n_swaps") if isinstance(n_swaps, Iterable) else [n_swaps]
    check_count(
        len(counts) * draws, f"n_swaps of {len(counts)} numbers with draws={shown(draws)} asks for too many orders"
    )
    for count in counts:
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 0:
            raise InputError(f"n_swaps must hold numbers of swaps, 0 or more, not {count!r}")
        check_count(int(count), "n_swaps asks for too many swaps in one order")
    fits = placements(network, units)
    names = list(units)
    _required(network, swappable(fits, np.arange(len(names))))
    generator = np.random.default_rng(seed)
    chosen: list[_Permutation] = []
    for count in counts:
        for draw in range(draws):
            order = np.arange(len(names))
            for _ in range(int(count)):
                pairs = swappable(fits, order)
                a, b = pairs[generator.integers(len(pairs))]
                order[[a, b]] = order[[b, a]]
            moved = _expanded(network, units, [names[at] for at in order])
            chosen.append(_Permutation(moved, int(count), draw))
    return chosen


def _required(network: UnraveledNetwork, pairs: NDArray[np.intp]) -> NDArray[np.intp]:
    if not len(pairs):
        raise InputError(
            f"no two blocks of {network.name} may trade places: that takes equal shapes, skips that are no "
            "projections, and values that are there at both places"
        )
    return pairs


def _schedules(network: UnraveledNetwork, chosen: Sequence[_Permutation]) -> NamedSchedules:
    orders = np.array([permutation.order for permutation in chosen])
    movable = [block.index for block in network.blocks if block.movable]
    names = [block.name for block in network.blocks]
    return NamedSchedules(
        dim="reordering",
        labels=[_cycles(permutation.order, names) for permutation in chosen],
        schedules=[Schedule.order(network, permutation.order) for permutation in chosen],
        variables={
            "order": (("reordering", "position"), orders),
            "kendall_tau": (("reordering",), [_kendall_tau(order[movable]) for order in orders]),
            "kendall_tau_all_blocks": (("reordering",), [_kendall_tau(order) for order in orders]),
            "n_swaps": (("reordering",), [permutation.n_swaps for permutation in chosen]),
            "draw": (("reordering",), [permutation.draw for permutation in chosen]),
        },
    )


def _kendall_tau(order: NDArray[np.intp]) -> float:
    """Kendall's rank correlation of old and new order; NaN for fewer than two blocks."""
    if len(order) < 2:
        return float("nan")
    # Rounded, as the quotient of square roots leaves 0.9999999999999999 for an order that is unchanged.
    return round(float(scipy.stats.kendalltau(np.arange(len(order)), order).statistic), 12)


def _cycles(order: Sequence[int], names: Sequence[str]) -> str:
    """Write a permutation as its cycles: in `(a b c)` the branch of `b` runs at the place of `a`, and so on."""
    seen: set[int] = set()
    cycles: list[str] = []
    for start in range(len(order)):
        cycle: list[str] = []
        at = start
        while at not in seen:
            seen.add(at)
            cycle.append(names[at])
            at = order[at]
        if len(cycle) > 1:
            cycles.append(f"({' '.join(cycle)})")
    return "".join(cycles) or "intact"
