"""Train the embedded networks on scikit-learn's handwritten digits and write their weights as safetensors.

    python examples/train_demo.py --network resnet --output digits_resnet110.safetensors
    python examples/train_demo.py --network plain --output digits_plain15.safetensors

A minute or two each on one CPU core. Needs the extra `demo`. No gradient comes from the held-out third.
"""

import argparse
import math
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from resnet_paths_plugin import demo
from resnet_paths_plugin.demo.networks import PreActivationBlock

ARCHITECTURE_OF = {"resnet": demo.RESNET, "plain": demo.PLAIN}

BATCH_SIZE = 128
PEAK_LEARNING_RATE = 0.1
MOMENTUM = 0.9
WARM_UP_EPOCHS = 3
MAX_SHIFT = 1
# Torch's default initial branches would sum up to a stream dominated by the first few blocks.
INITIAL_BRANCH_SCALE = 0.5


def main() -> None:
    """Train one network, print its errors, and write its weights."""
    arguments = parse_arguments()
    # Networks this small gain little from a second thread, and float sums depend on the number of threads.
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(arguments.seed)
    network = build(ARCHITECTURE_OF[arguments.network], arguments.seed)
    train(network, *demo.load_digits("train"), epochs=arguments.epochs, generator=generator)
    for split in ("train", "held_out"):
        print(f"error on the split {split}: {error(network, *demo.load_digits(split)):.2%}")
    write_weights(network, arguments)
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.2f} MB)")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train an embedded network on scikit-learn's digits.")
    parser.add_argument("--network", choices=tuple(ARCHITECTURE_OF), default="resnet")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and shifts")
    parser.add_argument("--output", type=Path, help="safetensors file (default: ARCHITECTURE.safetensors)")
    arguments = parser.parse_args()
    arguments.output = arguments.output or Path(f"{ARCHITECTURE_OF[arguments.network]}.safetensors")
    if not arguments.output.parent.is_dir():
        parser.error(f"the folder {arguments.output.parent} does not exist")
    return arguments


def build(architecture: str, seed: int) -> nn.Module:
    """Return an untrained network."""
    torch.manual_seed(seed)
    network = demo.build_network(architecture, pretrained=False)
    for module in network.modules():
        if isinstance(module, PreActivationBlock):
            module.conv2.weight.data.mul_(INITIAL_BRANCH_SCALE)
    return network


def train(network: nn.Module, inputs: Tensor, labels: Tensor, *, epochs: int, generator: torch.Generator) -> None:
    """Train in place with SGD and a cosine schedule.

    There is no weight decay, stochastic depth or dropout: each of them changes what deleting a block does.

    Args:
        network: the network.
        inputs: normalised images, shape `(N, 1, 8, 8)`.
        labels: shape `(N,)`.
        epochs: passes over the data.
        generator: draws the batches and the shifts.
    """
    steps_per_epoch = len(inputs) // BATCH_SIZE
    n_steps = epochs * steps_per_epoch
    warm_up = WARM_UP_EPOCHS * steps_per_epoch
    optimizer = torch.optim.SGD(network.parameters(), PEAK_LEARNING_RATE, MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / n_steps)),
    )
    network.train()
    for _ in (progress := tqdm(range(epochs), unit="epoch")):
        order = torch.randperm(len(inputs), generator=generator)
        for batch in order[: steps_per_epoch * BATCH_SIZE].view(steps_per_epoch, BATCH_SIZE):
            loss = nn.functional.cross_entropy(network(randomly_shifted(inputs[batch], generator)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.set_postfix(loss=f"{loss.item():.4f}")
    network.eval()


def randomly_shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to one pixel in each direction; what comes in is background.

    Args:
        images: shape `(B, 1, 8, 8)`.
        generator: draws the shifts.
    """
    (mean,), (std,) = demo.PREPROCESSING.mean, demo.PREPROCESSING.std
    padded = nn.functional.pad(images, (MAX_SHIFT,) * 4, value=-mean / std)
    right, down = torch.randint(0, 2 * MAX_SHIFT + 1, (2, len(images), 1), generator=generator)
    rows, columns = down + torch.arange(images.shape[2]), right + torch.arange(images.shape[3])
    sample = torch.arange(len(images))[:, None, None]
    return padded[sample, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


@torch.no_grad()
def error(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the fraction of images that are classified wrongly."""
    return (network(inputs).argmax(dim=1) != labels).double().mean().item()


def write_weights(network: nn.Module, arguments: argparse.Namespace) -> None:
    """Write every parameter and buffer, with what is needed to make them again."""
    metadata = {
        "format": "pt",
        "architecture": ARCHITECTURE_OF[arguments.network],
        "data": "scikit-learn load_digits, two thirds",
        "epochs": str(arguments.epochs),
        "seed": str(arguments.seed),
    }
    safetensors.torch.save_file(network.state_dict(), arguments.output, metadata=metadata)


if __name__ == "__main__":
    main()
