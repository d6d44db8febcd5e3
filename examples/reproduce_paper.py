"""The studies of Veit et al. 2016 on a CIFAR-10 ResNet of He et al. 2015, from trained weights and test images.

    python examples/reproduce_paper.py --depth 56 --weights resnet56.safetensors --images test.npz --output resnet56
    python examples/reproduce_paper.py --depth 110 --weights resnet110.safetensors --images DIR --output resnet110

Weights are safetensors, or a file of `torch.save` that holds tensors only. Images are an npz file with `images`
(N, 32, 32, 3), uint8, and `labels` (N,), or the folder of torchvision's CIFAR10 (nothing is downloaded). Writes one
netCDF file, the figures, a report, and the table of `examples/reproduction.md`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torchvision
import xarray as xr
from matplotlib import pyplot as plt
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin import report
from resnet_paths_plugin.cli import npz
from resnet_paths_plugin.results import datasets

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANCE = 0.9
SMALL_DPI = 80


class BasicBlock(nn.Module):
    """Two convolutions and a skip of option A: every second position, zeros for the new channels (He et al. 2015)."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, out_channels - channels
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x` of shape `(B, channels, H, W)`."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            half = self.new_channels // 2
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        return torch.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet for 32 x 32 images: three stages of widths 16, 32 and 64, and `(depth - 2) / 2` blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(blocks, 16, 16, 1)
        self.layer2 = self._stage(blocks, 16, 32, 2)
        self.layer3 = self._stage(blocks, 32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape `(B, 10)`, of images of shape `(B, 3, 32, 32)`."""
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits

    @staticmethod
    def _stage(blocks: int, channels: int, width: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels, width, stride)
        return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def main() -> None:
    """Run the studies, and write what came out."""
    options = parse_arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    model = CifarResNet(options.depth)
    model.load_state_dict(read_weights(options.weights))
    inputs, labels = (part[: options.n_images] for part in read_images(options.images))
    tree = run(model.to(options.device), inputs, labels, options)
    name = f"resnet{options.depth}"
    rpp.save(tree, options.output / f"{name}.nc")
    report.write_report(tree, options.output / f"{name}.html")
    for figure in report.figures(tree):
        (options.output / f"{name}-{figure.name}.png").write_bytes(figure.png(SMALL_DPI))
    ax = rpp.plotting.plot_path_survival(54)
    ax.figure.savefig(options.output / "path-survival-54.png", dpi=SMALL_DPI)
    plt.close(ax.figure)
    table = "\n".join(table_of(tree))
    (options.output / f"{name}.md").write_text(f"{table}\n", encoding="utf-8")
    print(table)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="The studies of Veit et al. 2016 on a CIFAR-10 ResNet.")
    parser.add_argument("--depth", type=int, required=True, help="weighted layers: 20, 32, 44, 56, 110, ...")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors, or torch.save of tensors only")
    parser.add_argument("--images", type=Path, required=True, help="npz file, or the folder of torchvision's CIFAR10")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--n-images", type=int, default=1000, help="test images, from the first")
    parser.add_argument("--path-images", type=int, default=16, help="images whose gradients are split by path length")
    parser.add_argument("--path-draws", type=int, default=30, help="sampled paths of each length")
    parser.add_argument("--changes", type=int, default=10, help="most deletions, and most swaps")
    parser.add_argument("--draws", type=int, default=10, help="random sets and orders of each size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.depth < 14 or (options.depth - 2) % 6:
        parser.error("--depth must be 6 k + 2, such as 20, 56 or 110")
    return options


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return a state dict; its keys may begin with `module.`, as `DataParallel` writes them."""
    if path.suffix == ".safetensors":
        found = safetensors.torch.load_file(path)
    else:
        found = torch.load(path, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found)
    return {name.removeprefix("module."): value for name, value in found.items()}


def read_images(path: Path) -> tuple[Tensor, Tensor]:
    """Return normalised test images, shape `(N, 3, 32, 32)`, and labels, shape `(N,)`."""
    if path.is_dir():
        # Its files are pickles; torchvision opens them only if their checksums are those of CIFAR-10.
        data = torchvision.datasets.CIFAR10(path, train=False, download=False)
        images, labels = data.data, np.asarray(data.targets)
    else:
        arrays = npz.read_arrays(path, ("images", "labels"))
        images, labels = arrays["images"], arrays["labels"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std, torch.from_numpy(labels)


def run(model: nn.Module, inputs: Tensor, labels: Tensor, options: argparse.Namespace) -> xr.DataTree:
    """Run every study of the paper that needs no training."""
    net = rpp.unravel(model, inputs[:2].to(options.device))
    sizes = range(1, min(options.changes, len(net.blocks)) + 1)
    random = {"draws": options.draws, "seed": options.seed, "show_progress": True}
    lesions = rpp.BlockLesion(net)
    single = lesions.attribute(inputs, labels, show_progress=True)
    few = inputs[: options.path_images], labels[: options.path_images]
    return datasets.build_tree(
        {
            "single_lesions": single,
            "random_lesions": lesions.attribute(inputs, labels, n_deleted=sizes, **random),
            "reorderings": rpp.BlockReordering(net).attribute(
                inputs, labels, n_swaps=range(1, options.changes + 1), **random
            ),
            "influence": rpp.BlockInfluence(net).attribute(inputs, labels, lesions=single),
            "path_lengths": rpp.PathLengthGradient(net).attribute(
                *few,
                estimator=("exact", "sampled"),
                objective="cross_entropy",
                draws=options.path_draws,
                seed=options.seed,
                show_progress=True,
            ),
        }
    )


def table_of(tree: xr.DataTree) -> Iterator[str]:
    """Yield the lines of a table: what the paper found, what was found here, and whether they agree."""
    yield "| figure | paper | this network | agreement |"
    yield "|---|---|---|---|"
    for row in (single_lesions, random_lesions, reorderings, path_counts, single_paths, totals):
        yield f"| {' | '.join(row(tree))} |"


def single_lesions(tree: xr.DataTree) -> tuple[str, str, str, str]:
    """Fig. 3."""
    ds = tree["single_lesions"].to_dataset()
    rise = ds["error"] - ds["intact_error"]
    projection = ds["block_skip_kind"].values == "projection"
    worst = ds["block"].values[np.argsort(-rise.values)[:4]]
    found = (
        f"intact {float(ds['intact_error']):.1%}; rise for a block that keeps the resolution: median "
        f"{float(np.median(rise[~projection])):.1%}, largest {float(rise[~projection].max()):.1%}; for one that "
        f"changes it: {', '.join(f'{value:.1%}' for value in rise.values[projection])}; worst {', '.join(worst)}"
    )
    agree = (
        float(np.median(rise[~projection])) < 0.05 and rise.values[projection].min() > rise.values[~projection].max()
    )
    partly = float(np.median(rise[~projection])) < 0.05
    return (
        "3",
        "deleting one block hardly matters, but where the resolution changes",
        found,
        "yes" if agree else "mostly: others hurt as well" if partly else "no",
    )


def random_lesions(tree: xr.DataTree) -> tuple[str, str, str, str]:
    """Fig. 5a."""
    ds = tree["random_lesions"].to_dataset()
    found, rank = _curve(ds, "n_deleted", "number of deletions")
    return "5a", "error rises smoothly with the number of deleted blocks", found, _judged(rank)


def reorderings(tree: xr.DataTree) -> tuple[str, str, str, str]:
    """Fig. 5b."""
    ds = tree["reorderings"].to_dataset()
    found, _ = _curve(ds, "n_swaps", "number of swaps")
    taus = {
        name: rank_correlation(1 - ds[variable], ds["error"])
        for name, variable in (("movable", "kendall_tau"), ("all", "kendall_tau_all_blocks"))
    }
    low = float(ds["kendall_tau_all_blocks"].min())
    told = ", ".join(f"{rank:.2f} over {name} blocks" for name, rank in taus.items())
    return (
        "5b",
        "error rises smoothly as Kendall's tau falls",
        f"{found}; with 1 - tau: {told} (tau down to {low:.2f})",
        _judged(taus["all"]),
    )


def path_counts(tree: xr.DataTree) -> tuple[str, str, str, str]:
    """Fig. 6a."""
    ds = tree["path_lengths"].to_dataset()
    n = ds.sizes["path_length"] - 1
    share = ds["path_count"] / ds["path_count"].sum()
    binomial = rpp.paths.distribution(n)
    low, high = rpp.paths.effective_range(share.values)
    same = np.allclose(share, binomial, rtol=1e-9)
    found = (
        f"counted on the graph: {'exactly' if same else 'not'} Binomial({n}, 1/2); 95 % of paths have {low:.0f} to "
        f"{high:.0f} blocks"
    )
    return (
        "6a",
        "path lengths are Binomial(54, 1/2); 98 % of paths have 19 to 35 blocks",
        found,
        "yes" if same else "no",
    )


def single_paths(tree: xr.DataTree) -> tuple[str, str, str, str]:
    """Fig. 6b."""
    ds = tree["path_lengths"].to_dataset()
    lengths, norms = ds["path_length"].values, ds["path_gradient_norm"].values
    fit = stats.linregress(lengths, np.log10(norms))
    found = (
        f"{'falls' if fit.slope < 0 else 'rises'} by a factor of {10 ** abs(fit.slope):.1f} with each block; a line "
        f"through the logarithms has R^2 = {fit.rvalue**2:.2f}"
    )
    return (
        "6b",
        "a single path's gradient falls about exponentially with its length",
        found,
        "yes" if fit.slope < 0 and fit.rvalue**2 > 0.8 else "partly" if fit.slope < 0 else "no",
    )


def totals(tree: xr.DataTree) -> tuple[str, str, str, str]:
    """Fig. 6c."""
    ds = tree["path_lengths"].to_dataset()
    share = ds["path_count"] / ds["path_count"].sum()
    told, shares = [], []
    for measure, name in (("total_path_gradient", "sampled as in the paper"), ("gradient_norm", "exact")):
        low, high = (int(ds[f"effective_length_{end}"].sel(measure=measure)) for end in ("low", "high"))
        shares.append(float(share[low : high + 1].sum()))
        told.append(f"{name}: {low} to {high} blocks, {shares[-1]:.2g} of all paths")
    return (
        "6c",
        "nearly all gradient is that of paths of 5 to 17 blocks, 0.45 % of all",
        f"95 % of it in {'; '.join(told)}",
        "yes" if shares[0] < 0.05 else "partly: short paths, but not so few" if shares[0] < 0.5 else "no: most paths",
    )


def _curve(ds: xr.Dataset, by: str, name: str) -> tuple[str, float]:
    means = ds["error"].groupby(ds[by]).mean()
    rank = rank_correlation(ds[by], ds["error"])
    ends = f"mean error {float(means[0]):.1%} at {int(means[by][0])}, {float(means[-1]):.1%} at {int(means[by][-1])}"
    return f"{ends}; Spearman's rank correlation over draws with the {name} {rank:.2f}", rank


def rank_correlation(one: xr.DataArray, other: xr.DataArray) -> float:
    """Return Spearman's rank correlation; NaN where one of the two is constant."""
    if len(np.unique(one)) < 2 or len(np.unique(other)) < 2:
        return float("nan")
    return float(stats.spearmanr(one, other).statistic)


def _judged(rank: float) -> str:
    if np.isnan(rank):
        return "not defined: nothing changes"
    return "yes" if rank > 0.8 else "partly: draws of one size differ much" if rank > 0.5 else "no"


if __name__ == "__main__":
    main()
