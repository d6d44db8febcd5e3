"""Print one table of ratios: `python -m tests.benchmarks [--rounds N]`."""

import argparse
import os
import platform
import resource
import time

import numpy as np
import torch

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.routes import AlongPaths, ByLength, WithSigns
from tests.benchmarks.subjects import resnet
from tests.benchmarks.timing import medians


def lesion_sweep(rounds):
    """Every single block deleted once: ours against a zeroing hook and one full forward pass per block."""
    model, images = resnet(), torch.randn(256, 3, 32, 32)
    net = rpp.unravel(model, images[:2])
    blocks = model.residual_blocks()

    def obvious():
        with torch.inference_mode():
            for block in blocks:
                handle = block.bn2.register_forward_hook(lambda *call: torch.zeros_like(call[2]))
                model(images).argmax(1)
                handle.remove()

    times = medians({"ours": lambda: rpp.BlockLesion(net).attribute(images), "loop": obvious}, rounds)
    yield (
        "single-lesion sweep, 256 images",
        "loop with hooks / ours",
        times["loop"] / times["ours"],
        "2 (shared prefixes)",
    )


def forward_pass(rounds):
    """The intact network: ours against the model's own forward."""
    model, images = resnet(), torch.randn(64, 3, 32, 32)
    net = rpp.unravel(model, images[:2])
    with torch.no_grad():
        times = medians({"ours": lambda: net(images), "model": lambda: model(images)}, 4 * rounds)
    yield "forward pass, 64 images", "ours / the model's", times["ours"] / times["model"], "1"


def path_gradients(rounds, size, internal):
    """All lengths exactly, against one forward and backward, and against n + 1 gated backward passes."""
    model, images = resnet(), torch.randn(size, 3, 32, 32)
    net = rpp.unravel(model, images[:2])
    n = len(net.blocks)

    def ordinary():
        x = images.clone().requires_grad_()
        return torch.autograd.grad(model(x)[:, 0].sum(), x)

    def gated():
        """The value of the polynomial sum_k t^k G_k at n + 1 points, from which the G_k could be solved for."""
        for t in np.cos(np.pi * np.arange(n + 1) / n):
            handles = [
                block.bn2.register_forward_hook(lambda *call, t=t: call[2] * t + (call[2] * (1 - t)).detach())
                for block in model.residual_blocks()
            ]
            ordinary()
            for handle in handles:
                handle.remove()

    def ours():
        graph, program = net.path_graph(), net.program
        for start in range(0, size, internal):
            part = images[start : start + internal]
            walk = BackwardWalk(graph, {program.inputs[0]: part}, program.parameters(), dtype=torch.float32)
            seed = torch.zeros_like(walk.outputs[0])
            seed[:, 0] = 1
            walk.run({program.outputs[0]: seed}, ByLength([(1,)] * n))

    ways = {"ours": ours, "one": ordinary}
    if size == internal:
        ways["gated"] = gated
    times = medians(ways, rounds)
    ratio = times["ours"] / times["one"] / n
    yield f"exact path gradients, {size} images", "ours / (n forward-backwards)", ratio, "0.25"
    if "gated" in times:
        yield f"exact path gradients, {size} images", "n + 1 gated passes / ours", times["gated"] / times["ours"], ""


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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads of torch; one is steadier where others use the machine")
    options = parser.parse_args()
    rounds = options.rounds
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"| {'what':44} | {'ratio of':32} | measured | bound |")
    print(f"|{'-' * 46}|{'-' * 34}|----------|-------|")
    for rows in (
        forward_pass(rounds),
        lesion_sweep(rounds),
        path_gradients(rounds, 8, 8),
        path_gradients(rounds, 64, 8),
        signs_against_sampling(),
        deep(),
    ):
        for what, ratio_of, measured, bound in rows:
            print(f"| {what:44} | {ratio_of:32} | {measured:8.2f} | {bound} |", flush=True)
    print(f"peak memory of the whole run: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


main()
