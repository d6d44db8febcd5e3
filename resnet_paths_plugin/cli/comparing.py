"""The command `resnet-paths compare`: several models side by side, from their files."""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import matplotlib as mpl
import xarray as xr

from resnet_paths_plugin import report
from resnet_paths_plugin.cli.command import Command
from resnet_paths_plugin.cli.drawn_figures import described, saved
from resnet_paths_plugin.cli.options import mode_of, no_clobber_option
from resnet_paths_plugin.cli.terminal import echo
from resnet_paths_plugin.comparison.comparison import TABLE, compare
from resnet_paths_plugin.errors import FileError, InputError, ResnetPathsError
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.files.output_files import Mode, writable, writable_netcdf
from resnet_paths_plugin.report.model_table import model_table
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.file_checks import check_opening

_ENDINGS = (".html", ".nc")


@click.command("compare", cls=Command, short_help="Put models side by side, from their files.")
@click.argument("files", type=click.Path(path_type=Path), metavar="FILE.nc FILE.nc ...", nargs=-1)
@click.option(
    "--name", "names", multiple=True, metavar="NAME",
    help="Name of a file's model, once for each file in their order. [default: the files' names]",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE.html|FILE.nc", default=Path("comparison.html"),
    show_default=True, help="Page, or result, to write; figures come beside it.",
)  # fmt: skip
@click.option(
    "--replicates", "replicates", multiple=True, metavar="NAME=PATTERN",
    help="Files of several trainings of one architecture, such as 'resnet=seed*.nc', in quotes. May be repeated.",
)  # fmt: skip
@no_clobber_option
def compare_files(
    files: tuple[Path, ...], names: tuple[str, ...], output: Path, *, replicates: tuple[str, ...], no_clobber: bool
) -> None:
    """Put the models of several files side by side: a table, and a figure of each study that two of them share.

    Files are those of analyze, or any that rpp.save wrote. Of --replicates each number is the mean over trainings, with
    the interval of that mean.
    """
    mpl.use("agg")
    mode = mode_of(no_clobber=no_clobber)
    models = _named(files, names, replicates)
    files = tuple(file for each in models.values() for file in each)
    _check_output(files, output, mode)
    for file in files:
        check_opening(file)
    results = {name: [datasets.load(file) for file in each] for name, each in models.items()}
    try:
        tree = compare(results)
    except (ResnetPathsError, MemoryError):
        raise
    except Exception as error:  # whatever comes up where the schema's names stand for other things
        raise FileError(
            f"one of {', '.join(map(str, files))} is not what save writes, so they cannot be compared "
            f"({type(error).__name__}: {error}): run the studies again"
        ) from error
    tell_models(tree)
    shown = report.figures(tree)
    for figure in shown:
        echo(described(figure))
    pictures: list[Path] = []
    if output.suffix == ".nc":
        written = datasets.save(tree, output, mode)
        saved(shown, output, mode, pictures)
    else:
        written = report.write_report(tree, output, mode, pngs=saved(shown, output, mode, pictures))
    echo(f"written: {', '.join(map(str, [written, *pictures]))}")


def _named(files: Sequence[Path], names: Sequence[str], replicates: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files by the names of their models.

    Raises:
        InputError: if there is one file only, or names are missing, too many or not different.
    """
    several = [_replicates(given) for given in replicates]
    count = len(files) + sum(len(each) for _, each in several)
    if count < 2:
        raise InputError(f"there is nothing to compare: give two files or more, not {count}")
    if names and len(names) != len(files):
        raise InputError(f"give --name once for each file: {len(files)} files, {len(names)} names")
    chosen = names or [file.stem for file in files]
    twice = [name for name, times in Counter([*chosen, *(name for name, _ in several)]).items() if times > 1]
    if twice:
        raise InputError(
            f"two models have the name {twice[0]!r}: give each file a --name of its own, or several trainings of one "
            f"architecture as --replicates {twice[0]}=PATTERN"
        )
    return {name: [file] for name, file in zip(chosen, files, strict=True)} | dict(several)


def _replicates(given: str) -> tuple[str, list[Path]]:
    """Return the name of an architecture and the files of its trainings, from `NAME=PATTERN`, in the order of names.

    Raises:
        InputError: if it has another form, or no file fits.
    """
    name, equals, pattern = given.partition("=")
    if not (name.strip() and equals and pattern):
        raise InputError(f"--replicates takes NAME=PATTERN, such as 'resnet=seed*.nc', not {given!r}")
    found = sorted(glob.glob(pattern))  # noqa: PTH207 - the pattern may begin at any folder
    if not found:
        raise InputError(
            f"no file fits --replicates {given!r}: put the pattern into quotes, as the shell may expand it"
        )
    return name, [Path(file) for file in found]


def _check_output(files: Sequence[Path], output: Path, mode: Mode) -> None:
    """Check that the output and its figures can be written, and take the place of no input.

    Raises:
        InputError: if the output is of another kind.
        FileError: if it cannot be written, or is an input.
    """
    if output.suffix not in _ENDINGS:
        raise InputError(f"--output must end in {' or '.join(_ENDINGS)}, not {output.name!r}")
    roles = FileRoles()
    for file in files:
        roles.reads("FILE.nc", file)
    (writable_netcdf if output.suffix == ".nc" else writable)(output, mode)
    roles.writes("the comparison", output)
    # What the figures will be called is known once they are drawn.
    for figure in sorted(output.parent.glob(f"{glob.escape(output.stem)}-*.png")):
        writable(figure, mode)
        roles.writes("a figure", figure)


def tell_models(comparison: xr.DataTree) -> None:
    """Print the table of a comparison, a model after the other."""
    table = model_table(comparison[TABLE].to_dataset())
    for name, *cells in table.rows:
        echo(name)
        for head, cell in zip(table.columns[1:], cells, strict=True):
            echo(f"    {head}: {cell.replace(chr(0x2013), '-').replace(chr(0x2212), '-')}")
    echo(click.wrap_text(table.note, 100))
