"""A zoo that fits a CPU: every small test model of timm, with values that hide nothing.

The oracle of outputs is the model itself; what is claimed of blocks is what holds for every residual network.
"""

import pytest
import timm
import torch
from networks import randomised

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow

MODELS = timm.list_models("test_*")
WITHOUT_BLOCKS = {f"test_efficientnet{norm}" for norm in ("", "_evos", "_gn", "_ln")}
"""Every layer of these changes width or resolution, and an inverted residual has no skip then."""
BATCH = 2


@pytest.fixture(scope="module", params=MODELS)
def captured(request):
    """A model's name, the model, a batch of images and the network: each model is captured once for all tests."""
    torch.manual_seed(0)
    model = randomised(timm.create_model(request.param)).eval()
    size = model.default_cfg["input_size"]
    if not model.default_cfg.get("fixed_input_size"):
        size = (size[0], 96, 96)
    x = torch.randn(BATCH, *size)
    return request.param, model, x, rpp.unravel(model, x)


def test_the_zoo_is_not_empty():
    assert len(MODELS) >= 18


def test_outputs_are_equal_and_every_lesion_runs_and_shows(captured):
    _, model, x, net = captured
    with torch.no_grad():
        intact = model(x)
        assert torch.isfinite(intact).all()
        assert torch.equal(net(x), intact)
        assert torch.equal(net(x[:1]), model(x[:1]))
        lesions = [rpp.Schedule.lesion(net, block) for block in net.blocks]
        outputs = dict(net.outputs(lesions, (x,)))
    assert outputs.keys() == set(range(len(net.blocks)))
    for block in net.blocks:
        assert torch.isfinite(outputs[block.index]).all(), block.name
        assert not torch.allclose(outputs[block.index], intact, rtol=1e-6, atol=0), block.name


def test_blocks_are_plausible(captured):
    name, model, _, net = captured
    modules = dict(model.named_modules())
    if name in WITHOUT_BLOCKS:
        assert not any(getattr(module, "has_skip", False) for module in modules.values())
        assert not net.blocks
        return
    assert net.blocks
    assert len({block.name for block in net.blocks}) == len(net.blocks)
    for block in net.blocks:
        assert block.module in modules
        assert block.depth >= 1
        assert block.branch_type != "other"
        assert len(block.source_shape) == len(block.sum_shape)
        if block.skip_kind == "identity":
            assert sorted(block.source_shape) == sorted(block.sum_shape)
    stages = [block.stage for block in net.blocks]
    assert None not in stages
    assert stages == sorted(stages)
