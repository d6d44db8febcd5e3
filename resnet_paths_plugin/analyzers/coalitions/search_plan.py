"""SearchPlan: what a selection searches for and how, with every option checked against the network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.arguments import check_draws, flag
from resnet_paths_plugin.analyzers.coalitions.searches import Method
from resnet_paths_plugin.analyzers.coalitions.set_space import SetSpace
from resnet_paths_plugin.analyzers.gradients.influence import PROXIES
from resnet_paths_plugin.argument_sizes import listed_values
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.blocks import BlockLike, listed
from resnet_paths_plugin.network.levels import Level, Units, unit_names, units_of
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

PLANNED = (
    "k", "method", "keep", "only_movable", "per_stage", "level", "proxy", "halving", "ablation", "n_random", "latency",
    "seed", "beam_width", "population", "generations", "latency_batch_size",
)  # fmt: skip
"""Arguments of `attribute` that a plan is made of."""

MOST_SETS = 100_000
"""Most sets that an exhaustive search measures."""

MOST_ROUNDS = 16
"""Most rounds of halving: the first one then has a sample in 32,768."""

Proxy = str | xr.DataArray
"""What ranks the blocks: a variable of `BlockInfluence` by name, or values along dim `block`; smaller goes first."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchPlan:
    """What is searched for, and how.

    Attributes:
        sizes: how many units to delete, in rising order.
        methods: the searches.
        space: the sets that may be deleted.
        members: which blocks each unit has, bool `[units, blocks]`.
        proxy: the name of the proxy that is measured, or the proxy of each block, `[blocks]`.
        beam_width: sets that go on from size to size in a beam search.
        population: sets of a generation.
        generations: the number of generations.
        rounds: rounds of halving.
        n_random: random sets of each size.
        latency: whether latency is measured.
        latency_batch_size: samples of the forward pass that is timed.
        seed: seed of everything random.
    """

    sizes: tuple[int, ...]
    methods: tuple[Method, ...]
    space: SetSpace
    members: NDArray[np.bool_]
    proxy: str | NDArray[np.float64]
    beam_width: int
    population: int
    generations: int
    rounds: int
    n_random: int
    latency: bool
    latency_batch_size: int
    seed: int

    @classmethod
    def of(
        cls,
        network: UnraveledNetwork,
        *,
        k: int | Iterable[int],
        method: Method | Iterable[Method],
        keep: BlockLike | Iterable[BlockLike],
        only_movable: bool,
        per_stage: int | None,
        level: Level,
        proxy: Proxy,
        halving: int,
        ablation: str,
        n_random: int,
        latency: bool,
        seed: int,
        **numbers: Any,
    ) -> "SearchPlan":
        """Return the plan for a network.

        Raises:
            InputError: if an option does not fit, or there is no such set.
            UnknownBlockError: if `keep` names a block or group that the network does not have.
        """
        if ablation == "resample":
            raise InputError(
                "ablation='resample' makes no network of its own: leave 'zero', or take 'mean' or 'linear'"
            )
        flag("latency", latency)
        flag("only_movable", only_movable)
        check_draws(1, seed)
        units = units_of(network, level)
        space = _space(network, units, level, keep, only_movable=only_movable, per_stage=per_stage)
        methods = _methods(method)
        sizes = _sizes(k)
        for size in sizes:
            space.check(size)
            if "exhaustive" in methods and space.count(size) > MOST_SETS:
                raise InputError(
                    f"an exhaustive search for k={size} measures {space.count(size):,} sets, more than {MOST_SETS:,}: "
                    "choose a smaller k, keep more blocks, or take method='greedy', 'beam' or 'evolutionary'"
                )
        if network.units == "layers" and "influence" in methods:
            raise InputError("method='influence' compares branches with skips, and layers have none: choose another")
        members = np.zeros((len(units), len(network.blocks)), dtype=bool)
        for row, unit in zip(members, units.values(), strict=True):
            row[[block.index for block in unit]] = True
        return cls(
            sizes=sizes,
            methods=methods,
            space=space,
            members=members,
            proxy=_proxy(proxy, network),
            rounds=whole("halving", halving, 1, MOST_ROUNDS),
            n_random=whole("n_random", n_random, 0),
            latency=latency,
            seed=seed,
            **{name: whole(name, value) for name, value in numbers.items()},
        )

    def blocks(self, sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which blocks sets of units delete, `[m, blocks]`."""
        deleted: NDArray[np.bool_] = sets @ self.members
        return deleted

    def of_units(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean over the blocks of each unit, `[units]`; NaN where a unit has no value."""
        known = np.where(np.isnan(values), 0.0, values)
        counts = self.members @ (~np.isnan(values)).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means: NDArray[np.float64] = (self.members @ known) / counts
        return means


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """Return a whole number within bounds.

    Raises:
        InputError: for anything else.
    """
    found = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if found is None or found < least or (most is not None and found > most):
        upper = f" and at most {most}" if most else ""
        raise InputError(f"{name} must be a whole number of at least {least}{upper}, not {value!r}")
    return found


def _sizes(k: int | Iterable[int]) -> tuple[int, ...]:
    given = listed_values(k, "k") if isinstance(k, Iterable) and not isinstance(k, str) else [k]
    for size in given:
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise InputError(f"k must be a number of blocks to delete, or several, not {size!r}")
    if not given:
        raise InputError("k is empty: give the number of blocks to delete, or several")
    return tuple(sorted({int(size) for size in given}))


def _methods(method: Method | Iterable[Method]) -> tuple[Method, ...]:
    given: list[Method] = [method] if isinstance(method, str) or not isinstance(method, Iterable) else list(method)
    known = get_args(Method)
    for one in given:
        if one not in known:
            raise InputError(f"method must be one of {', '.join(map(repr, known))}, or several, not {one!r}")
    if not given:
        raise InputError(f"method is empty: give one of {', '.join(map(repr, known))}, or several")
    return tuple(dict.fromkeys(given))


def _space(
    network: UnraveledNetwork,
    units: Units,
    level: Level,
    keep: BlockLike | Iterable[BlockLike],
    *,
    only_movable: bool,
    per_stage: int | None,
) -> SetSpace:
    kept = set(unit_names(network, units, level, listed(keep)))
    free = [
        name not in kept and (not only_movable or all(block.movable for block in blocks))
        for name, blocks in units.items()
    ]
    if not any(free):
        raise InputError("keep and only_movable leave no block to delete: keep fewer")
    stages = [-1 if blocks[0].stage is None else blocks[0].stage for blocks in units.values()]
    if per_stage is not None:
        whole("per_stage", per_stage)
        if set(stages) == {-1}:
            raise InputError(f"per_stage needs the stage of each block, and no plugin knows that of {network.name}")
    return SetSpace(tuple(units), np.array(free), np.array(stages, dtype=np.int64), per_stage)


def _proxy(proxy: object, network: UnraveledNetwork) -> str | NDArray[np.float64]:
    if isinstance(proxy, str):
        if proxy not in PROXIES:
            raise InputError(f"proxy must be one of {', '.join(map(repr, PROXIES))}, or values by block, not {proxy!r}")
        return proxy
    if not isinstance(proxy, xr.DataArray) or "block" not in proxy.dims or "block" not in proxy.coords:
        raise InputError("proxy must be a variable of BlockInfluence by name, or a DataArray with dim 'block'")
    names: Sequence[str] = [block.name for block in network.blocks]
    if sorted(proxy["block"].values.tolist()) != sorted(names):
        raise InputError(f"proxy has values of other blocks than {network.name}: it was made for another network")
    values = proxy.astype(np.float64).mean([dim for dim in proxy.dims if dim != "block"]).sel(block=names)
    return np.asarray(values.values, dtype=np.float64)
