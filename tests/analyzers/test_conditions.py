"""Mean and resample ablation, and recalibrated batch norms, against models patched by hand."""

import copy
import functools

import numpy as np
import pytest
import torch
import torchvision
from networks import Alpha, PreActivation, Residual, Transformer, Vectors, assert_same_state, mlp, randomised, state_of
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError

LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0])


def images():
    return torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@functools.cache
def network():
    model = randomised(PreActivation()).double().eval()
    return rpp.unravel(model, images()), model


class Replaced(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, _):
        return self.value


def branch_values(model, path, x):
    found = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, __, value: found.append(value))
    with torch.no_grad():
        model(x)
    handle.remove()
    return found[0]


def with_branches(model, values):
    changed = copy.deepcopy(model)
    for path, value in values.items():
        changed.set_submodule(path, Replaced(value))
    return changed


def losses(model, x=None):
    with torch.no_grad():
        return functional.cross_entropy(model(images() if x is None else x), LABELS, reduction="none")


def test_mean_ablation_adds_the_branchs_mean_over_samples():
    net, model = network()
    found = rpp.BlockLesion(net).attribute(images(), LABELS, ablation="mean", lesions=[[0], [0, 2]])
    paths = ("blocks.0.branch", "blocks.2.branch")
    means = {path: branch_values(model, path, images()).mean(0, keepdim=True) for path in paths}
    np.testing.assert_allclose(found.loss[0], losses(with_branches(model, {paths[0]: means[paths[0]]})), rtol=1e-6)
    np.testing.assert_allclose(found.loss[1], losses(with_branches(model, means)), rtol=1e-6)


def test_the_mean_is_that_of_a_reference_where_one_is_given():
    net, model = network()
    reference = torch.randn(30, 3, 6, 6, dtype=torch.float64)
    batches = DataLoader(TensorDataset(reference), batch_size=8)
    mean = branch_values(model, "blocks.1.branch", reference).mean(0, keepdim=True)
    expected = losses(with_branches(model, {"blocks.1.branch": mean}))
    for given in (reference, batches, [(batch, None) for (batch,) in batches]):
        found = rpp.BlockLesion(net).attribute(images(), LABELS, ablation="mean", lesions=[1], reference=given)
        np.testing.assert_allclose(found.loss[0], expected, rtol=1e-6)


def test_the_scale_of_a_branch_is_part_of_its_mean():
    torch.manual_seed(0)
    model = Vectors(Alpha(), Residual(mlp())).double().eval()
    x = torch.randn(7, 7, dtype=torch.float64)
    found = rpp.BlockLesion(model).attribute(x, LABELS, ablation="mean", lesions=[0])
    mean = branch_values(model, "middle.0.branch", x).mean(0, keepdim=True)
    np.testing.assert_allclose(found.loss[0], losses(with_branches(model, {"middle.0.branch": mean}), x), rtol=1e-6)


def test_resample_ablation_adds_the_branchs_value_on_another_sample():
    net, model = network()
    found = rpp.BlockLesion(net).attribute(images(), LABELS, ablation="resample", lesions=[[1]], seed=4)
    values = branch_values(model, "blocks.1.branch", images())
    candidates = np.array([losses(with_branches(model, {"blocks.1.branch": values[[at] * 7]})) for at in range(7)])
    close = np.isclose(candidates, found.loss[0].values, rtol=1e-6)
    donors = close.argmax(axis=0)
    assert (close.sum(axis=0) == 1).all()
    assert sorted(donors) == list(range(7))  # each is drawn once
    assert (donors != np.arange(7)).all()


def test_other_samples_are_the_same_ones_however_the_batch_is_cut():
    net, _ = network()
    options = {"ablation": "resample", "lesions": [0, [1, 2], [0, 2]]}
    whole = rpp.BlockLesion(net).attribute(images(), LABELS, **options)
    for size, width in ((3, 1), (7, 3), (2, 2)):
        cut = rpp.BlockLesion(net).attribute(
            images(), LABELS, internal_batch_size=size, perturbations_per_eval=width, **options
        )
        np.testing.assert_allclose(cut.loss, whole.loss, rtol=1e-6)
    other = rpp.BlockLesion(net).attribute(images(), LABELS, seed=1, **options)
    assert not np.allclose(other.loss, whole.loss)


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_an_ablation_within_a_transformer_keeps_other_samples_out_of_the_rest(ablation):
    model = randomised(Transformer()).double().eval()
    found = rpp.BlockLesion(model).attribute(images(), LABELS, ablation=ablation, lesions=["layers.1.mlp", []])
    values = branch_values(model, "layers.1.mlp", images())
    if ablation == "mean":
        expected = losses(with_branches(model, {"layers.1.mlp": values.mean(0, keepdim=True)}))
        np.testing.assert_allclose(found.loss[0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.loss[1], found.intact_loss, rtol=1e-6)


# Batch norm


def recalibrated(model, *batches):
    """Torch's own way: statistics reset, averages with equal weights, a pass in training mode."""
    model = copy.deepcopy(model).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.eval()


class ReturnsZero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def test_recalibrated_statistics_are_those_of_the_lesioned_network():
    net, model = network()
    found = rpp.BlockLesion(net).attribute(images(), LABELS, lesions=[1, []], batch_norm="recalibrated")
    deleted = copy.deepcopy(model)
    deleted.blocks[1].branch = ReturnsZero()
    np.testing.assert_allclose(found.loss[0], losses(recalibrated(deleted, images())), rtol=1e-6)
    np.testing.assert_allclose(found.loss[1], losses(recalibrated(model, images())), rtol=1e-6)
    np.testing.assert_allclose(found.intact_loss, losses(model), rtol=1e-6)


def test_statistics_are_averaged_over_the_batches_of_a_reference():
    net, model = network()
    reference = torch.randn(20, 3, 6, 6, dtype=torch.float64)
    batches = [reference[:8], reference[8:16], reference[16:]]
    found = rpp.BlockReordering(net).attribute(
        images(), LABELS, orders=[[2, 1, 0]], batch_norm="recalibrated", reference=[(batch, None) for batch in batches]
    )
    permuted = copy.deepcopy(model)
    permuted.blocks = nn.Sequential(*(permuted.blocks[at] for at in (2, 1, 0)))
    np.testing.assert_allclose(found.loss[0], losses(recalibrated(permuted, *batches)), rtol=1e-6)
    frozen = rpp.BlockReordering(net).attribute(images(), LABELS, orders=[[2, 1, 0]])
    assert not np.allclose(found.loss, frozen.loss)
    assert (found.attrs["argument_batch_norm"], frozen.attrs["argument_batch_norm"]) == ("recalibrated", "frozen")


def test_recalibration_of_torchvision_resnet18_equals_torchs_own():
    model = randomised(torchvision.models.resnet18(num_classes=7)).double().eval()
    x = torch.randn(7, 3, 64, 64, dtype=torch.float64)
    found = rpp.BlockLesion(model).attribute(x, LABELS, lesions=["layer3.1"], batch_norm="recalibrated")
    deleted = copy.deepcopy(model)
    deleted.layer3[1].bn2 = ReturnsZero()
    np.testing.assert_allclose(found.loss[0], losses(recalibrated(deleted, x), x), rtol=1e-6)


def test_mean_ablation_and_recalibration_go_together():
    net, model = network()
    found = rpp.BlockLesion(net).attribute(images(), LABELS, lesions=[0], ablation="mean", batch_norm="recalibrated")
    mean = branch_values(model, "blocks.0.branch", images()).mean(0, keepdim=True)
    patched = recalibrated(with_branches(model, {"blocks.0.branch": mean}), images())
    np.testing.assert_allclose(found.loss[0], losses(patched), rtol=1e-6)


def test_the_model_keeps_its_statistics():
    model = randomised(PreActivation()).double().train()
    before = state_of(model)
    for options in ({"batch_norm": "recalibrated"}, {"ablation": "mean"}, {"ablation": "resample"}):
        rpp.BlockLesion(model).attribute(images(), LABELS, **options)
    assert_same_state(before, state_of(model))


# What is refused


def one_shot():
    yield images(), LABELS


@pytest.mark.parametrize("options", [{"ablation": "mean"}, {"batch_norm": "recalibrated"}])
def test_two_passes_over_a_one_shot_iterator_are_refused(options):
    net, _ = network()
    with pytest.raises(InputError, match="several passes over the inputs"):
        rpp.BlockLesion(net).attribute(one_shot(), **options)
    found = rpp.BlockLesion(net).attribute(one_shot(), reference=images(), **options)
    assert found.sizes["sample"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [({"ablation": "median"}, "ablation must be one of"), ({"batch_norm": "live"}, "batch_norm must be one of")],
)
def test_unknown_conditions_are_refused(options, message):
    net, _ = network()
    with pytest.raises(InputError, match=message):
        rpp.BlockLesion(net).attribute(images(), LABELS, **options)


def test_recalibration_without_batch_norm_is_refused():
    with pytest.raises(InputError, match="has none"):
        rpp.BlockLesion(randomised(Transformer())).attribute(images().float(), LABELS, batch_norm="recalibrated")


class BroadcastBranch(nn.Module):
    """Adds to a sequence `[T, B, C]` a branch without positions, `[B, C]`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def branch(self, h):
        return torch.tanh(self.layer(h.mean(0)))

    def forward(self, x):
        h = x.transpose(0, 1)
        h = h + self.branch(h)
        return self.head(h.mean(0))


def test_a_branch_that_is_broadcast_is_averaged_over_samples_all_the_same():
    torch.manual_seed(0)
    model = BroadcastBranch().double()
    x = torch.randn(7, 6, 6, dtype=torch.float64)  # as many positions as features, so that mistakes fit
    with torch.no_grad():
        h = x.transpose(0, 1)
        mean = model.branch(h).mean(0)
        expected = functional.cross_entropy(model.head((h + mean).mean(0)), LABELS, reduction="none")
    for size in (None, 2):
        found = rpp.BlockLesion(model).attribute(x, LABELS, ablation="mean", internal_batch_size=size)
        np.testing.assert_allclose(found.loss[0], expected, rtol=1e-6)


def test_a_reference_that_can_be_read_once_only_is_refused_unread():
    net, _ = network()
    reference = iter([images()])
    for options in ({"ablation": "mean"}, {"batch_norm": "recalibrated"}):
        with pytest.raises(InputError, match="several passes over the reference"):
            rpp.BlockLesion(net).attribute(images(), LABELS, reference=reference, **options)
    assert torch.equal(next(reference), images())


def test_a_reference_that_nothing_needs_is_refused():
    net, _ = network()
    with pytest.raises(InputError, match="leave it out"):
        rpp.BlockLesion(net).attribute(images(), LABELS, reference=images())


def test_targets_of_a_reference_are_not_looked_at():
    net, _ = network()
    plain = rpp.BlockLesion(net).attribute(images(), LABELS, ablation="mean", reference=images())
    odd = [(images(), torch.full((7, 2), 0.5))]
    assert rpp.BlockLesion(net).attribute(images(), LABELS, ablation="mean", reference=odd).loss.equals(plain.loss)


def test_large_batches_are_cut_into_equal_pieces():
    # 257 samples as 129 and 128, not as 256 and one of equal weight.
    net, model = network()
    reference = torch.randn(257, 3, 6, 6, dtype=torch.float64)
    found = rpp.BlockLesion(net).attribute(
        images(), LABELS, lesions=[[]], batch_norm="recalibrated", reference=reference
    )
    expected = losses(recalibrated(model, reference[:129], reference[129:]))
    np.testing.assert_allclose(found.loss[0], expected, rtol=1e-6)


def test_the_last_batch_of_a_loader_may_have_one_sample():
    net, model = network()
    batches = [(images()[:6], LABELS[:6]), (images()[6:], LABELS[6:])]
    found = rpp.BlockLesion(net).attribute(batches, ablation="resample", lesions=[1])
    values = branch_values(model, "blocks.1.branch", images())
    last = np.array([losses(with_branches(model, {"blocks.1.branch": values[[at] * 7]}))[6] for at in range(6)])
    assert np.isclose(last, float(found.loss[0, 6]), rtol=1e-6).sum() == 1


def test_there_is_no_other_sample_in_a_batch_of_one():
    net, _ = network()
    with pytest.raises(InputError, match="two samples or more"):
        rpp.BlockLesion(net).attribute(images()[:1], LABELS[:1], ablation="resample")
