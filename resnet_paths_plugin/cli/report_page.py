"""The command `resnet-paths report`: the page of a file, made again."""

from pathlib import Path

import click
import matplotlib as mpl

from resnet_paths_plugin import report
from resnet_paths_plugin.cli.command import Command
from resnet_paths_plugin.cli.options import mode_of, no_clobber_option
from resnet_paths_plugin.cli.outputs import report_path
from resnet_paths_plugin.cli.terminal import echo
from resnet_paths_plugin.errors import FileError, ResnetPathsError
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.files.output_files import writable
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.file_checks import check_opening


@click.command("report", cls=Command, short_help="Make the report of a file again.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.nc")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE.html",
    help="Page to write. [default: beside FILE.nc, with its name]",
)  # fmt: skip
@no_clobber_option
def make_report(file: Path, output: Path | None, *, no_clobber: bool) -> None:
    """Make one self-contained HTML page from FILE.nc: what the model is, its blocks, every figure, the provenance."""
    mpl.use("agg")
    output = output or report_path(file)
    roles, mode = FileRoles({"FILE.nc": file}), mode_of(no_clobber=no_clobber)
    roles.writes("the report", output)
    writable(output, mode)
    check_opening(file)
    result = datasets.load(file)
    try:
        written = report.write_report(result, output, mode)
    except (ResnetPathsError, MemoryError):
        raise
    except Exception as error:  # whatever comes up where the schema's names stand for other things
        raise FileError(
            f"{file} is not what save writes, so no report can be made of it ({type(error).__name__}: {error}): "
            "run the study again"
        ) from error
    echo(f"written: {written}")
