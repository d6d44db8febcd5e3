"""The command `resnet-paths`: blocks, plugins, and a whole analysis from images to a file with figures.

Thin over the library: it reads options, reports errors in one line each, and writes files. A command's module, and
torch with it, is imported when the command is run.
"""

from importlib import import_module

import click

_EXAMPLES = """Examples:

\b
  resnet-paths analyze
  resnet-paths analyze timm/resnet18 --pretrained --images photos/
  resnet-paths analyze mymodels:resnet20 --weights resnet20.safetensors
      --images test.npz --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26
  resnet-paths blocks torchvision/resnet50
  resnet-paths compare resnet20.nc resnet56.nc --output both.html
  resnet-paths survey --models 'timm/resnet*' --pretrained --images photos/
  resnet-paths prune --delete 8 --output small.safetensors
"""
_COMMANDS = {
    "analyze": ("analyze:analyze", "Run the studies; write a file and figures."),
    "blocks": ("blocks:blocks", "Print a model's residual blocks."),
    "compare": ("comparing:compare_files", "Put models side by side, from their files."),
    "plugins": ("listing:list_plugins", "List plugins, analyzers and figures."),
    "prune": ("prune:prune", "Delete blocks; write the smaller network."),
    "survey": ("survey:survey", "Run the studies on many models, and compare them."),
    "report": ("report_page:make_report", "Make the report of a file again."),
}
"""Where each command is, and what it does in a few words."""


class Commands(click.Group):
    """The commands by name, each imported when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Return a command, or None if there is none of this name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """Write the list of commands into the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in sorted(_COMMANDS.items())])


@click.group(
    "resnet-paths",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXAMPLES,
)
@click.version_option(package_name="resnet-paths-plugin", message="%(prog)s %(version)s")
def main() -> None:
    """Study residual networks as collections of paths, without changing them."""
