"""The figure of interactions: a map of every two blocks."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

import resnet_paths_plugin as rpp


class InteractionMap(rpp.Figure):
    """Which two blocks make up for each other (red), and which destroy the same (blue)."""

    name = "interaction_map"
    title = "Interaction of every two blocks"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is a result of BlockInteraction."""
        return "interaction" in ds and {"block", "other_block"} <= set(ds["interaction"].dims)

    def draw(self, ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
        """Draw the mean over samples: blocks down and across, white where two blocks work independently."""
        mean = _mean(ds)
        if ax is None:
            _, ax = plt.subplots(figsize=(5, 4), layout="constrained")
        bound = float(np.nanmax(np.abs(mean.values)))
        picture = ax.imshow(mean, cmap="RdBu_r", vmin=-bound, vmax=bound)
        ax.figure.colorbar(picture, ax=ax, label=f"interaction ({ds['interaction'].attrs['units']})")
        for ticks in (ax.set_xticks, ax.set_yticks):
            ticks(range(len(mean)), ds["block"].values.tolist())
        return ax

    def sentence(self, ds: xr.Dataset) -> str:
        """Return the two blocks that interact most."""
        mean = _mean(ds)
        one, other = np.unravel_index(np.nanargmax(np.abs(mean.values)), mean.shape)
        names, value = ds["block"].values, float(mean[one, other])
        return f"{names[one]} and {names[other]} interact most: {value:+.2g} {ds['interaction'].attrs['units']}."


def _mean(ds: xr.Dataset) -> xr.DataArray:
    return ds["interaction"].mean("sample").transpose("block", "other_block")
