"""From words on the command line to a model: `library/name` or `module:callable`, its weights, its device.

It builds and loads; what the model computes is no concern of this module.
"""

import importlib
import re
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pluggy
import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from resnet_paths_plugin import demo, plugins
from resnet_paths_plugin.description import ModelDescription
from resnet_paths_plugin.errors import FileError, InputError, ModelNotFoundError, ResnetPathsError
from resnet_paths_plugin.hookspecs import hookimpl

EMBEDDED = f"{demo.LIBRARY}/{demo.RESNET}"
"""The embedded default, as `library/name`."""

_CALLABLE = re.compile(r"(?P<module>[\w.]+):(?P<name>[\w.]+)")
_NAMES_SHOWN = 3


class EmbeddedNetworks:
    """The plugin for the networks that come with this package."""

    @hookimpl
    def resnet_paths_describe_model(self, model: nn.Module) -> ModelDescription | None:
        """Describe an embedded network."""
        return demo.describe(model)

    @hookimpl
    def resnet_paths_load_model(self, spec: str, pretrained: bool) -> nn.Module | None:
        """Build an embedded network by its name."""
        library, _, name = spec.partition("/")
        return demo.build_network(name, pretrained=pretrained) if library == demo.LIBRARY else None


def create_manager() -> pluggy.PluginManager:
    """Return a plugin manager with the installed plugins and the one for the embedded networks."""
    manager = plugins.create_plugin_manager()
    manager.register(EmbeddedNetworks(), name=demo.LIBRARY)
    return manager


def build_model(spec: str, *, pretrained: bool, plugin_manager: pluggy.PluginManager) -> nn.Module:
    """Build the model that `library/name` or `module:callable` names.

    The module is imported with the current folder on the import path, which runs its code, and the callable
    is called without arguments.

    Args:
        spec: which model.
        pretrained: whether to load the library's pretrained weights.
        plugin_manager: whom to ask for a library's models.

    Raises:
        ModelNotFoundError: there is no such model, module or callable.
        InputError: the callable returned no module, or was to be pretrained.
        ResnetPathsError: the model could not be built.
    """
    named = _CALLABLE.fullmatch(spec)
    if named is None and "/" not in spec:
        raise ModelNotFoundError(
            f"{spec!r} names no model: expected library/name, such as 'timm/resnet50', or module:callable, "
            "such as 'mymodels:resnet20'"
        )
    if named is None:
        try:
            return plugins.load_model(spec, pretrained=pretrained, plugin_manager=plugin_manager)
        except ResnetPathsError:
            raise
        except Exception as error:
            raise ResnetPathsError(f"{spec} could not be built: {_told(error)}") from error
    if pretrained:
        raise InputError(f"{spec} has no pretrained weights to choose: let the callable load them, or give a file")
    model = _called(_imported(named["module"]), named["name"], spec)
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned a {type(model).__name__}: it must return a torch.nn.Module")
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy every parameter and buffer of a safetensors file into a model, in place.

    Nothing is unpickled. The names in file and model must be the same; what a model shares under two names
    needs to be there once.

    Raises:
        FileError: the file is missing or no safetensors file, or its names or shapes are not the model's.
    """
    if not path.is_file():
        raise FileError(f"there is no file {path}: expected weights in a safetensors file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"{path} is no complete safetensors file ({error}). Other formats are not read, since unpickling "
            "weights can run code: convert them with safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    reshaped = [
        f"{name} {shape} instead of {expected[name]}"
        for name, shape in shapes.items()
        if shape != expected.get(name, shape)
    ]
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    if not reshaped:
        missing, loaded_extra = safetensors.torch.load_model(model, path, strict=False)
        # What is shared counts as unexpected there where it is in the file under both names.
        unexpected = [name for name in loaded_extra if name not in expected]
    problems = [
        f"{_first(names)} {complaint}"
        for names, complaint in (
            (sorted(missing), "missing"),
            (sorted(unexpected), "unexpected"),
            (reshaped, "of another shape"),
        )
        if names
    ]
    if problems:
        raise FileError(f"the weights {path} are not those of a {type(model).__name__}: {'; '.join(problems)}")


def check_device(name: str) -> torch.device:
    """Return a device on which tensors can be made and read back.

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used here: {_told(error)}") from error
    return device


def _imported(module: str) -> object:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ModelNotFoundError(f"there is no module {module!r} in {folder} or among those installed") from error
        raise ResnetPathsError(f"module {module!r} cannot be imported: {_told(error)}") from error
    except (Exception, SystemExit) as error:
        raise ResnetPathsError(f"module {module!r} cannot be imported: {_told(error)}") from error


def _called(module: object, name: str, spec: str) -> Any:
    try:
        function = attrgetter(name)(module)
    except AttributeError as error:
        raise ModelNotFoundError(f"{spec}: {error}") from error
    if not callable(function):
        raise InputError(f"{spec} is a {type(function).__name__}: expected something to call without arguments")
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise ResnetPathsError(f"calling {spec} without arguments failed: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """Return the first line of an error, which some libraries follow by advice for developers."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
