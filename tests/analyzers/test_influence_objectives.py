"""The first-order estimate and what its gradient is of: against finite differences and given objectives."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from influence_studies import (
    FREE,
    GRADIENT,
    LABELS,
    Seen,
    assert_block,
    assert_same_values,
    by_hand,
    cross_entropy,
    doubled,
    network,
    study,
    tokens,
)
from known_networks import CASES
from networks import mlp, randomised
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.gradients.influence import BlockInfluence


def resnet18():
    model = randomised(torchvision.models.resnet18(num_classes=5)).eval().double()
    return model, (torch.randn(3, 3, 40, 40, dtype=torch.float64),)


def vit():
    model = randomised(timm.create_model("test_vit", num_classes=5, img_size=32)).eval().double()
    return model, (torch.randn(3, 3, 32, 32, dtype=torch.float64),)


def of_case(name):
    return lambda: doubled(CASES[name], 3)


CHANGED = {
    "resnet18": resnet18,
    "vit": vit,
    "tokens": tokens,
    **{
        name: of_case(name)
        for name in (
            "pre-activation", "post-activation", "transformer", "nested", "parallel, from the left",
            "parallel, stacked", "alpha", "minus", "highway", "scaled skip", "rezero", "repeated", "two inputs",
            "dual path", "gated",
        )
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGED)
def test_the_estimate_is_the_slope_in_the_scale_of_the_branch(name):
    model, inputs = CHANGED[name]()
    net = rpp.unravel(model, inputs)
    labels = torch.tensor([1, 0, 4])
    result = BlockInfluence(net).attribute(inputs, labels)
    step = 1e-5

    def loss(scale, block):
        with torch.no_grad():
            return cross_entropy(labels)(net.scheduled(rpp.Schedule.scaled(net, scale, [block]))(*inputs))

    assert net.blocks
    for block in net.blocks:
        slope = (loss(1 + step, block) - loss(1 - step, block)) / (2 * step)
        estimate = result["lesion_estimate"].sel(block=block.name).values
        # From scale 1 to scale 0 the objective rises by minus the slope.
        np.testing.assert_allclose(estimate, -slope, rtol=1e-6, atol=1e-9, err_msg=block.name)
        assert np.abs(estimate).max() > 1e-5


def test_a_score_or_a_function_of_the_outputs_may_be_the_objective():
    _, model, x = network()
    paths = [f"blocks.1{part}" for part in ("", ".branch")]

    def spread(outputs, target):
        return outputs.square().sum(1) * target

    objectives = {"score": lambda outputs: outputs[range(7), LABELS], spread: lambda outputs: spread(outputs, LABELS)}
    for objective, plain in objectives.items():
        seen = Seen(model, (x,), plain, paths)
        values = (seen.got["blocks.1"], seen.returned["blocks.1.branch"])
        expected = by_hand(*values, seen.returned["blocks.1"], seen.gradient("blocks.1"))
        assert_block(study(objective=objective), "blocks.1", expected)


def test_without_a_target_what_needs_a_gradient_is_absent():
    result = study(None)
    assert set(result.data_vars) == FREE
    assert_same_values(result, study()[list(FREE)])
    assert set(study().data_vars) == FREE | GRADIENT


def test_a_function_without_a_target_has_a_gradient_too():
    def spread(outputs, _):
        return outputs.square().sum(1)

    assert_same_values(study(None, objective=spread), study(LABELS, objective=spread))


def test_a_block_that_the_objective_does_not_read_has_no_effect():
    model, inputs = doubled(CASES["feature pyramid"])
    result = BlockInfluence(model).attribute(inputs, objective=lambda outputs, _: outputs["coarse"].sum((1, 2, 3)))
    assert (result["lesion_estimate"] != 0).all()

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(7, 6)
            self.first, self.second = mlp(), mlp()

        def forward(self, x):
            x = self.stem(x)
            return x + self.first(x), x + self.second(x)

    model = randomised(TwoHeads()).double()
    x = torch.randn(3, 7, dtype=torch.float64)
    result = BlockInfluence(model).attribute(x, objective=lambda outputs, _: outputs[0].sum(1))
    assert (result["lesion_estimate"].sel(block="second") == 0).all()
    assert result["branch_descent_cosine"].sel(block="second").isnull().all()
    # The first sum is itself an output, and its gradient is 1 everywhere.
    branch = model.first(model.stem(x)).detach()
    np.testing.assert_allclose(result["lesion_estimate"].sel(block="first"), -branch.sum(1), rtol=1e-10)
    result = BlockInfluence(model).attribute(x, objective=lambda outputs, _: outputs[1].sum(1))
    assert (result["lesion_estimate"].sel(block="first") == 0).all()


def test_an_objective_that_reads_no_block_says_that_none_matters():
    model, inputs = doubled(CASES["several outputs"])
    result = BlockInfluence(model).attribute(inputs, objective=lambda outputs, _: outputs[1]["stem"][0].sum(1))
    assert (result["lesion_estimate"] == 0).all()
    assert np.isfinite(result["block_influence"]).all()
