"""`ds.resnet_paths.plot()` and `.summary()`: the figure that fits a Dataset, and its measures with intervals.

Registered with xarray when `resnet_paths_plugin` is first used; what draws is imported when something is drawn.
"""

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "resnet_paths"


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
        from resnet_paths_plugin.plotting.registry import kind  # noqa: PLC0415 - takes a second

        return kind(self._ds)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that the study was run with, by name: numbers, texts, None, flags, lists and mappings.

        What is no data, such as a tensor or a function, is a text that describes it.
        """
        from resnet_paths_plugin.results.arguments import arguments_of  # noqa: PLC0415 - loaded when it is asked for

        return arguments_of(self._ds.attrs)

    def plot(self, **kwargs: Any) -> Any:
        """Draw the figure that fits the study.

        Args:
            **kwargs: as the figure's own function takes them, such as `ax` or `measure`.

        Returns:
            What that function returns: an Axes, or an array of them.

        Raises:
            InputError: if no figure fits.
        """
        from resnet_paths_plugin.plotting.registry import figure_of  # noqa: PLC0415 - takes a second

        return figure_of(self._ds, **kwargs)

    def summary(self, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> xr.Dataset:
        """Return each measure as its mean over samples with an interval: see `statistics.summary`.

        Raises:
            InputError: if no measure has a value for each sample, or an option is out of range.
        """
        from resnet_paths_plugin.statistics import summary  # noqa: PLC0415 - takes a second

        return summary(self._ds, level=level, n_resamples=n_resamples, seed=seed)


class TreeFigures:
    """The figures of several studies.

    Args:
        tree: the studies, one group each.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def plot(self) -> dict[str, "Figure"]:
        """Draw each study that a figure fits, in a figure of its own.

        Of schedules, every family has one, named after group and family.

        Returns:
            The figures, which are the caller's to close, by the path of their group.

        Raises:
            InputError: if no figure fits any of the groups.
        """
        from resnet_paths_plugin.plotting.registry import figures_of  # noqa: PLC0415 - takes a second

        return figures_of(self._tree)


def _register() -> None:
    """Register both; after a reload of this module, in place of the older ones and without xarray's warning."""
    for owner in (xr.Dataset, xr.DataTree):
        if NAME in vars(owner):
            delattr(owner, NAME)
    xr.register_dataset_accessor(NAME)(DatasetFigures)  # type: ignore[no-untyped-call]  # xarray's
    xr.register_datatree_accessor(NAME)(TreeFigures)  # type: ignore[no-untyped-call]  # xarray's


_register()
