"""The figure of redundancies: a map of every two blocks."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

import resnet_paths_plugin as rpp


class RedundancyMap(rpp.Figure):
    """Which two blocks make up for each other (red), and which destroy the same (blue)."""

    name = "redundancy_map"
    title = "Redundancy of every two blocks"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is a result of BlockRedundancy."""
        return "redundancy" in ds and {"block", "other_block"} <= set(ds["redundancy"].dims)

    def draw(self, ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
        """Draw the mean over samples: blocks down and across, white where two blocks work independently."""
        mean = _mean(ds)
        if ax is None:
            _, ax = plt.subplots(figsize=(5, 4), layout="constrained")
        bound = float(np.nanmax(np.abs(mean.values)))
        picture = ax.imshow(mean, cmap="RdBu_r", vmin=-bound, vmax=bound)
        ax.figure.colorbar(picture, ax=ax, label=f"redundancy ({ds['redundancy'].attrs['units']})")
        for ticks in (ax.set_xticks, ax.set_yticks):
            ticks(range(len(mean)), ds["block"].values.tolist())
        return ax

    def sentence(self, ds: xr.Dataset) -> str:
        """Return the two most redundant blocks."""
        mean = _mean(ds)
        one, other = np.unravel_index(np.nanargmax(mean.values), mean.shape)
        names, value = ds["block"].values, float(mean[one, other])
        units = ds["redundancy"].attrs["units"]
        return f"{names[one]} and {names[other]} are the most redundant: {value:+.2g} {units}."


def _mean(ds: xr.Dataset) -> xr.DataArray:
    return ds["redundancy"].mean("sample").transpose("block", "other_block")
