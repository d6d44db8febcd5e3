"""Makes the pictures of the README and of the gallery from the file that `resnet-paths analyze` writes.

resnet-paths analyze --output digits.nc
python examples/gallery.py digits.nc examples/gallery
"""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import xarray as xr

import resnet_paths_plugin as rpp
from resnet_paths_plugin import report

DPI = 110


def overview(tree: xr.DataTree, path: Path) -> None:
    """Draw Fig. 3 beside Fig. 6c."""
    figure = plt.figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.add_gridspec(1, 2, width_ratios=[1.5, 1]).subplots()
    lesions = tree["single_lesions"].to_dataset()
    rpp.plotting.plot_single_lesions(lesions, left, chance=0.9, plain=tree["plain_single_lesions"].to_dataset())
    left.legend(loc="center right", bbox_to_anchor=(1, 0.38), fontsize=8, framealpha=1)
    left.set_title("error after deleting one block, or one layer of a plain network", loc="left")
    hidden = [plt.figure().add_subplot() for _ in range(2)]
    rpp.plotting.plot_path_lengths(tree["path_lengths"].to_dataset(), [*hidden, right])
    right.set_title("share of the gradient by path length", loc="left")
    figure.savefig(path, dpi=DPI)
    plt.close("all")


def side_by_side(tree: xr.DataTree, path: Path) -> None:
    """Draw the lesions of the residual and of the plain network on one axis."""
    groups = {"residual network": "single_lesions", "plain network": "plain_single_lesions"}
    compared = rpp.compare({name: tree[group].to_dataset() for name, group in groups.items()})
    ax = rpp.plotting.plot_compared_lesions(compared["single_lesions"].to_dataset(), measure="normalised_effect")
    ax.figure.savefig(path, dpi=DPI)
    plt.close("all")


def main() -> None:
    """Read the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="written by `resnet-paths analyze`, without a model")
    parser.add_argument("folder", type=Path, help="where to put the pictures")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tree = rpp.load(options.file)
    overview(tree, options.folder / "overview.png")
    side_by_side(tree, options.folder / "models-side-by-side.png")
    for figure in report.figures(tree):
        (options.folder / f"{figure.name}.png").write_bytes(figure.png(DPI))
        print(f"{figure.name}.png: {figure.title}. {figure.sentence}")


if __name__ == "__main__":
    main()
