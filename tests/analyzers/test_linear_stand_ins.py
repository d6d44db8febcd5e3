"""Linear stand-ins for deleted branches, against numpy's least squares and models patched by hand."""

import copy
import functools

import numpy as np
import pytest
import timm
import torch
import torchvision
from cifar import images_and_labels, needs_cifar, trained
from known_networks import CASES, unraveled
from networks import (
    Alpha,
    Nested,
    PostActivation,
    PreActivation,
    Residual,
    Transformer,
    Vectors,
    assert_same_state,
    mlp,
    randomised,
    state_of,
)
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, ScheduleError

LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0])


def images(count=7, size=6, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


@functools.cache
def network(make=PreActivation):
    torch.manual_seed(0)
    model = randomised(make()).double().eval()
    return rpp.unravel(model, images()), model


def pairs(model, path, reference, channels, stride=1):
    """Sources and branches of a submodule, by hooks, as rows of channels: `[N, C_in]` and `[N, C_out]`."""
    found = []

    def keep(_module, given, value):
        found.append((given[0].clone(), value.clone()))  # a sum may be written over one of them

    handle = model.get_submodule(path).register_forward_hook(keep)
    with torch.no_grad():
        model(reference)
    handle.remove()
    source, branch = found[0]
    if stride > 1:
        source = source[:, :, ::stride, ::stride]
    return tuple(value.movedim(channels, -1).flatten(0, -2).numpy() for value in (source, branch))


def by_numpy(x, y):
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    return solution[:-1].T, solution[-1]


class Map(nn.Module):
    """A linear layer over the channels, wherever they are, of every second position where there is a stride."""

    def __init__(self, weight, bias, channels, stride=1):
        super().__init__()
        self.weight, self.bias = torch.from_numpy(np.ascontiguousarray(weight)), torch.from_numpy(bias)
        self.channels, self.stride = channels, stride

    def forward(self, x, *_):
        x = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
        return functional.linear(x.movedim(self.channels, -1), self.weight, self.bias).movedim(-1, self.channels)


def patched(model, path, reference, channels=1, stride=1):
    """Return the model with the least-squares map in the place of a branch."""
    changed = copy.deepcopy(model)
    solution = by_numpy(*pairs(model, path, reference, channels, stride))
    changed.set_submodule(path, Map(*solution, channels, stride))
    return changed


def losses(model, x=None):
    with torch.no_grad():
        return functional.cross_entropy(model(images() if x is None else x), LABELS, reduction="none")


def test_the_map_is_that_of_least_squares():
    net, model = network()
    lesioned = net.lesioned(["blocks.1"], ablation="linear", reference=images(40), ridge=0)
    weight, bias = by_numpy(*pairs(model, "blocks.1.branch", images(40), 1))
    found = lesioned.schedule.linear[1]
    np.testing.assert_allclose(found.weight, weight, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.bias, bias, rtol=1e-9, atol=1e-12)
    assert (found.dim, found.strides) == (-3, (1, 1, 1, 1))


def test_a_ridge_is_relative_to_the_mean_variance_of_the_channels():
    net, model = network()
    found = net.lesioned([1], ablation="linear", reference=images(40), ridge=0.3).schedule.linear[1]
    x, y = pairs(model, "blocks.1.branch", images(40), 1)
    x, y = x - x.mean(0), y - y.mean(0)
    scale = np.sqrt(0.3 * (x**2).sum() / x.shape[1])
    rows = np.vstack([x, scale * np.eye(x.shape[1])]), np.vstack([y, np.zeros((x.shape[1], y.shape[1]))])
    np.testing.assert_allclose(found.weight, np.linalg.lstsq(*rows, rcond=None)[0].T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "block", "path", "channels", "stride"),
    [
        (PreActivation, "blocks.0", "blocks.0.branch", 1, 1),
        (PostActivation, "plain", "plain.branch", 1, 1),
        (PostActivation, "padded", "padded.branch", 1, 2),
        (PostActivation, "projected", "projected.branch", 1, 2),
    ],
)
def test_outputs_are_those_of_a_model_with_the_map_in_the_branchs_place(make, block, path, channels, stride):
    net, model = network(make)
    reference = images(40, seed=5)
    found = rpp.BlockLesion(net).attribute(
        images(), LABELS, lesions=[block], ablation="linear", reference=reference, ridge=0
    )
    expected = losses(patched(model, path, reference, channels, stride))
    np.testing.assert_allclose(found.loss[0], expected, rtol=1e-6)
    assert not np.allclose(found.loss[0], rpp.BlockLesion(net).attribute(images(), LABELS, lesions=[block]).loss[0])


def test_tokens_have_their_channels_last():
    net, model = network(Transformer)
    for block, path in (("layers.0.mlp", "layers.0.mlp"), ("layers.1.attn", "layers.1.attn")):
        found = rpp.BlockLesion(net).attribute(
            images(), LABELS, lesions=[block], ablation="linear", reference=images(40), ridge=0
        )
        changed, norm = copy.deepcopy(model), "norm2" if path.endswith("mlp") else "norm1"
        x, _ = pairs(model, f"layers.{path[7]}.{norm}", images(40), -1)
        _, y = pairs(model, path, images(40), -1)
        weight, bias = by_numpy(x, y)
        layer = changed.layers[int(path[7])]
        layer.set_submodule(norm, nn.Identity())
        changed.set_submodule(path, Map(weight, bias, -1))
        np.testing.assert_allclose(found.loss[0], losses(changed), rtol=1e-6)


def test_vectors_are_positions_of_their_own_and_scales_count():
    torch.manual_seed(0)
    model = Vectors(Alpha(), Residual(mlp())).double().eval()
    x = torch.randn(40, 7, dtype=torch.float64)
    found = rpp.BlockLesion(model).attribute(x[:7], LABELS, ablation="linear", lesions=[0], reference=x, ridge=0)
    changed = patched(model, "middle.0.branch", x, -1)
    np.testing.assert_allclose(found.loss[0], losses(changed, x[:7]), rtol=1e-6)


def test_a_branch_that_is_linear_over_channels_is_not_missed():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mix = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return x + self.mix(self.norm(x))

    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Linear(), nn.Flatten(), nn.Linear(64, 5)))
    found = rpp.BlockLesion(model.double().eval()).attribute(images(40), 0, ablation="linear", ridge=0)
    np.testing.assert_allclose(found.target_score_drop, 0, atol=1e-6)
    np.testing.assert_allclose(found.explained_variance, 1, rtol=1e-12)
    assert (rpp.BlockLesion(model).attribute(images(40), 0).kl_divergence > 1e-4).all()


def test_the_explained_variance_is_that_of_the_residuals():
    net, model = network()
    found = rpp.BlockLesion(net).attribute(images(), LABELS, lesions=[0, 2], ablation="linear", ridge=0)
    for block in (0, 2):
        x, y = pairs(model, f"blocks.{block}.branch", images(), 1)
        weight, bias = by_numpy(x, y)
        rest = ((x @ weight.T + bias - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
        np.testing.assert_allclose(found.explained_variance[block], 1 - rest, rtol=1e-9)
    assert np.isnan(found.explained_variance[1])
    assert found.attrs["ridge"] == 0


def test_a_reference_in_batches_gives_the_same_map():
    net, _ = network()
    reference = images(300)
    whole = net.lesioned([1], ablation="linear", reference=reference).schedule.linear[1]
    for given in (
        DataLoader(TensorDataset(reference), batch_size=7),
        [(batch, None) for batch in reference.split(64)],
        [{"inputs": reference[:1]}, {"inputs": reference[1:]}],
        (reference,),
    ):
        found = net.lesioned([1], ablation="linear", reference=given).schedule.linear[1]
        torch.testing.assert_close(found.weight, whole.weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.bias, whole.bias, rtol=1e-9, atol=1e-12)


def test_channels_that_never_vary_have_no_weight_without_a_ridge():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
            self.register_buffer("alive", torch.tensor([1.0, 1, 0, 1])[:, None, None])

        def forward(self, x):
            x = x * self.alive
            return x + self.branch(x)

    net = rpp.unravel(nn.Sequential(nn.Conv2d(3, 4, 1), Dead()).double().eval(), images())
    for ridge in (0, None):
        weight = net.lesioned([0], ablation="linear", reference=images(), ridge=ridge).schedule.linear[0].weight
        assert torch.equal(weight[:, 2], torch.zeros(4, dtype=torch.float64))


def test_lesions_side_by_side_are_those_one_by_one():
    net, _ = network(PostActivation)
    sets = [[0], [1], [2], [0, 1], [2, 3], [0, 1, 2, 3], []]
    options = {"lesions": sets, "ablation": "linear", "reference": images(40)}
    one, many = (
        rpp.BlockLesion(net).attribute(images(), LABELS, perturbations_per_eval=width, **options) for width in (1, 5)
    )
    np.testing.assert_allclose(many.loss, one.loss, rtol=1e-6)
    for gone, loss in zip(sets, one.loss.values, strict=True):
        view = net.lesioned(gone, ablation="linear", reference=images(40))
        np.testing.assert_allclose(losses(view), loss, rtol=1e-6)


RUNNING = [name for name, case in CASES.items() if case.blocks]


def leaves_of(module, inputs):
    with torch.no_grad():
        return [leaf for leaf in torch.utils._pytree.tree_leaves(module(*inputs)) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("ablation", ["mean", "linear"])
def test_any_kind_of_block_is_pruned_as_it_is_lesioned(name, ablation):
    net, _, inputs = unraveled(name, torch.float64)
    for gone in [*([block] for block in net.blocks), list(net.blocks)]:
        options = {"ablation": ablation, "reference": inputs}
        pruned = leaves_of(net.pruned(gone, **options, training=False), inputs)
        assert all(map(torch.equal, pruned, leaves_of(net.lesioned(gone, **options), inputs)))
        assert not all(map(torch.equal, pruned, leaves_of(net.lesioned(gone), inputs)))


def test_a_branch_within_a_deleted_branch_is_replaced_where_that_runs():
    torch.manual_seed(0)
    model = randomised(Vectors(Nested(), Nested())).double().eval()
    x = torch.randn(40, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    inner = net.lesioned("middle.1.branch.0", ablation="linear", reference=x, ridge=0)
    swapped = rpp.Schedule.order(net, [0, 1, 5, 3, 4, 2])  # the outer branches trade places
    schedule = rpp.Schedule.from_rows(net, {**swapped.rows, 3: ()}, linear={3: inner.schedule.linear[3]})
    changed = patched(model, "middle.1.branch.0.branch", x, -1)
    first, second = changed.middle
    value = changed.stem(x)
    value = value + second.branch(value)
    value = value + first.branch(value)
    torch.testing.assert_close(net.scheduled(schedule)(x), changed.head(value))
    torch.testing.assert_close(net.scheduled(schedule).to_module(training=False)(x), changed.head(value))


def test_gradients_flow_through_the_map():
    net, model = network()
    x = images().requires_grad_()
    view = net.lesioned([1], ablation="linear", reference=images(40), ridge=0)
    functional.cross_entropy(view(x), LABELS).backward()
    other = images().requires_grad_()
    functional.cross_entropy(patched(model, "blocks.1.branch", images(40))(other), LABELS).backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-7, atol=1e-10)


def test_nothing_of_the_model_is_changed():
    model = randomised(PreActivation()).double().train()
    before = state_of(model)
    rpp.BlockLesion(model).attribute(images(), LABELS, ablation="linear")
    net = rpp.unravel(model, images())
    net.pruned(1, ablation="linear", reference=images())
    with pytest.raises(InputError):
        net.pruned(1, ablation="linear", reference=images()[:, :2])
    assert_same_state(before, state_of(model))


# What it becomes outside


def test_a_stand_in_learns_with_the_rest():
    net, _ = network()
    pruned = net.pruned(1, ablation="linear", reference=images(40))
    names = {name for name, _ in pruned.named_parameters()}
    assert {"linear_stand_in_1.weight", "linear_stand_in_1.bias"} < names
    assert not any(name.startswith("blocks.1.") for name in names)
    before = {name: parameter.detach().clone() for name, parameter in pruned.named_parameters()}
    pruned.train()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(pruned(images()), LABELS).backward()
        optimizer.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in pruned.named_parameters())
    other = net.pruned(1, ablation="linear", reference=images(8))
    other.load_state_dict(pruned.state_dict())
    assert torch.equal(other.eval()(images()), pruned.eval()(images()))


@pytest.mark.parametrize("ablation", ["mean", "linear"])
def test_it_is_exported(ablation, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    torch.manual_seed(0)
    model = randomised(PostActivation()).eval()
    batch = images().float()
    net = rpp.unravel(model, batch)
    pruned = net.pruned(["plain", "projected"], ablation=ablation, reference=batch)
    expected = net.lesioned(["plain", "projected"], ablation=ablation, reference=batch)(batch)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(pruned, (batch[:3],), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(batch), expected)
    torch.onnx.export(pruned, (batch[:3],), dynamo=True, dynamic_shapes=shapes, verbose=False).save(tmp_path / "s.onnx")
    session = runtime.InferenceSession(tmp_path / "s.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("test_vit", -1), ("test_convnext2", -3), pytest.param("torchvision/swin_t", -1, marks=pytest.mark.zoo)],
)
def test_architectures_are_pruned_with_linear_maps(name, dim):
    options = {"img_size": 64} if name == "test_vit" else {}
    model = torchvision.models.swin_t() if name == "torchvision/swin_t" else timm.create_model(name, **options)
    model = randomised(model).eval()
    batch = torch.randn(3, 3, 64, 64)
    net = rpp.unravel(model, batch)
    gone = net.blocks[:: max(1, len(net.blocks) // 4)]
    pruned = net.pruned(gone, ablation="linear", reference=batch, training=False)
    lesioned = net.lesioned(gone, ablation="linear", reference=batch)
    with torch.no_grad():
        assert torch.equal(pruned(batch), lesioned(batch))
    assert {one.dim for one in lesioned.schedule.linear.values()} == {dim}


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablation": "zero", "ridge": 0.1}, "leave it out"),
        ({"ablation": "linear", "ridge": -1.0}, "ridge must be"),
        ({"ablation": "linear", "ridge": float("nan")}, "ridge must be"),
        ({"ablation": "linear", "ridge": "much"}, "ridge must be"),
        ({"ablation": "linear", "ridge": True}, "ridge must be"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    net, _ = network()
    for call in (
        lambda: rpp.BlockLesion(net).attribute(images(), LABELS, **options),
        lambda: net.pruned(0, reference=images(), **options),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("reference", [None, 3, "images", [], iter([])])
def test_a_reference_is_asked_for(reference):
    net, _ = network()
    for ablation in ("mean", "linear"):
        with pytest.raises(InputError, match="reference"):
            net.pruned(0, ablation=ablation, reference=reference)
    with pytest.raises(InputError, match="must be one of 'zero', 'mean', 'linear'"):
        net.lesioned(0, ablation="resample", reference=images())
    with pytest.raises(InputError, match="leave it out"):
        net.lesioned(0, reference=images())


def test_layers_have_no_stand_ins():
    net = rpp.unravel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(3, 4), units="layers")
    with pytest.raises(InputError, match="layers have none"):
        net.lesioned(0, ablation="linear", reference=torch.randn(3, 4))


class PooledTokens(nn.Module):
    """Every second token is left: of a sequence, a stride tells nothing."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return tokens[:, ::2] + self.layer(tokens)[:, ::2]


class Cropped(nn.Module):
    """Its branch has fewer positions than its source, and no stride."""

    def __init__(self):
        super().__init__()
        self.skip, self.branch = nn.AvgPool2d(3, 1), nn.Sequential(nn.Conv2d(3, 3, 3), nn.Tanh())

    def forward(self, x):
        return self.skip(x) + self.branch(x)


class OverBatch(nn.Module):
    """Its branch is computed in the form of one row, where nothing tells channels from positions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(108, 108)

    def forward(self, x):
        return x + self.layer(x.flatten(1)).view_as(x)


@pytest.mark.parametrize(
    ("make", "reason"), [(PooledTokens, "no stride"), (Cropped, "no stride"), (OverBatch, "no operator of its branch")]
)
def test_blocks_without_a_map_are_refused_by_name(make, reason):
    net = rpp.unravel(nn.Sequential(nn.ReLU(), make()).double(), images())
    assert len(net.blocks) == 1
    with pytest.raises(InputError, match=f"'1.*' allows none: .*{reason}"):
        net.lesioned(0, ablation="linear", reference=images())


def centre(stride, kernel, padding):
    """Return a convolution that takes the middle position of each window; its branch is a map of that position."""
    made = nn.Conv2d(3, 3, kernel, stride=stride, padding=padding)
    with torch.no_grad():
        made.weight.zero_()
        made.weight[:, :, kernel // 2, kernel // 2] = torch.randn(3, 3)
    return made


class Strided(nn.Module):
    """Its skip and its branch have fewer positions than its source."""

    def __init__(self, *branch, skip=None, step=slice(None, None, 2)):
        super().__init__()
        self.branch, self.skip, self.step = nn.Sequential(*branch), skip, step

    def forward(self, x):
        skip = x[:, :, self.step, self.step] if self.skip is None else self.skip(x)
        return skip + self.branch(x)


def strided(branch, size=8, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Strided(*branch, **options)).double().eval()
    return rpp.unravel(model, images(size=size)), model


@pytest.mark.parametrize(
    ("branch", "size", "stride"),
    [
        ([centre(2, 3, 1)], 8, 2),
        ([centre(2, 3, 1)], 7, 2),
        ([centre(2, 1, 0)], 7, 2),
        ([nn.ReflectionPad2d(1), centre(2, 3, 0)], 8, 2),
        ([centre(1, 3, 1), nn.BatchNorm2d(3), centre(2, 5, 2), centre(2, 3, 1)], 9, 4),
    ],
)
def test_a_stride_is_that_of_the_branchs_windows(branch, size, stride):
    net, model = strided(branch, size, step=slice(None, None, stride))
    fitted = net.lesioned(0, ablation="linear", reference=images(40, size=size), ridge=0)
    assert fitted.schedule.linear[0].strides == (1, 1, stride, stride)
    x = images(size=size)
    with torch.no_grad():  # of each window the branch reads its middle alone, so that the map is exact
        torch.testing.assert_close(fitted(x), model(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("branch", "options"),
    [
        ([centre(2, 3, 0)], {"step": slice(1, -1, 2)}),
        ([nn.ZeroPad2d((0, 1, 0, 1)), centre(2, 3, 0)], {}),
        ([nn.AdaptiveAvgPool2d(1), centre(1, 1, 0)], {"skip": nn.AvgPool2d(8)}),
        ([centre(1, 3, 1), nn.AvgPool2d(8)], {"skip": nn.AvgPool2d(8)}),
        ([nn.AdaptiveAvgPool2d(4), centre(1, 1, 0)], {}),
    ],
)
def test_windows_that_lie_elsewhere_are_refused(branch, options):
    net, _ = strided(branch, **options)
    with pytest.raises(InputError, match=r"'1' allows none: .*no stride"):
        net.lesioned(0, ablation="linear", reference=images(size=8))


@pytest.mark.parametrize("ablation", ["mean", "linear"])
def test_what_is_fitted_in_inference_mode_can_be_differentiated(ablation):
    net, _ = network()
    with torch.inference_mode():
        view = net.lesioned([1], ablation=ablation, reference=images())
    x = images().requires_grad_()
    functional.cross_entropy(view(x), LABELS).backward()
    other = images().requires_grad_()
    functional.cross_entropy(net.lesioned([1], ablation=ablation, reference=images())(other), LABELS).backward()
    assert torch.equal(x.grad, other.grad)


@pytest.mark.parametrize("ablation", ["mean", "linear"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reference_that_is_not_finite_is_refused_by_name(ablation, value):
    net, _ = network()
    reference = images()
    reference[2, 0, 1, 1] = value
    with pytest.raises(InputError, match=r"'blocks.1' the reference gives values that are not finite"):
        net.lesioned([1], ablation=ablation, reference=reference)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"bias": torch.zeros(1, dtype=torch.float64)}, "bias of shape"),
        ({"weight": torch.zeros(4, dtype=torch.float64)}, "weight of shape"),
        ({"bias": torch.zeros(4)}, "one dtype"),
        ({"weight": torch.eye(4), "bias": torch.zeros(4)}, "its source of torch.float64"),
        ({"dim": 1}, "from -4 to -1"),
        ({"dim": -5}, "from -4 to -1"),
        ({"strides": (1, 2, 1, 1)}, "1 at the channels"),
        ({"strides": (1, 1, 0, 1)}, "at least 1"),
        ({"strides": (2, 1, 1, 1)}, "1 at the batch"),
        ({"strides": (1, 1, 1)}, "needs 4 strides"),
        ({"strides": (1, 1, 1, 1, 1), "dim": -4}, "needs 4 strides"),
    ],
)
def test_maps_whose_parts_do_not_fit_are_refused(parts, message):
    net, _ = network()
    good = {
        "weight": torch.eye(4, dtype=torch.float64),
        "bias": torch.zeros(4, dtype=torch.float64),
        "dim": -3,
        "strides": (1, 1, 1, 1),
    }
    with pytest.raises((InputError, ScheduleError), match=message):
        rpp.Schedule.from_rows(net, {0: ()}, linear={0: rpp.LinearMap(**{**good, **parts})})
    assert rpp.Schedule.from_rows(net, {0: ()}, linear={0: rpp.LinearMap(**good)}).changes(0)


def test_schedules_with_maps_that_do_not_fit_are_refused():
    net, _ = network(PostActivation)
    good = net.lesioned(["plain"], ablation="linear", reference=images()).schedule.linear[0]
    with pytest.raises(ScheduleError, match="does not take its source"):
        rpp.Schedule.from_rows(net, {1: ()}, linear={1: good})
    with pytest.raises(ScheduleError, match="4 blocks, counted from 0"):
        rpp.Schedule.from_rows(net, {}, linear={7: good})
    assert rpp.Schedule.from_rows(net, {0: ()}, linear={0: good}).changes(0)


def test_a_part_of_the_model_that_is_called_like_a_stand_in_is_refused():
    model = randomised(PreActivation()).double().eval()
    model.add_module("linear_stand_in_1", nn.Linear(2, 2))
    net = rpp.unravel(model, images())
    with pytest.raises(InputError, match="'linear_stand_in_1', a name that is taken"):
        net.pruned(1, ablation="linear", reference=images())


def test_a_study_of_schedules_says_where_a_map_is_added():
    net, _ = network()
    schedule = net.lesioned([1], ablation="linear", reference=images()).schedule
    found = rpp.BlockSchedules(net).attribute(images(), LABELS, schedules={"linear": schedule})
    assert found.linear_added.values.tolist() == [[False, True, False]]
    lesions = rpp.BlockLesion(net).attribute(images(), LABELS, lesions=[1], ablation="linear")
    np.testing.assert_allclose(found.loss, lesions.loss, rtol=1e-6)


# A trained network


@needs_cifar
def test_linear_maps_harm_a_trained_network_less_than_nothing_on_held_out_images():
    x, labels = images_and_labels()
    net = rpp.unravel(trained(56), x[:2])
    blocks = list(range(1, 27, 3))
    held_out = x[64:128], labels[64:128]
    zero = rpp.BlockLesion(net).attribute(*held_out, lesions=blocks)
    linear = rpp.BlockLesion(net).attribute(*held_out, lesions=blocks, ablation="linear", reference=x[:64])
    effects = [float((found.loss - found.intact_loss).mean("sample").median()) for found in (zero, linear)]
    assert effects[1] < effects[0]
