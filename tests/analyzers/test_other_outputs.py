"""Models whose outputs are no class scores: segmentation, optical flow and detection, against models patched by hand.

The oracle of a lesion is the model itself with a forward hook that returns zeros where the branch ends.
"""

import copy
import re
from collections import Counter
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from networks import randomised
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.models import detection, optical_flow, segmentation

import resnet_paths_plugin as rpp
from resnet_paths_plugin import report
from resnet_paths_plugin.cli import main
from resnet_paths_plugin.errors import CaptureError, InputError

pytestmark = pytest.mark.slow

mpl.use("agg")

CLASSES = 5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    yield
    plt.close("all")


@contextmanager
def hooked(module, answer):
    """Let a module return what a function of its inputs and its output says."""
    handle = module.register_forward_hook(lambda _, inputs, output: answer(inputs, output))
    try:
        with torch.no_grad():
            yield
    finally:
        handle.remove()


def zeros(_, output):
    return output * 0


# --- segmentation: a dict of outputs, a class for each pixel as the target


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    model = segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    images = torch.randn(3, 3, 32, 32)
    return randomised(model.eval()), images, rpp.unravel(model, images)


def masks():
    return torch.randint(0, CLASSES, (3, 32, 32))


def accuracy(outputs, target):
    return (outputs["out"].argmax(1) == target).double().flatten(1).mean(1)


def dense_loss(outputs, target):
    return functional.cross_entropy(outputs["out"], target, reduction="none").flatten(1).mean(1)


def accuracy_by_hand(outputs, target):
    said = outputs["out"].detach().numpy().argmax(1)
    return np.array([(one == other).mean() for one, other in zip(said, target.numpy(), strict=True)])


def test_the_segmenters_blocks_are_those_of_its_backbone(segmenter):
    _, _, net = segmenter
    assert Counter(block.name.split(".")[1] for block in net.blocks) == {
        "layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3,
    }  # fmt: skip


@pytest.mark.parametrize("size", [None, 2])
def test_lesions_of_a_segmenter_are_those_of_hooks_that_zero(segmenter, size):
    model, images, net = segmenter
    target, lesions = masks(), ["backbone.layer1.0", "backbone.layer3.4", "backbone.layer4.2"]
    found = rpp.BlockLesion(net).attribute(
        images, target, lesions=lesions, measures={"accuracy": accuracy}, internal_batch_size=size
    )
    np.testing.assert_allclose(found.intact_accuracy, accuracy_by_hand(model(images), target))
    for name in lesions:
        with hooked(model.get_submodule(name).bn3, zeros):
            expected = accuracy_by_hand(model(images), target)
        np.testing.assert_allclose(found.accuracy.sel(lesion=name), expected)
    assert len(np.unique(found.accuracy)) > 3
    assert not {"error", "correct", "label", "loss", "prediction"} & set(found.variables)


def test_batches_of_a_loader_bring_their_own_maps(segmenter):
    _, images, net = segmenter
    target = masks()
    loader = DataLoader(list(zip(images, target, strict=True)), batch_size=2)
    options = {"lesions": ["backbone.layer3.4"], "measures": {"accuracy": accuracy}}
    found = rpp.BlockLesion(net).attribute(loader, **options)
    np.testing.assert_allclose(found.accuracy, rpp.BlockLesion(net).attribute(images, target, **options).accuracy)


def test_a_reordered_segmenter_is_the_model_with_its_modules_swapped(segmenter):
    model, images, net = segmenter
    target, (one, other) = masks(), ("backbone.layer3.2", "backbone.layer3.4")
    order = [block.index for block in net.blocks]
    places = [net.block(one).index, net.block(other).index]
    order[places[0]], order[places[1]] = reversed(places)
    found = rpp.BlockReordering(net).attribute(images, target, orders=[order], measures={"loss_of_mine": dense_loss})
    swapped = copy.deepcopy(model)
    swapped.set_submodule(one, model.get_submodule(other))
    swapped.set_submodule(other, model.get_submodule(one))
    with torch.no_grad():
        expected = dense_loss(swapped(images), target)
        assert not torch.allclose(expected, dense_loss(model(images), target))
    np.testing.assert_allclose(found.loss_of_mine[0], expected, rtol=1e-5)


def test_path_gradients_of_a_segmenters_loss_sum_to_autograds(segmenter):
    model, images, net = segmenter
    target, x = masks(), images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(dense_loss(model(x), target).sum(), x)
    found = rpp.PathLengthGradient(net).attribute(images, target, objective=dense_loss, keep_maps=True)
    np.testing.assert_allclose(found.gradient.sum("path_length"), gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max())
    assert found.completeness_error.max() < 1e-4
    assert int(found.path_count.sum()) > 2**16  # two outputs, one of them read from inside the chain


def test_influence_on_a_segmenter_predicts_its_lesions(segmenter):
    model, images, net = segmenter
    target = masks()
    lesions = rpp.BlockLesion(net).attribute(images, target, measures={"dense_loss": dense_loss})
    found = rpp.BlockInfluence(net).attribute(
        images, target, objective=dense_loss, lesions=lesions, effect="dense_loss"
    )
    with torch.no_grad():
        before = dense_loss(model(images), target)
    with hooked(model.backbone.layer2[1].bn3, zeros):
        rise = (dense_loss(model(images), target) - before).mean()
    np.testing.assert_allclose(found.lesion_effect.sel(block="backbone.layer2.1"), rise, rtol=1e-3)
    assert np.isfinite(found.rank_correlation.sel(proxy="lesion_estimate"))


def suggested(message):
    """Run the line of code that a refusal suggests."""
    name, code = re.search(r"[Ff]or instance (measures|objective)=(.*?)(?: with |$)", message).groups()
    return {name: eval(code)}  # noqa: S307 - our own message


def test_without_measures_a_segmenter_is_refused_with_what_it_returns_and_a_line_that_fits(segmenter):
    _, images, net = segmenter
    target = masks()
    with pytest.raises(InputError) as caught:
        rpp.BlockLesion(net).attribute(images, target)
    told = str(caught.value)
    assert "returns a dict of 'out': (B, 5, 32, 32), 'aux': (B, 5, 32, 32), for which no measure is built in" in told
    found = rpp.BlockLesion(net).attribute(images, target, lesions=["backbone.layer3.4"], **suggested(told))
    expected = rpp.BlockLesion(net).attribute(
        images, target, lesions=["backbone.layer3.4"], measures={"pixel_accuracy": accuracy}
    )
    np.testing.assert_array_equal(found.pixel_accuracy, expected.pixel_accuracy)


@pytest.mark.parametrize("analyzer", [rpp.PathLengthGradient, rpp.BlockInfluence])
@pytest.mark.parametrize("objective", ["score", "cross_entropy"])
def test_without_an_objective_a_segmenter_is_refused_with_what_it_returns(segmenter, analyzer, objective):
    _, images, net = segmenter
    with pytest.raises(InputError) as caught:
        analyzer(net).attribute(images, masks(), objective=objective)
    told = str(caught.value)
    assert "a dict of 'out': (B, 5, 32, 32), 'aux': (B, 5, 32, 32)" in told
    values = suggested(told)["objective"]({"out": torch.arange(24.0).reshape(3, 2, 2, 2)}, None)
    assert values.tolist() == [3.5, 11.5, 19.5]


# --- optical flow: two inputs, a list of outputs, one module that runs twelve times


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    model = randomised(optical_flow.raft_small().eval())
    pair = tuple(
        functional.interpolate(torch.rand(2, 3, 16, 16), (128, 128), mode="bilinear") * 2 - 1 for _ in range(2)
    )
    return model, pair, rpp.unravel(model, pair)


def end_point_error(outputs, target):
    return (outputs[-1] - target).norm(dim=1).flatten(1).mean(1)


def at_call(number, answer):
    """Answer at one call of a module only, counted from 1."""
    calls = iter(range(1, 100))
    return lambda inputs, output: answer(inputs, output) if next(calls) == number else output


def test_a_module_that_runs_twelve_times_is_twelve_blocks(flow):
    _, _, net = flow
    unit = "update_block.recurrent_block.convgru1"
    assert [block.name for block in net.blocks if block.module == unit] == [f"{unit}:{run}" for run in range(1, 13)]
    assert {block.skip_kind for block in net.blocks if block.module == unit} == {"gated"}


def test_lesions_of_single_runs_are_those_of_hooks_that_count(flow):
    model, pair, net = flow
    unit = model.update_block.recurrent_block.convgru1

    def carried(inputs, _):
        hidden, x = inputs
        return (1 - torch.sigmoid(unit.convz(torch.cat([hidden, x], 1)))) * hidden

    def still(_, output):
        hidden, motion = output
        return hidden, motion * 0

    target = torch.randn(2, 2, 128, 128)
    hooks = {
        "update_block.recurrent_block.convgru1:3": (unit, at_call(3, carried)),
        "update_block.recurrent_block.convgru1:12": (unit, at_call(12, carried)),
        # The first motion is added to a constant grid, which is no block: the seventh one is of the eighth run.
        "update_block:7": (model.update_block, at_call(8, still)),
        "feature_encoder.layer2.1": (model.feature_encoder.layer2[1].convnormrelu3, zeros),
    }
    found = rpp.BlockLesion(net).attribute(
        pair, target, lesions=list(hooks), measures={"end_point_error": end_point_error}, internal_batch_size=1
    )
    with torch.no_grad():
        intact = end_point_error(model(*pair), target)
    np.testing.assert_allclose(found.intact_end_point_error, intact, rtol=1e-4)
    for name, (module, answer) in hooks.items():
        with hooked(module, answer):
            expected = end_point_error(model(*pair), target)
        assert (expected - intact).abs().min() > 1e-3
        np.testing.assert_allclose(found.end_point_error.sel(lesion=name), expected, rtol=1e-4)


def test_path_gradients_of_the_flow_sum_to_autograds(flow):
    model, pair, net = flow

    def speed(outputs, _):
        return outputs[-1].norm(dim=1).flatten(1).mean(1)

    inputs = [image[:1].clone().requires_grad_() for image in pair]
    gradients = torch.autograd.grad(speed(model(*inputs), None).sum(), inputs)
    found = rpp.PathLengthGradient(net).attribute(
        tuple(image[:1] for image in pair), objective=speed, max_length=0, internal_batch_size=1
    )
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    assert norm > 0
    assert found.completeness_error.max() < 1e-3
    # All paths but those of length 0 are in the tail.
    assert abs(float(found.tail_gradient_norm[0]) - norm) <= float(found.gradient_norm[0, 0]) + 1e-3 * norm


def test_without_measures_a_flow_is_refused_with_what_it_returns_and_a_line_that_fits(flow):
    _, pair, net = flow
    with pytest.raises(InputError) as caught:
        rpp.BlockLesion(net).attribute(pair)
    told = str(caught.value)
    assert "returns a list of 12 times (B, 2, 128, 128), for which no measure is built in" in told
    measure = suggested(told)["measures"]["distance"]
    last = torch.tensor([[[[1.0, 3.0]]], [[[0.0, -4.0]]]])
    assert measure([None, last], torch.zeros(2, 1, 1, 2)).tolist() == [2.0, 2.0]


# --- detection: boxes are chosen by the data, so that the detector is studied up to there


class Dense(nn.Module):
    def __init__(self, detector):
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images):
        return self.head(list(self.backbone(images).values()))


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64, score_thresh=0.0
    )
    return randomised(model.eval()), torch.rand(2, 3, 64, 64)


def test_a_detector_is_refused_with_the_part_that_can_be_studied(detector):
    model, images = detector
    with pytest.raises(CaptureError) as caught:
        rpp.unravel(model, ([*images],))
    told = str(caught.value)
    assert told.startswith("torch.export cannot capture RetinaNet: what it does next depends on the values")
    assert "torchvision/ops/boxes.py" in told.replace("\\", "/")  # where boxes that overlap are dropped
    assert "study a part of the model: 'backbone' (BackboneWithFPN, " in told


def test_lesions_of_a_detectors_scores_are_those_of_hooks_that_zero(detector):
    model, images = detector
    net = rpp.unravel(Dense(model), images)

    def mean_score(outputs, _):
        return outputs["cls_logits"].sigmoid().flatten(1).mean(1)

    found = rpp.BlockLesion(net).attribute(images, lesions=["backbone.body.layer2.1"], measures={"score": mean_score})
    with hooked(model.backbone.body.layer2[1].bn3, zeros):
        expected = mean_score(model.head(list(model.backbone(images).values())), None)
    np.testing.assert_allclose(found.score[0], expected, rtol=1e-4)
    assert not np.allclose(found.score[0], found.intact_score)


def test_a_lesioned_backbone_in_a_copy_of_the_detector_gives_the_boxes_of_hooks_that_zero(detector):
    model, images = detector
    ready = model.transform([*images])[0].tensors
    view = rpp.unravel(model.backbone, ready).lesioned(["body.layer2.1", "body.layer4.2"])
    lesioned = copy.deepcopy(model, {id(model.backbone): view})
    assert lesioned.backbone is view
    assert isinstance(model.backbone, detection.backbone_utils.BackboneWithFPN)
    with torch.no_grad():
        found, intact = lesioned([*images]), model([*images])
    body = model.backbone.body
    with hooked(body.layer2[1].bn3, zeros), hooked(body.layer4[2].bn3, zeros):
        expected = model([*images])
    assert len(expected[0]["boxes"]) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-5)
    assert found[0]["scores"].shape != intact[0]["scores"].shape or not torch.allclose(
        found[0]["scores"], intact[0]["scores"]
    )


# --- targets of any form reach the measures with their samples


class Doubled(nn.Module):
    """One block; the output holds each sample's number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return {"number": x + 0 * self.layer(x)}


TARGETS = {
    "map": torch.arange(5)[:, None].expand(5, 4),
    "real": torch.arange(5.0),
    "flags": torch.arange(5) > 2,
    "dict": {"boxes": torch.arange(5)[:, None], "areas": torch.arange(5.0)},
    "tuple": (torch.arange(5), torch.arange(5.0)),
    "list of dicts": [{"label": torch.tensor(at)} for at in range(5)],
    "list of tensors": [torch.full((at,), at) for at in range(5)],
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_target_of_any_form_is_cut_with_its_samples(target):
    x = torch.arange(5.0)[:, None]

    def belongs(outputs, part):
        numbers = outputs["number"][:, 0].int().tolist()
        if isinstance(part, dict):
            theirs = [part["boxes"][at] for at in range(len(numbers))] if "boxes" in part else None
            mine = [target["boxes"][number] for number in numbers]
        elif isinstance(part, tuple):
            theirs, mine = [*part[1]], [target[1][number] for number in numbers]
        else:
            theirs, mine = [*part], [target[number] for number in numbers]
        return torch.tensor([str(one) == str(other) for one, other in zip(theirs, mine, strict=True)])

    found = rpp.BlockLesion(Doubled()).attribute(x, target, measures={"belongs": belongs}, internal_batch_size=2)
    assert found.belongs.values.all()
    assert found.belongs.dtype == bool


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(4, 3), r"target has shape \(4, 3\) and the batch has 5 samples"),
        ([{}, {}], r"target has shape \(2,\) and the batch has 5 samples"),
        ({"a": torch.zeros(5), "b": torch.zeros(2)}, r"target holds a tensor of shape \(2,\) and the batch has 5"),
        ({"a": torch.zeros(5), "b": "x"}, "target holds str and the batch has 5 samples"),
    ],
)
def test_a_target_without_a_part_for_each_sample_is_refused(target, message):
    with pytest.raises(InputError, match=message):
        rpp.BlockLesion(Doubled()).attribute(
            torch.zeros(5, 1), target, measures={"one": lambda o, _: o["number"][:, 0]}
        )


def test_a_classifier_takes_soft_labels_with_measures_of_ones_own_and_not_without():
    model, x, soft = nn.Sequential(Classifier()), torch.randn(4, 3), torch.rand(4, 3)
    distance = {"distance": lambda outputs, target: (outputs.softmax(1) - target).square().sum(1)}
    found = rpp.BlockLesion(model).attribute(x, soft, measures=distance)
    np.testing.assert_allclose(found.intact_distance, (model(x).softmax(1) - soft).square().sum(1).detach(), rtol=1e-5)
    assert "kl_divergence" in found  # what needs no labels is there
    assert not {"label", "loss", "target_score"} & set(found.variables)
    with pytest.raises(InputError, match=r"must hold integers.*measures \(or an objective\) of your own"):
        rpp.BlockLesion(model).attribute(x, soft)

    def cross(outputs, target):
        return functional.cross_entropy(outputs, target, reduction="none")

    gradients = rpp.PathLengthGradient(model).attribute(x, soft, objective=cross)
    assert gradients.completeness_error.max() < 1e-5
    with pytest.raises(InputError, match="must hold integers"):
        rpp.PathLengthGradient(model).attribute(x, soft)
    assert rpp.BlockInfluence(model).attribute(x, soft, objective=cross).lesion_estimate.notnull().all()
    with pytest.raises(InputError, match="must hold integers"):
        rpp.BlockInfluence(model).attribute(x, soft)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return x + torch.tanh(self.layer(x))


# --- files, figures and pages of such studies


def test_a_study_without_an_error_is_saved_drawn_and_reported(segmenter, tmp_path):
    _, images, net = segmenter
    images, target, options = images[:1], masks()[:1], {"measures": {"accuracy": accuracy}}
    single = rpp.BlockLesion(net).attribute(images, target, **options)
    orders = rpp.BlockReordering(net).attribute(images, target, n_swaps=[1, 2], draws=2, **options)
    influence = rpp.BlockInfluence(net).attribute(
        images, target, objective=dense_loss, lesions=single, effect="accuracy"
    )
    tree = xr.DataTree.from_dict(
        {
            "single_lesions": single,
            "random_lesions": rpp.BlockLesion(net).attribute(images, target, n_deleted=[1, 3], draws=2, **options),
            "reorderings": orders,
            "schedules": rpp.BlockSchedules(net).attribute(
                images, target, schedules=[rpp.schedules.adjacent_swaps], **options
            ),
            "influence": influence,
            "path_lengths": rpp.PathLengthGradient(net).attribute(images, target, objective=dense_loss, max_length=2),
        }
    )
    path = rpp.save(tree, tmp_path / "segmenter.nc")
    assert rpp.load(path).identical(tree)
    drawn = tree.resnet_paths.plot()
    assert {name.partition("/")[0] for name in drawn} == set(tree.children)
    line = drawn["single_lesions"].axes[0]
    assert "accuracy" in line.get_ylabel()
    told = {figure.name: figure.sentence for figure in report.figures(tree)}
    intact = float(single.intact_accuracy.mean())
    assert f"'accuracy' is {intact:.3g} in the intact network" in told["single-lesions"]
    plt.close("all")

    result = CliRunner().invoke(main, ["report", str(path)])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "segmenter.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(told) >= 6
    assert "accuracy" in page
