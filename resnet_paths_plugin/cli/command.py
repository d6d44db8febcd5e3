"""Command: what all commands of `resnet-paths` do with errors, warnings and interruptions."""

import traceback
import warnings
from typing import Any

import click
import torch

from resnet_paths_plugin.cli.running import last_note
from resnet_paths_plugin.cli.terminal import check_printed, echo
from resnet_paths_plugin.errors import ResnetPathsError

_EXIT_BUG = 1  # as of an exception that Python prints
_EXIT_ERROR = 2
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Command(click.Command):
    """A command that reports errors and warnings in one line each, on standard error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        debug = click.Option(["--debug"], is_flag=True, help="Show where in the code an error came up.")
        self.params.append(debug)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and leave with 1 after a bug, 2 after an error, 130 after an interruption."""
        debug = ctx.params.pop("debug")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                result = super().invoke(ctx)
                check_printed()
                return result  # noqa: TRY300 - it is what the command returns
            except (ResnetPathsError, torch.OutOfMemoryError, MemoryError) as error:
                if debug:
                    echo(traceback.format_exc(), err=True)
                echo(
                    f"Error: {' '.join(' '.join([str(error) or type(error).__name__, *last_note(error)]).split())}",
                    err=True,
                )
                ctx.exit(_EXIT_ERROR)
            except KeyboardInterrupt as error:
                lines = ["\nInterrupted. Files are written at the end, each whole or not at all.", *last_note(error)]
                echo("\n".join(lines), err=True)
                ctx.exit(_EXIT_INTERRUPTED)
            except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
                raise
            except Exception as error:  # noqa: BLE001 - Python itself would print names from files as they are
                if debug:
                    echo(traceback.format_exc(), err=True)
                where = "with what is above" if debug else "with what --debug prints"
                lines = [f"{type(error).__name__}: {error}.", *last_note(error)]
                echo(f"Error: {' '.join(' '.join(lines).split())} This is a bug: please report it, {where}", err=True)
                ctx.exit(_EXIT_BUG)


def warn(message: str) -> None:
    """Warn of something, in one line on standard error."""
    warnings.warn(message, stacklevel=2)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    echo(f"Warning: {' '.join(str(message).split())}", err=True)
