"""Figures of plugins, which may raise anything: what they raise never ends a report or a run."""

import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import xarray as xr

from resnet_paths_plugin.errors import PluginError, PluginWarning, ResnetPathsError
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy
from resnet_paths_plugin.plugins.safe_repr import safe_repr

T = TypeVar("T")


def guarded(figure: object, plugin: str, *, taken: Container[str]) -> Figure | None:
    """Return a plugin's figure, its errors reported by the plugin's name; None with a warning where it is none.

    Args:
        figure: what the plugin offers as a figure.
        plugin: the plugin's name.
        taken: names of figures before it.
    """
    name = getattr(figure, "name", None)
    if not isinstance(figure, Figure) or not isinstance(name, str) or not name or name in taken:
        why = (
            f"its name {name!r} is taken" if isinstance(figure, Figure) and name else "it is no rpp.Figure with a name"
        )
        warnings.warn(
            f"a figure of plugin {plugin!r} is left out: {why} ({type(figure).__name__})", PluginWarning, stacklevel=2
        )
        return None
    return GuardedFigure(figure, plugin)


class GuardedFigure(Figure):
    """A plugin's figure.

    Args:
        figure: the figure.
        plugin: the plugin's name.
    """

    def __init__(self, figure: Figure, plugin: str) -> None:
        self.figure = figure
        self.name = figure.name
        self.title = str(getattr(figure, "title", figure.name))
        self._plugin = plugin

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it fits, which it does not where it fails to say so."""
        return bool(self._asked("say whether it fits", lambda: self.figure.fits(ds), otherwise=False))

    def draw(self, ds: xr.Dataset, **options: Any) -> Any:
        """Draw it.

        Raises:
            PluginError: if it cannot be drawn.
        """
        return self._drawn(partial(self.figure.draw, ds, **options))

    def sentence(self, ds: xr.Dataset) -> str:
        """Return its sentence, empty where it fails."""
        return str(self._asked("describe a study", lambda: self.figure.sentence(ds), otherwise=""))

    def finding(self, ds: xr.Dataset) -> str:
        """Return what it found, nothing where it fails."""
        return str(self._asked("tell what a study found", lambda: self.figure.finding(ds), otherwise=""))

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield its pictures, none where it fails."""
        made: list[Drawing] = self._asked("list its pictures", lambda: list(self.figure.drawings(study)), otherwise=[])
        for drawing in made:
            yield replace(drawing, draw=partial(self._drawn, drawing.draw))

    def variants(self, ds: xr.Dataset) -> Mapping[str, Mapping[str, Any]]:
        """Return the options of its pictures."""
        return self._asked("list its pictures", lambda: self.figure.variants(ds), otherwise={})

    def _asked(self, what: str, ask: Callable[[], T], otherwise: T) -> T:
        """Return the figure's answer, or something else with a warning where it raises."""
        try:
            return ask()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a plugin may raise anything, SystemExit included
            message = f"figure {self.name!r} of plugin {self._plugin!r} failed to {what}: {safe_repr(error)}"
            warnings.warn(message, PluginWarning, stacklevel=3)
            return otherwise

    def _drawn(self, draw: Callable[[], T]) -> T:
        try:
            return draw()
        except (KeyboardInterrupt, MemoryError, ResnetPathsError):
            raise
        except BaseException as error:  # as above
            message = f"figure {self.name!r} of plugin {self._plugin!r} could not be drawn: {safe_repr(error)}"
            raise PluginError(message) from error
