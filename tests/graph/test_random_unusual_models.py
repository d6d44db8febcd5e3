"""Random small models of unusual parts end equal to an oracle or in an error of this package: nothing else, ever.

The oracles are the models themselves: run as they are, with a branch left out, and with branches' gradients scaled.
"""

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from searching import examples
from unusual_models import MODELS, build, inputs

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow

MOST_REFUSED = 0.1


def state_of(model):
    """Return what a study must leave as it was."""
    tensors = {
        name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.state_dict(keep_vars=True).items()
    }
    flags = {name: module.training for name, module in model.named_modules()}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    return tensors, flags, hooks, torch.get_rng_state()


def assert_same_state(one, other):
    for name, (tensor, wanted) in one[0].items():
        assert torch.equal(tensor, other[0][name][0]), name
        assert wanted == other[0][name][1], name
    assert one[1:3] == other[1:3]
    assert torch.equal(one[3], other[3])


def location_of(block):
    """Return which block of the trunk a block is; None for any other."""
    parts = block.name.split(".")
    return int(parts[1].partition(":")[0]) if parts[0] == "trunk" else None


def check_outputs(model, net, x):
    for size in (len(x), 3, 1, 2):
        part = x[:size]
        try:
            with torch.no_grad():
                wanted = model.scores(part)
        except RuntimeError:
            wanted = None  # frames of two samples
        try:
            found = net(part)
        except rpp.ResnetPathsError:
            if size == len(x):
                raise
            continue  # a size for which the model does something else
        assert wanted is not None, f"{size} samples ran, which the model refuses"
        found = found["logits"] if isinstance(found, dict) else found if isinstance(found, torch.Tensor) else found[0]
        assert torch.equal(found, wanted), f"outputs of {size} samples"


def check_blocks(model, net):
    """Every block that was written is found, or its sum is reported."""
    found = {location_of(block) for block in net.blocks}
    reported = set(net.other_sums()["module"])
    missing = [place for place in range(len(model.trunk)) if place not in found and f"trunk.{place}" not in reported]
    assert not missing, f"neither found nor reported: {missing}"


def check_lesions(model, net, x):
    lesions = rpp.BlockLesion(net).attribute(x, target=0)
    with torch.no_grad():
        np.testing.assert_array_equal(lesions.intact_target_score, model.scores(x)[:, 0].float())
    for block in net.blocks:
        place = location_of(block)
        if place is not None:
            wanted = model.without(place, x)[:, 0]
            found = lesions.target_score.sel(lesion=block.name)
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6, err_msg=block.name)


def check_gradients(model, net, x):
    lengths = rpp.PathLengthGradient(net).attribute(x, target=0, keep_maps=True)
    counted = [place for block in net.blocks if (place := location_of(block)) is not None]
    wanted = model.gradients_by_length(x, counted).numpy()
    found = np.zeros((max(len(wanted), lengths.sizes["path_length"]), *wanted.shape[1:]))
    found[: lengths.sizes["path_length"]] = lengths.gradient.values
    size = max(np.abs(wanted).max(), 1e-30)
    wanted = np.concatenate([wanted, np.zeros_like(found[len(wanted) :])])
    np.testing.assert_allclose(found / size, wanted / size, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found.sum(0) / size, model.gradient(x).numpy() / size, atol=1e-6, rtol=0)


def look_at(description):
    """Compare a model with its oracles; return the error that refused it, or None."""
    model, x = build(description), inputs()
    before = state_of(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = rpp.unravel(model, x)
            check_outputs(model, net, x)
            check_blocks(model, net)
            if net.blocks:
                check_lesions(model, net, x)
                check_gradients(model, net, x)
    except rpp.ResnetPathsError as error:
        assert_same_state(before, state_of(model))
        return error
    assert_same_state(before, state_of(model))
    return None


def look_at_many(count):
    refused, looked_at = Counter(), 0

    @examples(count)
    @given(MODELS)
    def look(description):
        nonlocal looked_at
        looked_at += 1
        error = look_at(description)
        if isinstance(error, rpp.CaptureMismatchError):
            assert description.has_own_backward, str(error)
        if error is not None:
            refused[f"{type(error).__name__}: {str(error)[:100]}"] += 1

    look()
    assert sum(refused.values()) <= MOST_REFUSED * looked_at, f"of {looked_at}: {refused.most_common()}"


def test_sixteen_random_models_equal_their_oracles_or_are_refused():
    look_at_many(16)


@pytest.mark.zoo
def test_two_hundred_random_models_equal_their_oracles_or_are_refused():
    look_at_many(200)
