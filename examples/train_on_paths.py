"""Train one residual network three ways: all blocks, a random m of n in each batch, and stochastic depth.

    python examples/train_on_paths.py --output train_on_paths.nc

Prints the held-out errors (Veit et al. 2016, Sec. 5) and writes the errors after deleting each block (Fig. 8) to one
netCDF file, with a figure beside it. About a quarter of an hour on one CPU core, nothing to download; `--seeds 1
--epochs 20 --blocks-per-stage 4` takes a minute. Needs the extra `demo`. No gradient comes from the held-out third.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from train_demo import INITIAL_BRANCH_SCALE, train

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo
from resnet_paths_plugin.demo.networks import PreActivationBlock
from resnet_paths_plugin.network.sampling import SamplingNetwork
from resnet_paths_plugin.results import datasets

SHARE = 23 / 54
"""The paper's share of blocks that each batch runs (Sec. 5)."""
SURVIVAL = 0.5
"""Of the last block, as in Huang et al. 2016."""
TRAININGS = ("all blocks", "m of n", "stochastic depth")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the table, write the dataset and the figure."""
    options = parse_arguments(arguments)
    # Networks this small gain little from a second thread, and float sums depend on the number of threads.
    torch.set_num_threads(1)
    studies = [[study(training, seed, options) for seed in range(options.seeds)] for training in TRAININGS]
    result = compared(studies, options)
    rpp.save(result, options.output)
    picture = options.output.with_suffix(".png")
    rpp.plotting.plot_training_lesions(result).figure.savefig(picture, dpi=110)
    print_table(result)
    print(f"wrote {options.output} and {picture}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a residual network on all blocks or on random subsets.")
    parser.add_argument("--seeds", type=int, default=5, help="networks for each way of training")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--blocks-per-stage", type=int, default=9, help="a third of the network's blocks")
    parser.add_argument("--output", type=Path, default=Path("train_on_paths.nc"), help="netCDF file")
    options = parser.parse_args(arguments)
    if options.output.suffix != ".nc":
        parser.error("the output must be named *.nc; the figure is written beside it")
    if not options.output.parent.is_dir():
        parser.error(f"the folder {options.output.parent} does not exist")
    return options


def study(training: str, seed: int, options: argparse.Namespace) -> xr.Dataset:
    """Train one network and delete each of its blocks. Of one seed, weights, batches and shifts are the same."""
    images, labels = demo.load_digits("train")
    network = build(options.blocks_per_stage, seed)
    net = rpp.unravel(network, images[:2])
    module = module_for(training, network, net, seed)
    train(module, images, labels, epochs=options.epochs, generator=torch.Generator().manual_seed(seed))
    if isinstance(module, SamplingNetwork):
        fold_survival(module)
    network.eval()
    return rpp.BlockLesion(net).attribute(*demo.load_digits("held_out"))


def build(blocks_per_stage: int, seed: int) -> demo.DigitsResNet:
    """Return an untrained network, initialised as the embedded one was."""
    torch.manual_seed(seed)
    network = demo.DigitsResNet(blocks_per_stage)
    for module in network.modules():
        if isinstance(module, PreActivationBlock):
            module.conv2.weight.data.mul_(INITIAL_BRANCH_SCALE)
    return network


def module_for(training: str, network: nn.Module, net: rpp.UnraveledNetwork, seed: int) -> nn.Module:
    """Return what the training loop calls: the network itself, or one that samples its blocks."""
    generator = torch.Generator().manual_seed(seed)
    if training == "m of n":
        return net.sampling(n_active(sum(block.movable for block in net.blocks)), generator=generator)
    if training == "stochastic depth":
        return net.sampling(survival=SURVIVAL, generator=generator)
    return network


def n_active(n_sampled: int) -> int:
    """Return the paper's share of so many blocks, at least one."""
    return max(1, round(SHARE * n_sampled))


@torch.no_grad()
def fold_survival(module: SamplingNetwork) -> None:
    """Scale branches as eval mode does, but in the weights, so that the plain network is what was trained.

    A branch here ends with a convolution without bias, which takes the factor.
    """
    for block, survival in zip(module.sampled, module.survival, strict=True):
        weight: Tensor = module.model.get_submodule(block.module).conv2.weight
        weight.mul_(survival)


def compared(studies: Sequence[Sequence[xr.Dataset]], options: argparse.Namespace) -> xr.Dataset:
    """Put the studies of all trainings and seeds into one dataset."""
    one = studies[0][0]

    def stacked(name: str) -> np.ndarray:
        return np.array([[each[name].values for each in row] for row in studies])

    blocks = {name: (coord.dims, coord.values) for name, coord in one.coords.items() if "block" in coord.dims}
    n_sampled = int((one.block_skip_kind != "projection").sum())
    # What differs from one network to the other is no fact of the whole.
    kept = {name: value for name, value in one.attrs.items() if not name.startswith(("weights_", "history", "seed"))}
    return datasets.build(
        {
            "error": (("training", "seed", "lesion"), stacked("error")),
            "intact_error": (("training", "seed"), stacked("intact_error")),
            "deleted": (("lesion", "block"), one.deleted.values),
            "n_deleted": ("lesion", one.n_deleted.values),
        },
        coords={
            "training": ("training", list(TRAININGS)),
            "seed": ("seed", np.arange(len(studies[0]))),
            "lesion": ("lesion", one.lesion.values),
            **blocks,
        },
        attrs={
            **kept,
            "title": "Lesion studies of networks trained on all blocks and on random subsets of them",
            "summary": (
                "Held-out error after deleting the branch of each block, its skip left in place, and of the intact "
                "networks (intact_error). 'm of n': each batch runs exactly m of the n blocks whose skip is no "
                "projection; 'stochastic depth': block l of n runs with probability 1 - l / n (1 - survival). "
                "Branches are scaled by the probability that they ran in training."
            ),
            "model_architecture": f"DigitsResNet(blocks_per_stage={options.blocks_per_stage})",
            "epochs": options.epochs,
            "n_sampled": n_sampled,
            "n_active": n_active(n_sampled),
            "survival": SURVIVAL,
        },
    )


def print_table(result: xr.Dataset) -> None:
    """Print the errors in percent: mean and standard deviation over the seeds, and what deleting a block does."""
    seeds = result.sizes["seed"]
    movable = (result.block_skip_kind != "projection").values[result.deleted.argmax("block")]
    print(
        f"{result.attrs['model_architecture']}, {result.attrs['epochs']} epochs, {seeds} seeds, m of n: "
        f"{result.attrs['n_active']} of {result.attrs['n_sampled']}. Held-out errors in %, mean (standard deviation)."
    )
    print(f"{'training':<18}{'error':>14}{'one block deleted':>19}{'worst block':>14}  error by seed")
    for training in TRAININGS:
        row = result.sel(training=training) * 100
        lesions = row.error[:, movable]
        cells = [row.intact_error.values, lesions.mean("lesion").values, lesions.max("lesion").values]
        each = " ".join(f"{error:.2f}" for error in row.intact_error.values)
        told = [f"{cell.mean():.2f} ({spread(cell):.2f})" for cell in cells]
        print(f"{training:<18}{told[0]:>14}{told[1]:>19}{told[2]:>14}  {each}")
    for training in TRAININGS[1:]:
        more = (
            100 * (result.intact_error.sel(training=training) - result.intact_error.sel(training=TRAININGS[0])).values
        )
        print(f"{training} minus {TRAININGS[0]}: {more.mean():+.2f}, standard error {spread(more) / seeds**0.5:.2f}")


def spread(values: np.ndarray) -> float:
    """Return the standard deviation over seeds, from n - 1; not known of one."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
