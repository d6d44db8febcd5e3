"""BlockLesion: delete residual blocks and measure the effect on the outputs (Veit et al. 2016, Sec. 4.1 and 4.2)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr
from captum.attr import PerturbationAttribution
from captum.log import log_usage

from resnet_paths_plugin.analyzers.arguments import check_draws, read_once
from resnet_paths_plugin.analyzers.base import Analyzer
from resnet_paths_plugin.analyzers.rewiring.conditions import BatchNorm, Conditions, beside_intact
from resnet_paths_plugin.analyzers.rewiring.measures import Measure
from resnet_paths_plugin.analyzers.rewiring.study import NamedSchedules, ScheduleStudy
from resnet_paths_plugin.analyzers.rewiring.tasks import Ablation
from resnet_paths_plugin.argument_sizes import check_count, listed_values, shown
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.execution.batches import Batches, Target
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock, listed
from resnet_paths_plugin.network.levels import Level, Units, unit_names, units_of
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.block_coords import block_coords, lesion_coords

Lesion = BlockLike | Iterable[BlockLike]


class BlockLesion(Analyzer, PerturbationAttribution):  # type: ignore[misc]  # captum is untyped
    """Delete residual blocks: the skip stays, a projection included, and the branch is gone.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> lesions.error.sizes, lesions.target_score_drop.dims
        (Frozen({'lesion': 6}), ('lesion', 'sample'))
        >>> pairs = rpp.BlockLesion(net).attribute(images, target=labels, n_deleted=2, draws=3)
        >>> pairs.n_deleted.values.tolist()
        [2, 2, 2]
    """

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        lesions: Iterable[Lesion] | None = None,
        n_deleted: int | Iterable[int] | None = None,
        draws: int = 1,
        level: Level = "block",
        ablation: Ablation = "zero",
        batch_norm: BatchNorm = "frozen",
        reference: Any = None,
        ridge: float | None = None,
        measures: Mapping[str, Measure] | None = None,
        internal_batch_size: int | None = None,
        perturbations_per_eval: int | None = None,
        seed: int = 0,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> xr.Dataset:
        """Run the network without some of its blocks.

        By default every block is deleted once, alone (Fig. 3); `lesions` names the sets to delete; `n_deleted` with
        `draws` deletes random sets (Fig. 5a).

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches.
            target: which output to measure, as in Captum; for outputs `[B, classes]` an integer is the label too.
            additional_forward_args: further arguments of the model, after the inputs.
            lesions: sets of blocks to delete, each given by name, index or object, or by several of them in a list.
            n_deleted: how many blocks (or groups) random lesions delete; one number or several.
            draws: random lesions of each size, drawn independently: two may be the same set.
            level: delete single blocks, or groups: all blocks of one owning module, such as a transformer layer.
            ablation: what stands in for a deleted branch: nothing (`"zero"`); its `"mean"` over the samples of the
                reference, at each position; with `"resample"`, its value on another sample of the same batch, drawn at
                random; or, with `"linear"`, the affine map over channels from its source that is nearest to it on the
                reference in the sense of least squares, the same at each position.
            batch_norm: `"frozen"` statistics, as in the paper, or `"recalibrated"` for each lesion: the averages over
                batches (of at most 256 samples) of the reference's statistics in the lesioned network. The intact
                network keeps its own.
            reference: data for means, linear maps and statistics, as `inputs`; None takes the inputs themselves, on
                which a linear map looks better than it is.
            ridge: of a linear map, what is added to the variance of each channel of the source, relative to their mean;
                None for 1e-6. More of it suits a reference with fewer positions than the source has channels.
            measures: further measures by name, `function(outputs, target) -> [B]`; needed where outputs are not
                `[B, classes]` and the target does not pick one number of each sample.
            internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
            perturbations_per_eval: lesions per forward pass, in one larger batch; None chooses.
            seed: seed of the random lesions, and of the other samples.
            show_progress: whether to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset with dims `lesion`, `sample`, `block`: `target_score`, `target_score_drop`, `loss` and
            `kl_divergence` (nats), `correct`, `prediction`, `prediction_changed` (lesion, sample); `error` (lesion), a
            fraction; `deleted` (lesion, block); the intact network's as `intact_...`. With `"linear"` also
            `explained_variance` (block), the share of the branch's variance over the reference that the map explains.
            What needs targets is absent without them. Coordinates along `lesion`, to select and group by: `n_deleted`
            (blocks), `n_deleted_units` (blocks or groups, by the level), `draw`, and of a lesion of one unit `stage`,
            `skip_kind`, `branch_type` and `relative_depth` (from 0 to 1); -1 or empty for several units.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            UnknownBlockError: if a lesion names a block or group that the network does not have.
            InputError: if inputs, targets, measures or options do not fit, or a linear map does not fit a block.
        """
        lesions, n_deleted = read_once(lesions, "lesions"), read_once(n_deleted, "n_deleted")
        arguments = dict(locals())

        def study(network: UnraveledNetwork, batches: Batches) -> ScheduleStudy:
            units = units_of(network, level)
            chosen = _chosen(network, units, level, lesions, n_deleted, check_draws(draws, seed), seed)
            return ScheduleStudy(
                network,
                batches,
                _schedules(network, units, chosen),
                title=f"Lesion study of {network.name}",
                conditions=Conditions(network, batches, ablation, batch_norm, reference, seed, ridge),  # refuses first
                summary=_summary(network, ablation, batch_norm),
                seed=seed if n_deleted is not None or ablation == "resample" else None,
                measures=measures,
                perturbations_per_eval=perturbations_per_eval,
            )

        return self.run_study(study, arguments)


def _summary(network: UnraveledNetwork, ablation: Ablation, batch_norm: BatchNorm) -> str:
    deleted = "residual blocks, their skips left in place" if network.units == "blocks" else "layers"
    substitute = {
        "zero": "",
        "mean": " and adding their means over samples",
        "resample": " and adding their values on another sample",
        "linear": " and adding the nearest affine maps of their sources",
    }
    what = (
        f"deleting the branches of {deleted}" if network.units == "blocks" else f"replacing {deleted} by the identity"
    )
    return f"Outputs of a network after {what}{substitute[ablation]}, {beside_intact(batch_norm)}"


@dataclass(frozen=True, slots=True)
class _Set:
    """A set of units to delete, by name, and which random draw of its size it is."""

    names: tuple[str, ...]
    draw: int


def _sets(lesions: object) -> Iterable[Lesion]:
    if isinstance(lesions, str | ResidualBlock) or not isinstance(lesions, Iterable):
        raise InputError(
            f"lesions must be a list of blocks or of sets of blocks, such as [{lesions!r}], not {lesions!r}"
        )
    return lesions


def _chosen(
    network: UnraveledNetwork,
    units: Units,
    level: Level,
    lesions: Iterable[Lesion] | None,
    n_deleted: int | Iterable[int] | None,
    draws: int,
    seed: int,
) -> list[_Set]:
    """Return the sets that are asked for: random ones, given ones, or else each unit alone."""
    if n_deleted is not None:
        if lesions is not None:
            raise InputError("give either lesions (explicit sets) or n_deleted (random sets), not both")
        chosen = _random_sets(units, n_deleted, draws, seed)
    elif lesions is not None:
        chosen = [_Set(_named(network, units, level, lesion), 0) for lesion in _sets(lesions)]
    else:
        chosen = [_Set((name,), 0) for name in units]
    if not chosen:
        raise InputError("there is no lesion to run: lesions or n_deleted is empty")
    return chosen


def _named(network: UnraveledNetwork, units: Units, level: Level, lesion: Lesion) -> tuple[str, ...]:
    """Return the units of a lesion, each once, in execution order."""
    names = set(unit_names(network, units, level, listed(lesion)))
    return tuple(name for name in units if name in names)


def _random_sets(units: Units, n_deleted: int | Iterable[int], draws: int, seed: int) -> list[_Set]:
    sizes = listed_values(n_deleted, "n_deleted") if isinstance(n_deleted, Iterable) else [n_deleted]
    check_count(
        len(sizes) * draws, f"n_deleted of {len(sizes)} sizes with draws={shown(draws)} asks for too many lesions"
    )
    for size in sizes:
        if not isinstance(size, Integral) or isinstance(size, bool) or not 0 <= size <= len(units):
            raise InputError(f"n_deleted must be between 0 and {len(units)}, the number of units, not {size!r}")
    generator = np.random.default_rng(seed)
    names = list(units)
    sets: list[_Set] = []
    for size in sizes:
        for draw in range(draws):
            chosen = sorted(generator.choice(len(names), size=int(size), replace=False))
            sets.append(_Set(tuple(names[index] for index in chosen), draw))
    return sets


def _schedules(network: UnraveledNetwork, units: Units, chosen: Sequence[_Set]) -> NamedSchedules:
    blocks = [[block for name in lesion.names for block in units[name]] for lesion in chosen]
    deleted = np.zeros((len(chosen), len(network.blocks)), dtype=bool)
    for row, gone in zip(deleted, blocks, strict=True):
        row[[block.index for block in gone]] = True
    n_units = np.array([len(lesion.names) for lesion in chosen])
    facts = {name: values for name, (_, values, *_) in block_coords(network.blocks).items()}
    return NamedSchedules(
        dim="lesion",
        labels=["+".join(lesion.names) if lesion.names else "intact" for lesion in chosen],
        schedules=[Schedule.lesion(network, gone) for gone in blocks],
        variables={
            "deleted": (("lesion", "block"), deleted),
            "n_deleted": (("lesion",), deleted.sum(axis=1)),
            "n_deleted_units": (("lesion",), n_units),
            "draw": (("lesion",), [lesion.draw for lesion in chosen]),
            **lesion_coords(deleted, n_units, facts),
        },
    )
