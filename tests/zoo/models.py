"""Which models the zoo has, how each is built without memory for its weights, and what it is given as input."""

from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import nn
from torchvision.models import detection, optical_flow, segmentation, video

import resnet_paths_plugin as rpp

SEGMENTATION_SIZE = (3, 224, 224)
FLOW_SIZE = (3, 128, 128)
DETECTION_SIZE = (3, 320, 320)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to look at.

    Attributes:
        library: timm or torchvision.
        name: its name there.
    """

    library: str
    name: str


def subjects():
    """Return every model of both libraries; quantised ones of torchvision are the same networks and left out."""
    found = [Subject("timm", name) for name in timm.list_models()]
    names = [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]
    return found + [Subject("torchvision", name) for name in names]


def family(subject):
    """Return the library's own family of a model: the module that defines it."""
    if subject.library == "timm":
        return timm.models._registry._model_to_module[subject.name]
    return torchvision.models.get_model_builder(subject.name).__module__.removeprefix("torchvision.models.")


def build(subject):
    """Return the model on the meta device, and example inputs; of a detector its backbone."""
    model = _on_meta(subject)
    if subject.library == "timm":
        size = model.default_cfg["input_size"]
        return model, torch.zeros(2, *size, device="meta")
    kind = torchvision.models.get_model_builder(subject.name).__module__
    if kind.startswith(detection.__name__):
        return model.backbone, torch.zeros(2, *DETECTION_SIZE, device="meta")
    if kind.startswith(optical_flow.__name__):
        image = torch.zeros(2, *FLOW_SIZE, device="meta")
        return model, (image, image)
    if kind.startswith((segmentation.__name__, video.__name__)) or rpp_shape(model) is None:
        size = SEGMENTATION_SIZE if kind.startswith(segmentation.__name__) else (3, 16, 112, 112)
        return model, torch.zeros(2, *(rpp_shape(model) or size), device="meta")
    return model, torch.zeros(2, *rpp_shape(model), device="meta")


def rpp_shape(model):
    """Return the input shape that the plugins know."""
    from resnet_paths_plugin.plugins import manager as plugins

    description = plugins.describe(model, None)
    return description.input_shape if description else None


def _on_meta(subject) -> nn.Module:
    spec = f"{subject.library}/{subject.name}"
    try:
        with torch.device("meta"):
            return rpp.load_model(spec).eval()
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        # Some constructors compute with values, which the meta device does not have.
        return rpp.load_model(spec).to("meta").eval()
