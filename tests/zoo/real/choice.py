"""The cheapest model of a family, and the smallest input that it takes.

Both are measured on the meta device, where neither weights nor activations need memory.
"""

import warnings
from dataclasses import dataclass
from itertools import islice

import timm
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection, optical_flow, video

from resnet_paths_plugin import load_model
from resnet_paths_torchvision.builders import build
from zoo.models import Subject, family, subjects
from zoo.truth import expected

SIDES = (96, 112, 128, 160, 192, 224, 256, 320, 384, 512)
"""Sides of images, in pixels: 96 leaves 3 x 3 positions to a network that halves the resolution five times."""
FRAMES = (4, 8, 16)
BROADCAST = {
    ("timm", "byobnet"),
    ("timm", "mvitv2"),
    ("timm", "vision_transformer_sam"),
    ("torchvision", "swin_transformer"),
    ("torchvision", "video.swin_transformer"),
}
"""Families with a sum in which a value of the input is broadcast; torchvision's video.mvit is one too.

Found on the meta device among the cheapest models of all families and those that timm builds with a global context that
is added (byobnet's gcresnet and gcresnext). Where the family's model in the table has no such sum, `broadcast.csv` has
one that has.
"""
SIZED_BY = {"timm": ("", "img_size"), "torchvision": ("", "image_size", "input_size")}
"""Arguments that bind a model to a side; with the first, none, it is built as it is by default."""
CANDIDATES = 3
"""Models of a family, those with the fewest parameters, whose work is counted."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is built and what it is given.

    Attributes:
        subject: the model.
        shape: of one sample of each input: channels, frames for a video, height, width.
        sized_by: the argument that binds the model to that size; none where it needs none.
    """

    subject: Subject
    shape: tuple[int, ...]
    sized_by: str = ""

    def model(self):
        """Build the model, in eval mode; of a detector its backbone."""
        model = self._whole().eval()
        return model.backbone if _kind(self.subject).startswith(detection.__name__) else model

    def inputs(self, batch, device="cpu", seed=0):
        """Return the model's arguments: random images or videos, and for optical flow two images."""
        generator = torch.Generator().manual_seed(seed)
        count = 2 if _kind(self.subject).startswith(optical_flow.__name__) else 1
        images = [torch.randn(batch, *self.shape, generator=generator) for _ in range(count)]
        return tuple(image.to(device) for image in images)

    def _whole(self):
        side = self.shape[-1]
        arguments = {self.sized_by: (side, side) if self.sized_by == "input_size" else side}
        arguments.pop("", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how its own weights will be initialised in times to come
            if self.subject.library == "timm":
                return timm.create_model(self.subject.name, **arguments)
            return build(self.subject.name, weights=None, **arguments)


def families():
    """Return the models of each family, by library and family; timm's models for tests are a zoo of their own."""
    found = {}
    for subject in subjects():
        if not subject.name.startswith("test_"):
            found.setdefault((subject.library, family(subject)), []).append(subject)
    return found


def cheapest(members):
    """Return the recipe of the model that needs the least work, among those with the fewest parameters.

    Models whose code declares residual blocks come first: where a family has any, one of them is chosen.
    """
    if len(members) > CANDIDATES:
        members = sorted(members, key=lambda subject: (_parameters(subject), subject.name))
    residual = list(islice(filter(_is_residual, members), CANDIDATES))
    found = [one for one in map(smallest, residual or members[:CANDIDATES]) if one is not None]
    return min(found, key=lambda one: (one[1], one[0].subject.name))[0]


def smallest(subject):
    """Return the recipe with the smallest input that a model runs on, and its work in operations; None without one."""
    channels = 3 if subject.library == "torchvision" else _default_shape(subject)[0]
    frames = [(count,) for count in FRAMES] if _kind(subject).startswith(video.__name__) else [()]
    shapes = [(channels, *count, side, side) for side in SIDES for count in frames]
    if subject.library == "timm":
        shapes.append(_default_shape(subject))
    for shape in shapes:
        for sized_by in SIZED_BY[subject.library]:
            recipe = Recipe(subject, shape, sized_by)
            work = _work(recipe)
            if work is not None:
                return recipe, work
    return None


def _work(recipe):
    """Return the operations of one run, or None where the model does not run on the recipe's input."""
    try:
        with warnings.catch_warnings(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            warnings.simplefilter("ignore")
            _meta_model(recipe)(*recipe.inputs(2, "meta"))
    except Exception:  # noqa: BLE001 - whatever a library raises for a size that does not suit it
        return None
    return counter.get_total_flops()


def _meta_model(recipe):
    try:
        with torch.device("meta"):
            return recipe.model().requires_grad_(requires_grad=False)
    except (NotImplementedError, RuntimeError):
        # Some constructors compute with values, which the meta device does not have.
        return recipe.model().to("meta").requires_grad_(requires_grad=False)


def _parameters(subject):
    if subject.library == "torchvision":
        return torchvision.models.get_model_weights(subject.name).DEFAULT.meta["num_params"]
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(subject.name).parameters())


def _is_residual(subject):
    try:
        with torch.device("meta"):
            return expected(load_model(f"{subject.library}/{subject.name}")) > 0
    except (LookupError, NotImplementedError, RuntimeError):
        return True  # nothing is declared, or the constructor computes with values, which the meta device lacks


def _default_shape(subject):
    return tuple(timm.get_pretrained_cfg(subject.name).input_size)


def _kind(subject):
    return torchvision.models.get_model_builder(subject.name).__module__ if subject.library == "torchvision" else ""
