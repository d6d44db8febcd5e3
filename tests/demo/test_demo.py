"""Claims about the embedded networks and digits."""

import importlib.util
import pickle
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from resnet_paths_plugin import demo
from resnet_paths_plugin.demo.networks import ConvolutionLayer, PreActivationBlock
from resnet_paths_plugin.errors import FileError, InputError, ModelNotFoundError, ResnetPathsError

pytestmark = pytest.mark.slow

N_DIGITS = 1797
WEIGHTS = [Path(demo.__file__).with_name(f"{name}.safetensors") for name in demo.ARCHITECTURES]
CHANCE_ERROR = 0.9


@pytest.fixture(scope="module")
def held_out():
    return demo.load_digits()


def error_of(network, inputs, labels):
    with torch.no_grad():
        return (network(inputs).argmax(1) != labels).double().mean().item()


def error_without_branches(network, blocks, inputs, labels):
    """Delete by zeroing what each branch's last convolution puts out: nothing of the library under study."""
    handles = [block.conv2.register_forward_hook(lambda _m, _i, output: output * 0) for block in blocks]
    try:
        return error_of(network, inputs, labels)
    finally:
        for handle in handles:
            handle.remove()


def blocks_of(network):
    return [module for module in network.modules() if isinstance(module, PreActivationBlock)]


@pytest.fixture(scope="module")
def single_deletion_errors(held_out):
    network = demo.load_network()
    return np.array([error_without_branches(network, [b], *held_out) for b in blocks_of(network)])


def test_the_residual_network_has_54_blocks_of_which_two_change_the_resolution():
    network = demo.load_network()
    names = [name for name, module in network.named_modules() if isinstance(module, PreActivationBlock)]
    assert names == [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(18)]
    shapes = {}
    for name, block in zip(names, blocks_of(network), strict=True):
        block.register_forward_hook(
            lambda _m, inputs, output, name=name: shapes.update({name: (inputs[0].shape, output.shape)})
        )
    network(torch.zeros(2, 1, 8, 8))
    assert [name for name in names if shapes[name][0] != shapes[name][1]] == ["layer2.0", "layer3.0"]


@pytest.mark.parametrize(("name", "n_layers"), [(demo.RESNET, 110), (demo.PLAIN, 15)])
def test_the_names_tell_the_number_of_weighted_layers(name, n_layers):
    network = demo.build_network(name, pretrained=False)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == n_layers


def test_eleven_layers_of_the_plain_network_keep_their_input_shape():
    network = demo.load_plain_network()
    kept = []
    for layer in network.modules():
        if isinstance(layer, ConvolutionLayer):
            layer.register_forward_hook(lambda _m, i, o: kept.append(i[0].shape == o.shape))
    network(torch.zeros(2, 1, 8, 8))
    assert (len(kept), sum(kept)) == (14, 11)


@pytest.mark.parametrize("load", [demo.load_network, demo.load_plain_network])
def test_at_least_95_percent_of_the_held_out_digits_are_right(load, held_out):
    network = load()
    assert not network.training
    assert error_of(network, *held_out) <= 0.05


def test_a_projection_block_without_its_branch_keeps_every_second_position_and_adds_empty_channels():
    block = demo.load_network().layer2[0]
    x = torch.randn(3, 8, 8, 8)
    out = block(x) - block.branch(x)
    torch.testing.assert_close(out[:, :8], x[:, :, ::2, ::2], rtol=0, atol=1e-4)
    torch.testing.assert_close(out[:, 8:], torch.zeros(3, 8, 4, 4), rtol=0, atol=1e-4)


def test_the_error_rises_smoothly_with_deletions_from_near_zero_to_near_chance(held_out):
    network = demo.load_network()
    blocks = blocks_of(network)
    inputs, labels = (tensor[::3] for tensor in held_out)
    rng = np.random.default_rng(0)
    mean_error = [
        np.mean(
            [error_without_branches(network, rng.choice(blocks, d, replace=False), inputs, labels) for _ in range(10)]
        )
        for d in (0, 1, 5, 10, 15, 20)
    ]
    assert mean_error[1] < 0.1
    assert all(more > less for less, more in pairwise(mean_error))
    assert 0.75 < mean_error[-1] < CHANCE_ERROR + 0.05


def test_few_single_deletions_hurt_and_those_that_change_the_resolution_stand_out(single_deletion_errors):
    assert (single_deletion_errors > 0.05).sum() <= 8
    for first in (18, 36):
        stage = single_deletion_errors[first : first + 18]
        assert stage.argmax() == 0
        assert stage[0] > 2 * np.median(stage)


def test_a_deleted_layer_of_the_plain_network_costs_far_more_than_a_deleted_block(held_out, single_deletion_errors):
    network = demo.load_plain_network()
    errors = []
    for stage in (network.layer1, network.layer2, network.layer3):
        for i in range(1, len(stage)):
            layer, stage[i] = stage[i], nn.Identity()
            errors.append(error_of(network, *held_out))
            stage[i] = layer
    assert np.min(errors) > 0.5
    assert np.median(single_deletion_errors) < 0.02


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_the_weights_are_shipped_under_two_megabytes(path):
    assert 0 < path.stat().st_size < 2e6


@pytest.mark.parametrize("name", demo.ARCHITECTURES)
def test_every_tensor_of_the_network_comes_from_the_file(name):
    network = demo.build_network(name)
    with safetensors.safe_open(Path(demo.__file__).with_name(f"{name}.safetensors"), "pt") as file:
        assert set(file.keys()) == set(network.state_dict())
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor, file.get_tensor(key))


def test_the_split_is_disjoint_complete_stratified_and_fixed():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    (train, train_labels), (held, held_labels) = demo.load_digit_images("train"), demo.load_digit_images()
    assert (len(train), len(held)) == (1195, 602)
    source = [image.tobytes() for image in sklearn_datasets.load_digits().images.astype(np.uint8)]
    scaled_back = [np.rint(i[..., 0] / 255 * 16).astype(np.uint8).tobytes() for i in (*train, *held)]
    # The data set has no image twice, so equal multisets mean a partition.
    assert len(set(source)) == N_DIGITS
    assert sorted(scaled_back) == sorted(source)
    share = np.bincount(held_labels) / (np.bincount(held_labels) + np.bincount(train_labels))
    assert np.all(np.abs(share - 1 / 3) < 0.005)
    assert held_labels[:12].tolist() == HELD_OUT_LABELS
    np.testing.assert_array_equal(held, demo.load_digit_images("held_out")[0])


# The data set starts with 0..9 three times, then 0, 9, ...: each class's first image, then its fourth.
HELD_OUT_LABELS = [*range(10), 0, 9]


def test_images_and_inputs_agree_through_the_declared_preprocessing():
    images, labels = demo.load_digit_images()
    inputs, targets = demo.load_digits()
    assert (images.dtype, images.shape, images.min(), images.max()) == (np.uint8, (602, 8, 8, 1), 0, 255)
    assert (inputs.dtype, inputs.shape, targets.dtype) == (torch.float32, (602, 1, 8, 8), torch.int64)
    mean, std = demo.PREPROCESSING.mean[0], demo.PREPROCESSING.std[0]
    np.testing.assert_allclose(inputs[:, 0].numpy() * std + mean, images[..., 0] / 255, atol=1e-6)
    np.testing.assert_array_equal(targets.numpy(), labels)


def test_the_declared_mean_and_deviation_are_those_of_the_data():
    pixels = np.concatenate([demo.load_digit_images(split)[0] for split in ("train", "held_out")]) / 255
    assert demo.PREPROCESSING.mean == pytest.approx([pixels.mean()], abs=1e-4)
    assert demo.PREPROCESSING.std == pytest.approx([pixels.std()], abs=1e-4)


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(InputError, match="'test'"):
        demo.load_digits("test")


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(demo.MissingScikitLearnError, match=r"resnet-paths-plugin\[demo\]") as caught:
        demo.load_digits()
    assert isinstance(caught.value, ResnetPathsError)
    assert isinstance(caught.value, ImportError)


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))])
def test_the_loader_refuses_a_pickle_without_running_it(write, tmp_path):
    path, touched = tmp_path / "weights.safetensors", tmp_path / "touched"
    write({"stem.weight": Canary(touched)}, path)
    with pytest.raises(FileError, match="safetensors"):
        demo.load_weights(demo.DigitsResNet(), path)
    assert not touched.exists()


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape"])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(damage, tmp_path):
    network = demo.DigitsPlainNet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = {name: tensor + 1 for name, tensor in before.items()}
    if damage == "missing":
        del weights["classifier.bias"]
    elif damage == "surplus":
        weights["classifier.scale"] = torch.zeros(1)
    else:
        weights["classifier.bias"] = torch.zeros(1)
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(FileError, match="classifier"):
        demo.load_weights(network, tmp_path / "weights.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_missing_file_and_an_unknown_network_have_their_own_errors(tmp_path):
    with pytest.raises(FileError, match="absent"):
        demo.load_weights(demo.DigitsPlainNet(), tmp_path / "absent.safetensors")
    with pytest.raises(ModelNotFoundError, match="digits_resnet110"):
        demo.build_network("digits_resnet20")


@pytest.mark.parametrize("name", demo.ARCHITECTURES)
def test_an_embedded_network_is_described(name):
    description = demo.describe(demo.build_network(name, pretrained=False))
    assert (description.library, description.architecture) == ("resnet_paths_plugin", name)
    assert description.input_shape == (1, 8, 8)
    assert description.class_names == tuple("0123456789")
    stages = [description.stage_of(module) for module in ("layer1.0", "layer2.1.conv1", "layer3.3", "stem")]
    assert stages == [0, 1, 2, None]


def test_a_stranger_is_not_described():
    assert demo.describe(nn.Linear(1, 1)) is None


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="the digits come with scikit-learn")
def test_the_training_script_writes_weights_that_load(tmp_path, monkeypatch):
    script = Path(__file__).parents[2] / "examples" / "train_demo.py"
    output = tmp_path / "plain.safetensors"
    options = ["--network", "plain", "--epochs", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    runpy.run_path(str(script), run_name="__main__")
    demo.load_weights(demo.DigitsPlainNet(), output)
