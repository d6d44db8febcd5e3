"""Which kind of study a Dataset holds, read off its contents: which figure draws it."""

import numpy as np
import xarray as xr

from resnet_paths_plugin.plotting.damage import measures

IMAGE_DIMS = 5
"""Of the gradient of images by length: path_length, sample, channel, height, width."""


def kind_of(ds: xr.Dataset) -> str | None:
    """Name the kind of study, as the groups of `resnet-paths analyze` are named; None if no figure fits it."""
    return next((kind for kind, fits in _KINDS.items() if fits(ds)), None)


def _has(ds: xr.Dataset, name: str, *dims: str) -> bool:
    return name in ds.variables and set(dims) <= set(ds[name].dims)


def _is_trainings(ds: xr.Dataset) -> bool:
    return _has(ds, "training", "training") and _has(ds, "error", "training", "lesion")


def _is_lesions(ds: xr.Dataset) -> bool:
    return (
        _has(ds, "deleted", "lesion", "block")
        and {"lesion", "block"} <= set(ds.coords)
        and all(ds.sizes[dim] for dim in ("lesion", "block"))
        and bool(measures(ds, "lesion"))
    )


def _is_single_lesions(ds: xr.Dataset) -> bool:
    if not _is_lesions(ds):
        return False
    counted = ds["deleted"].transpose("lesion", "block").values.sum(axis=1)
    units = ds["n_deleted_units"].values if _has(ds, "n_deleted_units", "lesion") else counted
    return bool(np.all(units == 1))


def _is_random_lesions(ds: xr.Dataset) -> bool:
    return _is_lesions(ds) and _has(ds, "n_deleted", "lesion")


def _is_reorderings(ds: xr.Dataset) -> bool:
    return _has(ds, "kendall_tau", "reordering") and bool(measures(ds, "reordering"))


def _is_schedules(ds: xr.Dataset) -> bool:
    return (
        _has(ds, "family", "schedule") and _has(ds, "changed", "schedule", "block") and bool(measures(ds, "schedule"))
    )


def _is_influence(ds: xr.Dataset) -> bool:
    return _has(ds, "lesion_effect", "block") and _has(ds, "rank_correlation", "proxy") and "proxy" in ds.coords


def _is_gates(ds: xr.Dataset) -> bool:
    return _has(ds, "gate_openness", "block", "sample")


def _is_path_maps(ds: xr.Dataset) -> bool:
    return _has(ds, "gradient", "path_length", "sample") and ds["gradient"].ndim == IMAGE_DIMS


def _is_path_lengths(ds: xr.Dataset) -> bool:
    return "path_length" in ds.coords and bool(
        {"path_count", "log10_path_count", "gradient_norm", "path_gradient_norm", "path_gradient_rms"}
        & set(ds.data_vars)
    )


_KINDS = {
    "trainings": _is_trainings,
    "single_lesions": _is_single_lesions,
    "random_lesions": _is_random_lesions,
    "reorderings": _is_reorderings,
    "schedules": _is_schedules,
    "influence": _is_influence,
    "gates": _is_gates,
    "path_maps": _is_path_maps,
    "path_lengths": _is_path_lengths,
}
"""In the order in which they are tried."""

KINDS = tuple(_KINDS)
