"""PathLengthGradient on architectures and trained weights of others: complete, and with the known norms."""

import cifar
import numpy as np
import pytest
import timm
import torch
import torchvision
from networks import randomised
from test_zoo_sample import WITHOUT_BLOCKS

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow


# Completeness on architectures of others

QUICK = {"test_byobnet", "test_convnext2", "test_resnet", "test_vit"}
"""One of each kind; the others are of the zoo."""
TEST_MODELS = [name for name in timm.list_models("test_*") if name not in WITHOUT_BLOCKS]


def complete(model, size):
    """Return the largest completeness error in float32 and in float64."""
    torch.manual_seed(0)
    randomised(model).eval()
    x = torch.randn(2, *size)
    errors = []
    for dtype in (torch.float32, torch.float64):
        ds = rpp.PathLengthGradient(model.to(dtype)).attribute(x.to(dtype), 1)
        assert ds["gradient_norm"].sum() > 0
        assert ds.sizes["block"] > 0
        assert ds["path_count"].sum() >= ds.sizes["block"]
        errors.append(ds["completeness_error"].max().item())
    return errors


def test_the_zoo_is_not_empty():
    assert len(TEST_MODELS) >= 14
    assert set(TEST_MODELS) > QUICK


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.zoo) for name in TEST_MODELS]
)
def test_completeness_on_timms_test_models(name):
    model = timm.create_model(name)
    size = model.default_cfg["input_size"]
    if not model.default_cfg.get("fixed_input_size"):
        size = (size[0], 96, 96)
    short, long = complete(model, size)
    assert short < 1e-5
    assert long < 1e-12


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        *(
            pytest.param(name, size, marks=pytest.mark.zoo)
            for name, size in {
                "resnet50": 64, "vit_b_16": 64, "swin_t": 64, "convnext_tiny": 64, "efficientnet_b0": 64,
                "regnet_y_400mf": 64,
            }.items()
        ),
    ],
)  # fmt: skip
def test_completeness_on_torchvision(name, size):
    options = {"image_size": size} if name.startswith("vit") else {}
    short, long = complete(torchvision.models.get_model(name, **options), (3, size, size))
    assert short < 1e-5
    assert long < 1e-12


# Networks trained by others

PUBLISHED = {
    20: "0.0411 0.5968 1.5132 3.3496 6.2183 8.8464 8.9667 6.1191 2.6232 0.6898",
    56: "0.0582 0.4047 0.9780 1.9061 3.1571 4.4971 5.1416 4.8315 3.7899 2.5294 1.4271 0.6968 0.3032 0.1196",
}


@cifar.needs_cifar
@pytest.mark.parametrize("depth", [20, pytest.param(56, marks=pytest.mark.zoo)])
def test_gradients_of_trained_networks_have_the_known_norms(depth):
    images, labels = cifar.images_and_labels()
    expected = [float(norm) for norm in PUBLISHED[depth].split()]
    ds = rpp.PathLengthGradient(cifar.trained(depth).double()).attribute(
        images[:8].double(), labels[:8], max_length=len(expected) - 1
    )
    np.testing.assert_allclose(ds["gradient_norm"].mean("sample"), expected, rtol=0, atol=6e-5)
    assert (ds["completeness_error"] < 1e-12).all()
    assert ("tail_gradient_norm" in ds) == (depth == 56)
