"""One architecture, several trainings: what holds of the narrow digits ResNet-110, and what is one training's accident.

    for seed in 0 1 2 3 4 5 6 7; do
        python examples/train_demo.py --seed $seed --output weights/seed$seed.safetensors
    done
    python examples/several_trainings.py --weights weights/*.safetensors --output out

Each training takes a minute or two on one CPU core, and so do its studies. What is finished is kept in the folder of
results. Needs the extra `demo`.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd
import scipy.stats
import torch
import xarray as xr

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo, report
from resnet_paths_plugin.plugins.weights import load_weights
from resnet_paths_plugin.results import datasets

NAME = "digits ResNet-110"
NOTABLE = 0.01
"""Rise of the error that counts."""


def main() -> None:
    """Run the studies that are not there yet, and write what the trainings have in common."""
    options = parse_arguments()
    torch.set_num_threads(1)
    files = [studied(weights, options) for weights in options.weights]
    trainings = [rpp.load(file) for file in files]
    tree = rpp.compare({NAME: trainings})
    rpp.save(tree, options.output / "several_trainings.nc")
    for figure in report.figures(tree):
        (options.output / f"{figure.name}.png").write_bytes(figure.png(dpi=150))
    rises(trainings).to_csv(options.output / "several_trainings.csv", float_format="%.4f")
    for line in sentences(trainings, tree):
        print(line)
    print(proxies(trainings))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare several trainings of the digits ResNet-110.")
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help="one file for each training")
    parser.add_argument("--output", type=Path, required=True, help="folder of results")
    parser.add_argument("--images", type=int, help="held-out images, from the first (default: all)")
    parser.add_argument("--draws", type=int, default=10, help="random sets and orders of each size")
    parser.add_argument("--path-images", type=int, default=8, help="images whose gradients are split by path length")
    parser.add_argument("--path-draws", type=int, default=50, help="sampled paths of each length")
    parser.add_argument("--blocks-per-stage", type=int, default=18)
    options = parser.parse_args()
    if len(options.weights) < 2:
        parser.error("two trainings or more are compared")
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def studied(weights: Path, options: argparse.Namespace) -> Path:
    """Return the file of a training's studies, after running those that are not there."""
    file = options.output / f"{weights.stem}.nc"
    if file.exists():
        return file
    network = demo.DigitsResNet(options.blocks_per_stage)
    load_weights(network, weights)
    images, labels = (part[: options.images] for part in demo.load_digits("held_out"))
    net = rpp.unravel(network.eval(), images[:2])
    lesions = rpp.BlockLesion(net)
    single = lesions.attribute(images, labels)
    sizes = range(1, min(20, len(net.blocks)) + 1)
    few = images[: options.path_images], labels[: options.path_images]
    paths = {"estimator": ("exact", "sampled"), "objective": "cross_entropy", "draws": options.path_draws}
    tree = datasets.build_tree(
        {
            "single_lesions": single,
            "random_lesions": lesions.attribute(images, labels, n_deleted=sizes, draws=options.draws),
            "reorderings": rpp.BlockReordering(net).attribute(
                images, labels, n_swaps=range(1, 11), draws=options.draws
            ),
            "influence": rpp.BlockInfluence(net).attribute(images, labels, lesions=single),
            "path_lengths": rpp.PathLengthGradient(net).attribute(*few, **paths),
        }
    )
    return rpp.save(tree, file)


def rises(trainings: Sequence[xr.DataTree]) -> pd.DataFrame:
    """Return the rise of the error after deleting each block, a column for each training."""
    found = {}
    for number, tree in enumerate(trainings):
        lesions = tree["single_lesions"].to_dataset()
        found[f"training {number}"] = (lesions.error - lesions.intact_error).to_series()
    return pd.DataFrame(found)


def sentences(trainings: Sequence[xr.DataTree], tree: xr.DataTree) -> Iterator[str]:
    """Yield what holds over trainings: means with 95 % intervals of Student's t, and ranges."""
    table, rise = rises(trainings), tree["models"].to_dataset().isel(model=0)
    yield f"{len(trainings)} trainings; intact error {interval(rise, 'intact_error', '.2%')}."
    worst = table.idxmax()
    named = ", ".join(f"{name} ({table[of][name]:.0%})" for of, name in worst.items())
    yield f"Most harmful deletion, by training: {named}."
    yield f"Mean rise over blocks: {interval(rise, 'mean_lesion_effect', '.2%')}; {shares(table)}."
    every = table.corr(method="spearman")  # NaN where no block of a training matters
    pairs = pd.Series([every.loc[pair] for pair in combinations(table, 2)])
    yield (
        f"Profiles of two trainings correlate by {pairs.mean():.2f} on average ({pairs.min():.2f} to "
        f"{pairs.max():.2f} over {len(pairs)} pairs)."
    )
    is_projection = trainings[0]["single_lesions"].to_dataset().skip_kind.to_series() == "projection"
    yield (
        f"Blocks with a projection: {over(table[is_projection].mean())}; the first three blocks: "
        f"{over(table.iloc[:3].mean())}; the others: {over(table[~is_projection].iloc[3:].mean())}."
    )
    for measure in ("gradient_norm", "gradient_share", "total_path_gradient"):
        ends = [
            tree["path_lengths"].to_dataset()[["effective_length_low", "effective_length_high"]].sel(measure=measure)
            for tree in trainings
        ]
        told = ", ".join(f"{int(end.effective_length_low)}-{int(end.effective_length_high)}" for end in ends)
        yield f"95 % of {measure}, by training: lengths {told}."


def shares(table: pd.DataFrame) -> str:
    """Return how many blocks raise the error notably in how many trainings."""
    counts = (table > NOTABLE).sum(axis=1)
    every, none = (counts == table.shape[1]).sum(), (counts == 0).sum()
    return (
        f"of {len(table)} blocks {every} raise the error by over {NOTABLE:.0%} in every training, {none} in none, "
        f"{len(table) - every - none} in some"
    )


def over(values: pd.Series) -> str:
    """Return the mean of a value of each training, in percentage points, with its interval."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return (
        f"{100 * values.mean():.2f} points ({100 * (values.mean() - half):.2f} to {100 * (values.mean() + half):.2f})"
    )


def interval(row: xr.Dataset, name: str, form: str) -> str:
    """Return a number of the table with its interval."""
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def proxies(trainings: Sequence[xr.DataTree]) -> pd.DataFrame:
    """Return each proxy's rank correlation with the effect of deletions, over trainings."""
    each = pd.DataFrame([tree["influence"].to_dataset().rank_correlation.to_series() for tree in trainings])
    half = scipy.stats.t.ppf(0.975, len(each) - 1) * each.sem()
    columns = {"mean": each.mean(), "low": each.mean() - half, "high": each.mean() + half}
    return pd.DataFrame({**columns, "smallest": each.min(), "largest": each.max()}).round(2)


if __name__ == "__main__":
    main()
