"""What a sampled path for each sample gains over one for all: standard errors at equal time, on a ResNet-56.

    python -m tests.benchmarks.own_paths --weights resnet56.safetensors --images test.npz

Both variances are estimated from the same walks along shared paths, since each sample's own path is drawn alike: heavy
tails would drown a comparison of two sets of draws. Seconds are the processor's, of one thread.
"""

import argparse
import time

import numpy as np
import torch

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.own_paths import DRAWN_TOGETHER, PathDraws
from resnet_paths_plugin.engine.routing import AlongPaths
from tests.benchmarks.subjects import pictures, trained


def options_of():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.own_paths", description=__doc__)
    parser.add_argument("--weights", help="safetensors of a CIFAR-10 ResNet-56; random ones without")
    parser.add_argument("--images", help="npz file with uint8 `images` (N, 32, 32, 3); random ones without")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--draws", type=int, default=64, help="paths of each length")
    parser.add_argument("--lengths", type=int, nargs="+", default=[3, 6, 10, 14])
    parser.add_argument("--objective", choices=("score", "cross_entropy"), default="score", help="of the top class")
    return parser.parse_args()


def main():
    options = options_of()
    torch.set_num_threads(1)
    images = pictures(options.samples, options.images)
    net = rpp.unravel(trained(options.weights), images[:2])
    graph, program, grades = net.path_graph(), net.program, ((1,),) * len(net.blocks)
    walk = BackwardWalk(graph, {program.inputs[0]: images}, program.parameters(), dtype=torch.float32)
    logits = walk.outputs[0].detach().requires_grad_()
    top = logits.argmax(1)
    score = logits.gather(1, top[:, None]).sum()
    total = score if options.objective == "score" else torch.nn.functional.cross_entropy(logits, top, reduction="sum")
    seeds = dict(zip(program.outputs, torch.autograd.grad(total, logits), strict=True))
    lengths = tuple((length,) for length in options.lengths for _ in range(options.draws))
    generator = np.random.default_rng(0)
    drawn = [path for k in options.lengths for path in graph.sample((k,), options.draws, grades, generator)]
    own = PathDraws(lengths, grades, 0)

    def along_shared():
        found = []
        for start in own.starts:
            routing = AlongPaths(drawn[start : start + DRAWN_TOGETHER])
            bank = walk.gradients(seeds, routing)[graph.taps[0]]
            norms = bank.rows.flatten(2).double().square().sum(2).sqrt().numpy()
            found.append(np.ldexp(norms, np.array(routing.exponents())[:, None]))
        return np.concatenate(found)

    def along_own():
        for start in own.starts:
            routing = own.drawn(graph, start, range(options.samples))
            bank = walk.gradients(seeds, routing)[graph.taps[0]]
            routing.at_tap(graph.taps[0], bank, bank.rows.flatten(2).double().square().sum(2))

    along_own()  # warms up
    (norms, shared_seconds), (_, own_seconds) = timed(along_shared), timed(along_own)
    ratio = own_seconds / shared_seconds
    print(f"{options.samples} images, {options.objective}; time, own / shared: {ratio:.2f}\n")
    print("| length | variance of the mean, shared / own | standard error at equal time, shared / own |\n|---|---|---|")
    for at, length in enumerate(options.lengths):
        each = norms[at * options.draws : (at + 1) * options.draws]
        gain = each.mean(1).var(ddof=1) / (each.var(0, ddof=1).sum() / options.samples**2)
        print(f"| {length} | {gain:.1f} | {(gain / ratio) ** 0.5:.1f} |")


def timed(way):
    start = time.process_time()
    return way(), time.process_time() - start


if __name__ == "__main__":
    main()
