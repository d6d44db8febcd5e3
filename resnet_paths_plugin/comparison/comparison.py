"""Comparison: results of several models as one tree, in which every study has the dim `model`."""

import warnings
from collections.abc import Mapping, Sequence

import xarray as xr

from resnet_paths_plugin.comparison.alignment import FACTS, aligned, measures_along, without
from resnet_paths_plugin.comparison.models import ComparedModel, Source, read_models
from resnet_paths_plugin.comparison.profiles import PROFILES, Intervals
from resnet_paths_plugin.comparison.replicates import LeftOutError, over_replicates
from resnet_paths_plugin.comparison.table import table_row
from resnet_paths_plugin.errors import InputError, OmittedStudyWarning
from resnet_paths_plugin.plotting.effects import DEFAULT_MEASURES
from resnet_paths_plugin.results.provenance import package_facts
from resnet_paths_plugin.statistics.bootstrap import check_options

TABLE = "models"
"""The group that holds the table."""

_CONDITIONS = tuple(f"argument_{name}" for name in ("ablation", "batch_norm", "level", "grade", "tap", "objective"))
"""Arguments that change what a study measures."""


def compare(
    models: Mapping[str, Source | Sequence[Source]],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    notable: float = 0.01,
) -> xr.DataTree:
    """Put the results of several models side by side: one tree whose groups have the dim `model`.

    Compared are lesions of single blocks, random lesions, reorderings and exact gradients by path length, where at
    least two results have them. No model is run: every number comes from the samples that the results hold, so a class
    subset shows its own. Of a model with one result, intervals are over its samples (see `statistics.summary`). Several
    results of one name are replicates, trainings of one architecture: a number is then their mean, and its interval
    that of the mean over trainings, by Student's t; all trainings stand along dim `replicate` in `replicate_NAME`.
    What is left out, and arguments in which studies differ, are named in an `OmittedStudyWarning`.

    Args:
        models: for each model's name its result (a Dataset, a DataTree or a file of either), or a sequence of results.
        level: level of confidence of all intervals.
        n_resamples: number of bootstrap resamples.
        seed: seed of their choice.
        notable: smallest effect of a block that counts for `notable_share`, a fraction of the samples.

    Returns:
        A DataTree, all numbers float64, each `NAME` with `NAME_low` and `NAME_high`, NaN where a model has none:

        * `models`: the table, dims (model). `intact_error`; `mean_lesion_effect`, over all deletions of one block, of
          the measure that the group's attribute `measure` names; `notable_share` of blocks whose deletion raises the
          error by more than `notable`, `_low` counting those whose interval lies above it, `_high` those whose interval
          reaches above it; `effective_length_low` and `effective_length_high`; `additive_share`, where there are
          interactions; counts of blocks, samples and trainings.
        * `single_lesions` (model, position): each measure after deleting the block that is `position` blocks from the
          input, `error_effect` (minus the intact network's), and `normalised_effect`:
          `(error - intact_error) / (chance_error - intact_error)`, 0 for the intact network, 1 for guessing. It makes
          networks of different intact errors comparable; its interval takes the intact error as known, and it is NaN
          where the number of classes is not known or the network does no better than guessing. Coordinates
          `block_name`, `block_index`, `stage`, `skip_kind` and `relative_depth`, from 0 to 1: the middle of the block's
          equal share of the depth.
        * `random_lesions` (model, n_deleted) and `reorderings` (model, n_swaps): the same, as means over draws.
        * `path_lengths` (model, path_length): `gradient_norm_share`, the norm of the gradient of all paths of a length
          over the sum of these norms.

    Raises:
        InputError: if there are not two results, they share no study, an option is out of range, or trainings of one
            name are of different blocks.
        FileError: if a file cannot be read.

    Examples:
        >>> other = rpp.unravel(demo.DigitsResNet(blocks_per_stage=1).eval(), images)
        >>> studies = {name: rpp.BlockLesion(one).attribute(images, target=labels)
        ...            for name, one in {"six blocks": net, "three blocks": other}.items()}
        >>> compared = rpp.compare(studies)
        >>> dict(compared["single_lesions"].error.sizes)
        {'model': 2, 'position': 6}
        >>> compared["single_lesions"].relative_depth.sel(model="three blocks").values[:3].round(2).tolist()
        [0.17, 0.5, 0.83]
        >>> compared["models"].n_blocks.values.tolist()
        [6, 3]
    """
    check_options(level, n_resamples, seed)
    if isinstance(notable, bool) or not isinstance(notable, int | float) or not 0 <= notable < 1:
        raise InputError(f"notable must be a fraction from 0 to below 1, such as 0.01, not {notable!r}")
    found = _Comparison(read_models(models), Intervals(level, n_resamples, seed), notable)
    tree = found.tree()
    if found.omitted:
        warnings.warn("; ".join(found.omitted), OmittedStudyWarning, stacklevel=2)
    return tree


class _Comparison:
    """Collects the groups of a comparison, and what is left out of it.

    Args:
        models: the models.
        intervals: how intervals are made.
        notable: smallest effect of a block that counts.

    Attributes:
        omitted: what is left out, and in which arguments studies differ, a phrase each.
    """

    def __init__(self, models: Sequence[ComparedModel], intervals: Intervals, notable: float) -> None:
        self._models = models
        self._intervals = intervals
        self._notable = notable
        self._profiles: dict[str, list[dict[str, xr.Dataset]]] = {
            model.name: [{} for _ in model.replicates] for model in models
        }
        self.omitted = [
            f"of model {model.name!r} these are not compared: {', '.join(model.omitted)}"
            for model in models
            if model.omitted
        ]

    def tree(self) -> xr.DataTree:
        """Return the comparison.

        Raises:
            InputError: if no two results share a study.
        """
        found = {kind: self._group(kind) for kind in PROFILES}
        groups = {kind: group for kind, group in found.items() if group is not None}
        if not groups and sum(len(model.studies("interactions")) for model in self._models) < 2:
            held = "; ".join(f"{model.name!r} has {', '.join(model.kinds) or 'none'}" for model in self._models)
            reasons = "".join(f". {reason}" for reason in self.omitted)
            raise InputError(f"no two of these results share a study that can be compared: {held}{reasons}")
        groups = {TABLE: self._table(_default_measure(groups.get("single_lesions"))), **groups}
        names = " and ".join(model.name for model in self._models)
        for kind, group in groups.items():
            what = "numbers of each model" if kind == TABLE else kind.replace("_", " ")
            group.attrs = self._attrs(f"Comparison of {names}: {what}") | group.attrs
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=self._attrs(f"Comparison of {names}")), **groups})

    def _group(self, kind: str) -> xr.Dataset | None:
        """Return the studies of a kind along `model` and their common axis; None where no two results have one."""
        dim, _ = PROFILES[kind]
        made = {model.name: self._profile(model, kind) for model in self._models}
        profiles = {name: profile for name, profile in made.items() if profile is not None}
        if sum(len(model.studies(kind)) for model in self._models if model.name in profiles) < 2:
            self.omitted += [f"{kind}: only {name!r} has them" for name in profiles]
            return None
        lacking = [repr(name) for name in made if name not in profiles]
        if lacking:
            self.omitted.append(f"{kind}: {', '.join(lacking)} has none")
        self._compare_conditions(kind)
        own = {name: measures_along(dim, profile) for name, profile in profiles.items()}
        shared = set.intersection(*map(set, own.values()))
        others = sorted({measure for measures in own.values() for measure in measures} - shared)
        if not shared:
            measures = "; ".join(f"{name!r} has {', '.join(held)}" for name, held in own.items())
            self.omitted.append(f"{kind}: the models share no measure ({measures})")
            return None
        if others:
            self.omitted.append(f"{kind}: not all models have {', '.join(others)}")
        kept = {name: without(others, profile) for name, profile in profiles.items()}
        group = aligned(kept, [model.name for model in self._models], dim)
        return group.set_coords([name for name in FACTS if name in group])

    def _profile(self, model: ComparedModel, kind: str) -> xr.Dataset | None:
        """Return what a model's studies of a kind say on the common axis; None where it has none."""
        _, make = PROFILES[kind]
        try:
            each = [make(ds, self._intervals) for ds in model.studies(kind)]
            found = over_replicates(each, self._intervals.level) if each else None
        except LeftOutError as reason:
            self.omitted.append(f"{kind} of {model.name!r}: {reason}")
            return None
        except InputError as error:
            raise InputError(f"{kind} of model {model.name!r}: {error}") from error
        for training, profile in enumerate(each):
            self._profiles[model.name][training][kind] = profile
        return found

    def _table(self, measure: str | None) -> xr.Dataset:
        rows = {}
        for model in self._models:
            alone = len(model.replicates) == 1
            each = [
                table_row(studies, profiles, measure, self._notable, self._intervals, alone=alone)
                for studies, profiles in zip(model.replicates, self._profiles[model.name], strict=True)
            ]
            rows[model.name] = over_replicates(each, self._intervals.level)
        table = aligned(rows, list(rows))
        return table.assign_attrs(notable=self._notable, **({} if measure is None else {"measure": measure}))

    def _compare_conditions(self, kind: str) -> None:
        """Note the arguments in which the studies of a kind differ."""
        studies = [ds for model in self._models for ds in model.studies(kind)]
        for name in _CONDITIONS:
            values = dict.fromkeys(str(ds.attrs[name]) for ds in studies if name in ds.attrs)
            if len(values) > 1:
                self.omitted.append(f"{kind}: studies differ in {name.removeprefix('argument_')} ({', '.join(values)})")

    def _attrs(self, title: str) -> dict[str, object]:
        summary = (
            "Numbers of several models side by side, each with an interval: over the samples of one result, or over "
            "the trainings of a model that has several"
        )
        own = self._intervals
        facts = package_facts(title=title, summary=summary, action="compare")
        return {**facts, "level": own.level, "n_resamples": own.n_resamples, "seed": own.seed}


def _default_measure(group: xr.Dataset | None) -> str | None:
    """Return the measure that effects are of: the error, else the share of changed predictions, else the first."""
    if group is None:
        return None
    known = [name for name in measures_along("position", group) if not name.endswith("_effect")]
    return next((name for name in (*DEFAULT_MEASURES, *known) if name in known), None)
