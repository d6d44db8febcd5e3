"""Captum's attributions over all paths, over the effective ones and over the long ones: the effective are enough.

    python examples/captum_short_paths.py --images 8 --output short_paths.png

Half a minute on one CPU core, nothing to download. Needs the extra `demo` (scikit-learn's handwritten digits).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from captum.attr import IntegratedGradients, Saliency
from torch import Tensor

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo

STEPS = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how far each group of paths agrees with all of them; draw their maps where asked."""
    parser = argparse.ArgumentParser(description="Captum on the short paths of a residual network.")
    parser.add_argument("--images", type=int, default=8, help="held-out digits to explain")
    parser.add_argument("--output", type=Path, help="PNG file for the maps of the first digit")
    options = parser.parse_args(arguments)

    inputs, labels = (part[: options.images] for part in demo.load_digits("held_out"))
    net = rpp.unravel(demo.load_network(), inputs)

    study = rpp.PathLengthGradient(net).attribute(inputs, labels)
    low, high = (int(study[f"effective_length_{end}"].sel(measure="gradient_norm")) for end in ("low", "high"))
    counts = net.path_counts()
    groups = {
        "all": range(len(counts)),
        "effective": range(low, high + 1),
        "long": range(high + 1, len(counts)),
    }

    inputs.requires_grad_()
    maps: dict[str, dict[str, Tensor]] = {"Saliency": {}, "IntegratedGradients": {}}
    for group, lengths in groups.items():
        view = net.restricted(lengths)  # an nn.Module with the network's outputs
        saliency = Saliency(view).attribute(inputs, labels, abs=False)
        integrated = IntegratedGradients(view).attribute(inputs, target=labels, n_steps=STEPS)
        maps["Saliency"][group], maps["IntegratedGradients"][group] = saliency.detach(), integrated.detach()

    print(f"{net.name}: {len(net.blocks)} blocks, {sum(counts):.3g} paths, {options.images} digits")
    print(f"{'paths':<12}{'lengths':>9}{'share of paths':>17}{'Saliency':>11}{'IntegratedGradients':>22}")
    for group, lengths in groups.items():
        share = sum(counts[length] for length in lengths) / sum(counts)
        close = [similarity(found[group], found["all"]) for found in maps.values()]
        span = f"{lengths[0]}-{lengths[-1]}"
        print(f"{group:<12}{span:>9}{share:>17.2g}{close[0]:>11.3f}{close[1]:>22.3f}")
    print("The last two columns: cosine similarity with the map over all paths, mean over the digits.")

    if options.output is not None:
        draw(inputs[0], maps, options.output)
        print(f"wrote {options.output}")


def similarity(maps: Tensor, reference: Tensor) -> float:
    """Return the cosine similarity of two batches of maps, mean over the samples."""
    return torch.cosine_similarity(maps.flatten(1), reference.flatten(1)).mean().item()


def draw(image: Tensor, maps: dict[str, dict[str, Tensor]], output: Path) -> None:
    """Write a picture of the first digit and of its maps: one row per method, one column per group of paths."""
    figure, rows = plt.subplots(len(maps), 4, figsize=(8, 4.4), squeeze=False, layout="constrained")
    for axes, (method, found) in zip(rows, maps.items(), strict=True):
        axes[0].imshow(image[0].detach().numpy(), cmap="gray")
        axes[0].set_title(method)
        for ax, (group, batch) in zip(axes[1:], found.items(), strict=True):
            end = float(batch[0].abs().max())
            ax.imshow(batch[0, 0].numpy(), cmap="RdBu_r", vmin=-end, vmax=end)
            ax.set_title(f"{group} paths")
    for ax in rows.flat:
        ax.set_axis_off()
    figure.savefig(output, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
