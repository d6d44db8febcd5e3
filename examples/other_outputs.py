"""Lesions of models whose outputs are no class scores (segmentation, optical flow, detection), by one's own measures.

    python examples/other_outputs.py --pretrained --output studies.nc

Random weights unless `--pretrained`, which downloads torchvision's. Each network is compared with itself, so that no
labels are needed: the target of a study is what the intact network says. About a minute on one CPU core.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import detection, optical_flow, segmentation
from torchvision.ops import box_iou

import resnet_paths_plugin as rpp

FOUND_AGAIN = 0.5
"""Intersection over union from which a box counts as the same."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the blocks that each network misses most; write the studies where asked."""
    parser = argparse.ArgumentParser(description="Lesions of networks that segment, follow motion and detect.")
    parser.add_argument("--pretrained", action="store_true", help="torchvision's weights instead of random ones")
    parser.add_argument("--size", type=int, default=128, help="width and height of the images, at least 128")
    parser.add_argument("--samples", type=int, default=2, help="how many images")
    parser.add_argument("--output", type=Path, help="netCDF file for the three studies; see `resnet-paths report`")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    weights = "DEFAULT" if options.pretrained else None
    coarse = torch.rand(options.samples, 3, 8, 8)
    images = functional.interpolate(coarse, (options.size, options.size), mode="bicubic").clamp(0, 1)
    studies: dict[str, Any] = {study.__name__: study(images, weights) for study in (segment, follow, detect)}

    if options.output is not None:
        tree = xr.DataTree.from_dict(studies)
        print(f"wrote {rpp.save(tree, options.output)}")


def segment(images: Tensor, weights: str | None) -> xr.Dataset:
    """A dict of outputs: the share of pixels that keep their class, and the mean intersection over union."""
    model = segmentation.lraspp_mobilenet_v3_large(weights=weights, weights_backbone=None)
    net = rpp.unravel(model, images)

    def pixels_kept(outputs: dict[str, Tensor], target: Tensor) -> Tensor:
        return (outputs["out"].argmax(1) == target).double().flatten(1).mean(1)

    def mean_iou(outputs: dict[str, Tensor], target: Tensor) -> Tensor:
        n_classes = outputs["out"].shape[1]
        said, meant = (
            functional.one_hot(classes, n_classes).bool().flatten(1, 2)
            for classes in (outputs["out"].argmax(1), target)
        )
        both, either = (said & meant).sum(1), (said | meant).sum(1)
        return torch.where(either > 0, both / either, torch.nan).nanmean(1)

    classes = net(images)["out"].argmax(1)  # one for each pixel: a target is whatever the measures read
    measures = {"pixels_kept": pixels_kept, "mean_iou": mean_iou}
    study = rpp.BlockLesion(net).attribute(images, classes, measures=measures)
    tell(f"{net.name}: share of pixels that keep their class", study.pixels_kept, worst="smallest")
    return study


def follow(images: Tensor, weights: str | None) -> xr.Dataset:
    """Two inputs and a list of outputs: the end-point error of the last flow; a block for each time a module runs."""
    model = optical_flow.raft_small(weights=weights)
    pair = (images * 2 - 1, images.roll(3, dims=3) * 2 - 1)
    net = rpp.unravel(model, pair)

    def end_point_error(outputs: list[Tensor], target: Tensor) -> Tensor:
        return (outputs[-1] - target).norm(dim=1).flatten(1).mean(1)

    recurrent = [block for block in net.blocks if block.module == "update_block.recurrent_block.convgru1"]
    measures = {"end_point_error": end_point_error}
    study = rpp.BlockLesion(net).attribute(pair, net(*pair)[-1], lesions=recurrent, measures=measures)
    tell(f"{net.name}: end-point error in pixels", study.end_point_error, worst="largest")
    return study


class Dense(nn.Module):
    """A detector up to the point where it chooses boxes by their scores, which no export follows."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return class scores and box offsets at all anchors."""
        outputs: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return outputs


def detect(images: Tensor, weights: str | None) -> xr.Dataset:
    """A detector: scores at all anchors through a wrapper, and boxes through a lesioned backbone put into a copy."""
    sizes: dict[str, Any] = {"min_size": images.shape[-1], "max_size": images.shape[-1], "score_thresh": 0.0}
    detector = detection.retinanet_resnet50_fpn(weights=weights, weights_backbone=None, **sizes).eval()
    ready = detector.transform(list(images))[0].tensors  # normalised and padded, as the backbone gets them
    net = rpp.unravel(Dense(detector), ready)

    def score_shift(outputs: dict[str, Tensor], target: Tensor) -> Tensor:
        return (outputs["cls_logits"].sigmoid() - target).abs().flatten(1).mean(1)

    scores = net(ready)["cls_logits"].sigmoid()
    study = rpp.BlockLesion(net).attribute(ready, scores, measures={"score_shift": score_shift})
    tell(
        f"{type(detector).__name__}: mean change of the class scores at all anchors", study.score_shift, worst="largest"
    )

    backbone = rpp.unravel(detector.backbone, ready)
    with torch.no_grad():
        intact = detector(list(images))
        for name in ("body.layer2.1", "body.layer3.0"):
            # The copy gets the view wherever the detector holds its backbone; the detector is left alone.
            lesioned = copy.deepcopy(detector, {id(detector.backbone): backbone.lesioned([name])})
            print(f"  {found_again(lesioned(list(images)), intact):.0%} of the boxes are found again without {name}")
    return study


def found_again(found: list[dict[str, Tensor]], intact: list[dict[str, Tensor]]) -> float:
    """Return the share of the intact detector's boxes that overlap with a box of the other."""
    shares = [
        (box_iou(before["boxes"], after["boxes"]) >= FOUND_AGAIN).any(1).double().mean() if len(after["boxes"]) else 0.0
        for before, after in zip(intact, found, strict=True)
        if len(before["boxes"])
    ]
    return float(sum(shares) / len(shares)) if shares else float("nan")


def tell(title: str, measure: xr.DataArray, *, worst: str) -> None:
    """Print the three lesions that change a measure most."""
    means = measure.mean("sample").to_series().sort_values(ascending=worst == "smallest").head(3)
    print(f"{title}, {worst} without\n" + "\n".join(f"  {name}: {value:.4g}" for name, value in means.items()))


if __name__ == "__main__":
    main()
