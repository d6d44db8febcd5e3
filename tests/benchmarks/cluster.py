"""Print how much faster two workers of a dask cluster are than one: `python -m tests.benchmarks.cluster`.

A sweep over random lesions of a ResNet-56, of more than a minute on one worker; one thread for each worker. Needs two
cores that nothing else uses.
"""

import argparse
import os
import platform
import statistics
import time

import torch
from distributed import Client, LocalCluster

import resnet_paths_plugin as rpp
from tests.benchmarks.subjects import resnet


def seconds(net, images, workers, draws):
    """Time one study on a fresh cluster, which has done a small one before: imports and captures do not count."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        run = rpp.RunOptions(executor=client)
        rpp.BlockLesion(net).attribute(images, n_deleted=1, draws=32 * workers, run=run)
        start = time.perf_counter()
        result = rpp.BlockLesion(net).attribute(images, n_deleted=range(1, 11), draws=draws, run=run)
        return time.perf_counter() - start, result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--draws", type=int, default=10, help="lesions of each of ten sizes")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    net = rpp.unravel(resnet(), torch.zeros(2, 3, 32, 32))
    images = torch.randn(options.images, 3, 32, 32)
    print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {10 * options.draws} lesions")
    times = {1: [], 2: []}
    for round_ in range(options.rounds):
        results = {}
        for workers, found in times.items():
            taken, results[workers] = seconds(net, images, workers, options.draws)
            found.append(taken)
            print(f"round {round_}: {workers} worker(s) {taken:.1f} s", flush=True)
        one, two = (result.assign_attrs(date_created="", history="") for result in results.values())
        print(f"round {round_}: results identical: {one.identical(two)}")
    medians = {workers: statistics.median(found) for workers, found in times.items()}
    print(f"speed of two workers / one: {medians[1] / medians[2]:.2f} (one worker takes {medians[1]:.0f} s)")


if __name__ == "__main__":
    main()
