"""Train one residual network along paths of up to k blocks only, for several k, from the start.

    python examples/train_on_short_paths.py --output train_on_short_paths.nc

The direct experiment behind Sec. 5 of Veit et al. 2016: if only short paths carry gradient, a network trained along
them alone should learn as well as one trained as usual. Outputs are always those of all blocks; only the gradient is
cut, at every parameter. Prints the held-out accuracy against k, and writes a netCDF file with a figure beside it. Some
five minutes on one CPU core, nothing to download. Needs the extra `demo`. No gradient comes from the held-out third.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from train_demo import train
from train_on_paths import build, spread

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo
from resnet_paths_plugin.results import datasets

LENGTHS = (0, 1, 2, 3, 5)
"""Longest paths that are trained along; all of them, which is ordinary training, is added."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the table, write the dataset and the figure."""
    options = parse_arguments(arguments)
    # Networks this small gain little from a second thread, and float sums depend on the number of threads.
    torch.set_num_threads(1)
    result = compared(options)
    rpp.save(result, options.output)
    picture = options.output.with_suffix(".png")
    draw(result, picture)
    print_table(result)
    print(f"wrote {options.output} and {picture}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a residual network along paths of up to k blocks only.")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="the longest paths, each a training")
    parser.add_argument("--seeds", type=int, default=3, help="networks for each length")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--blocks-per-stage", type=int, default=3, help="a third of the network's blocks")
    parser.add_argument("--output", type=Path, default=Path("train_on_short_paths.nc"), help="netCDF file")
    options = parser.parse_args(arguments)
    if options.output.suffix != ".nc":
        parser.error("the output must be named *.nc; the figure is written beside it")
    if not options.output.parent.is_dir():
        parser.error(f"the folder {options.output.parent} does not exist")
    n_blocks = 3 * options.blocks_per_stage
    if not all(0 <= length <= n_blocks for length in options.lengths):
        parser.error(f"a path of this network takes 0 to {n_blocks} blocks")
    options.lengths = sorted({*options.lengths, n_blocks})
    return options


def study(longest: int, seed: int, options: argparse.Namespace) -> tuple[xr.Dataset, float]:
    """Train one network; return a study on held-out images, with its error, and its accuracy on the training images.

    Of one seed, weights, batches and shifts are the same.
    """
    images, labels = demo.load_digits("train")
    network = build(options.blocks_per_stage, seed)
    net = rpp.unravel(network, images[:2])
    view = net.restricted(range(longest + 1), parameters=True)
    train(view, images, labels, epochs=options.epochs, generator=torch.Generator().manual_seed(seed))
    network.eval()
    with torch.no_grad():
        fitted = (network(images).argmax(1) == labels).double().mean().item()
    return rpp.BlockLesion(net).attribute(*demo.load_digits("held_out"), lesions=[net.blocks[0]]), fitted


def compared(options: argparse.Namespace) -> xr.Dataset:
    """Return the accuracies of all trainings in one dataset."""
    rows = [[study(longest, seed, options) for seed in range(options.seeds)] for longest in options.lengths]
    held_out = np.array([[1 - float(found.intact_error) for found, _ in row] for row in rows])
    fitted = np.array([[accuracy for _, accuracy in row] for row in rows])
    attrs = rows[0][0][0].attrs
    # What differs from one network to the other is no fact of the whole.
    kept = {name: value for name, value in attrs.items() if not name.startswith(("weights_", "history", "seed"))}
    dims = ("longest_path", "seed")
    return datasets.build(
        {
            "accuracy": (dims, held_out, {"long_name": "held-out accuracy", "units": "1"}),
            "training_accuracy": (dims, fitted, {"long_name": "accuracy on the training images", "units": "1"}),
        },
        coords={
            "longest_path": (
                "longest_path",
                options.lengths,
                {"long_name": "longest paths that parameters were trained along", "units": "1"},
            ),
            "seed": ("seed", np.arange(options.seeds)),
        },
        attrs={
            **kept,
            "title": "Networks trained along paths of up to k blocks",
            "summary": (
                "Accuracy of networks whose parameters were trained with the gradient along paths of up to "
                "longest_path branches only, from the start. The last row is ordinary training."
            ),
            "model_architecture": f"DigitsResNet(blocks_per_stage={options.blocks_per_stage})",
            "epochs": options.epochs,
        },
    )


def print_table(result: xr.Dataset) -> None:
    """Print the accuracies in percent: mean and standard deviation over the seeds, and each seed's."""
    n_blocks = int(result.longest_path[-1])
    print(
        f"{result.attrs['model_architecture']}, {n_blocks} blocks, {result.attrs['epochs']} epochs, "
        f"{result.sizes['seed']} seeds. Accuracies in %, mean (standard deviation)."
    )
    print(f"{'paths up to':<14}{'held-out':>16}{'training':>16}  held-out by seed")
    for longest in result.longest_path.values:
        row = result.sel(longest_path=longest) * 100
        cells = [
            f"{row[name].mean():.2f} ({spread(row[name].values):.2f})" for name in ("accuracy", "training_accuracy")
        ]
        each = " ".join(f"{accuracy:.2f}" for accuracy in row.accuracy.values)
        label = f"{longest} (all)" if longest == n_blocks else str(longest)
        print(f"{label:<14}{cells[0]:>16}{cells[1]:>16}  {each}")


def draw(result: xr.Dataset, picture: Path) -> None:
    """Draw the held-out accuracy against the longest path: each seed, and the mean."""
    figure, ax = plt.subplots(figsize=(5.0, 3.2), layout="constrained")
    longest, accuracy = result.longest_path.values, 100 * result.accuracy
    for seed in result.seed.values:
        ax.plot(
            longest, accuracy.sel(seed=seed), "o", color="0.65", markersize=4, label="one seed" if not seed else None
        )
    ax.plot(longest, accuracy.mean("seed"), color="black", label="mean")
    ax.set(
        xlabel=f"trained along paths of up to k of {longest[-1]} blocks",
        ylabel="held-out accuracy (%)",
        xticks=longest,
    )
    ax.legend(frameon=False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
