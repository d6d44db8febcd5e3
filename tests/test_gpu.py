"""On a CUDA device everything gives what it gives on the CPU, within float32."""

import copy

import pytest
import torch
from benchmarks.subjects import resnet

import resnet_paths_plugin as rpp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def pair():
    model = resnet(2)
    return model, torch.randn(4, 3, 32, 32), torch.arange(4)


def test_outputs_equal_the_models(pair):
    model, images, _ = pair
    model, images = model.cuda(), images.cuda()
    torch.testing.assert_close(rpp.unravel(model, images)(images), model(images))


def test_lesions_are_those_of_the_cpu(pair):
    model, images, labels = pair
    expected = rpp.BlockLesion(model).attribute(images, target=labels)
    for width in (1, 3):
        found = rpp.BlockLesion(model.cuda()).attribute(images, target=labels, perturbations_per_eval=width)
        torch.testing.assert_close(
            torch.tensor(found.loss.values), torch.tensor(expected.loss.values), rtol=1e-3, atol=1e-3
        )
        model.cpu()


def test_path_gradients_are_those_of_the_cpu_and_complete(pair):
    model, images, labels = pair
    options = {"target": labels, "estimator": ("exact", "sampled", "signs"), "draws": 3, "keep_maps": True}
    expected = rpp.PathLengthGradient(model).attribute(images, **options)
    found = rpp.PathLengthGradient(model.cuda()).attribute(images, **options)
    assert found.completeness_error.max() < 1e-4
    for name in ("gradient_norm", "path_gradient_norm", "path_gradient_rms", "gradient"):
        torch.testing.assert_close(
            torch.tensor(found[name].values), torch.tensor(expected[name].values), rtol=1e-2, atol=1e-3
        )


def test_what_passes_through_blocks_is_that_of_the_cpu(pair):
    model, images, labels = pair
    on_device = copy.deepcopy(model).cuda()

    def close(analyzer, names, **options):
        expected, found = (analyzer(one).attribute(images, target=labels, **options) for one in (model, on_device))
        for name in names:
            torch.testing.assert_close(
                torch.tensor(found[name].values), torch.tensor(expected[name].values), rtol=1e-2, atol=1e-3
            )
        return found

    close(rpp.BlockContribution, ("contribution", "direct", "indirect", "stem"))
    assert close(rpp.PathParticipation, ("participation",)).completeness_error.max() < 1e-3
    names = ("parameter_gradient_norm", "parameter_gradient_share")
    assert close(rpp.PathLengthGradient, names, tap="parameters").completeness_error.max() < 1e-4


@pytest.mark.parametrize("options", [{"ablation": "mean"}, {"ablation": "resample"}, {"batch_norm": "recalibrated"}])
def test_ablations_and_recalibration_are_those_of_the_cpu(pair, options):
    model, images, labels = pair
    expected = rpp.BlockLesion(model).attribute(images, target=labels, **options)
    found = rpp.BlockLesion(model.cuda()).attribute(images, target=labels, **options)
    torch.testing.assert_close(
        torch.tensor(found.loss.values), torch.tensor(expected.loss.values), rtol=1e-3, atol=1e-3
    )


def test_reorderings_and_influence_are_those_of_the_cpu(pair):
    model, images, labels = pair
    expected = rpp.BlockReordering(model).attribute(images, target=labels, n_swaps=[1, 2], draws=2)
    influence = rpp.BlockInfluence(model).attribute(images, target=labels)
    model.cuda()
    found = rpp.BlockReordering(model).attribute(images, target=labels, n_swaps=[1, 2], draws=2)
    torch.testing.assert_close(
        torch.tensor(found.loss.values), torch.tensor(expected.loss.values), rtol=1e-3, atol=1e-3
    )
    on_device = rpp.BlockInfluence(model).attribute(images, target=labels)
    torch.testing.assert_close(
        torch.tensor(on_device.lesion_estimate.values),
        torch.tensor(influence.lesion_estimate.values),
        rtol=1e-2,
        atol=1e-3,
    )


def test_a_sampling_network_trains_on_the_device(pair):
    model, images, labels = pair
    model, images, labels = model.cuda(), images.cuda(), labels.cuda()
    sampler = rpp.unravel(model, images).sampling(n_active=2)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(sampler.parameters(), lr=0.1)
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(sampler(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
