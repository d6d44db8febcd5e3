"""What passes through blocks adds up on models as libraries have them: at the parameters, and in participation.

In float32 relative errors stay under 1e-5 (float64: 1e-12): of each part of the parameter gradient, and of each path
length that carries more than a thousandth of what the largest one does.
"""

import pytest
import timm
import torch
import torchvision
from networks import randomised

import resnet_paths_plugin as rpp

pytestmark = [pytest.mark.zoo, pytest.mark.slow]

TORCHVISION = ("resnet50", "vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0", "regnet_y_400mf")
TIMM = timm.list_models("test_*")


def made(name, dtype):
    torch.manual_seed(0)
    if name in TORCHVISION:
        model, size = torchvision.models.get_model(name, weights=None), 224 if "vit" in name else 64
    else:
        model, size = timm.create_model(name), 0
        size = timm.data.resolve_data_config(model=model)["input_size"][-1]
    return randomised(model).eval().to(dtype), torch.randn(2, 3, size, size, dtype=dtype)


def tolerance(net, dtype):
    """Some models compute a step in float32 whatever their dtype is, as timm's when it resizes position embeddings."""
    steps = (argument for node in net.graph.graph.nodes for argument in (*node.args, *node.kwargs.values()))
    return 1e-5 if dtype is torch.float32 else 1e-8 if torch.float32 in steps else 1e-12


def captured(name, dtype):
    model, x = made(name, dtype)
    net = rpp.unravel(model, x)
    if not net.blocks:
        pytest.skip(f"{name} has no residual blocks")
    return net, x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_gradients_at_parameters_add_up(name, dtype):
    net, x = captured(name, dtype)
    ds = rpp.PathLengthGradient(net).attribute(x, 1, tap="parameters", max_length=3)
    assert (ds.completeness_error < tolerance(net, dtype)).all(), ds.completeness_error.to_series().nlargest(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_participation_adds_up(name, dtype):
    net, x = captured(name, dtype)
    ds = rpp.PathParticipation(net).attribute(x[:1], 1)
    size = abs(ds.participation).sum("block")
    kept = ds.completeness_error.where(size > 1e-3 * size.max("path_length"), 0)
    assert (kept < tolerance(net, dtype)).all(), kept.to_series().nlargest(3)
    assert ds.participation.notnull().all()
