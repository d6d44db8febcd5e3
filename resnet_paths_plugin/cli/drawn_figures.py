"""The figures of a result beside its file, and what there is to see in them, for a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from resnet_paths_plugin import report
from resnet_paths_plugin.cli.command import warn
from resnet_paths_plugin.cli.outputs import figure_path, save_picture
from resnet_paths_plugin.errors import ResnetPathsError
from resnet_paths_plugin.files.output_files import Mode
from resnet_paths_plugin.plotting.style import FigureWidth
from resnet_paths_plugin.report.figures import PictureFormat


def saved(
    figures: Sequence[report.ReportFigure],
    output: Path,
    mode: Mode,
    written: list[Path],
    suffix: PictureFormat | Literal["none"] = "png",
    width: FigureWidth | None = None,
) -> dict[str, bytes]:
    """Write the figures beside the file, add their paths, and return PNGs; one that cannot be drawn is left out."""
    pngs = {}
    for figure in figures:
        try:
            pngs[figure.name] = figure.png()
        except ResnetPathsError as error:
            warn(f"{figure.name} is left out: {error}")
        else:
            if suffix == "none":
                continue
            own = suffix == "png" and width is None
            picture = pngs[figure.name] if own else figure.picture(suffix, width=width)
            written.append(save_picture(picture, figure_path(output, figure.name, suffix), mode))
    return pngs


def described(figure: report.ReportFigure) -> str:
    """Return a figure's title and what there is to see in it, for a terminal."""
    # Terminals that are no UTF-8 do not have the minus sign.
    sentence = figure.sentence.replace("\N{MINUS SIGN}", "-")
    return f"{figure.title}\n{click.wrap_text(sentence, 100, '    ', '    ')}"
