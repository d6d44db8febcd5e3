"""`ds.resnet_paths.plot()`: the figure that fits a Dataset; for a DataTree, one figure for each group.

Registered with xarray when `resnet_paths_plugin.plotting` is imported.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.attribution import plot_path_attribution
from resnet_paths_plugin.plotting.influence import plot_gates, plot_influence
from resnet_paths_plugin.plotting.kinds import kind_of
from resnet_paths_plugin.plotting.lengths import plot_path_lengths
from resnet_paths_plugin.plotting.lesions import plot_random_lesions, plot_single_lesions, plot_training_lesions
from resnet_paths_plugin.plotting.reorderings import plot_reorderings
from resnet_paths_plugin.plotting.schedules import families, plot_schedules

NAME = "resnet_paths"

FIGURES: Mapping[str, Callable[..., Any]] = {
    "trainings": plot_training_lesions,
    "single_lesions": plot_single_lesions,
    "random_lesions": plot_random_lesions,
    "reorderings": plot_reorderings,
    "schedules": plot_schedules,
    "influence": plot_influence,
    "gates": plot_gates,
    "path_maps": plot_path_attribution,
    "path_lengths": plot_path_lengths,
}
"""What draws each kind of study."""

_KNOWN = (
    "lesions of blocks (BlockLesion), reorderings (BlockReordering), schedules (BlockSchedules), influence with lesion "
    "results or gates (BlockInfluence), gradients by path length and their maps (PathLengthGradient), comparisons of "
    "trainings"
)


class DatasetFigures:
    """The figures of one study.

    Args:
        ds: the study.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    @property
    def kind(self) -> str | None:
        """What kind of study it is, such as `"single_lesions"`; None if no figure fits it."""
        return kind_of(self._ds)

    def plot(self, **kwargs: Any) -> Any:
        """Draw the figure that fits the study.

        Args:
            **kwargs: as the figure's own function takes them, such as `ax` or `measure`.

        Returns:
            What that function returns: an Axes, or an array of them.

        Raises:
            InputError: if no figure fits.
        """
        kind = self.kind
        if kind is None:
            held = ", ".join(sorted(map(str, self._ds.data_vars))) or "no variables at all"
            raise InputError(f"no figure fits this dataset, which holds {held}. Known are {_KNOWN}")
        return FIGURES[kind](self._ds, **kwargs)


class TreeFigures:
    """The figures of several studies.

    Args:
        tree: the studies, one group each.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def plot(self) -> dict[str, Figure]:
        """Draw each study that a figure fits, in a figure of its own.

        Of schedules, every family has one, named after group and family.

        Returns:
            The figures, which are the caller's to close, by the path of their group.

        Raises:
            InputError: if no figure fits any of the groups.
        """
        drawn: dict[str, Figure] = {}
        for path, node in self._tree.subtree_with_keys:
            ds = node.to_dataset(inherit=False)
            kind = kind_of(ds)
            if kind == "schedules":
                drawn |= {f"{path}/{name}": _figure(plot_schedules(ds, family=name)) for name in families(ds)}
            elif kind is not None:
                drawn[path] = _figure(FIGURES[kind](ds))
        if not drawn:
            raise InputError(f"no figure fits any group of this tree. Known are {_KNOWN}")
        return drawn


def _figure(axes: Any) -> Figure:
    ax: Axes = np.asarray(axes, dtype=object).flat[0]
    # Only Axes that were removed have none.
    return cast("Figure", ax.get_figure(root=True))


def _register() -> None:
    """Register both; after a reload of this module, in place of the older ones and without xarray's warning."""
    for owner in (xr.Dataset, xr.DataTree):
        if NAME in vars(owner):
            delattr(owner, NAME)
    xr.register_dataset_accessor(NAME)(DatasetFigures)  # type: ignore[no-untyped-call]  # xarray's
    xr.register_datatree_accessor(NAME)(TreeFigures)  # type: ignore[no-untyped-call]  # xarray's


_register()
