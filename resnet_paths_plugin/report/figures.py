"""The figures of a result: for each study all that fit it, each with a title and what to see.

The page and the command line show the same figures; what kind a study is, is read off its contents.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pluggy
import xarray as xr
from matplotlib.figure import Figure as Canvas

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy, drawn_figure
from resnet_paths_plugin.plotting.registry import all_figures, fitting
from resnet_paths_plugin.plotting.style import FigureWidth, figure_width
from resnet_paths_plugin.process_lock import alone
from resnet_paths_plugin.results.arguments import read_argument
from resnet_paths_plugin.results.derived import refreshed

DPI = 200
_COMPARED = "single_lesions"
"""The kind of study that a plain network's is drawn beside."""
_UNDATED: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_TRUETYPE = 42
"""Fonts in a PDF that can be edited and searched, as journals ask for."""

PictureFormat = Literal["png", "pdf", "svg"]
"""Files that a figure can be written to."""

PLAIN_PREFIX = "plain_"
"""A group named so holds a plain network's study, to be drawn beside that of the group named without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFigure:
    """One figure of a result.

    Attributes:
        name: short and unique in the result, such as "single-lesions"; for a file's name.
        group: the study's group; empty for a single Dataset.
        figure: name of the `rpp.Figure` that draws it.
        title: what the figure is.
        sentence: what there is to see in this run's numbers.
        draw: draws it as a pyplot figure, which is the caller's to close.
    """

    name: str
    group: str
    figure: str
    title: str
    sentence: str
    draw: Callable[[], Canvas] = field(repr=False)

    def png(self, dpi: int = DPI) -> bytes:
        """Return the figure as a PNG, as `picture` draws it."""
        return self.picture("png", dpi)

    def picture(self, suffix: PictureFormat = "png", dpi: int = DPI, width: FigureWidth | None = None) -> bytes:
        """Draw the figure in matplotlib's default style, whatever the user's is, and return the bytes of a file.

        They are the same each time: no date is in them. The figure is closed again.

        Args:
            suffix: `"png"`, `"pdf"` or `"svg"`.
            dpi: dots per inch of what is made of pixels.
            width: `"one-column"` or `"two-column"` of a paper; None for the screen's.
        """
        file = io.BytesIO()
        look: list[Any] = ["default", {"svg.hashsalt": self.name, "pdf.fonttype": _TRUETYPE}]
        with alone(), plt.style.context(look), plt.ioff(), warnings.catch_warnings():
            # A name in a script that matplotlib's font lacks shows as boxes here, and as itself in the text beside it.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            with figure_width(width) if width else contextlib.nullcontext():
                figure = self.draw()
            try:
                figure.savefig(file, format=suffix, dpi=dpi, metadata=_UNDATED.get(suffix))
            finally:
                plt.close(figure)
        return file.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportStudy(FigureStudy):
    """A study, what its figures may show beside it, and which these are.

    Attributes:
        group: its group's path in the result; empty for a single Dataset.
        figures: the figures that fit it.
    """

    group: str
    figures: tuple[Figure, ...]

    @property
    def kind(self) -> str | None:
        """What kind of study it is, by the first figure that fits it; None where none does."""
        return self.figures[0].name if self.figures else None

    @property
    def title(self) -> str:
        """Its name for people."""
        return (self.group or self.kind or "study").strip("/").replace("/", ": ").replace("_", " ")


def studies(result: xr.DataTree | xr.Dataset, plugin_manager: pluggy.PluginManager | None = None) -> list[ReportStudy]:
    """The studies of a result, in its order; a plain network's goes with the study that it is compared with.

    Args:
        result: the result of one study, or a tree with one group for each.
        plugin_manager: whose figures may fit them; None asks the installed plugins.

    Raises:
        InputError: if this is neither a Dataset nor a DataTree.
    """
    if not isinstance(result, xr.Dataset | xr.DataTree):
        raise InputError(f"expected a Dataset or a DataTree, not {type(result).__qualname__}")
    known = all_figures(plugin_manager)
    if isinstance(result, xr.Dataset):
        return [_study("", result, None, result.attrs, known)]
    groups = {
        path: node.to_dataset(inherit=False)
        for path, node in result.subtree_with_keys
        if node.data_vars  # the root and groups of groups hold none
    }
    plain = {path: groups[_plain_of(path)] for path in groups if _plain_of(path) in groups}
    compared = {_plain_of(path) for path in plain if _is_compared(fitting(groups[path], known))}
    return [
        _study("" if path == "." else path, dataset, plain.get(path), result.attrs, known)
        for path, dataset in groups.items()
        if path not in compared
    ]


def figures(result: xr.DataTree | xr.Dataset, plugin_manager: pluggy.PluginManager | None = None) -> list[ReportFigure]:
    """Every figure of a result, in the order of its studies.

    Args:
        result: the result of one study, or a tree with one group for each.
        plugin_manager: whose figures may fit; None asks the installed plugins.

    Returns:
        The figures; their names differ. Studies that no figure fits have none.

    Raises:
        InputError: if this is neither a Dataset nor a DataTree.
    """
    return figures_of(studies(result, plugin_manager))


def figures_of(found: Sequence[ReportStudy]) -> list[ReportFigure]:
    """The figures of some studies, named apart."""
    named: dict[str, ReportFigure] = {}
    for study in found:
        stem = _slug(study.group) or _slug(study.kind or "")
        for figure in study.figures:
            for drawing in _until_unfit(figure.drawings(study)):
                own = "" if figure is study.figures[0] else figure.name
                ending = own if drawing.ending is None else drawing.ending
                first = f"{stem}-{_slug(ending)}" if ending else stem
                name = next(
                    name for name in chain([first], (f"{first}-{number}" for number in count(2))) if name not in named
                )
                named[name] = ReportFigure(
                    name=name,
                    group=study.group,
                    figure=figure.name,
                    title=drawing.title,
                    sentence=drawing.sentence,
                    draw=_canvas_of(drawing),
                )
    return list(named.values())


def _canvas_of(drawing: Drawing) -> Callable[[], Canvas]:
    return lambda: drawn_figure(drawing.draw())


def _until_unfit(made: Iterator[Drawing]) -> Iterator[Drawing]:
    """Go on until the study turns out to lack what a figure shows; the page then lists its variables."""
    with contextlib.suppress(InputError):
        yield from made


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _is_compared(fitting_figures: Sequence[Figure]) -> bool:
    """Whether the first figure of a study shows a plain network's beside it."""
    return bool(fitting_figures) and fitting_figures[0].name == _COMPARED


def _study(
    group: str,
    dataset: xr.Dataset,
    plain: xr.Dataset | None,
    root: Mapping[Any, Any],
    known: Sequence[Figure],
) -> ReportStudy:
    facts = {**root, **dataset.attrs}
    n_classes = facts.get("n_classes")
    dataset = refreshed(dataset)
    found = fitting(dataset, known)
    return ReportStudy(
        group=group,
        dataset=dataset,
        figures=tuple(found),
        plain=plain if _is_compared(found) else None,
        n_classes=int(n_classes) if isinstance(n_classes, int | np.integer) and n_classes > 1 else None,
        class_names=_texts(facts.get("class_names")),
    )


def _plain_of(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{PLAIN_PREFIX}{name}"


def _texts(value: object) -> list[str] | None:
    """A list of texts that an attribute holds; None where it was cut short, or never was one."""
    found = read_argument(value)
    return [str(text) for text in found] if isinstance(found, list) else None
