"""What a study was run on: how many images, and how many networks, paths or sets, as its result has them."""

from collections.abc import Iterator

import xarray as xr

_SAMPLES = (("n_searched_samples", "images searched on"), ("n_held_out_samples", "images held out"))
_CHANGES = (
    ("lesion", "lesions"),
    ("reordering", "orders"),
    ("schedule", "schedules"),
    ("step", "sets measured by the search"),
    ("random_set", "random sets"),
    ("n_coalitions", "sets of blocks in all"),
    ("path_length", "path lengths"),
    ("n_draws", "paths drawn of each length"),
)
"""Dims and variables that say how much was done, with what they count."""


def extent_of(group: str, ds: xr.Dataset) -> str:
    """Return a line that says how many images a study used, and how many changes of the network or paths."""
    counted = [f"{count:,} {noun}" for count, noun in [*_images(ds), *_changes(ds)]]
    return f"{group}: {', '.join(counted) or 'done'}"


def _images(ds: xr.Dataset) -> Iterator[tuple[int, str]]:
    if "sample" in ds.sizes:
        yield ds.sizes["sample"], "images"
    elif "n_samples" in ds:
        yield int(ds["n_samples"]), "images"
    for name, noun in _SAMPLES:
        if name in ds:
            yield int(ds[name]), noun


def _changes(ds: xr.Dataset) -> Iterator[tuple[int, str]]:
    for name, noun in _CHANGES:
        if name in ds.sizes:
            yield ds.sizes[name], noun
        elif name in ds and name.startswith("n_"):
            yield int(ds[name].max()), noun
