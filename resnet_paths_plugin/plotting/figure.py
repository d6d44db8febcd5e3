"""Figure: what a figure of studies is. It says which it fits, draws one, and says what there is to see in it.

Adding one takes a subclass of `Figure` and a line in the registry, or in a plugin's `resnet_paths_figures`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib import figure as canvas
from matplotlib.axes import Axes

from resnet_paths_plugin.plotting.effects import default_measure


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureStudy:
    """A study, and what a figure of it may show beside it.

    Attributes:
        dataset: the study's result.
        plain: the same study of a plain network, or None.
        n_classes: number of the model's classes; None where it is not known.
        class_names: names of the model's classes; None where they are not known.
    """

    dataset: xr.Dataset
    plain: xr.Dataset | None = None
    n_classes: int | None = None
    class_names: list[str] | None = None

    def chance(self, change: str) -> float | None:
        """The error of guessing, where the error is drawn and the number of classes is known.

        Args:
            change: the study's dimension, such as `"lesion"`.
        """
        if self.n_classes is None or default_measure(self.dataset, change) != "error":
            return None
        return 1 - 1 / self.n_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One picture of a study, for a report.

    Attributes:
        title: what it is.
        sentence: what there is to see in this study's numbers.
        draw: draws it as a pyplot figure and returns its Axes, one or an array of them.
        ending: end of its file's name; None for the figure's own name, left out where it is the study's first figure.
    """

    title: str
    sentence: str
    draw: Callable[[], Any] = field(repr=False)
    ending: str | None = None


class Figure(ABC):
    """A figure of studies. A subclass has `name`, `title`, `fits` and `draw`, and mostly `sentence`.

    A study is drawn by every figure that fits it; the first of them draws `ds.resnet_paths.plot()`. Its functions read
    the Dataset alone, so that a loaded file is enough.

    Attributes:
        name: a word for the kind of study that it draws, such as `"single_lesions"`; unique among figures.
        title: what the figure is, for a report.

    Example:
        >>> import xarray as xr, resnet_paths_plugin as rpp
        >>> class Norms(rpp.Figure):
        ...     name, title = "norms", "Norms of the outputs"
        ...     def fits(self, ds):
        ...         return "norm" in ds
        ...     def draw(self, ds, **options):
        ...         return ds["norm"].plot(**options)
        ...     def sentence(self, ds):
        ...         return f"The largest norm is {float(ds['norm'].max()):.3g}."
        >>> Norms().sentence(xr.Dataset({"norm": ("sample", [0.5, 2.0])}))
        'The largest norm is 2.'
    """

    name: str
    title: str

    @abstractmethod
    def fits(self, ds: xr.Dataset) -> bool:
        """Whether a dataset holds what the figure shows; asked of any dataset, so nothing may be taken for granted."""

    @abstractmethod
    def draw(self, ds: xr.Dataset, *args: Any, **options: Any) -> Any:
        """Draw a dataset that the figure fits.

        Args:
            ds: the dataset.
            *args: options of the figure's own.
            **options: what `ds.resnet_paths.plot(...)` is given, such as `ax`; without it, in a pyplot figure of
                its own. A subclass names the ones that it takes.

        Returns:
            The Axes, or an array of them.
        """

    def sentence(self, ds: xr.Dataset) -> str:  # noqa: ARG002 - for subclasses
        """Return what there is to see in the numbers of a dataset that the figure fits, in a sentence."""
        return ""

    def finding(self, ds: xr.Dataset) -> str:  # noqa: ARG002 - for subclasses
        """Return what a study found, in one sentence with the interval of each number, for the head of a report.

        Empty, as it is by default, where there is nothing that an interval carries.
        """
        return ""

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield the pictures of a study for a report: one, unless a subclass knows more.

        Raises:
            InputError: if the study lacks what the next picture shows; those before it stay.
        """
        ds = study.dataset
        yield Drawing(title=self.title, sentence=self.sentence(ds), draw=partial(self.draw, ds))

    def variants(self, ds: xr.Dataset) -> Mapping[str, Mapping[str, Any]]:  # noqa: ARG002 - for subclasses
        """Return the options of each picture that `tree.resnet_paths.plot()` makes of a dataset, by an ending.

        One without options, unless a dataset takes several pictures to draw.
        """
        return {"": {}}


def has(ds: xr.Dataset, name: str, *dims: str) -> bool:
    """Whether a dataset has a variable with some dimensions."""
    return name in ds.variables and set(dims) <= set(ds[name].dims)


def drawn_figure(axes: Any) -> canvas.Figure:
    """Return the matplotlib figure of some Axes."""
    ax: Axes = np.asarray(axes, dtype=object).flat[0]
    # Only Axes that were removed have none.
    return cast("canvas.Figure", ax.get_figure(root=True))
