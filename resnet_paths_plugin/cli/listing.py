"""The command `resnet-paths plugins`: what is installed here."""

from inspect import getdoc

import click

from resnet_paths_plugin.cli.command import Command
from resnet_paths_plugin.cli.terminal import echo
from resnet_paths_plugin.plotting.plugin_figures import GuardedFigure
from resnet_paths_plugin.plotting.registry import all_figures
from resnet_paths_plugin.plugins import manager as plugins


@click.command("plugins", cls=Command, short_help="List plugins, analyzers and figures.")
def list_plugins() -> None:
    """List the plugins found here, with their hooks, and the analyzers and figures offered."""
    manager = plugins.create_plugin_manager()
    for info in plugins.listing(manager):
        echo(f"{info}\n    module: {info.module}\n    hooks:  {', '.join(info.hooks) or 'none'}")
    echo("\nAnalyzers:")
    for name, analyzer in plugins.analyzers(manager).items():
        _list(name, analyzer)
    echo("\nFigures:")
    for figure in all_figures(manager):
        _list(figure.name, figure.figure if isinstance(figure, GuardedFigure) else figure)


def _list(name: str, offered: object) -> None:
    """Print a line on what is offered: its name, its module, and the first line of its docstring."""
    owner = offered if isinstance(offered, type) else type(offered)
    summary = (getdoc(owner) or "").partition("\n")[0]
    echo(f"    {name} ({owner.__module__})" + (f": {summary}" if summary else ""))
