"""BlockSchedules: any changes of which branches run where, by name; lesions and reorderings are special cases of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from captum.attr import PerturbationAttribution
from captum.log import log_usage
from torch import Tensor

from resnet_paths_plugin.analyzers.arguments import read_once
from resnet_paths_plugin.analyzers.base import Analyzer
from resnet_paths_plugin.analyzers.rewiring.conditions import BatchNorm, Conditions, beside_intact
from resnet_paths_plugin.analyzers.rewiring.measures import Measure
from resnet_paths_plugin.analyzers.rewiring.study import NamedSchedules, ScheduleStudy
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.execution.batches import Batches, Target
from resnet_paths_plugin.network.captured_network import Units
from resnet_paths_plugin.network.schedule_families import Family
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.variables import Entry

_WHAT: Mapping[Units, str] = {
    "blocks": "whose residual blocks' branches are added, their skips left in place,",
    "layers": "whose layers run",
}
GIVEN = "given"
"""The family of schedules that the user made."""


class BlockSchedules(Analyzer, PerturbationAttribution):  # type: ignore[misc]  # captum is untyped
    """Run a network under any schedules: swapped, reversed, repeated, parallel, scaled or skipped branches.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Examples:
        >>> halved = rpp.Schedule.scaled(net, 0.5)
        >>> study = rpp.BlockSchedules(net).attribute(images, target=labels, schedules={"all branches halved": halved})
        >>> study.n_changed.item(), study.error.dims
        (6, ('schedule',))
    """

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        schedules: Mapping[str, Schedule] | Family | Iterable[Family],
        batch_norm: BatchNorm = "frozen",
        reference: Any = None,
        measures: Mapping[str, Measure] | None = None,
        internal_batch_size: int | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> xr.Dataset:
        """Run the network under named schedules.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches.
            target: which output to measure, as in Captum; for outputs `[B, classes]` an integer is the label too.
            additional_forward_args: further arguments of the model, after the inputs.
            schedules: schedules by name; or one or several families of `resnet_paths_plugin.schedules`, functions from
                the network to such a mapping.
            batch_norm: `"frozen"` statistics, as in the paper, or `"recalibrated"` for each schedule.
            reference: data whose batches give the recalibrated statistics; None takes the inputs themselves.
            measures: further measures by name, `function(outputs, target) -> [B]`; needed where outputs are not
                `[B, classes]` and the target does not pick one number of each sample.
            internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
            perturbations_per_eval: schedules per forward pass, in one larger batch; None chooses.
            show_progress: whether to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset with dims `schedule`, `sample`, `block`, `entry`: `family` (schedule), `changed` (schedule,
            block), whether the schedule changes what is added at a block's sum, `n_changed` (schedule); the weights of
            the changed sums that are not 0, as a list: at the sum of block `entry_place`, the branch of block
            `entry_branch` is added `entry_weight` times in schedule `entry_schedule` (entry); `constant_added`, where
            a constant is added as well (schedule, block); and the measures of a
            lesion study, those of the intact network as `intact_...`.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            ScheduleError: if a family moves a branch to where it does not fit.
            InputError: if inputs, targets, measures, schedules or options do not fit.
        """
        schedules = read_once(schedules, "schedules")
        arguments = dict(locals())

        def study(network: UnraveledNetwork, batches: Batches) -> ScheduleStudy:
            what = f"Outputs of a network {_WHAT[network.units]} elsewhere or with other weights"
            return ScheduleStudy(
                network,
                batches,
                _schedules(network, _named(network, schedules)),
                title=f"Schedule study of {network.name}",
                summary=f"{what}, {beside_intact(batch_norm)}",
                conditions=Conditions(network, batches, "zero", batch_norm, reference),
                measures=measures,
                perturbations_per_eval=perturbations_per_eval,
            )

        return self.run_study(study, arguments)


Named = Sequence[tuple[str, str, Schedule]]
"""Family, name and schedule."""


def _named(network: UnraveledNetwork, schedules: object) -> Named:
    """Return the schedules of every family with their names."""
    if isinstance(schedules, Mapping):
        chosen = [(GIVEN, str(name), schedule) for name, schedule in schedules.items()]
    else:
        families = list(schedules) if isinstance(schedules, Iterable) else [schedules]
        chosen = []
        for family in families:
            if not callable(family):
                raise InputError(
                    "schedules must be a mapping from names to schedules, or functions of "
                    f"resnet_paths_plugin.schedules, not {type(family).__name__}"
                )
            made = family(network)
            if not isinstance(made, Mapping):
                raise InputError(
                    f"{_family_name(family)} returns {type(made).__name__}, and a family of schedules is a function of "
                    "the network that returns a mapping from names to schedules"
                )
            chosen += [(_family_name(family), str(name), schedule) for name, schedule in made.items()]
    for _, name, schedule in chosen:
        if not isinstance(schedule, Schedule) or schedule.n_blocks != len(network.blocks):
            raise InputError(f"schedule {name!r} is not one for the {len(network.blocks)} blocks of {network.name}")
        if any(_per_sample(network, place, constant) for place, constant in schedule.constants.items()):
            raise InputError(f"schedule {name!r} has a constant with a value for each sample, which a study cannot cut")
    names = [name for _, name, _ in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two schedules have one name: {', '.join(twice)}. Name them apart, or leave one out")
    if not chosen:
        raise InputError(
            f"there is no schedule to run: none was given, or none of them fits the blocks of {network.name}"
        )
    return chosen


def _per_sample(network: UnraveledNetwork, place: int, constant: Tensor) -> bool:
    """Whether a constant has more than one value along the batch."""
    root = network.program.sums[network.program.branches[place].sum].root
    dim, n_dims = network.program.batch_dim(root), len(network.program.nodes[root].meta["val"].shape)
    return dim is not None and constant.ndim >= n_dims - dim and constant.shape[dim - n_dims] > 1


def _family_name(family: Callable[..., Any]) -> str:
    function = getattr(family, "func", family)  # a functools.partial
    return str(getattr(function, "__name__", type(function).__name__))


def _schedules(network: UnraveledNetwork, chosen: Named) -> NamedSchedules:
    changed = np.zeros((len(chosen), len(network.blocks)), dtype=bool)
    constants, linear = np.zeros_like(changed), np.zeros_like(changed)
    entries: list[tuple[int, int, int, float]] = []
    for which, (_, _, schedule) in enumerate(chosen):
        constants[which, list(schedule.constants)] = True
        linear[which, list(schedule.linear)] = True
        for place in range(len(network.blocks)):
            changed[which, place] = schedule.changes(place)
            if changed[which, place]:
                entries += [(which, place, branch, weight) for branch, weight in schedule.row(place)]
    columns: list[tuple[Any, ...]] = list(zip(*entries, strict=True)) or [()] * 4
    names = ("entry_schedule", "entry_place", "entry_branch", "entry_weight")
    listed: dict[str, Entry] = {name: (("entry",), column) for name, column in zip(names, columns, strict=True)}
    return NamedSchedules(
        dim="schedule",
        labels=[name for _, name, _ in chosen],
        schedules=[schedule for _, _, schedule in chosen],
        variables={
            "family": (("schedule",), [family for family, _, _ in chosen]),
            "changed": (("schedule", "block"), changed),
            "n_changed": (("schedule",), changed.sum(axis=1)),
            "constant_added": (("schedule", "block"), constants),
            "linear_added": (("schedule", "block"), linear),
            **listed,
        },
    )
