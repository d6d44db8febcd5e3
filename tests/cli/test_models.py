"""Models by name and their weights, as the command line takes them."""

import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from resnet_paths_plugin import demo
from resnet_paths_plugin.cli.models import EMBEDDED, build_model, check_device, draws_weights
from resnet_paths_plugin.errors import FileError, InputError, ModelNotFoundError, ResnetPathsError
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.manager import create_plugin_manager as create_manager
from resnet_paths_plugin.plugins.weights import load_weights

SOURCE = """
from torch import nn

class Makers:
    @staticmethod
    def double():
        return nn.Linear(2, 2).double()

def no_module():
    return 42

def failing():
    raise RuntimeError("out of luck\\nsecond line")

def needs_more(width):
    return nn.Linear(width, width)

number = 42
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with modules to import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    (tmp_path / "own_models.py").write_text(SOURCE)
    (tmp_path / "broken_import.py").write_text("import not_installed")
    (tmp_path / "broken_code.py").write_text("def build(:")
    (tmp_path / "exiting.py").write_text("raise SystemExit(3)")
    yield tmp_path
    for name in ("own_models", "broken_import", "broken_code", "exiting"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def manager():
    return create_manager()


def build(spec, manager, *, pretrained=False):
    return build_model(spec, pretrained=pretrained, plugin_manager=manager)


@pytest.mark.usefixtures("place")
def test_a_callable_of_a_module_in_the_current_folder_makes_a_model(manager):
    model = build("own_models:Makers.double", manager)
    assert model.weight.dtype == torch.float64


def test_a_plugin_makes_a_librarys_model(manager):
    model = build("torchvision/resnet18", manager)
    assert isinstance(model, torchvision.models.ResNet)


def test_the_embedded_network_has_its_weights_and_a_description(manager):
    model = build(EMBEDDED, manager, pretrained=True)
    assert plugins.describe(model, manager) == demo.describe(model)
    shipped = demo.load_network().state_dict()
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in model.state_dict().items())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("resnet50", ModelNotFoundError, "'resnet50' names no model: expected library/name"),
        ("timm/resnet5000", ModelNotFoundError, "timm .* has no model 'resnet5000'; the nearest names are"),
        ("nowhere/resnet50", ModelNotFoundError, "no plugin loads models of 'nowhere'"),
        ("resnet_paths_plugin/other", ModelNotFoundError, "has no network 'other'"),
        ("no_such_module:build", ModelNotFoundError, "there is no module 'no_such_module' in"),
        ("no_such_package.models:build", ModelNotFoundError, "there is no module 'no_such_package.models' in"),
        ("own_models:nothing", ModelNotFoundError, "has no attribute 'nothing'"),
        ("own_models:number", InputError, "is a int: expected something to call"),
        ("own_models:no_module", InputError, r"returned a int: it must return a torch\.nn\.Module"),
        ("own_models:failing", ResnetPathsError, "without arguments failed: RuntimeError: out of luck$"),
        ("own_models:needs_more", ResnetPathsError, "without arguments failed: TypeError: .*'width'"),
        ("broken_import:build", ResnetPathsError, "cannot be imported: ModuleNotFoundError: .*'not_installed'"),
        ("broken_code:build", ResnetPathsError, "cannot be imported: SyntaxError"),
        ("exiting:build", ResnetPathsError, "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_model_that_cannot_be_made_says_why(manager, spec, kind, message):
    with pytest.raises(kind, match=message):
        build(spec, manager)


@pytest.mark.usefixtures("place")
def test_a_callable_has_no_pretrained_weights(manager):
    with pytest.raises(InputError, match="has no pretrained weights to choose"):
        build("own_models:Makers.double", manager, pretrained=True)


def test_a_download_that_fails_is_told_in_one_line(manager, monkeypatch):
    def fails(**_):
        raise OSError("no route to host\nadvice for developers")

    monkeypatch.setattr(plugins, "load_model", lambda _, **__: fails())
    with pytest.raises(ResnetPathsError, match=r"timm/resnet18 could not be built: OSError: no route to host$"):
        build("timm/resnet18", manager, pretrained=True)


# Weights


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def test_weights_of_a_file_are_loaded_parameters_and_buffers(tmp_path):
    source, target = network(), network()
    source[1].running_mean.fill_(3)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(target, tmp_path / "weights.safetensors")
    expected = source.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {name: tensors[name] for name in tensors if name[0] != "3"}, ": 3.bias, 3.weight missing$"),
        (lambda tensors: tensors | {"extra": torch.ones(1)}, ": extra unexpected$"),
        (
            lambda tensors: tensors | {"3.weight": torch.ones(7, 4)},
            r": 3.weight \(7, 4\) instead of \(5, 4\) of another shape$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_told_by_name(tmp_path, change, message):
    file = tmp_path / "other.safetensors"
    save_file(change(network().state_dict()), file)
    with pytest.raises(FileError, match=f"other.safetensors are not those of a Sequential{message}"):
        load_weights(network(), file)


def test_weights_that_two_names_share_are_needed_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = self.first

    source, once, twice = Tied(), Tied(), Tied()
    tensors = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    save_file(tensors, tmp_path / "twice.safetensors")
    save_file({name: tensors[name] for name in tensors if "first" in name}, tmp_path / "once.safetensors")
    load_weights(once, tmp_path / "once.safetensors")
    load_weights(twice, tmp_path / "twice.safetensors")
    assert torch.equal(once.second.weight, source.first.weight)
    assert torch.equal(twice.second.weight, source.first.weight)


class Harmful:
    """Unpickled, it ends the tests."""

    def __reduce__(self):
        return sys.exit, ("unpickled",)


def test_weights_of_another_format_are_refused_and_never_unpickled(tmp_path):
    torch.save({"weight": Harmful()}, tmp_path / "weights.pt")
    with pytest.raises(FileError, match=r"weights\.pt is no complete safetensors file .*safetensors\.torch\.save_file"):
        load_weights(network(), tmp_path / "weights.pt")


def test_half_a_weights_file_is_refused(tmp_path):
    file = tmp_path / "half.safetensors"
    save_file(network().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(FileError, match=r"half\.safetensors is no complete safetensors file"):
        load_weights(network(), file)


@pytest.mark.parametrize("name", ["none.safetensors", "."])
def test_a_missing_weights_file_is_named(tmp_path, name):
    with pytest.raises(FileError, match=r"is (missing|a folder): expected weights in a safetensors file"):
        load_weights(network(), tmp_path / name)


# Devices


@pytest.mark.parametrize("name", ["nonsense", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(InputError, match=f"device '{name}' cannot be used here"):
        check_device(name)


def test_the_cpu_is_a_device():
    assert check_device("cpu") == torch.device("cpu")


def test_weights_without_the_counters_of_batch_norm_are_loaded(tmp_path):
    source, target = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
    nn.init.normal_(source[1].running_mean)
    state = {name: tensor for name, tensor in source.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "weights.safetensors")
    load_weights(target, tmp_path / "weights.safetensors")
    for name, tensor in state.items():
        assert torch.equal(target.state_dict()[name], tensor), name


WEIGHTED = """
import torch
from torch import nn

CALLS = []

def drawn():
    CALLS.append("drawn")
    return nn.Linear(3, 2)

def loaded():
    model = nn.Linear(3, 2)
    model.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    return model

def half_loaded():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].load_state_dict({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    return model

ONE = nn.Linear(3, 2)

def kept():
    torch.rand(1)
    return ONE

def once():
    if CALLS:
        raise RuntimeError("once only")
    CALLS.append("once")
    return nn.Linear(3, 2)
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("drawn", True), ("half_loaded", True), ("loaded", False), ("kept", False), ("once", False)],
)
def test_random_weights_are_those_that_another_seed_makes_others(tmp_path, monkeypatch, name, expected):
    (tmp_path / "weighted_models.py").write_text(WEIGHTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "weighted_models", raising=False)
    manager = create_manager()
    torch.manual_seed(3)
    model = build_model(f"weighted_models:{name}", pretrained=False, plugin_manager=manager)
    before = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    assert draws_weights(f"weighted_models:{name}", model, 3, manager) is expected
    assert all(torch.equal(value, before[0][key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])
    monkeypatch.delitem(sys.modules, "weighted_models")
