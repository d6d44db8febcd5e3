"""The models of a comparison: for each name the studies of its trainings, by kind, read from datasets or files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.registry import FIGURES, fitting
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.derived import refreshed

Source = xr.Dataset | xr.DataTree | str | os.PathLike[str]
"""A result, or the file that holds it."""

KINDS = ("single_lesions", "random_lesions", "reorderings", "path_lengths", "interactions")
"""The kinds of studies that are compared, by the names of their figures."""


@dataclass(frozen=True, eq=False)
class ComparedModel:
    """One model of a comparison.

    Attributes:
        name: its name.
        replicates: for each of its trainings the studies by kind.
        omitted: groups of its results that are not compared.
    """

    name: str
    replicates: tuple[Mapping[str, xr.Dataset], ...]
    omitted: tuple[str, ...]

    @property
    def kinds(self) -> list[str]:
        """The kinds of studies that all its trainings have."""
        return [kind for kind in KINDS if self.studies(kind)]

    def studies(self, kind: str) -> list[xr.Dataset]:
        """Return the studies of a kind, one for each training; none where a training lacks it."""
        found = [studies[kind] for studies in self.replicates if kind in studies]
        return found if len(found) == len(self.replicates) else []


def read_models(models: Mapping[str, Source | Sequence[Source]]) -> list[ComparedModel]:
    """Return the models of a comparison, each value describing the samples that its result holds.

    Raises:
        InputError: if there are not two results to compare, a name is no text, a result holds no study of a kind that
            is compared, or trainings of one name are of different blocks.
        FileError: if a file cannot be read.
    """
    if not isinstance(models, Mapping):
        raise InputError(f"expected a mapping from names to results, not {type(models).__qualname__}")
    found = [_model(name, given) for name, given in models.items()]
    if sum(len(model.replicates) for model in found) < 2:
        raise InputError(f"there is nothing to compare: expected results of two models or more, got {len(found)}")
    return found


def _model(name: object, given: object) -> ComparedModel:
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"a model's name must be a text, not {name!r}")
    sources = [given] if isinstance(given, xr.Dataset | xr.DataTree | str | os.PathLike) else given
    if not isinstance(sources, Sequence) or not sources:
        raise InputError(
            f"model {name!r}: expected a Dataset, a DataTree, a file, or a sequence of these, not {given!r:.80}"
        )
    replicates: list[dict[str, xr.Dataset]] = []
    omitted: dict[str, None] = {}
    for source in sources:
        studies, others = _studies(name, source)
        replicates.append(studies)
        omitted |= dict.fromkeys(others)
    _check_same_blocks(name, replicates)
    return ComparedModel(name, tuple(replicates), tuple(omitted))


def _studies(name: str, source: object) -> tuple[dict[str, xr.Dataset], list[str]]:
    """Return the studies of a result by kind, and the names of its groups that are not compared."""
    result = datasets.load(source) if isinstance(source, str | os.PathLike) else source
    groups = _groups(name, result)
    found: dict[str, str] = {}
    kinds = {group: _kind(ds) for group, ds in groups.items()}
    for group, kind in kinds.items():
        # A plain network's lesions are of the same kind: the group of the kind's own name is the model's.
        if kind is not None and (kind not in found or group == kind):
            found[kind] = group
    if not found:
        held = ", ".join(sorted({str(one) for ds in groups.values() for one in ds.data_vars})) or "nothing"
        raise InputError(
            f"model {name!r} has no study that can be compared: expected {', '.join(KINDS)}; its result holds {held}"
        )
    others = [group for group in groups if group not in found.values()]
    return {kind: refreshed(groups[found[kind]]) for kind in KINDS if kind in found}, others


def _groups(name: str, result: object) -> dict[str, xr.Dataset]:
    if isinstance(result, xr.Dataset):
        return {"": result}
    if not isinstance(result, xr.DataTree):
        raise InputError(f"model {name!r}: expected a Dataset, a DataTree or a file, not {type(result).__qualname__}")
    return {
        path.strip("/"): node.to_dataset(inherit=False).assign_attrs({**result.attrs, **node.attrs})
        for path, node in result.subtree_with_keys
        if node.data_vars
    }


def _kind(ds: xr.Dataset) -> str | None:
    """Return the first kind that is compared whose figure fits a study."""
    return next((figure.name for figure in fitting(ds, FIGURES) if figure.name in KINDS), None)


def _check_same_blocks(name: str, replicates: Sequence[Mapping[str, xr.Dataset]]) -> None:
    """Refuse trainings of different networks."""
    for kind in KINDS:
        studies = [each[kind] for each in replicates if kind in each]
        blocks = [ds["block"].values for ds in studies if "block" in ds.coords]
        if any(not np.array_equal(blocks[0], others) for others in blocks[1:]):
            raise InputError(
                f"the results of model {name!r} are of different blocks: several results of one name are trainings of "
                "one architecture. Give each model a name of its own"
            )
