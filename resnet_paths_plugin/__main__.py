"""The command line by way of `python -m resnet_paths_plugin`."""

from resnet_paths_plugin.cli import main

main(prog_name="resnet-paths")
