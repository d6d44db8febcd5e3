"""Print which search finds the best set, at what share of the cost: `python -m tests.benchmarks.selection`.

Every set of `k` blocks of a trained CIFAR-10 network is measured on some images; the searches are then replayed on
these numbers, the evolutionary one with several seeds. What is chosen is reported on the other images.
"""

import argparse
import time

import numpy as np
import torch

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.coalitions import searches
from resnet_paths_plugin.analyzers.coalitions.searches import Judge, KnownEffects
from resnet_paths_plugin.analyzers.coalitions.set_space import SetSpace, keys
from tests.support import cifar

METHODS = ("exhaustive", "greedy", "beam", "evolutionary")


def replayed(ds, k, seed, **numbers):
    """Return the effect and the number of sets of an evolutionary search with another seed, by the numbers stored."""
    table = dict(zip(keys(ds.step_deleted.values), ds.step_effect.values.tolist(), strict=True))
    effects = KnownEffects(lambda sets, _: (np.array([table[key] for key in keys(sets)]), 1))
    n_blocks = ds.sizes["block"]
    space = SetSpace(tuple(ds.block.values), np.ones(n_blocks, dtype=bool), np.zeros(n_blocks, dtype=np.int64))
    generator = np.random.default_rng(seed)
    return searches.evolutionary(Judge("evolutionary", effects), space, k, generator=generator, **numbers)


def table(ds, k, seeds):
    """Yield the lines of the table: how often each search finds the best of all sets, and what it costs."""
    rows = ds.isel(selection=(ds.n_deleted == k).values)
    every = (ds.step_method == "exhaustive").values & (ds.step_deleted.sum("block") == k).values
    effects = np.sort(ds.step_effect.values[every])
    yield "| search | harm searched | rank | harm held out | error held out | sets | share of the cost |"
    yield "|---|---|---|---|---|---|---|"
    for place in range(rows.sizes["selection"]):
        row = rows.isel(selection=place)
        rank = 1 + int((effects < float(row.searched_effect) - 1e-12).sum())
        held_out = f"{float(row.held_out_effect):.4f} ± {float(row.held_out_effect_stderr):.4f}"
        yield (
            f"| {row.method.item()} | {float(row.searched_effect):.4f} | {rank} of {len(effects)} | {held_out} | "
            f"{float(row.held_out_error):.1%} | {int(row.n_tried)} | {float(row.search_cost) / len(effects):.0%} |"
        )
    random = ds.random_n_deleted.values == k
    yield f"random sets: harm held out {ds.random_held_out_effect.values[random].mean():.3f} on average"
    found = [one for seed in range(seeds) for one in replayed(ds, k, seed, population=16, generations=16)]
    best = sum(one.effect <= effects[0] + 1e-12 for one in found)
    tried = np.mean([one.n_tried for one in found]) / len(effects)
    yield f"evolutionary, {seeds} seeds: finds the best in {best}, with {tried:.0%} of the sets on average"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--images", type=int, default=500, help="images searched on, of the first 500")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--checkpoint", help="netCDF file that keeps what is finished")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = cifar.images_and_labels()
    net = rpp.unravel(cifar.trained(options.depth), images[:2])
    start = time.perf_counter()
    ds = rpp.BlockSelection(net).attribute(
        images[: options.images],
        labels[: options.images],
        k=options.k,
        method=METHODS,
        holdout=(images[500:], labels[500:]),
        latency=False,
        show_progress=True,
        run=rpp.RunOptions(checkpoint=options.checkpoint),
    )
    print(f"ResNet-{options.depth}, k={options.k}, {options.images} images: {time.perf_counter() - start:.0f} s")
    print("\n".join(table(ds, options.k, options.seeds)))


if __name__ == "__main__":
    main()
