"""Print one table: ours, the obvious ways and the bounds; interleaved, medians, and the memory of each way alone."""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.routing import AlongPaths, ByLength, WithSigns
from tests.benchmarks.studies import STUDIES
from tests.benchmarks.subjects import resnet
from tests.benchmarks.timing import medians, memory_alone, rise_of_memory


def signs_against_sampling():
    """Cost, in walked rows, of the same standard error of the root-mean-square path norm, at the middle length."""
    model, images = resnet(3), torch.randn(4, 3, 32, 32)
    net = rpp.unravel(model, images[:2])
    graph, program, n = net.path_graph(), net.program, len(net.blocks)
    walk = BackwardWalk(graph, {program.inputs[0]: images}, program.parameters(), dtype=torch.float64)
    seeds = {program.outputs[0]: torch.ones_like(walk.outputs[0]) * torch.eye(10)[0]}
    generator, middle, draws = np.random.default_rng(0), n // 2, 200
    lengths = ByLength([(1,)] * n)
    tap = graph.taps[0]

    def squares(bank, keys):
        rows = torch.stack([bank.rows[bank.keys.index(key)] for key in keys])
        return rows.flatten(2).square().sum(2).mean(1)

    drawn = graph.sample((middle,), draws, lengths.grades, generator)
    sampled = squares(walk.run(seeds, AlongPaths(drawn))[tap], [(at,) for at in range(draws)])
    signed = torch.stack(
        [
            squares(walk.run(seeds, WithSigns(lengths, graph.draw_signs(generator)))[tap], [(middle,)])[0]
            for _ in range(draws)
        ]
    )
    # Branch products for one draw of every length: sum of k for sampled paths, n(n + 1)/2 for signs: the same.
    relative = [(values.std() / values.mean()).item() ** 2 for values in (sampled, signed)]
    yield (
        f"root-mean-square path norm, n = {n}, k = {middle}",
        "draws needed, sampled / signs",
        relative[0] / relative[1],
        "",
    )


def deep():
    """600 blocks, with a bank that is cut: the memory must not grow with the number of paths."""
    net = rpp.unravel(resnet(200), torch.randn(2, 3, 32, 32))
    start = time.perf_counter()
    found = rpp.PathLengthGradient(net).attribute(torch.randn(1, 3, 32, 32), target=0, max_length=40)
    seconds = time.perf_counter() - start
    assert found.completeness_error.max() < 1e-5
    yield f"{len(net.blocks)} blocks, max_length=40, one image", "seconds", seconds, ""


def options_of(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("studies", nargs="*", default=[], help=f"which to run; all by default: {', '.join(STUDIES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads of torch; with one, the processor's seconds are taken")
    parser.add_argument("--samples", type=int, default=1000, help="images of the lesion sweep")
    parser.add_argument("--weights", help="safetensors of a CIFAR-10 ResNet-56; random ones without")
    parser.add_argument("--images", help="npz file with uint8 `images` (N, 32, 32, 3); random ones without")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory of each way")
    parser.add_argument("--alone", nargs=2, metavar=("STUDY", "WAY"), help="print the MiB that one way adds, and stop")
    return parser.parse_args(arguments)


def rows(name, options, passed_on):
    """Yield the lines of one study; its memory is that of each way alone."""
    study = STUDIES[name](options)
    times, results = medians(study.ways, options.rounds)
    study.check(results)
    memory = "" if options.no_memory else ", ".join(f"{way} {memory_alone(name, way, passed_on):.0f}" for way in times)
    seconds = ", ".join(f"{way} {value:.3g}" for way, value in times.items())
    for at, ratio in enumerate(study.ratios):
        first = at == 0
        yield study.what, ratio.of, ratio.value(times), ratio.bound, seconds if first else "", memory if first else ""


def main():
    options = options_of()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.alone:
        name, way = options.alone
        print(rise_of_memory(STUDIES[name](options).ways[way]))
        return
    passed_on = [argument for argument in sys.argv[1:] if argument not in STUDIES]
    cores, threads = os.cpu_count(), torch.get_num_threads()
    print(f"{machine()}, {cores} cores, {threads} threads, torch {torch.__version__}, {options.rounds} rounds\n")
    print("| what | ratio | measured | bound | seconds, medians | MiB added at the peak |")
    print("|---|---|---|---|---|---|")
    for name in options.studies or STUDIES:
        for what, ratio, value, bound, seconds, memory in rows(name, options, passed_on):
            print(f"| {what} | {ratio} | {value:.2f} | {bound} | {seconds} | {memory} |", flush=True)
    if not options.studies:
        for what, ratio, value, bound in (*signs_against_sampling(), *deep()):
            print(f"| {what} | {ratio} | {value:.2f} | {bound} | | |", flush=True)


def machine():
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


main()
