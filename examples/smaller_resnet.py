"""Delete blocks of a trained residual network, fine-tune what is left, and export it: error against latency.

    python examples/smaller_resnet.py --output smaller

The embedded ResNet-110 on scikit-learn's digits takes 76 s of one CPU core, nothing to download; `--delete 2 --epochs 1
--images 60` is quicker. Needs the extra `demo`. With `--weights resnet20.safetensors --depth 20
--images-file test1000.npz`, the same for a CIFAR-10 network: half of its images are searched on and fine-tuned with,
the other half reported on. Writes FOLDER/smaller.png, the selection as FOLDER/smaller.nc, and each network as a program
of torch.export, with ONNX files beside where the extra `onnx` is installed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from reproduce_paper import CifarResNet
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo
from resnet_paths_plugin.network.costs import latencies

CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
BATCH = 64


@dataclass(frozen=True, eq=False)
class Task:
    """A trained network, images to choose blocks on, to train with, and to report on."""

    model: nn.Module
    search: tuple[Tensor, Tensor]
    train: tuple[Tensor, Tensor]
    report: tuple[Tensor, Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose, prune, fine-tune, export, and print the table."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.output.mkdir(exist_ok=True)
    task = cifar_task(options) if options.weights else digits_task(options)
    net = rpp.unravel(task.model, task.search[0][:2])
    chosen = rpp.BlockSelection(net).attribute(
        *task.search, k=options.delete, holdout=task.report, method="greedy", halving=3, n_random=3
    )
    rpp.save(chosen, options.output / "smaller.nc")
    greedy = chosen.isel(selection=np.flatnonzero(chosen.method.values == "greedy"))
    names = [chosen.block.values[deleted].tolist() for deleted in greedy.deleted.values]
    networks = [net.pruned(blocks) for blocks in names]
    times = latencies([net.pruned([], training=False), *networks], (task.report[0][:1],))
    rows = [(0, times[0], error(task.model, task.report), float("nan"))]
    for blocks, small, seconds in zip(names, networks, times[1:], strict=True):
        before = error(small, task.report)
        fine_tune(small, task.train, options.epochs)
        rows.append((len(blocks), seconds, before, error(small, task.report)))
        export(small, task.report[0][:2], options.output / f"without_{len(blocks)}")
    print_table(rows, len(net.blocks), len(task.report[1]))
    draw(rows, options.output / "smaller.png")
    print(f"wrote {', '.join(sorted(path.name for path in options.output.iterdir()))} to {options.output}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Prune a residual network, fine-tune and export it.")
    parser.add_argument("--delete", type=int, nargs="+", default=[8, 16], help="numbers of blocks to delete")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of fine-tuning")
    parser.add_argument("--images", type=int, default=240, help="images to choose blocks on")
    parser.add_argument("--weights", type=Path, help="a CIFAR-10 network's weights, safetensors")
    parser.add_argument("--depth", type=int, default=20, help="its depth: 20, 32, 44, 56, ...")
    parser.add_argument("--images-file", type=Path, help="CIFAR-10 images: npz with 'images' and 'labels'")
    parser.add_argument("--output", type=Path, default=Path("smaller"), help="folder to write to")
    options = parser.parse_args(arguments)
    if (options.weights is None) != (options.images_file is None):
        parser.error("--weights and --images-file belong together")
    if min(options.delete) < 1:
        parser.error("--delete takes numbers of at least 1")
    return options


def digits_task(options: argparse.Namespace) -> Task:
    """Return the embedded network with the images that it was trained on, and those that were held out."""
    images, labels = demo.load_digits("train")
    chosen = torch.randperm(len(labels))[: options.images]
    search = images[chosen], labels[chosen]
    return Task(demo.load_network(), search, (images, labels), demo.load_digits("held_out"))


def cifar_task(options: argparse.Namespace) -> Task:
    """Return a CIFAR-10 network with one half of the images to choose and train on, and the other to report on."""
    model = CifarResNet(options.depth)
    model.load_state_dict(load_file(options.weights))
    with np.load(options.images_file) as file:
        images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]).long()
    mean, std = (torch.tensor(values)[:, None, None] for values in (CIFAR_MEAN, CIFAR_STD))
    inputs = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
    half = len(labels) // 2
    train = inputs[:half], labels[:half]
    search = train[0][: options.images], train[1][: options.images]
    return Task(model.eval(), search, train, (inputs[half:], labels[half:]))


@torch.no_grad()
def error(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the share of images that a network gets wrong."""
    model.eval()
    images, labels = data
    wrong = [(model(part).argmax(1) != truth).sum() for part, truth in zip(
        images.split(BATCH), labels.split(BATCH), strict=True
    )]  # fmt: skip
    return float(sum(wrong)) / len(labels)


def fine_tune(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int) -> None:
    """Train a network in place: SGD with momentum, the learning rate falling to 0 along a cosine."""
    images, labels = data
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as a program of torch.export, and as ONNX where that is installed."""
    free = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=free), path.with_suffix(".pt2"))
    if find_spec("onnx") and find_spec("onnxscript"):
        program = torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=free, verbose=False)
        if program is not None:
            program.save(path.with_suffix(".onnx"))


def print_table(rows: Sequence[tuple[int, float, float, float]], n_blocks: int, n_images: int) -> None:
    """Print error and latency of each network."""
    print(f"error on {n_images} images that no block was chosen on; latency of a batch of one\n")
    print("| blocks | latency | error | fine-tuned |\n|---|---|---|---|")
    for size, seconds, before, after in rows:
        tuned = "" if np.isnan(after) else f"{after:.2%}"
        print(f"| {n_blocks - size} of {n_blocks} | {1e3 * seconds:.1f} ms | {before:.2%} | {tuned} |")


def draw(rows: Sequence[tuple[int, float, float, float]], path: Path) -> None:
    """Draw error against latency, before and after fine-tuning."""
    sizes, seconds, before, after = (np.array(column) for column in zip(*rows, strict=True))
    _, ax = plt.subplots(figsize=(6.2, 4), layout="constrained")
    ax.plot(1e3 * seconds, 100 * before, "o--", color="#56B4E9", label="pruned")
    ax.plot(1e3 * seconds[1:], 100 * after[1:], "s-", color="#0072B2", label="pruned and fine-tuned")
    ax.plot(1e3 * seconds[0], 100 * before[0], "*", color="black", markersize=13, label="intact")
    for size, x, y in zip(sizes[1:], seconds[1:], before[1:], strict=True):
        ax.annotate(f"{size} deleted", (1e3 * x, 100 * y), xytext=(6, 4), textcoords="offset points", fontsize=9)
    ax.set_xlabel("latency in ms (batch of 1, one CPU thread)")
    ax.set_ylabel("error (%) on images held out")
    ax.margins(x=0.15, y=0.12)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=9)
    ax.figure.savefig(path, dpi=110)
    plt.close(ax.figure)


if __name__ == "__main__":
    main()
