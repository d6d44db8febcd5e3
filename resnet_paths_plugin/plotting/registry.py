"""The figures there are, this package's and those of plugins, and which of them fit a Dataset."""

from collections.abc import Iterable, Sequence
from typing import Any

import pluggy
import xarray as xr
from matplotlib import figure as canvas

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.attribution import PathMaps
from resnet_paths_plugin.plotting.comparisons import ComparedCurves, ComparedLesions
from resnet_paths_plugin.plotting.contributions import Contributions
from resnet_paths_plugin.plotting.figure import Figure, drawn_figure
from resnet_paths_plugin.plotting.influence import Gates, Influence
from resnet_paths_plugin.plotting.interactions import Interactions
from resnet_paths_plugin.plotting.lengths import PathLengths
from resnet_paths_plugin.plotting.lesions import RandomLesions, SingleLesions
from resnet_paths_plugin.plotting.parameter_lengths import ParameterLengths
from resnet_paths_plugin.plotting.participation import Participation
from resnet_paths_plugin.plotting.plugin_figures import guarded
from resnet_paths_plugin.plotting.reorderings import Reorderings
from resnet_paths_plugin.plotting.schedules import Schedules
from resnet_paths_plugin.plotting.selection import Selection
from resnet_paths_plugin.plotting.shares import Shares
from resnet_paths_plugin.plotting.trainings import Trainings
from resnet_paths_plugin.results.derived import refreshed

FIGURES: tuple[Figure, ...] = (
    Trainings(),
    SingleLesions(),
    RandomLesions(),
    Reorderings(),
    Schedules(),
    Selection(),
    Influence(),
    Gates(),
    Shares(),
    Interactions(),
    PathMaps(),
    PathLengths(),
    ParameterLengths(),
    Contributions(),
    Participation(),
    ComparedLesions(),
    ComparedCurves(),
)
"""This package's figures; its own plugin offers them."""

_KNOWN = (
    "lesions of blocks (BlockLesion), reorderings (BlockReordering), schedules (BlockSchedules), sets of blocks to "
    "delete (BlockSelection), Shapley values (BlockShapley), interactions (BlockInteraction), influence with lesion "
    "results or gates (BlockInfluence), gradients by path length, at parameters too, and their maps "
    "(PathLengthGradient), contributions (BlockContribution), participation (PathParticipation), comparisons of "
    "trainings or models (rpp.compare), and what installed plugins draw"
)


def all_figures(plugin_manager: pluggy.PluginManager | None = None) -> tuple[Figure, ...]:
    """Return the figures that plugins offer, this package's own first.

    What is no figure, and a figure whose name is taken, is left out with a `PluginWarning`. Whatever a plugin's figure
    raises later is reported in the same way, or is a `PluginError` where it draws.

    Args:
        plugin_manager: the plugin manager; None takes that of the installed plugins.
    """
    # Imports torch, which figures of this package do without.
    from resnet_paths_plugin.plugins import manager as plugins  # noqa: PLC0415

    figures = {figure.name: figure for figure in FIGURES}
    for plugin, figure in plugins.figures(plugin_manager):
        if figure not in FIGURES:
            one = guarded(figure, plugin, taken=figures)
            if one is not None:
                figures[one.name] = one
    return tuple(figures.values())


def fitting(ds: xr.Dataset, figures: Iterable[Figure]) -> list[Figure]:
    """Return the figures that fit a dataset, in their order."""
    return [figure for figure in figures if figure.fits(ds)]


def kind(ds: xr.Dataset) -> str | None:
    """Name the kind of study that the samples at hand are, by the first figure that fits it; None if none does."""
    found = _first(refreshed(ds))
    return found.name if found else None


def figure_of(ds: xr.Dataset, **kwargs: Any) -> Any:
    """Draw the first figure that fits a study.

    Raises:
        InputError: if no figure fits.
    """
    ds = refreshed(ds)
    figure = _first(ds)
    if figure is None:
        held = ", ".join(sorted(map(str, ds.data_vars))) or "no variables at all"
        raise InputError(f"no figure fits this dataset, which holds {held}. Known are {_KNOWN}")
    return figure.draw(ds, **kwargs)


def figures_of(tree: xr.DataTree) -> dict[str, canvas.Figure]:
    """Draw each study of a tree that a figure fits, in a figure of its own, by the path of its group.

    Raises:
        InputError: if no figure fits any of the groups.
    """
    drawn: dict[str, canvas.Figure] = {}
    for path, node in tree.subtree_with_keys:
        ds = refreshed(node.to_dataset(inherit=False))
        figure = _first(ds)
        if figure is not None:
            for ending, options in figure.variants(ds).items():
                drawn[f"{path}/{ending}" if ending else path] = drawn_figure(figure.draw(ds, **options))
    if not drawn:
        raise InputError(f"no figure fits any group of this tree. Known are {_KNOWN}")
    return drawn


def _first(ds: xr.Dataset) -> Figure | None:
    """Return the first figure that fits; plugins, which may be slow to import, are asked only where ours do not."""
    own = fitting(ds, FIGURES)
    if own or not ds.data_vars:
        return next(iter(own), None)
    return next(iter(fitting(ds, _without(FIGURES, all_figures()))), None)


def _without(known: Sequence[Figure], figures: Iterable[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure not in known]
