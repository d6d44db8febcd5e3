"""From words on the command line to a model: `library/name` or `module:callable`, and its device."""

import importlib
import re
import sys
from importlib.machinery import PathFinder
from operator import attrgetter
from pathlib import Path
from typing import Any

import pluggy
import torch
from torch import nn

from resnet_paths_plugin import demo
from resnet_paths_plugin.errors import InputError, ModelNotFoundError, ResnetPathsError
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.weights import load_weights

EMBEDDED = f"{demo.LIBRARY}/{demo.RESNET}"
"""The embedded default, as `library/name`."""

_CALLABLE = re.compile(r"(?P<module>[\w.]+):(?P<name>[\w.]+)")


def build_model(spec: str, *, pretrained: bool, plugin_manager: pluggy.PluginManager) -> nn.Module:
    """Build the model that `library/name` or `module:callable` names.

    The module is imported with the current folder on the import path, which runs its code, and the callable
    is called without arguments.

    Args:
        spec: which model.
        pretrained: whether to load the library's pretrained weights.
        plugin_manager: the plugin manager that knows the libraries' models.

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
            raise ResnetPathsError(f"{spec} could not be built: {_first_line(error)}") from error
    if pretrained:
        raise InputError(f"{spec} has no pretrained weights to choose: let the callable load them, or give a file")
    model = _called(_imported(named["module"]), named["name"], spec)
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned a {type(model).__name__}: it must return a torch.nn.Module")
    return model


def files_of(spec: str) -> list[Path]:
    """Return the files of the module that `module:callable` names, and of the packages around it; imports nothing."""
    named = _CALLABLE.fullmatch(spec)
    folders: list[str] | None = [str(Path.cwd()), *sys.path]
    files: list[Path] = []
    for part in named["module"].split(".") if named else ():
        try:
            found = PathFinder.find_spec(part, folders)
        except (ImportError, ValueError):  # an empty name; a loader that fails
            break
        if found is None:
            break
        files += [Path(found.origin)] if found.has_location and found.origin else []
        folders = list(found.submodule_search_locations or ())
    return files


def check_device(name: str) -> torch.device:
    """Return a device on which tensors can be made and read back.

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used here: {_first_line(error)}") from error
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
        raise ResnetPathsError(f"module {module!r} cannot be imported: {_first_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ResnetPathsError(f"module {module!r} cannot be imported: {_first_line(error)}") from error


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
        raise ResnetPathsError(f"calling {spec} without arguments failed: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, which some libraries follow by advice for developers."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def load(spec: str, pretrained: bool, weights: Path | None, manager: pluggy.PluginManager) -> nn.Module:
    """Build the model and load its weights."""
    if pretrained and weights is not None and spec != EMBEDDED:
        raise InputError("give --pretrained or --weights, not both")
    place = weights and weights.absolute()  # as the code of a model may change the current folder
    model = build_model(spec, pretrained=pretrained, plugin_manager=manager)
    if place is not None:
        load_weights(model, place)
    return model


def draws_weights(spec: str, model: nn.Module, seed: int, manager: pluggy.PluginManager) -> bool:
    """Whether what `module:callable` makes has parameters that another seed of torch makes others.

    The callable is called once more, where it has drawn random numbers at all: a network that loads its weights draws
    its initial ones before. Random states are afterwards as they were.

    Args:
        spec: the model as `module:callable`.
        model: what it has made with the random state of the seed.
        seed: the seed.
        manager: the plugin manager.
    """
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed ^ 1)
        before = torch.get_rng_state()
        try:
            other = build_model(spec, pretrained=False, plugin_manager=manager)
        except ResnetPathsError:  # it can be called once only, as it seems
            return False
        if torch.equal(before, torch.get_rng_state()):
            return False
    pairs = zip(model.parameters(), other.parameters(), strict=False)
    return any(one.shape == two.shape and not torch.equal(one.cpu(), two.cpu()) for one, two in pairs)


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the dtype that the model computes in: that of its first floating-point parameter."""
    return next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
